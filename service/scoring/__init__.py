"""Scores whole files with a model, without a server: `sluice score`. Reads and writes files; knows nothing of HTTP."""
