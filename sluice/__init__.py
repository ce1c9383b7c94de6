"""Sluice's front: the command `sluice`. Imports `service` and `training` only when a command needs them."""
