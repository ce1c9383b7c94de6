"""How ONNX nodes are written: a leaf that knows no layer."""
