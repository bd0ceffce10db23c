"""Files, catalogue, split, batches. This package imports no models."""
