"""Pages, model cards and tables of run folders. Imports no torch."""
