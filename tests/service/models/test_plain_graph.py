"""A folder with a graph alone: its tensors are the graph's, and rows share a run only where they are independent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.api.v2.parsing import RequestedOutput
from service.errors import FolderError, PayloadTooLarge
from service.models.folder import ModelOptions
from service.models.loading import check_folder, load_model
from service.models.model import MAX_VALUES
from service.models.plain_graph import is_plain_folder

FLOAT = TensorProto.FLOAT


def write_plain(folder: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> Path:
    """A version folder with `model.onnx`; outputs are FP32 of a shape that the graph decides."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(nodes, "plain", inputs, [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs])
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    )
    onnx.save(model, folder / "model.onnx")
    return folder


def float_input(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, list(shape))


class Given:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.datatype, self.shape, self.data = name, "FP32", list(values.shape), values.astype("<f4").tobytes()


async def infer(folder: Path, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    model = await load_model(folder, ModelOptions(device="cpu"))
    try:
        outputs = await model.infer_public([Given(name, values) for name, values in tensors.items()])
        return {output.name: np.reshape(output.data, output.shape) for output in outputs}
    finally:
        await model.stop()


async def test_a_graph_whose_rows_are_independent_is_batched(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    folder = write_plain(tmp_path / "add" / "1", nodes, [float_input("a", "N", 3), float_input("b", "N", 3)], ["sum"])
    model = await load_model(folder, ModelOptions(device="cpu"))
    await model.stop()
    assert model.is_batched
    assert [str(spec) for spec in model.public_tensors.inputs] == ["FP32 [batch, 3]", "FP32 [batch, 3]"]
    found = await infer(folder, a=np.ones((2, 3)), b=np.full((2, 3), 2.0))
    np.testing.assert_array_equal(found["sum"], np.full((2, 3), 3.0))


async def test_rows_that_depend_on_each_other_are_run_request_by_request(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["a"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["a", "mean"], ["centred"]),
    ]
    folder = write_plain(tmp_path / "centre" / "1", nodes, [float_input("a", "N", 2)], ["centred"])
    model = await load_model(folder, ModelOptions(device="cpu"))
    await model.stop()
    assert not model.is_batched
    assert model.limits.max_batch_size == 1
    found = await infer(folder, a=np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(found["centred"], [[-1, -1], [1, 1]])


async def test_a_graph_of_fixed_shape_takes_that_shape(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0)]
    folder = write_plain(tmp_path / "total" / "3", nodes, [float_input("a", 4)], ["sum"])
    found = await infer(folder, a=np.arange(4.0))
    assert found["sum"].shape == ()
    assert found["sum"] == 6


async def test_open_axes_named_time_or_batch_behind_the_first_are_plain_axes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["b"])]
    folder = write_plain(tmp_path / "relu" / "1", nodes, [float_input("a", "batch", "time", "Größe 1")], ["b"])
    found = await infer(folder, a=-np.ones((2, 5, 4)))
    assert found["b"].shape == (2, 5, 4)


def test_a_folder_that_lost_its_manifest_is_not_taken_for_a_graph_alone(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "relu" / "1", [helper.make_node("Relu", ["a"], ["b"])], [float_input("a", "N")], ["b"])
    assert is_plain_folder(folder)
    assert check_folder(folder) == []
    (folder / "example.json").write_text("{}")
    assert not is_plain_folder(folder)


async def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "text" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(FolderError, match=r"model\.onnx"):
        await load_model(folder, ModelOptions(device="cpu"))


async def test_a_graph_with_its_values_in_another_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "outside" / "1"
    folder.mkdir(parents=True)
    weights = helper.make_tensor("w", FLOAT, [2], np.ones(2, np.float32).tobytes(), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret.bin")
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "w"], ["b"])], "g", [float_input("a", "N", 2)], [float_input("b", "N", 2)], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FolderError, match="external data is not read"):
        await load_model(folder, ModelOptions(device="cpu"))


async def test_a_graph_of_scalars_takes_scalars(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["negated"])]
    folder = write_plain(tmp_path / "negate" / "1", nodes, [float_input("a")], ["negated"])
    assert (await infer(folder, a=np.array(1.5)))["negated"] == -1.5


async def test_an_answer_is_bounded_whatever_the_graph_makes_of_a_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Range", ["zero", "end", "one"], ["steps"]),
    ]
    folder = write_plain(tmp_path / "range" / "1", nodes, [float_input("end")], ["steps"])
    model = await load_model(folder, ModelOptions(device="cpu"))
    try:
        for number, is_refused in ((1000.0, False), (MAX_VALUES + 1.0, True)):
            request = [Given("end", np.array(number))]
            if is_refused:
                with pytest.raises(PayloadTooLarge, match="at most"):
                    await model.infer_public(request)
            else:
                assert (await model.infer_public(request))[0].shape == [1000]
        classes = [RequestedOutput("steps", False, 1)]
        with pytest.raises(PayloadTooLarge, match="to classify"):
            await model.infer_public([Given("end", np.array(3e5))], classes)
    finally:
        await model.stop()
