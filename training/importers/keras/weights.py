"""The weights of a Keras file into the layers of a network, each checked by name and shape."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.importers.keras.entry import KerasFileError
from training.importers.keras.keras_file import StoredLayer
from training.importers.model import SourceLayer
from training.layers.registry import Layer

Shapes = list[tuple[str, tuple[int, ...]]]


def load_weights(layer: Layer, source: SourceLayer) -> None:
    """Give a layer the file's weights. Raises KerasFileError that names the weight which is missing or of another shape."""
    stored = source.weights
    assert isinstance(stored, StoredLayer)
    expected = _expected_shapes(layer)
    held = [(weight.name, weight.values.shape) for weight in stored.weights]
    if len(held) < len(expected):
        missing = ", ".join(_missing_names([name for name, _ in expected], [name for name, _ in held]))
        raise KerasFileError(
            f"{source.place}: weights are missing: {missing}; expected {_list(expected)}; the file holds {_list(held)}"
        )
    if len(held) > len(expected):
        raise KerasFileError(
            f"{source.place}: the file holds weights that no option accounts for: {_list(held[len(expected) :])}"
        )
    for (name, shape), (own, found) in zip(expected, held, strict=True):
        if found != shape:
            raise KerasFileError(f'{source.place}: weight {name} ("{own}"): expected {list(shape)}, the file holds {list(found)}')
    layer.load_keras_weights([weight.values for weight in stored.weights])


def _expected_shapes(layer: Layer) -> Shapes:
    """A layer's weights in Keras's order; where names repeat, those of a Bidirectional, the direction before them."""
    names = [weight.name for weight in layer.weights]
    if len(set(names)) < len(names):
        names = [f"{'backward' if name in names[:i] else 'forward'} {name}" for i, name in enumerate(names)]
    return [(name, tuple(weight.shape)) for name, weight in zip(names, layer.weights, strict=True)]


def _list(weights: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in weights) or "none"


def _missing_names(expected: Sequence[str], found: Sequence[str]) -> list[str]:
    """Which weights a file lacks: by their names in an .h5 file (cell/kernel:0), by their numbers in a .keras archive."""
    groups = {name.rpartition("/")[0] for name in found}
    words = [re.sub(r":\d+$", "", name.rpartition("/")[2]) for name in found]
    if len(groups) == 1 and all(word.isdigit() for word in words):
        return [name for number, name in enumerate(expected) if str(number) not in words]
    return [name for name in expected if name not in words] or list(expected[len(found) :])
