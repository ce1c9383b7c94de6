"""Processes and the machine below them: several workers, their connections, cores and memory."""
