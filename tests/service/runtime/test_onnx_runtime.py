"""What onnxruntime does, and what it is kept from doing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from service.errors import FolderError, InferenceFailed, InvalidInput, StartError
from service.runtime.base import CPU, CUDA, TENSORRT, Device
from service.runtime.onnx_runtime import (
    GpuOptions,
    OnnxRuntime,
    Provider,
    list_packed,
    may_use_gpu,
    open_runtime,
    remove_packed,
    require_runtime,
    write_packed,
)
from service.runtime.tensors import Tensors, collate, split
from tests.fakes import SUM_SIGNATURE, recurrent_graph, recurrent_signature, sum_graph


class FakeSession:
    """A session that runs on the given providers, whatever was requested."""

    def __init__(self, providers: Sequence[str]) -> None:
        self._providers = list(providers)

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return []

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, output_names: Sequence[str] | None, input_feed: Any, /) -> list[Any]:
        return []

    def io_binding(self) -> Any:
        raise AssertionError("nothing is run")

    def run_with_iobinding(self, iobinding: Any, /) -> None:
        raise AssertionError("nothing is run")


class FakeOpener:
    """Opens FakeSessions; providers in `broken` raise, those in `absent` are silently left out, as onnxruntime does."""

    def __init__(self, *, broken: Sequence[str] = (), absent: Sequence[str] = ()) -> None:
        self.broken = broken
        self.absent = absent
        self.requested: list[tuple[list[str], int]] = []
        self.options: dict[str, dict[str, str]] = {}

    def __call__(self, graph: bytes, providers: Sequence[Provider], num_threads: int) -> FakeSession:
        names = [name for name, _ in providers]
        self.requested.append((names, num_threads))
        self.options |= dict(providers)
        if any(name in self.broken for name in names):
            raise RuntimeError("libcudnn.so.9: cannot open shared object file\nand a long trace")
        return FakeSession([name for name in names if name not in self.absent])


def rows(kind: str, lengths: Sequence[int], seed: int = 0) -> list[Tensors]:
    """Items of one row each for `recurrent_graph(kind)`, with random states."""
    draw = np.random.default_rng(seed)
    signature = recurrent_signature(kind)
    states = {name for name, _ in signature.state}
    return [
        {
            "history": draw.normal(size=(1, length, 1)).astype(np.float32),
            "lengths": np.array([length]),
            **{name: draw.normal(size=(1, 4)).astype(np.float32) for name in states},
        }
        for length in lengths
    ]


def test_names_types_and_axes_are_read_from_the_graph() -> None:
    runtime = open_runtime(sum_graph())
    assert (runtime.inputs, runtime.outputs) == (SUM_SIGNATURE.inputs, SUM_SIGNATURE.outputs)
    assert (runtime.requested, runtime.provider) == ("cpu", CPU)
    assert repr(runtime) == "<OnnxRuntime CPUExecutionProvider (requested: cpu) ['history', 'lengths']>"


def test_a_graph_is_opened_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sum_graph())
    answer = open_runtime(path).run({"history": np.ones((2, 3, 1), np.float32), "lengths": np.array([1, 3])})
    assert answer["mean"].ravel().tolist() == [1.0, 3.0]


def test_an_open_axis_without_a_name_gets_one_of_its_own() -> None:
    nameless = helper.make_tensor_value_info("x", 1, [None, None])
    answer = helper.make_tensor_value_info("y", 1, [None, 2])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [nameless], [answer]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    runtime = open_runtime(model.SerializeToString())
    assert [spec.shape for spec in (*runtime.inputs, *runtime.outputs)] == [("x_0", "x_1"), ("y_0", 2)]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=9), seed=st.integers(0, 999))
def test_a_row_in_a_ragged_batch_is_bit_equal_to_the_row_alone(kind: str, lengths: list[int], seed: int) -> None:
    runtime, signature = RUNTIMES[kind], recurrent_signature(kind)
    items = rows(kind, lengths, seed)
    together = split(runtime.run(collate(items, signature)), items, signature)
    for item, part in zip(items, together, strict=True):
        alone = runtime.run(item)
        for name, array in alone.items():
            np.testing.assert_array_equal(part[name], array)


def test_a_row_of_a_simple_rnn_in_a_ragged_batch_differs_by_rounding_only() -> None:
    runtime, signature = RUNTIMES["RNN"], recurrent_signature("RNN")
    items = rows("RNN", [3, 11, 1, 7])
    together = split(runtime.run(collate(items, signature)), items, signature)
    for item, part in zip(items, together, strict=True):
        for name, array in runtime.run(item).items():
            np.testing.assert_allclose(part[name], array, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("junk", [0.0, 1e30, -7.0, np.nan, np.inf])
def test_whatever_is_in_the_padding_the_answer_is_the_same_bit_by_bit(kind: str, junk: float) -> None:
    runtime, signature = RUNTIMES[kind], recurrent_signature(kind)
    items = rows(kind, [2, 9, 5])
    batch = collate(items, signature)
    clean = split(runtime.run(batch), items, signature)
    history = batch["history"].copy()
    for row, length in enumerate(batch["lengths"]):
        history[row, length:] = junk
    dirty = split(runtime.run({**batch, "history": history}), items, signature)
    for one, other in zip(clean, dirty, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_streamed_in_two_parts_is_whole() -> None:
    runtime = RUNTIMES["LSTM"]
    (item,) = rows("LSTM", [10])
    whole = runtime.run(item)
    head: Tensors = {**item, "history": item["history"][:, :4], "lengths": np.array([4])}
    first = runtime.run(head)
    tail: Tensors = {"history": item["history"][:, 4:], "lengths": np.array([6]), "h0": first["h1"], "c0": first["c1"]}
    second = runtime.run(tail)
    np.testing.assert_array_equal(second["h1"], whole["h1"])
    np.testing.assert_array_equal(second["sequence"], whole["sequence"][:, 4:])


def test_nan_is_swallowed_by_onnxruntime_which_is_why_the_check_refuses_it() -> None:
    (item,) = rows("LSTM", [5])
    item["history"][0, 2, 0] = np.nan
    assert np.isfinite(RUNTIMES["LSTM"].run(item)["h1"]).all()


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (1, 0), (0, 0)])
def test_an_empty_dimension_never_reaches_onnxruntime(batch: int, time: int) -> None:
    state = np.zeros((batch, 4), np.float32)
    history = np.zeros((batch, time, 1), np.float32)
    with pytest.raises(InvalidInput, match="is empty"):
        RUNTIMES["LSTM"].run({"history": history, "lengths": np.zeros(batch, np.int64), "h0": state, "c0": state})


def test_a_graph_that_raises_is_a_failure_without_internals_in_its_message() -> None:
    wrong: Tensors = {"history": np.ones((2, 3, 1), np.float32), "lengths": np.ones((2, 2), np.int64)}
    with pytest.raises(InferenceFailed) as caught:
        open_runtime(sum_graph()).run(wrong)
    assert caught.value.message == "the model's graph failed on this input"
    assert "lengths" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 8000000000"),
        RuntimeError("Non-zero status code returned while running ConstantOfShape node: std::bad_alloc"),
    ],
    ids=["Python", "arena", "C++"],
)
def test_a_run_without_enough_memory_names_the_setting(error: Exception) -> None:
    class FullSession(FakeSession):
        def run(self, output_names: Sequence[str] | None, input_feed: Any, /) -> list[Any]:
            raise error

    with pytest.raises(InferenceFailed, match="more memory") as caught:
        OnnxRuntime(FullSession([CPU]), "cpu").run({"history": np.ones((1, 1), np.float32)})
    assert caught.value.facts == {"setting": "SLUICE_PROCESS_MEMORY_BYTES"}


def test_one_runtime_runs_on_many_threads_at_once() -> None:
    items = rows("LSTM", [40] * 64)
    alone = [RUNTIMES["LSTM"].run(item)["h1"] for item in items]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda item: RUNTIMES["LSTM"].run(item)["h1"], items))
    np.testing.assert_array_equal(np.concatenate(answers), np.concatenate(alone))


@pytest.mark.parametrize("made", [b"", b"no graph", sum_graph()[:200]])
def test_a_broken_graph_is_an_error_of_its_folder(made: bytes) -> None:
    with pytest.raises(FolderError, match="onnxruntime does not take the graph"):
        open_runtime(made)


def test_a_missing_file_is_an_error_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"model.onnx cannot be read: No such file"):
        open_runtime(tmp_path / "model.onnx")


def test_a_type_that_no_request_can_carry_is_an_error_of_its_folder() -> None:
    value = [helper.make_tensor_value_info(name, 16, ["batch"]) for name in "xy"]  # 16 is BFLOAT16
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(FolderError, match=r'tensor "x" has the type tensor\(bfloat16\)'):
        open_runtime(model.SerializeToString())


@pytest.mark.parametrize(
    ("device", "available", "opener", "provider", "requested"),
    [
        ("cpu", [CUDA, CPU], FakeOpener(), CPU, [[CPU]]),
        ("auto", [CPU], FakeOpener(), CPU, [[CPU]]),
        ("auto", [CUDA, CPU], FakeOpener(), CUDA, [[CUDA, CPU]]),
        ("auto", [CUDA, CPU], FakeOpener(absent=[CUDA]), CPU, [[CUDA, CPU]]),
        ("auto", [CUDA, CPU], FakeOpener(broken=[CUDA]), CPU, [[CUDA, CPU], [CPU]]),
        ("cuda", [CUDA, CPU], FakeOpener(), CUDA, [[CUDA, CPU]]),
        ("auto", [TENSORRT, CUDA, CPU], FakeOpener(), CUDA, [[CUDA, CPU]]),
        ("tensorrt", [TENSORRT, CUDA, CPU], FakeOpener(), TENSORRT, [[TENSORRT, CUDA, CPU]]),
    ],
)
def test_the_provider_is_the_one_that_runs(
    device: Any, available: list[str], opener: FakeOpener, provider: str, requested: list[list[str]]
) -> None:
    runtime = open_runtime(b"", device, 3, open_session=opener, available=available)
    assert isinstance(runtime, OnnxRuntime)
    assert (runtime.requested, runtime.provider) == (device, provider)
    assert opener.requested == [(providers, 3) for providers in requested]


@pytest.mark.parametrize(
    ("available", "opener", "words"),
    [
        ([CPU], FakeOpener(), r"only has \['CPUExecutionProvider'\]: pip install 'sluice-serving\[gpu\]'"),
        ([CUDA, CPU], FakeOpener(broken=[CUDA]), r"cannot be used: libcudnn.so.9: cannot open shared object file$"),
        ([CUDA, CPU], FakeOpener(absent=[CUDA]), "onnxruntime fell back to CPUExecutionProvider"),
    ],
)
def test_cuda_is_strict(available: list[str], opener: FakeOpener, words: str) -> None:
    with pytest.raises(StartError, match=words):
        open_runtime(b"", "cuda", open_session=opener, available=available)


@pytest.mark.parametrize(
    ("available", "opener", "words"),
    [
        ([CUDA, CPU], FakeOpener(), "device tensorrt was asked for, but this onnxruntime only has"),
        ([TENSORRT, CUDA, CPU], FakeOpener(broken=[TENSORRT]), "device tensorrt was asked for, but cannot be used: libcudnn"),
        ([TENSORRT, CUDA, CPU], FakeOpener(absent=[TENSORRT]), "onnxruntime fell back to CUDAExecutionProvider"),
    ],
)
def test_tensorrt_is_strict_too_and_cuda_is_no_substitute(available: list[str], opener: FakeOpener, words: str) -> None:
    with pytest.raises(StartError, match=words):
        open_runtime(b"", "tensorrt", open_session=opener, available=available)


def test_the_options_of_cuda_keep_float32_and_the_memory_in_bounds() -> None:
    opener = FakeOpener()
    open_runtime(b"", "cuda", gpu=GpuOptions(1, 2**30), open_session=opener, available=[CUDA, CPU])
    assert opener.options == {
        CUDA: {
            "device_id": "1",
            "arena_extend_strategy": "kSameAsRequested",
            "do_copy_in_default_stream": "1",
            "use_tf32": "0",
            "gpu_mem_limit": str(2**30),
        },
        CPU: {},
    }


def test_without_a_limit_or_a_cache_none_is_named() -> None:
    opener = FakeOpener()
    open_runtime(b"", "tensorrt", open_session=opener, available=[TENSORRT, CUDA, CPU])
    assert opener.options[TENSORRT] == {"device_id": "0", "trt_fp16_enable": "False"}
    assert "gpu_mem_limit" not in opener.options[CUDA]


def test_each_graph_keeps_its_tensorrt_engines_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = []
    for graph in (sum_graph(), recurrent_graph("LSTM", seed=1), recurrent_graph("LSTM", seed=2)):
        opener = FakeOpener()
        gpu = GpuOptions(engine_cache=tmp_path)
        open_runtime(graph, "tensorrt", gpu=gpu, open_session=opener, available=[TENSORRT, CUDA, CPU])
        options = opener.options[TENSORRT]
        assert options["trt_engine_cache_enable"] == "True"
        folders.append(Path(options["trt_engine_cache_path"]))
    assert {folder.parent for folder in folders} == {tmp_path}
    assert len(set(folders)) == 3


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_bound_inputs_and_outputs_give_the_same_answer(kind: str) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(recurrent_graph(kind), providers=[CPU])
    bound = OnnxRuntime(session, "cpu", device_type="cpu")
    signature = recurrent_signature(kind)
    batch = collate(rows(kind, [3, 9, 1]), signature)
    turned = {name: np.asfortranarray(array) for name, array in batch.items()}  # bound memory must lie in order
    for tensors in (batch, turned):
        found, expected = bound.run(tensors), RUNTIMES[kind].run(batch)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


class BindingSession(FakeSession):
    """A session on CUDA that remembers how it was bound."""

    def __init__(self) -> None:
        super().__init__([CUDA, CPU])
        self.bound: list[tuple[object, ...]] = []

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="mean", type="tensor(float)", shape=["batch"])]

    def io_binding(self) -> BindingSession:
        return self

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        self.bound.append((name, arr_on_cpu.tolist()))

    def bind_output(self, name: str, device_type: str, device_id: int) -> None:
        self.bound.append((name, device_type, device_id))

    def run_with_iobinding(self, iobinding: Any, /) -> None:
        self.bound.append(("run",))

    def copy_outputs_to_cpu(self) -> list[Any]:
        return [np.ones(2, np.float32)]


def test_on_a_gpu_inputs_and_outputs_are_bound_to_the_requested_card() -> None:
    session = BindingSession()
    answer = OnnxRuntime(session, "cuda", 3).run({"history": np.array([1.0, 2.0])})
    assert session.bound == [("history", [1.0, 2.0]), ("mean", "cuda", 3), ("run",)]
    assert answer["mean"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_a_graph_that_no_provider_takes_is_an_error_of_its_folder_not_of_the_device(device: Any) -> None:
    with pytest.raises(FolderError, match="does not take the graph"):
        open_runtime(b"", device, open_session=FakeOpener(broken=[CUDA, CPU]), available=[CUDA, CPU])


def test_a_fallback_of_auto_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    open_runtime(b"", "auto", open_session=FakeOpener(), available=[CPU])
    open_runtime(b"", "auto", open_session=FakeOpener(), available=[CUDA, CPU])
    assert caplog.messages == []
    open_runtime(b"", "auto", open_session=FakeOpener(broken=[CUDA]), available=[CUDA, CPU])
    open_runtime(b"", "auto", open_session=FakeOpener(absent=[CUDA]), available=[CUDA, CPU])
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "libcudnn.so.9: cannot open shared object file",
        "onnxruntime fell back to CPUExecutionProvider",
    ]


@pytest.mark.parametrize(
    ("device", "available", "opener", "fallback"),
    [
        ("auto", [CPU], FakeOpener(), None),
        ("cpu", [CUDA, CPU], FakeOpener(), None),
        ("auto", [CUDA, CPU], FakeOpener(), None),
        ("auto", [CUDA, CPU], FakeOpener(absent=[CUDA]), "onnxruntime fell back to CPUExecutionProvider"),
        ("auto", [CUDA, CPU], FakeOpener(broken=[CUDA]), "libcudnn.so.9: cannot open shared object file"),
    ],
)
def test_only_a_machine_that_has_cuda_can_fall_back(
    device: Any, available: list[str], opener: FakeOpener, fallback: str | None
) -> None:
    assert open_runtime(b"", device, open_session=opener, available=available).fallback == fallback


def test_on_this_machine_auto_tells_what_it_got() -> None:
    runtime = open_runtime(sum_graph(), "auto")
    assert runtime.requested == "auto"
    assert runtime.provider == (CUDA if CUDA in require_runtime().get_available_providers() else CPU)


def test_without_onnxruntime_the_start_says_what_to_install() -> None:
    code = """
import sys
sys.modules["onnxruntime"] = None
from service.errors import StartError
from service.runtime.onnx_runtime import open_runtime
try:
    open_runtime(b"")
except StartError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'sluice-serving[cpu]'" in done.stdout
    assert "pip install 'sluice-serving[gpu]'" in done.stdout


@pytest.mark.parametrize("module", ["service.runtime.onnx_runtime", "training.export.verify"])
def test_onnxruntime_leaves_no_identifier_and_sends_no_reports(module: str, tmp_path: Path) -> None:
    code = f"""
import importlib
module = importlib.import_module("{module}")
getattr(module, "require_runtime", lambda: None)()
import sys
assert "onnxruntime" in sys.modules
"""
    # a machine as a person has it: neither the tests' nor a CI's environment has switched it off already
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**kept, "HOME": str(tmp_path)})
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


RUNTIMES = {kind: open_runtime(recurrent_graph(kind)) for kind in ("LSTM", "GRU", "RNN")}


@pytest.mark.parametrize(
    ("device", "available", "may"),
    [("cpu", [CUDA, CPU], False), ("auto", [CPU], False), ("auto", [CUDA, CPU], True), ("cuda", [CUDA, CPU], True)],
)
def test_a_graph_may_run_on_a_gpu_where_there_is_one_and_it_is_not_ruled_out(
    device: Device, available: list[str], may: bool
) -> None:
    assert may_use_gpu(device, available) == may


BUNDLED = Path(__file__).parents[3] / "models" / "forecast-hourly" / "1" / "model.onnx"
ROWS: Tensors = {
    "history": np.random.default_rng(1).uniform(1, 9, (3, 200, 1)).astype(np.float32),
    "lengths": np.array([200, 168, 180]),
}


def test_a_packed_graph_gives_the_same_numbers(tmp_path: Path) -> None:
    graph = BUNDLED.read_bytes()
    write_packed(graph, tmp_path)
    plain, packed = open_runtime(graph, "cpu"), open_runtime(graph, "cpu", packed=tmp_path)
    assert (packed.inputs, packed.outputs) == (plain.inputs, plain.outputs)
    for name, values in plain.run(ROWS).items():
        np.testing.assert_array_equal(packed.run(ROWS)[name], values)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_weights_of_a_packed_graph_are_mapped_and_stay_when_their_file_is_removed(tmp_path: Path) -> None:
    graph = BUNDLED.read_bytes()
    write_packed(graph, tmp_path)
    runtime = open_runtime(graph, "cpu", packed=tmp_path)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    before = runtime.run(ROWS)["forecast"]
    [file] = list_packed(tmp_path).values()
    remove_packed(file)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(runtime.run(ROWS)["forecast"], before)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_packed_graph_that_cannot_be_opened_is_not_used(tmp_path: Path, content: bytes) -> None:
    graph = BUNDLED.read_bytes()
    write_packed(graph, tmp_path)
    [file] = list_packed(tmp_path).values()
    file.write_bytes(content)
    assert open_runtime(graph, "cpu", packed=tmp_path).run(ROWS)["forecast"].shape == (3, 48, 1)


def test_a_graph_that_cannot_be_packed_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not pack the graph"):
        write_packed(b"no graph", tmp_path)
    assert list(tmp_path.iterdir()) == []
