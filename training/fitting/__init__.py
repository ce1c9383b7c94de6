"""The training loop: fit, losses, checkpoints."""
