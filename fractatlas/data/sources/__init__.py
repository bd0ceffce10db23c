"""Data sources: one module per data set layout on disk."""
