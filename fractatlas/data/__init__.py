"""Files, catalogue, split, batches. Knows nothing of models."""
