"""What runs a graph, and the named tensors that go in and come out."""
