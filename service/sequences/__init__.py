"""Recurrent state from one request to the next: states, the stores that keep them, and tokens that clients carry."""
