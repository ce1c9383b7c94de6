"""Tensors that lie in other files are found wherever a graph may hold them, and a folder with one is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import FolderError
from service.manifest import read_file
from service.models.external_data import find_external_data
from service.models.loading import check_folder
from tests.folders import edit_manifest, write_forecast_folder


def tensor(name: str = "weights", location: str | None = None) -> TensorProto:
    made = numpy_helper.from_array(np.zeros(4, np.float32), name)
    if location is not None:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value=location)
    return made


def model(place: str, location: str | None) -> bytes:
    inner = tensor("inner", location)
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    initializers, sparse = [], []
    constant = helper.make_node("Constant", [], ["y"], value=inner)
    nodes = [helper.make_node("Identity", ["inner"], ["y"])]
    functions = []
    if place == "initializer":
        initializers = [inner]
    elif place == "attribute":
        nodes = [constant]
    elif place == "subgraph":
        branch = helper.make_graph([helper.make_node("Identity", ["inner"], ["z"])], "branch", [], [], [inner])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    elif place == "function":
        functions = [helper.make_function("d", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)])]
    else:
        sparse = [helper.make_sparse_tensor(inner, numpy_helper.from_array(np.arange(4), "indices"), [4])]
    graph = helper.make_graph(nodes, "g", [], output, initializers, sparse_initializer=sparse)
    payload: bytes = helper.make_model(graph, functions=functions).SerializeToString()
    return payload


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function", "sparse"])
def test_external_data_is_found_wherever_it_stands(place: str) -> None:
    assert find_external_data(model(place, "/etc/passwd")) == "inner"
    assert find_external_data(model(place, None)) is None


def test_what_cannot_be_read_as_onnx_is_refused() -> None:
    payload = model("initializer", "secret")
    with pytest.raises(ValueError, match="a field"):
        find_external_data(payload[:20])
    group = bytes([(3 << 3) | 3, (3 << 3) | 4])  # an unknown group, which protobuf's own reader steps over
    with pytest.raises(ValueError, match="protobuf"):
        find_external_data(group + payload)


def test_a_folder_whose_graph_keeps_weights_elsewhere_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_forecast_folder(tmp_path)
    graph = onnx.load(folder / "model.onnx")
    secret = next(entry for entry in graph.graph.initializer if entry.name == "bias")
    (tmp_path / "secret").write_bytes(secret.raw_data)
    secret.ClearField("raw_data")
    secret.ClearField("float_data")
    secret.data_location = TensorProto.EXTERNAL
    secret.external_data.add(key="location", value="secret")
    payload = graph.SerializeToString()
    (folder / "model.onnx").write_bytes(payload)
    edit_manifest(folder, lambda manifest: manifest["graphs"][0].update(sha256=hashlib.sha256(payload).hexdigest()))
    monkeypatch.chdir(tmp_path)  # where onnxruntime would find it
    assert check_folder(folder) == ['model.onnx: tensor "bias" lies in another file; external data is not read']


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "example.json"])
def test_no_file_of_a_folder_may_lie_elsewhere_or_be_something_else(name: str, tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path / "models")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert [finding for finding in check_folder(folder) if f"{name} is a link that leads out of the folder" in finding]
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert [finding for finding in check_folder(folder) if f"{name} is not a regular file" in finding]


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path, "file", 5) == b"12345"
    with pytest.raises(FolderError, match="has more than 4 bytes"):
        read_file(tmp_path, "file", 4)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(FolderError, match="circle cannot be read"):
        read_file(tmp_path, "circle")
