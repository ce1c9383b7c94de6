"""Wire formats of others, each in a file of its own: a request becomes instances for a model, its predictions their answer."""
