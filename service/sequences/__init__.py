"""Recurrent state from one request to the next: its stores and tokens. Nothing is kept yet: every request starts from zeros."""
