"""Hyperparameter search with Optuna that can be resumed and that several processes can share."""
