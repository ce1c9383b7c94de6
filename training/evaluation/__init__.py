"""Scores of a running service on the standard benchmarks, taken by its own endpoints."""
