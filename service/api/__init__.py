"""The doors: HTTP in, HTTP out, and nothing of models, graphs or queues."""
