"""A stack of layers between a task's input and its answer: the network itself, its spec, and one head per task."""
