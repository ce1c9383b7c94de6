"""What a layer of a graph of calls is: a step that is built for the axes of its tensors, and called with them.

Steps register themselves under Keras's names of their layers; what each computes is in `recipe_steps.py`, `tensor_steps.py`,
`merge_steps.py` and `attention_steps.py`. Reads no file: weights are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from numpy.typing import NDArray
from torch import Tensor, nn

from training.importers.keras.entry import Entry, KerasFileError, place_of
from training.importers.keras.keras_file import StoredWeight
from training.importers.keras.masked_tensor import MaskedTensor, Result, flat

Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class VersionedLayer:
    """A layer of the file: its configuration, its weights, and the version of Keras that wrote it."""

    entry: Entry
    weights: tuple[StoredWeight, ...]
    keras_version: str

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.entry["config"]
        return config

    @property
    def place(self) -> str:
        return place_of(self.entry)

    @property
    def is_keras_3(self) -> bool:
        return self.keras_version.split(".")[0] not in ("1", "2")


class Step(nn.Module):
    """One layer. `build` is called once, with the axes of its tensors behind the batch ("time" where one is open)."""

    def __init__(self, stored: VersionedLayer) -> None:
        super().__init__()
        self.stored = stored
        self.is_built = False

    def build(self, shapes: Sequence[Axes]) -> None:
        """Raises KerasFileError or LayerError where the layer cannot read such tensors."""
        self.is_built = True

    def part_name(self, part: int) -> str:
        """What result `part` of several is called behind the layer's name; the first has none."""
        return str(part) if part else ""

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        raise NotImplementedError

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the layer's configuration."""
        return self.stored.config.get(name, default)

    def refuse(self, message: str) -> KerasFileError:
        return KerasFileError(f"{self.stored.place}: {message}")

    def refuse_options(self, kwargs: Mapping[str, Any], *known: str) -> None:
        """Raise KerasFileError for an argument of the call that changes the answer and is not `known`."""
        for name, value in kwargs.items():
            if name not in known and not (value is None or value is False or (isinstance(value, list) and not value)):
                raise self.refuse(f'is called with "{name}": that is not supported')


class FunctionStep(Step):
    """A layer without weights that is one torch function of one tensor; `keeps_mask` as in Keras."""

    keeps_mask: ClassVar[bool] = True

    def compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
        self.refuse_options(kwargs, "mask")
        (value,) = flat(args)
        return MaskedTensor(self.compute(value.values), value.mask if self.keeps_mask else None)


S = TypeVar("S", bound=type[Step])
STEPS: dict[str, type[Step]] = {}


def step(*kinds: str) -> Callable[[S], S]:
    """Register a class as the step of Keras's layers of these names."""

    def register(cls: S) -> S:
        for kind in kinds:
            assert kind not in STEPS, kind
            STEPS[kind] = cls
        return cls

    return register


def arrays_of(stored: VersionedLayer, *names: str) -> list[NDArray[Any]]:
    """The weights of a layer, as many as it must have. Raises KerasFileError."""
    found = [weight.values for weight in stored.weights]
    if len(found) != len(names):
        raise KerasFileError(f"{stored.place}: expected {len(names)} weights ({', '.join(names)}), the file holds {len(found)}")
    return found


def pair(value: Any) -> tuple[int, int]:
    """One number for both ends, or one for each."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def single(value: Any) -> int:
    """A number that Keras writes in a list of one."""
    return int(value[0] if isinstance(value, list | tuple) else value)
