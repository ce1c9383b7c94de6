"""What a model is worth: scores of the graph, and the baselines beside them."""
