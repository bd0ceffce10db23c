"""Configuration in, best monitored value out."""
