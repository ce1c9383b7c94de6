"""From a network to a model folder: the graph, its checks, its int8 twin, publication."""
