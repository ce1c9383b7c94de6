"""ONNX files as model folders: read in bounds, checked against the file's own answers for a row alone, published."""
