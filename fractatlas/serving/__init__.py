"""Serve a trained network: a page and a JSON API."""
