"""Sluice's server: loads model folders into onnxruntime and answers forecasts and classifications over REST."""

__version__ = "0.2.0"
