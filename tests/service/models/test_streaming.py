"""Which models can stream, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from service.errors import StateError
from service.models.folder import ModelOptions
from service.models.loading import load_model
from service.models.streaming import BACKWARDS, BOTH_WAYS, NO_STATE, find_directions, reads_one_way
from tests.folders import edit_manifest, write_forecast_folder, write_graph, write_tensor_folder, write_text_folder
from tests.onnx_models import stateful, with_lengths

CPU = ModelOptions(device="cpu")


def test_a_graph_names_the_directions_of_its_recurrent_nodes() -> None:
    assert find_directions(with_lengths("LSTM", directions=2).SerializeToString()) == {b"bidirectional"}
    assert find_directions(stateful("GRU").SerializeToString()) == frozenset()
    node = helper.make_node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=2, direction="reverse")
    other = helper.make_node("Resize", ["x"], ["y"], direction="bidirectional")
    graph = helper.make_graph([node, other], "net", [], [])
    assert find_directions(helper.make_model(graph).SerializeToString()) == {b"reverse"}


@pytest.mark.parametrize("content", [b"", b"no graph", b"\xff" * 40])
def test_what_is_no_graph_has_no_directions(content: bytes) -> None:
    assert find_directions(content) == frozenset()


@pytest.mark.parametrize(
    ("operator", "attributes", "is_one_way"),
    [
        ("GRU", {}, True),
        ("GRU", {"direction": "forward"}, True),
        ("GRU", {"direction": "reverse"}, False),
        ("LSTM", {"direction": "bidirectional"}, False),
        ("ReverseSequence", {}, False),
    ],
)
def test_a_graph_reads_one_way_where_nothing_in_it_goes_backwards(
    operator: str, attributes: dict[str, str], is_one_way: bool
) -> None:
    node = helper.make_node(operator, ["x", "w", "r"], ["", "h"], **attributes)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"]), node], "net", [], [])
    content = helper.make_model(graph).SerializeToString()
    assert reads_one_way(content, find_directions(content)) == is_one_way


def test_what_cannot_be_read_is_not_said_to_read_one_way() -> None:
    content = b"\xff" * 40
    assert not reads_one_way(content, find_directions(content))


async def test_a_model_with_state_can_stream_and_knows_its_size(tmp_path: Path) -> None:
    model = await load_model(write_tensor_folder(tmp_path), CPU)
    assert model.can_stream
    assert model.why_not_streaming == ""
    _, states = await model.advance([[[1.0, 2.0]]], [None])
    assert model.state_bytes == states[0].num_bytes == len(states[0].to_bytes())
    await model.stop()


@pytest.mark.parametrize("write", [write_forecast_folder, write_text_folder])
async def test_a_model_without_state_cannot_stream_and_says_why(write: object, tmp_path: Path) -> None:
    model = await load_model(write(tmp_path), CPU)  # type: ignore[operator]
    assert not model.can_stream
    assert model.state_bytes == 0
    with pytest.raises(StateError, match=f"cannot stream: {NO_STATE}") as caught:
        await model.advance([{"history": [1.0, 2.0]}], [None])
    assert caught.value.problem == "not_streaming"
    await model.stop()


async def test_a_manifest_may_say_why_its_model_cannot_stream(tmp_path: Path) -> None:
    folder = write_tensor_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(cannot_stream="its scaling needs the whole window"))
    model = await load_model(folder, CPU)
    assert model.why_not_streaming == "its scaling needs the whole window"
    await model.stop()


async def test_a_model_that_reads_several_steps_at_a_time_cannot_stream(tmp_path: Path) -> None:
    folder = write_tensor_folder(tmp_path)
    edit_manifest(folder, lambda manifest: manifest.update(min_length=2))
    model = await load_model(folder, CPU)
    assert model.why_not_streaming == "it reads at least 2 steps at a time"
    await model.stop()


@pytest.mark.parametrize(("direction", "reason"), [("bidirectional", BOTH_WAYS), ("reverse", BACKWARDS)])
async def test_a_node_that_reads_from_the_end_keeps_a_model_from_streaming_though_it_has_a_state(
    direction: str, reason: str, tmp_path: Path
) -> None:
    folder = write_tensor_folder(tmp_path)
    graph = onnx.load(folder / "model.onnx")
    # Beside the network: what it answers is used by nothing.
    reading = helper.make_node(
        "RNN", ["steps", "both_w", "both_r"], ["", "unused"], hidden_size=3, direction=direction, name="backwards"
    )
    directions = 2 if direction == "bidirectional" else 1
    graph.graph.node.append(reading)
    graph.graph.initializer.extend(
        [
            helper.make_tensor("both_w", onnx.TensorProto.FLOAT, [directions, 3, 2], [0.0] * 6 * directions),
            helper.make_tensor("both_r", onnx.TensorProto.FLOAT, [directions, 3, 3], [0.0] * 9 * directions),
        ]
    )
    write_graph(folder, graph.SerializeToString())
    model = await load_model(folder, CPU)
    assert model.why_not_streaming == reason
    await model.stop()
