"""Which ONNX files are read, and what of a hostile one is refused by name before anything of it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import FunctionProto, ModelProto, TensorProto, helper

from tests.onnx_models import FEATURES, FLOAT, Graph, batchwise, counting_loop, last_step, operator, save, tagger
from training.importers.model import ModelImportError
from training.importers.onnx import reading
from training.importers.onnx.first_run import run_first
from training.importers.onnx.reading import read_onnx


def changed(model: ModelProto, change: Callable[[ModelProto], Any]) -> ModelProto:
    change(model)
    return model


def with_external(model: ModelProto, location: str) -> ModelProto:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    tensor.ClearField("raw_data")
    return model


def with_claim(*dims: int) -> ModelProto:
    model = last_step()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def with_function(calls: list[str], name: str = "again") -> ModelProto:
    """A model of functions, each a node for every name in `calls`."""
    model = operator(name, domain="own")
    nodes = [helper.make_node(call, ["a"], [f"b{index}"], domain="own") for index, call in enumerate(calls)]
    function = helper.make_function(
        "own", name, ["a"], ["b0"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )
    model.functions.append(function)
    return model


def doubling(levels: int) -> ModelProto:
    """Functions that call the next one twice: 2^levels nodes in some hundred bytes."""
    model = operator("f0", domain="own")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for level in range(levels):
        kind, domain = (f"f{level + 1}", "own") if level + 1 < levels else ("Neg", "")
        nodes = [helper.make_node(kind, ["a"], ["m"], domain=domain), helper.make_node(kind, ["m"], ["b"], domain=domain)]
        function: FunctionProto = helper.make_function("own", f"f{level}", ["a"], ["b"], nodes, imports)
        model.functions.append(function)
    return model


def nested(levels: int) -> bytes:
    """A file of graphs within attributes within nodes; protobuf's own writer makes none so deep."""

    def field(number: int, content: bytes) -> bytes:
        size, prefix = len(content), b""
        while size > 127:
            prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + prefix + bytes([size]) + content

    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph) + field(8, b"")


def typed(elem_type: int) -> ModelProto:
    g = Graph()
    g.add("Identity", [g.input("x", elem_type, ["batch", "time"])], "y")
    g.output("y", elem_type, ["batch", "time"])
    return g.model()


def with_nan() -> ModelProto:
    g = Graph()
    g.add(
        "Add", [g.input("x", FLOAT, ["batch", "time", FEATURES]), g.constant(np.full(FEATURES, np.nan, np.float32), "bias")], "y"
    )
    g.output("y", FLOAT, ["batch", "time", FEATURES])
    return g.model()


def cycle() -> ModelProto:
    model = operator("Neg")
    model.graph.node.extend([helper.make_node("Add", ["b", "x"], ["a"]), helper.make_node("Neg", ["a"], ["b"])])
    return model


REFUSED: list[tuple[str, Callable[[], ModelProto], str]] = [
    ("external data", lambda: with_external(last_step(), "weights.bin"), 'tensor "constant_0" lies in another file'),
    (
        "a path out of the folder",
        lambda: with_external(last_step(), "../../etc/passwd"),
        'tensor "constant_0" lies in another file',
    ),
    ("a claim of terabytes", lambda: with_claim(1 << 20, 1 << 20), "which are 1099511627776 values; the file holds 160"),
    ("a negative size", lambda: with_claim(-1, 160), 'tensor "constant_0" has shape [-1, 160]'),
    ("NaN in the weights", with_nan, 'tensor "bias" holds numbers that are not a number'),
    ("a custom domain", lambda: operator("Foo", domain="com.x"), 'operator Foo of the domain "com.x"'),
    ("an unknown operator", lambda: operator("Foo"), "No Op registered for Foo"),
    ("an old opset", lambda: changed(last_step(), lambda m: setattr(m.opset_import[0], "version", 6)), "opset 6; 7 to"),
    ("an opset to come", lambda: changed(last_step(), lambda m: setattr(m.opset_import[0], "version", 999)), "opset 999; 7 to"),
    ("random numbers", lambda: operator("RandomNormalLike"), "operator RandomNormalLike draws random numbers"),
    ("a loop without a bound", lambda: counting_loop(None), "operator Loop has no bound"),
    ("a loop of a value", lambda: counting_loop("value"), "operator Loop has no bound"),
    ("a loop of a billion turns", lambda: counting_loop(10**9), "operator Loop has no bound"),
    ("a cycle", cycle, "it is no valid ONNX graph"),
    ("a function that calls itself", lambda: with_function(["again"]), 'function "again" calls itself'),
    ("functions that double", lambda: doubling(60), "nodes with its functions written out"),
    ("half precision", lambda: typed(TensorProto.FLOAT16), 'input "x" is FLOAT16'),
    ("texts", lambda: typed(TensorProto.STRING), 'input "x" is STRING'),
    ("complex numbers", lambda: typed(TensorProto.COMPLEX64), 'input "x" is COMPLEX64'),
    ("no inputs", lambda: changed(last_step(), lambda m: m.graph.ClearField("input")), "0 inputs and 1 outputs"),
]


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_no_served_graph_may_have_is_refused_by_name(make: Callable[[], ModelProto], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelImportError) as refusal:
        read_onnx(save(make(), tmp_path / "net.onnx"))
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"not a model", b"\xff" * 1000, last_step().SerializeToString()[:500], nested(1000)],
    ids=["empty", "zeros", "text", "ones", "cut off", "nested"],
)
def test_a_broken_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelImportError, match="it is not an ONNX file"):
        read_onnx(tmp_path / "net.onnx")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "net.onnx", "wb") as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)  # sparse: it takes no disk
    with pytest.raises(ModelImportError, match="1024 MB; at most 1024 MB are read"):
        read_onnx(tmp_path / "net.onnx")


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=r"absent.onnx: No such file"):
        read_onnx(tmp_path / "absent.onnx")


def test_inputs_outputs_and_opset_are_read_and_initializers_are_no_inputs(tmp_path: Path) -> None:
    model = tagger()
    # As exporters before IR version 4 listed them.
    model.graph.input.append(helper.make_tensor_value_info("constant_0", FLOAT, [1, 32, FEATURES]))
    source = read_onnx(save(model, tmp_path / "net.onnx"))
    assert [(port.name, port.dims) for port in source.inputs] == [("x", ("batch", "time", FEATURES))]
    assert [port.name for port in source.outputs] == ["y"]
    assert (source.opset, source.producer) == (17, "by-hand")


def test_functions_of_the_file_are_written_out(tmp_path: Path) -> None:
    source = read_onnx(save(doubling(3), tmp_path / "net.onnx"))
    assert [node.op_type for node in source.model.graph.node] == ["Neg"] * 8


def test_a_loop_over_a_size_is_read(tmp_path: Path) -> None:
    assert read_onnx(save(counting_loop("size"), tmp_path / "net.onnx")).outputs
    assert read_onnx(save(counting_loop(7), tmp_path / "net.onnx")).outputs


def test_a_graph_that_takes_all_memory_ends_its_own_process_only() -> None:
    g = Graph()
    x = g.input("x", FLOAT, ["batch", "time", FEATURES])
    # 64 GB of zeros, of a shape of some bytes.
    g.add("ConstantOfShape", [g.constant([1 << 34])], "zeros")
    g.add("Add", [x, g.add("ReduceMax", ["zeros"], keepdims=0)], "y")
    g.output("y", FLOAT, ["batch", "time", FEATURES])
    feed = {"x": np.zeros((1, 2, FEATURES), np.float32)}
    try:
        errors = run_first(g.model().SerializeToString(), [feed])
    except ModelImportError as exc:
        errors = [str(exc)]
    assert errors[0]


def test_what_onnxruntime_says_of_each_run_is_returned() -> None:
    graph = last_step().SerializeToString()
    runs = run_first(graph, [{"x": np.zeros((1, 4, FEATURES), np.float32)}, {"x": np.zeros((1, 4, 2), np.float32)}])
    assert runs[0] == ""
    assert "INVALID_ARGUMENT" in runs[1]


def test_a_graph_that_onnxruntime_does_not_open_is_named() -> None:
    with pytest.raises(ModelImportError, match="onnxruntime does not open the graph"):
        run_first(batchwise().SerializeToString(), [{"x": np.zeros((1, 4, FEATURES), np.float32)}])
