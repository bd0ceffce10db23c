"""Data sources: one module per data set or layout on disk, each with a class that extends ``source.Source``."""
