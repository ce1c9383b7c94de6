"""Arguments of a module that carry a sequence on: their shapes, and the outputs that they come back by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import nn

from training.importers.torch.calling import Names, StateSpec, Subject
from training.importers.torch.errors import ModuleRefused


def with_state(subject: Subject, state: Mapping[str, str], given: Mapping[str, NDArray[Any]]) -> Subject:
    """The arguments of state as inputs: their shapes are those of the example, of the outputs, or of the recurrent layer."""
    states: list[StateSpec] = []
    tuples: set[str] = set()
    recurrent = next((module for module in subject.model.modules() if isinstance(module, nn.RNNBase)), None)
    for argument, output in state.items():
        if argument in given:
            states.append(StateSpec(argument, output, argument, tuple(given[argument].shape)))
            continue
        if recurrent is None:
            raise ModuleRefused(
                f'state: the shape of "{argument}" is unknown: put it into the example rows, without the batch axis'
            )
        layers = recurrent.num_layers * (2 if recurrent.bidirectional else 1)
        hidden = (layers, recurrent.proj_size or recurrent.hidden_size)
        if isinstance(recurrent, nn.LSTM) and len(state) == 1:
            tuples.add(argument)
            sizes = [hidden, (layers, recurrent.hidden_size)]
        elif isinstance(recurrent, nn.LSTM) and argument.startswith("c"):
            sizes = [(layers, recurrent.hidden_size)]
        else:
            sizes = [hidden]
        suffixes = [""] if argument not in tuples else ["_h", "_c"]
        states += [StateSpec(f"{argument}{suffix}", output, argument, size) for suffix, size in zip(suffixes, sizes, strict=True)]
    changed = copy.copy(subject)
    changed.states, changed.tuples = tuple(states), frozenset(tuples)
    return changed


def name_states(subject: Subject, names: Names, state: Mapping[str, str]) -> tuple[Names, Subject]:
    """Give every state its output's own name; one that is an input's too gets another."""
    if not state:
        return names, subject
    flat = flat_names(names)
    taken = {spec.name for spec in subject.inputs} | {part.input for part in subject.states}
    renamed: dict[str, str] = {}
    states: list[StateSpec] = []
    for argument, output in state.items():
        parts = [part for part in subject.states if part.argument == argument]
        found = [name for name in flat if name == output or name.startswith(f"{output}_")]
        exact = [name for name in found if name == output]
        found = exact if exact and len(parts) == 1 else found
        if len(found) != len(parts):
            raise ModuleRefused(f'state: no output is called "{output}"; the outputs are {flat}')
        for part, name in zip(parts, found, strict=True):
            own = name if name not in taken else f"{part.input}_out"
            renamed[name] = own
            states.append(replace(part, output=own))
    changed = copy.copy(subject)
    changed.states = tuple(states)
    return _rename(names, renamed), changed


def flat_names(names: Names) -> list[str]:
    if isinstance(names, dict):
        return [name for part in names.values() for name in flat_names(part)]
    if isinstance(names, tuple):
        return [name for part in names for name in flat_names(part)]
    return [names]


def _rename(names: Names, renamed: Mapping[str, str]) -> Names:
    if isinstance(names, dict):
        return {key: _rename(part, renamed) for key, part in names.items()}
    if isinstance(names, tuple):
        return tuple(_rename(part, renamed) for part in names)
    return renamed.get(names, names)
