"""From a model folder to a model that answers: which are there, what they hold, which one answers a request."""
