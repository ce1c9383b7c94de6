"""Sluice's front: the command `sluice`, `sluice.publish`, and the client of a server. Imports nothing until it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sluice.client.clients import AsyncClient, Client

__all__ = ["AsyncClient", "Classify", "Client", "Forecast", "publish"]


def __getattr__(name: str) -> Any:
    """`Client` and `AsyncClient`, with httpx, once they are asked for. Raises ImportError where that is not installed."""
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module 'sluice' has no attribute {name!r}")
    try:
        from sluice.client import clients
    except ModuleNotFoundError as exc:
        if exc.name != "httpx":
            raise
        raise ImportError("sluice.Client needs httpx: pip install 'sluice-serving[client]'") from exc
    return getattr(clients, name)


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
