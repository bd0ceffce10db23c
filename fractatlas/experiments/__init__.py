"""Experiments: plans of several trainings, their tables and figures, and probes of frozen features."""
