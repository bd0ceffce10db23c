"""Bone-fracture detection on the FracAtlas radiographs."""

__version__ = "0.1.0"
