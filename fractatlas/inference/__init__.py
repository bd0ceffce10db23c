"""Load a trained network and apply it to images."""
