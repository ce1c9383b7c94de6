"""What training's errors have in common."""

from __future__ import annotations


class TrainingError(Exception):
    """What training's errors have in common: `message` names the thing, what was found and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
