"""Hyperparameter search: what Hydra's Optuna sweeper needs to be resumable, parallel and readable."""
