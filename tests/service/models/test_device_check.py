"""What a device must show before its answers are used."""

from __future__ import annotations

import numpy as np
import pytest

from service.errors import InferenceFailed
from service.models.device_check import find_difference
from service.runtime.base import CUDA, Runtime
from service.runtime.onnx_runtime import open_runtime
from service.runtime.tensors import LENGTHS, Signature, Tensors, TensorSpec
from tests.fakes import SUM_SIGNATURE, FakeRuntime, recurrent_graph, recurrent_signature

KINDS = {kind: open_runtime(recurrent_graph(kind)) for kind in ("LSTM", "GRU", "RNN")}


def on_device(kind: str, bend: float = 0.0) -> FakeRuntime:
    """The graph of that kind as a device might run it: right, or with every number off by `bend`."""

    def answer(tensors: Tensors) -> Tensors:
        return {name: array + np.float32(bend) for name, array in KINDS[kind].run(tensors).items()}

    return FakeRuntime(recurrent_signature(kind), answer, provider=CUDA)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 30, None])
def test_a_device_that_answers_as_the_cpu_does_passes_the_check(kind: str, num_steps: int | None) -> None:
    assert find_difference(on_device(kind, 1e-6), KINDS[kind], recurrent_signature(kind), num_steps) is None


def test_a_device_that_reads_the_padding_is_not() -> None:
    def answer(tensors: Tensors) -> Tensors:
        time = tensors["history"].shape[1]
        return KINDS["LSTM"].run({**tensors, LENGTHS: np.full(len(tensors[LENGTHS]), time)})

    runtime = FakeRuntime(recurrent_signature("LSTM"), answer, provider=CUDA)
    found = find_difference(runtime, KINDS["LSTM"], recurrent_signature("LSTM"), 30)
    assert found is not None
    assert found.startswith(('output "sequence" differs by ', 'output "h1" differs by '))
    assert "in a batch of lengths [" in found
    assert found.endswith("and the same row alone")


def test_a_device_that_swaps_rows_of_a_batch_is_not() -> None:
    def answer(tensors: Tensors) -> Tensors:
        return {name: array[::-1] for name, array in KINDS["GRU"].run(tensors).items()}

    runtime = FakeRuntime(recurrent_signature("GRU"), answer, provider=CUDA)
    found = find_difference(runtime, KINDS["GRU"], recurrent_signature("GRU"), 30)
    assert found is not None
    assert "the same row alone" in found


def test_a_device_that_answers_every_row_alike_but_not_as_the_cpu_is_not() -> None:
    found = find_difference(on_device("LSTM", 0.1), KINDS["LSTM"], recurrent_signature("LSTM"), 30)
    assert found is not None
    assert found.startswith('output "sequence" differs by 0.1 between its answer to a row of ')
    assert found.endswith("and the CPU's")


def test_an_answer_that_is_not_finite_differs_unless_the_cpu_says_so_too() -> None:
    def nan(tensors: Tensors) -> Tensors:
        return {"mean": np.full((len(tensors[LENGTHS]), 1, 1), np.nan, np.float32)}

    def one(tensors: Tensors) -> Tensors:
        return {"mean": np.ones((len(tensors[LENGTHS]), 1, 1), np.float32)}

    device = FakeRuntime(SUM_SIGNATURE, nan, provider=CUDA)
    assert find_difference(device, FakeRuntime(SUM_SIGNATURE, one), SUM_SIGNATURE) is not None
    assert find_difference(device, FakeRuntime(SUM_SIGNATURE, nan), SUM_SIGNATURE) is None


def test_a_device_that_refuses_the_rows_fails_the_check() -> None:
    def answer(tensors: Tensors) -> Tensors:
        raise InferenceFailed("out of memory")

    found = find_difference(FakeRuntime(SUM_SIGNATURE, answer, provider=CUDA), KINDS["LSTM"], SUM_SIGNATURE)
    assert found is not None
    assert found.startswith("the rows of the device check are refused: ")


def test_a_model_whose_rows_cannot_be_padded_is_checked_with_rows_of_one_length() -> None:
    signature = Signature((TensorSpec("x", "FP32", ("batch", 3)),), (TensorSpec("y", "FP32", ("batch", 3)),))
    device = FakeRuntime(signature, lambda tensors: {"y": tensors["x"]}, provider=CUDA)
    assert find_difference(device, device, signature) is None
    assert max(len(call["x"]) for call in device.calls) > 1


def test_the_smallest_and_the_largest_shape_come_first() -> None:
    device = on_device("LSTM")
    reference: Runtime = KINDS["LSTM"]
    find_difference(device, reference, recurrent_signature("LSTM"), 30)
    shapes = [call["history"].shape[:2] for call in device.calls]
    assert shapes[0] == (1, 1)
    assert shapes[1][1] == 30
    assert shapes[1][0] >= max(rows for rows, _ in shapes)
