"""Keras's layers, each in torch and in ONNX nodes; `registry.py` finds them by name."""
