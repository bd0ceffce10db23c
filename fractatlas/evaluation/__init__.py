"""Scores, intervals and comparisons of predictions. Imports no torch."""
