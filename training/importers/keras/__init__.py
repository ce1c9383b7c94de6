"""Keras files: reading them, their layers in our words, and publication."""
