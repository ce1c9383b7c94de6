"""A stack of layers with its scaling and its head."""
