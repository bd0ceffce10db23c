"""Everything after the predictions table. Imports no torch."""
