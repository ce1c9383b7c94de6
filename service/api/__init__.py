"""HTTP: requests in, answers out, and nothing of models, graphs or queues."""
