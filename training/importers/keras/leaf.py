"""A recipe's layer as one torch function: the recording of a module holds it as one call, and its own nodes are its rule.

So whatever Keras's recurrent layers can do (masks, activations, `reset_after`, directions) is computed and written by the same
code in a graph of calls as in a chain of layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from training.importers.torch.axes import BATCH, Axis, MergedAxis, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer
from training.layers.registry import Layer, Signal, Symbol


def run_layer(values: Tensor, mask: Tensor | None, *state: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    """The layer's result and its further results, for whole rows (B, ...) without padding."""
    tensors = (values, *state) if mask is None else (values, mask, *state)
    if has_torch_function(tensors):
        found: tuple[Tensor, ...] = handle_torch_function(run_layer, tensors, values, mask, *state, layer=layer)
        return found
    lengths = torch.full((len(values),), values.shape[1] if values.dim() > 1 else 1)
    signal = Signal(values, lengths, mask)
    result, _ = layer(signal, signal, state)
    return (result.values, *result.others)


@rule("run_layer")
def write_run_layer(w: Writer, values: Value, mask: Value | None, *state: Value, layer: Layer) -> tuple[Value, ...]:
    axes = values.axes
    if axes[0] != BATCH:
        raise Untranslatable(f"a layer over the axes {values}: the rows are not in front")
    if any(isinstance(axis, Time | MergedAxis) for axis in axes[2:]) and not layer.acts_on_last_axis:
        raise Untranslatable(f"a layer over the axes {values}: only the first axis behind the batch may be open")
    if layer.acts_on_last_axis and not isinstance(axes[-1], int):
        raise Untranslatable(f"a layer over the axes {values}: it reads the last one as features, which is open")
    time = axes[1] if len(axes) > 1 else None
    lengths = time.lengths if isinstance(time, Time) else None
    symbol = Symbol(w.name(values), lengths, None if mask is None else w.name(mask))
    result, _ = layer.write(w.graph, symbol, symbol, tuple(w.name(part) for part in state))
    return tuple(
        _value_of(w, name, part, result.lengths if part == 0 else None, lengths)
        for part, name in enumerate((result.values, *result.others))
    )


def _value_of(w: Writer, name: str, part: int, own: str | None, given: str | None) -> Value:
    """A result with what its axes stand for; a layer that makes or drops steps has lengths of its own."""
    axes: list[Axis] = []
    for place, sizes in enumerate(w.result_dims(part)):
        if place == 1 and own is not None and own != given and len(set(sizes)) > 1:
            time = Time(own, sizes)
            w.add_time(time, name, 1)
            axes.append(time)
        else:
            axes.append(w.axis_of(sizes))
    return Value(name, tuple(axes), w.result_dtype(part))
