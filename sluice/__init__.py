"""Sluice's front: the command `sluice`, and `sluice.publish`. Imports `service` and `training` only when they are asked for."""

from __future__ import annotations

from typing import Any

__all__ = ["Classify", "Forecast", "publish"]


def publish(model: Any, name: str, *, example: Any, **options: Any) -> Any:
    """Publish a torch module as a model folder; returns the folder, the route and what was measured.

    The options, and the errors raised, are those of `training.importers.torch.publishing.publish`.
    """
    return _importer().publish(model, name, example=example, **options)


def Forecast(horizon: int, **options: Any) -> Any:  # noqa: N802  it stands for a class
    """The task of a module that forecasts `horizon` steps, for `publish(task=...)`."""
    return _importer().Forecast(horizon, **options)


def Classify(labels: Any, tokenizer: Any, **options: Any) -> Any:  # noqa: N802  it stands for a class
    """The task of a module that classifies texts, for `publish(task=...)`."""
    return _importer().Classify(labels, tokenizer, **options)


def _importer() -> Any:
    from sluice.packages import load

    return load("training.importers.torch.publishing")
