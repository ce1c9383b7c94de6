"""Finished networks of others, as model folders."""
