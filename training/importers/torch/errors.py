"""What can go wrong on the way from a torch module to a graph. Raises nothing itself."""

from __future__ import annotations

from training.errors import TrainingError
from training.importers.torch.places import Place


class ModuleRefused(TrainingError):
    """No graph can keep the contract for this module; the message says what to change."""


class Untranslatable(TrainingError):
    """The translator has no rule for something; an exporter may still write a graph. Carries the place in the user's code."""

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message
