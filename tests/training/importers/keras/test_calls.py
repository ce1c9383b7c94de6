"""Which calls a saved configuration lists, and what each reads."""

from __future__ import annotations

from typing import Any

import pytest

from training.importers.keras.calls import TensorRef, read_calls


def entry(kind: str, name: str, *nodes: Any, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": list(nodes)}


def source(name: str) -> dict[str, Any]:
    return entry("InputLayer", name, batch_input_shape=[None, None, 3], dtype="float32")


def encoder(*nodes: Any) -> dict[str, Any]:
    layers = [source("x"), entry("LSTM", "lstm", [["x", 0, 0, {}]])]
    return entry("Functional", "encoder", *nodes, layers=layers, input_layers=[["x", 0, 0]], output_layers=[["lstm", 0, 0]])


@pytest.mark.parametrize("first", [0, 1])
def test_calls_of_a_model_inside_are_counted_as_they_are_referred_to(first: int) -> None:
    layers = [
        source("one"),
        source("other"),
        encoder([["one", 0, 0, {}]], [["other", 0, 0, {}]]),
        entry("Subtract", "apart", [["encoder", first, 0, {}], ["encoder", first + 1, 0, {}]]),
    ]
    config = {"layers": layers, "input_layers": [["one", 0, 0], ["other", 0, 0]], "output_layers": [["apart", 0, 0]]}
    graph = read_calls({"class_name": "Functional", "config": config})
    found = {(call.layer, call.node): call.args for call in graph.calls}
    assert found["encoder", first] == (TensorRef("one", 0, 0),)
    assert found["encoder", first + 1] == (TensorRef("other", 0, 0),)


def test_states_are_paired_with_where_they_end() -> None:
    options = {"initial_state": [["h", 0, 0], ["c", 0, 0]]}
    layers = [
        source("x"),
        source("h"),
        source("c"),
        entry("LSTM", "decoder", [["x", 0, 0, options]]),
        entry("Dense", "next", [["decoder", 0, 0, {}]]),
    ]
    outputs = [["next", 0, 0], ["decoder", 0, 1], ["decoder", 0, 2]]
    config = {"layers": layers, "input_layers": [[name, 0, 0] for name in ("x", "h", "c")], "output_layers": outputs}
    assert read_calls({"class_name": "Functional", "config": config}).state_pairs() == [(1, 1), (2, 2)]
