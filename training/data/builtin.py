"""Sets that need no file, since a library ships them: each as a table."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl


def read_builtin(name: str) -> pl.DataFrame:
    """The rows of a set that a recipe names as `builtin`."""
    return _READERS[name]()


def _air_passengers() -> pl.DataFrame:
    from statsforecast.utils import AirPassengersDF

    return pl.DataFrame({"unique_id": ["air-passengers"] * len(AirPassengersDF), "y": AirPassengersDF["y"].to_numpy()})


def _breast_cancer() -> pl.DataFrame:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    columns = {str(name): found.data[:, index] for index, name in enumerate(found.feature_names)}
    return pl.DataFrame(columns | {"label": [str(found.target_names[label]) for label in found.target]})


_READERS: dict[str, Callable[[], pl.DataFrame]] = {"air-passengers": _air_passengers, "breast-cancer": _breast_cancer}
