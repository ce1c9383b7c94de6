"""A saved model as calls of its layers: which layer is called with which tensors, branches, joins and models inside models too.

Reads the model's configuration alone, of Keras 2 or 3, and no file; what a layer computes is `steps.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.importers.keras.chain import StoredInput, groups_of, is_model, list_tensors, read_input, require_layers
from training.importers.keras.entry import Entry, KerasFileError, name_of, place_of


@dataclass(frozen=True)
class TensorRef:
    """Result `part` of call number `node` of a layer."""

    layer: str
    node: int
    part: int


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer; in `args` and `kwargs` tensors are TensorRef, slices are slice."""

    layer: str
    node: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class CallGraph:
    """The calls in an order in which each reads only what came before. `nested` are the models among the layers, by name."""

    inputs: tuple[TensorRef, ...]
    stored_inputs: tuple[StoredInput, ...]
    entries: Mapping[str, Entry]
    groups: Mapping[str, str]
    calls: tuple[LayerCall, ...]
    outputs: tuple[TensorRef, ...]
    nested: Mapping[str, CallGraph] = field(default_factory=dict)

    def called_entries(self) -> Iterator[Entry]:
        """The layers that are called, those of the models inside too."""
        for name in dict.fromkeys(call.layer for call in self.calls):
            if name in self.nested:
                yield from self.nested[name].called_entries()
            elif self.entries[name]["class_name"] != "InputLayer":
                yield self.entries[name]

    def state_pairs(self) -> list[tuple[int, int]]:
        """What a recurrent layer begins with and where it ends, as the places of an input and an output of the model."""
        found = []
        for call in self.calls:
            begins = list(tensors_in(call.kwargs.get("initial_state"))) or list(tensors_in(call.args))[1:]
            for part, begin in enumerate(begins, 1):
                end = TensorRef(call.layer, call.node, part)
                if begin in self.inputs and end in self.outputs:
                    found.append((self.inputs.index(begin), self.outputs.index(end)))
        return found

    def vocabulary(self, tensor: TensorRef) -> int | None:
        """How many ids the tensor may hold, where an Embedding reads it; the smallest, if several do."""
        found: list[int | None] = []
        for call in self.calls:
            read = list(tensors_in((call.args, call.kwargs)))
            if tensor not in read:
                continue
            entry = self.entries[call.layer]
            if entry["class_name"] == "Embedding":
                found.append(int(entry["config"]["input_dim"]))
            elif call.layer in self.nested:
                inner = self.nested[call.layer]
                found.append(inner.vocabulary(inner.inputs[read.index(tensor)]))
        known = [number for number in found if number is not None]
        return min(known) if known else None


def read_calls(model: Any) -> CallGraph:
    """The calls of a Sequential or functional model. Raises KerasFileError where the configuration is not one."""
    kind, config = require_layers(model)
    entries = config["layers"] if isinstance(config, Mapping) else config
    by_name = {name_of(entry): entry for entry in entries}
    nested = {name: read_calls(entry) for name, entry in by_name.items() if is_model(entry)}
    if kind == "Sequential":
        return _read_sequential(config, entries, by_name, nested)
    inputs = tuple(TensorRef(*tensor) for tensor in list_tensors(config.get("input_layers")))
    outputs = tuple(TensorRef(*tensor) for tensor in list_tensors(config.get("output_layers")))
    if not inputs or not outputs:
        raise KerasFileError("the model names no input or no output")
    stored = tuple(read_input([by_name[tensor.layer]], by_name[tensor.layer], None) for tensor in inputs)
    calls = [call for entry in entries for call in _calls_of(entry)]
    _require_known(calls, outputs, by_name)
    ordered = _in_order(calls, {TensorRef(tensor.layer, tensor.node, 0) for tensor in inputs})
    return CallGraph(inputs, stored, by_name, groups_of(entries), tuple(_needed(ordered, outputs)), outputs, nested)


def _read_sequential(config: Any, entries: Sequence[Entry], by_name: Mapping[str, Entry], nested: Any) -> CallGraph:
    given = config.get("build_input_shape") if isinstance(config, Mapping) else None
    layers = [entry for entry in entries if entry["class_name"] != "InputLayer"]
    if not layers:
        raise KerasFileError("the model has no layers")
    own = [entry for entry in entries if entry["class_name"] == "InputLayer"]
    first = nested.get(name_of(layers[0]))
    # A model that begins with a model has its input.
    stored = first.stored_inputs[0] if first is not None and not own and given is None else read_input(own, layers[0], given)
    source = TensorRef("", 0, 0)
    calls, last = [], source
    for entry in layers:
        calls.append(LayerCall(name_of(entry), 0, (last,), {}))
        last = TensorRef(name_of(entry), 0, 0)
    return CallGraph((source,), (stored,), by_name, groups_of(entries), tuple(calls), (last,), nested)


def _calls_of(entry: Entry) -> Iterator[LayerCall]:
    for number, node in enumerate(entry.get("inbound_nodes") or []):
        if isinstance(node, Mapping):
            args, kwargs = _decode(node.get("args", [])), _decode(node.get("kwargs") or {})
        else:
            args, kwargs = _arguments_of_keras2(node)
        yield LayerCall(name_of(entry), number, tuple(args), kwargs)


def _arguments_of_keras2(node: Any) -> tuple[list[Any], dict[str, Any]]:
    """[[layer, node, part, {options}], ...] as arguments: one tensor, or the list of them."""
    parts = [node] if node and isinstance(node[0], str) else list(node)
    tensors, kwargs = [], {}
    for part in parts:
        tensors.append(part[2] if part[0] == "_CONSTANT_VALUE" else TensorRef(part[0], part[1], part[2]))
        if len(part) > 3:
            kwargs.update({name: _decode(value) for name, value in part[3].items()})
    return [tensors[0] if len(tensors) == 1 else tensors], kwargs


def _decode(value: Any) -> Any:
    """A saved argument: tensors, slices and constants in place of what stands for them."""
    if isinstance(value, Mapping):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "__keras_tensor__" and isinstance(config, Mapping):
            return TensorRef(*config["keras_history"])
        if kind == "__slice__" and isinstance(config, Mapping):
            return slice(*(_decode(config[name]) for name in ("start", "stop", "step")))
        if kind in ("__tuple__", "__list__"):
            return [_decode(part) for part in value.get("items", [])]
        if kind == "__ellipsis__":
            return ...
        if kind in ("__tensor__", "__numpy__") and isinstance(config, Mapping):
            return config["value"]
        if set(value) == {"start", "stop", "step"}:
            return slice(*(_decode(value[name]) for name in ("start", "stop", "step")))
        return {name: _decode(part) for name, part in value.items()}
    if isinstance(value, list):
        is_reference = len(value) in (3, 4) and isinstance(value[0], str) and type(value[1]) is int and type(value[2]) is int
        if is_reference and value[0] != "_CONSTANT_VALUE":
            return TensorRef(value[0], value[1], value[2])
        return [_decode(part) for part in value]
    return value


def tensors_in(value: Any) -> Iterator[TensorRef]:
    """The tensors of nested arguments, in order."""
    if isinstance(value, TensorRef):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, slice):
        yield from tensors_in((value.start, value.stop, value.step))


def _require_known(calls: Sequence[LayerCall], outputs: Sequence[TensorRef], entries: Mapping[str, Entry]) -> None:
    for tensor in (*outputs, *tensors_in([(call.args, call.kwargs) for call in calls])):
        if tensor.layer not in entries:
            raise KerasFileError(f'layer "{tensor.layer}" is used and not in the model')


def _in_order(calls: Sequence[LayerCall], known: set[TensorRef]) -> list[LayerCall]:
    """The calls so that each reads only what came before; else in the order of the file."""
    done = {(tensor.layer, tensor.node) for tensor in known}
    ordered: list[LayerCall] = []
    waiting = list(calls)
    while waiting:
        ready = [call for call in waiting if all((t.layer, t.node) in done for t in tensors_in((call.args, call.kwargs)))]
        if not ready:
            raise KerasFileError(f'layer "{waiting[0].layer}" is fed by itself')
        ordered += ready
        done |= {(call.layer, call.node) for call in ready}
        waiting = [call for call in waiting if call not in ready]
    return ordered


def _needed(calls: Sequence[LayerCall], outputs: Sequence[TensorRef]) -> list[LayerCall]:
    """The calls that an output depends on."""
    wanted = {(tensor.layer, tensor.node) for tensor in outputs}
    kept: list[LayerCall] = []
    for call in reversed(calls):
        if (call.layer, call.node) in wanted:
            kept.insert(0, call)
            wanted |= {(tensor.layer, tensor.node) for tensor in tensors_in((call.args, call.kwargs))}
    return kept


__all__ = ["CallGraph", "LayerCall", "TensorRef", "place_of", "read_calls", "tensors_in"]
