"""What an adapter has, and what all adapters need: instances of the example, checked as the server would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from training.importers.model import ModelImportError, SourceModel
from training.importers.options import ImportOptions
from training.network.network import Network
from training.network.spec import NetworkSpec

SEED = 0
LENGTHS = "lengths"
NUM_DIGITS = 9  # what gives a float32 back exactly


@dataclass(frozen=True)
class ExampleRow:
    """One instance of the example as the graph reads it, a batch of one row."""

    inputs: dict[str, NDArray[Any]]
    is_truncated: bool = False


@dataclass(frozen=True)
class Target:
    """What is built and published: the model, changed where the task wants it, and the spec of its network."""

    model: SourceModel
    spec: NetworkSpec
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class Adapter(Protocol):
    """A task's way from a source model to requests and answers. Making one raises ModelImportError if the options do not fit."""

    Options: ClassVar[type[ImportOptions]]
    target: Target

    def __init__(self, model: SourceModel, options: Any) -> None: ...

    def draw_instances(self, network: Network) -> list[Any]:
        """Two random instances; of different length, where that may be."""
        ...

    def read_instance(self, network: Network, instance: Any, place: str) -> ExampleRow:
        """One instance as the graph reads it. Raises ModelImportError."""
        ...

    def format_prediction(self, network: Network, answer: Mapping[str, NDArray[Any]], row: ExampleRow) -> Any:
        """The graph's answer for one row as a prediction of POST /predict."""
        ...

    def manifest_block(self, network: Network) -> dict[str, Any]:
        """The manifest's block of the task."""
        ...


def read_numbers(value: Any, num_axes: int, place: str) -> NDArray[np.float64]:
    """A nested list as an array. Raises ModelImportError."""
    try:
        values = np.array(value, np.float64)
    except (TypeError, ValueError) as exc:
        raise ModelImportError(f"{place}: expected numbers, nested {num_axes} deep and even: {exc}") from exc
    if not values.size:
        raise ModelImportError(f"{place}: it is empty; a row has at least one step")
    if values.ndim != num_axes:
        raise ModelImportError(f"{place}: expected numbers nested {num_axes} deep, got the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ModelImportError(f"{place}: every number must be finite")
    return values


def check_length(length: int, shortest: int, longest: int | None, place: str) -> None:
    """Raise ModelImportError unless a row of so many steps can be served."""
    if length < shortest or (longest is not None and length > longest):
        bounds = f"{shortest} or more" if longest is None else f"{shortest} to {longest}" if shortest != longest else f"{longest}"
        raise ModelImportError(f"{place}: expected {bounds} steps, got {length}")


def example_lengths(network: Network, max_length: int | None, is_open: bool) -> tuple[int, int]:
    """Lengths of the two rows of a random example: different ones where rows may differ."""
    if not is_open:
        assert max_length is not None
        return max_length, max_length
    longest = max_length or network.min_length + 8
    return longest, max(network.min_length, longest // 2)


def plain_numbers(values: NDArray[Any]) -> Any:
    """Nested lists of numbers short enough for a file and long enough to give a float32 back."""
    if values.ndim:
        return [plain_numbers(part) for part in values]
    return float(f"{float(values):.{NUM_DIGITS}g}")
