"""Keras's layers, each in torch and in ONNX nodes; `registry.py` knows them by name."""
