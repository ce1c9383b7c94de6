"""Model folders whose graphs do harm: they never end, or take all memory. Each is valid in every other respect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.folders import build_graph, edit_example, edit_manifest, write_graph, write_tensor_folder

FOR_EVER = 2**62


def write_endless_folder(models: Path, name: str = "endless") -> Path:
    """A loop that never ends, whatever the input."""
    nodes = [
        helper.make_node("Constant", [], ["for_ever"], value_int=FOR_EVER),
        _loop(["for_ever", "", "x"], ["y"]),
    ]
    return _write(models, name, nodes, {}, answer=1.0)


def write_input_loop_folder(models: Path, name: str = "input-loop") -> Path:
    """Adds 1 to `x` as often as the largest value of `x` says: quick for small ones, endless for large ones."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["times"], to=TensorProto.INT64),
        _loop(["times", "", "x"], ["y"]),
    ]
    return _write(models, name, nodes, {}, answer=2.0)


def write_greedy_folder(models: Path, name: str = "greedy", *, num_bytes: int = 50 * 10**9) -> Path:
    """Fills so much memory with a constant, when it is opened or when it runs."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("ReduceMean", ["large"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Mul", ["x", "mean"], ["y"]),
    ]
    return _write(models, name, nodes, {"size": [num_bytes // 4]}, answer=1.0)


def write_input_memory_folder(models: Path, name: str = "input-memory") -> Path:
    """Multiplies `x` by the mean of as many ones as its largest value says: little memory for small ones, all for large ones."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=1),
        helper.make_node("Cast", ["largest"], ["size"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["size", "one_axis"], ["flat"]),
        helper.make_node("ConstantOfShape", ["flat"], ["large"], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("ReduceMean", ["large"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Mul", ["x", "mean"], ["y"]),
    ]
    return _write(models, name, nodes, {"one_axis": [1]}, answer=1.0)


def _loop(inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """Adds 1 to its last input as often as the first one says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    return helper.make_node("Loop", list(inputs), list(outputs), body=body)


def _write(models: Path, name: str, nodes: Sequence[onnx.NodeProto], integers: dict[str, Any], *, answer: float) -> Path:
    folder = write_tensor_folder(models, name)

    def edit(manifest: dict[str, Any]) -> None:
        tensor = {"datatype": "FP32", "shape": ["batch", 1]}
        manifest.update(inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}])
        manifest.pop("state")

    edit_manifest(folder, edit)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_graph(folder, build_graph(manifest, nodes, {}, integers))

    def answer_with(example: dict[str, Any]) -> None:
        example["request"]["instances"] = [{"x": [1.0]}]
        example["response"]["predictions"] = [[answer]]

    edit_example(folder, answer_with)
    return folder
