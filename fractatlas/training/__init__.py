"""Train a network, save and resume the training, and score the result."""
