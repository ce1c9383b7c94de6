"""What flows between the calls of a Keras model: a tensor, and the mask that Keras carries with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class MaskedTensor:
    """`mask` (B, T) is true where a step counts; None: no step is masked."""

    values: Tensor
    mask: Tensor | None = None


Result = MaskedTensor | tuple[MaskedTensor, ...]


def flat(value: Any) -> Iterator[MaskedTensor]:
    """The tensors of nested arguments, in order."""
    if isinstance(value, MaskedTensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from flat(part)


def plain(value: Any) -> Any:
    """Nested arguments with bare tensors."""
    if isinstance(value, MaskedTensor):
        return value.values
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return value
