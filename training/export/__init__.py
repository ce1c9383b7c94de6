"""From a network to a model folder: the graph, its verification, its int8 form, publication."""
