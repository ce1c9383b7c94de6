"""A Keras model of any shape as one torch module, which is published as any torch module is.

Its `forward` takes whole rows without padding and calls the layers one by one; which steps exist in a padded batch follows when
it is translated into a graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.importers.keras.attention_steps import MultiHeadAttentionStep
from training.importers.keras.calls import CallGraph, TensorRef
from training.importers.keras.entry import KerasFileError, place_of
from training.importers.keras.keras_file import StoredWeight
from training.importers.keras.masked_tensor import MaskedTensor, Result, flat
from training.importers.keras.step import Axes, Step, VersionedLayer
from training.importers.keras.steps import make_step

Weights = Mapping[tuple[str, ...], tuple[StoredWeight, ...]]
"""By the names of the models inside models and of the layer."""
Environment = dict[TensorRef, MaskedTensor]


class CallsModule(nn.Module):
    """The model of a graph of calls. `prepare` must be called once, before it is run."""

    def __init__(self, graph: CallGraph, weights: Weights, keras_version: str, path: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.graph = graph
        self.is_keras_3 = keras_version.split(".")[0] not in ("1", "2")
        self.steps = nn.ModuleDict()
        self.keys: dict[str, str] = {}
        for call in graph.calls:
            if call.layer in self.keys:
                continue
            own = (*path, call.layer)
            key = re.sub(r"\W", "_", call.layer) or "layer"
            key = _unique(f"{key}_layer" if hasattr(self.steps, key) else key, self.keys.values())
            self.keys[call.layer] = key
            entry = graph.entries[call.layer]
            if entry["class_name"] == "InputLayer":
                raise KerasFileError(f"{place_of(entry)} is not the model's input")
            if call.layer in graph.nested:
                self.steps[key] = CallsModule(graph.nested[call.layer], weights, keras_version, own)
            else:
                self.steps[key] = make_step(VersionedLayer(entry, weights.get(own, ()), keras_version))
        self.output_names = self.name_outputs()

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Build the layers for the shapes that they read; `samples` are the inputs of two runs that differ in what is open."""
        with torch.no_grad():
            self._run([[MaskedTensor(tensor) for tensor in sample] for sample in samples])
        self.output_names = self.name_outputs()

    def name_outputs(self) -> tuple[str, ...]:
        """ "output", or where there are several the names of the layers that give them."""
        if len(self.graph.outputs) == 1:
            return ("output",)
        names: list[str] = []
        for tensor in self.graph.outputs:
            step = self.steps[self.keys[tensor.layer]] if tensor.layer in self.keys else None
            part = (
                step.part_name(tensor.part)
                if isinstance(step, Step) and getattr(step, "is_built", False)
                else str(tensor.part or "")
            )
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{tensor.layer or 'output'}_{part}" if part else tensor.layer or "output")
            names.append(_unique("lengths_output" if name == "lengths" else name, names))
        return tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """The output, or all of them by name."""
        (found,) = self._run([[MaskedTensor(tensor) for tensor in inputs]])
        if len(found) == 1:
            return found[0].values
        return {name: part.values for name, part in zip(self.output_names, found, strict=True)}

    def call(self, runs: Sequence[Sequence[MaskedTensor]]) -> list[Result]:
        """The results of several runs, with their masks: what a model gives as a layer of another."""
        results = self._run(runs)
        return [found[0] if len(found) == 1 else tuple(found) for found in results]

    def _run(self, runs: Sequence[Sequence[MaskedTensor]]) -> list[list[MaskedTensor]]:
        graph = self.graph
        known: list[Environment] = [dict(zip(graph.inputs, run, strict=True)) for run in runs]
        for call in graph.calls:
            step = self.steps[self.keys[call.layer]]
            arguments = [(_resolve(list(call.args), env), _resolve(dict(call.kwargs), env)) for env in known]
            results: list[Result]
            if isinstance(step, CallsModule):
                results = step.call([list(flat(args)) for args, _ in arguments])
            else:
                assert isinstance(step, Step)
                if not step.is_built:
                    step.build(_shapes([list(flat(args)) for args, _ in arguments]))
                results = [step(args, kwargs) for args, kwargs in arguments]
            for env, result in zip(known, results, strict=True):
                for part, value in enumerate(result if isinstance(result, tuple) else (result,)):
                    env[TensorRef(call.layer, call.node, part)] = value
                if isinstance(step, MultiHeadAttentionStep) and self.is_keras_3:
                    # Keras 3 takes the masks off the tensors that it reads.
                    for read in [tensor for tensor in env if tensor in _read(call.args)]:
                        env[read] = MaskedTensor(env[read].values)
        return [[self._output(env, tensor) for tensor in graph.outputs] for env in known]

    def _output(self, env: Environment, tensor: TensorRef) -> MaskedTensor:
        if tensor not in env:
            raise KerasFileError(f'layer "{tensor.layer}" has no result {tensor.part}')
        return env[tensor]


def _resolve(value: Any, env: Environment) -> Any:
    """Arguments with the tensors in place of their references."""
    if isinstance(value, TensorRef):
        if value not in env:
            raise KerasFileError(f'layer "{value.layer}" has no result {value.part}')
        return env[value]
    if isinstance(value, list | tuple):
        return [_resolve(part, env) for part in value]
    if isinstance(value, dict):
        return {name: _resolve(part, env) for name, part in value.items()}
    return value


def _read(value: Any) -> set[TensorRef]:
    if isinstance(value, TensorRef):
        return {value}
    return {tensor for part in value for tensor in _read(part)} if isinstance(value, list | tuple) else set()


def _shapes(runs: Sequence[Sequence[MaskedTensor]]) -> list[Axes]:
    """The axes of each tensor behind the batch; "time" where two runs differ."""
    shapes = []
    for parts in zip(*runs, strict=True):
        sizes = zip(*(part.values.shape[1:] for part in parts), strict=True)
        shapes.append(tuple(own[0] if len(set(own)) == 1 else "time" for own in sizes))
    return shapes


def _unique(name: str, taken: Any) -> str:
    candidate, count = name or "layer", 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
