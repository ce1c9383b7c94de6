"""How ONNX files become folders: which axes are found, how rows are batched, what is refused, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.reference
import onnxruntime
import pytest
from onnx import ModelProto
from tokenizers import Tokenizer, models, pre_tokenizers

from tests import onnx_models as made
from tests.onnx_models import CLASSES, FEATURES, HIDDEN, floats, save, words
from training.errors import TrainingError
from training.export.publish import PublishError
from training.importers.model import ModelImportError
from training.importers.onnx.publishing import OnnxOptions, OnnxResult, import_onnx
from training.importers.onnx.reading import IN_SINGLE, read_onnx
from training.importers.onnx.served_graph import ONE_BY_ONE
from training.importers.torch.tasks import Classify, Forecast

DRY = OnnxOptions(dry_run=True)
ROWS = floats(6, 9, 4)
X = ("x", "FP32", ("batch", "time", FEATURES))
LENGTHS = ("lengths", "INT64", ("batch",))


def imported(model: ModelProto, folder: Path, options: OnnxOptions = DRY, **more: Any) -> OnnxResult:
    return import_onnx(read_onnx(save(model, folder / "net.onnx")), "net", options, folder / "models", **more)


def signature(tensors: Any) -> set[tuple[Any, ...]]:
    return {(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors}


@pytest.mark.parametrize(
    ("make", "inputs", "outputs"),
    [
        (made.with_lengths, {X, LENGTHS}, {("y", "FP32", ("batch", CLASSES))}),
        (lambda: made.with_lengths("GRU", 2), {X, LENGTHS}, {("y", "FP32", ("batch", CLASSES))}),
        (lambda: made.with_lengths("RNN"), {X, LENGTHS}, {("y", "FP32", ("batch", CLASSES))}),
        (made.tagger, {X, LENGTHS}, {("y", "FP32", ("batch", "time", CLASSES))}),
        (lambda: made.tagger("GRU", 2), {X, LENGTHS}, {("y", "FP32", ("batch", "time", CLASSES))}),
        (made.doubles, {X, LENGTHS}, {("y", "FP32", ("batch", "time", CLASSES))}),
        (
            made.two_inputs,
            {X, LENGTHS, ("facts", "FP32", ("batch", 2))},
            {("y", "FP32", ("batch", CLASSES))},
        ),
        (
            made.tokens,
            {("input_ids", "INT64", ("batch", "time")), LENGTHS},
            {("probabilities", "FP32", ("batch", 2))},
        ),
    ],
    ids=["sequence_lens", "gru", "rnn", "tagger", "two directions", "float64", "two inputs", "tokens"],
)
def test_names_axes_and_types_are_read_and_rows_of_any_length_share_a_batch(
    make: Callable[[], ModelProto], inputs: set[Any], outputs: set[Any], tmp_path: Path
) -> None:
    result = imported(make(), tmp_path)
    assert (signature(result.artifact.inputs), signature(result.artifact.outputs)) == (inputs, outputs)
    assert result.artifact.batching == "ragged"
    checked = {check.name: check.error for check in result.verdict.checks}
    assert {"graph = file", "row in a batch = row alone", "padding changes nothing"} <= checked.keys()
    assert max(checked.values()) < 1e-5
    assert not (tmp_path / "models").exists()


def masked(kind: str) -> ModelProto:
    """What people do with all steps of a recurrent layer."""
    g = made.Graph()
    x = g.add("Transpose", [g.input("x", made.FLOAT, ["batch", "time", FEATURES])], perm=[1, 0, 2])
    g.recurrent("GRU", x, ["steps"], directions=2)
    steps = g.add("Reshape", [g.add("Transpose", ["steps"], perm=[2, 0, 1, 3]), g.constant([0, 0, -1])])
    if kind == "attention":
        weights = g.add("Softmax", [g.add("MatMul", [steps, g.weights(2 * HIDDEN, 1)])], axis=1)
        pooled = g.add("ReduceSum", [g.add("Mul", [steps, weights]), g.constant([1])], keepdims=0)
    elif kind == "slice":
        sliced = g.add("Slice", [steps, g.constant([-1]), g.constant([2**63 - 1]), g.constant([1])])
        pooled = g.add("Squeeze", [sliced, g.constant([1])])
    else:
        pooled = g.add(kind, [steps], axes=[1], keepdims=0)
    g.add("MatMul", [pooled, g.weights(2 * HIDDEN, CLASSES)], "y")
    g.output("y", made.FLOAT, ["batch", CLASSES])
    return g.model()


@pytest.mark.parametrize("kind", ["slice", "ReduceMean", "ReduceMax", "attention"])
def test_last_steps_means_maxima_and_attention_are_given_the_lengths(kind: str, tmp_path: Path) -> None:
    result = imported(masked(kind), tmp_path)
    assert result.artifact.batching == "ragged"
    assert len(result.tried) == 1


@pytest.mark.parametrize(("opset", "batching"), [(17, "ragged"), (12, "equal")])
def test_the_last_step_is_that_of_the_row_in_graphs_that_can_say_so(opset: int, batching: str, tmp_path: Path) -> None:
    assert imported(made.last_step(opset=opset), tmp_path).artifact.batching == batching


def test_recurrent_nodes_with_their_rows_first_are_turned(tmp_path: Path) -> None:
    result = imported(made.batchwise(), tmp_path, OnnxOptions(), example=ROWS)
    assert result.artifact.batching == "ragged"
    assert result.folder is not None
    example = json.loads((result.folder / "example.json").read_text())
    own = onnx.reference.ReferenceEvaluator(made.batchwise()).run(None, {"x": ROWS[0][None]})[0][0]  # type: ignore[index]
    np.testing.assert_allclose(example["response"]["predictions"][0], own, atol=1e-5)


@pytest.mark.parametrize("make", [made.reverse, lambda: made.counting_loop("size")], ids=["reverse", "loop"])
def test_a_graph_that_reads_the_padding_is_served_in_batches_of_equal_length(
    make: Callable[[], ModelProto], tmp_path: Path
) -> None:
    result = imported(make(), tmp_path)
    assert result.artifact.batching == "equal"
    assert ("x", "FP32", ("batch", "steps", FEATURES)) in signature(result.artifact.inputs)
    assert any("row in a batch = row alone" in line for line in result.tried)


@pytest.mark.parametrize(("cell", "states"), [("LSTM", ["h0", "c0"]), ("GRU", ["h0"]), ("RNN", ["h0"])])
def test_states_are_found_and_carry_a_row_from_piece_to_piece(cell: Any, states: list[str], tmp_path: Path) -> None:
    result = imported(made.stateful(cell), tmp_path)
    assert [tensor.name for tensor in result.artifact.inputs if tensor.name in ("h0", "c0")] == states
    assert ("h0", "FP32", ("batch", 1, HIDDEN)) in signature(result.artifact.inputs)
    assert "pieces with state = whole" in {check.name for check in result.verdict.checks}


def test_a_state_that_was_named_is_taken(tmp_path: Path) -> None:
    result = imported(made.stateful("GRU"), tmp_path, OnnxOptions(dry_run=True, state={"h0": "hn"}))
    assert "pieces with state = whole" in {check.name for check in result.verdict.checks}


def test_recurrent_nodes_of_float64_are_published_in_float32(tmp_path: Path) -> None:
    model = made.with_lengths()
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for entry in [model.graph.input[0], model.graph.output[0]]:
        entry.type.tensor_type.elem_type = 11
    result = imported(model, tmp_path)
    plain = imported(made.with_lengths(), tmp_path)
    assert result.notes == (IN_SINGLE,)
    assert signature(result.artifact.inputs) == signature(plain.artifact.inputs)


def test_an_axis_of_the_rows_that_only_the_declaration_fixes_is_opened(tmp_path: Path) -> None:
    result = imported(made.last_step(rows=32), tmp_path)
    assert result.verdict.broken == ()
    assert ONE_BY_ONE not in result.artifact.notes


def test_a_graph_of_one_row_takes_the_rows_of_a_batch_one_by_one(tmp_path: Path) -> None:
    result = imported(made.frozen_rows(), tmp_path)
    assert result.artifact.notes == (ONE_BY_ONE,)
    assert result.artifact.batching == "equal"
    fixed = imported(made.frozen_rows(9), tmp_path)
    assert ("x", "FP32", ("batch", 9, FEATURES)) in signature(fixed.artifact.inputs)
    assert ("all", "FP32", ("batch", 9, HIDDEN)) in signature(fixed.artifact.outputs)


def test_rows_are_run_one_after_another_where_that_is_wanted(tmp_path: Path) -> None:
    result = imported(made.with_lengths(), tmp_path, OnnxOptions(batching="none", dry_run=True))
    assert result.artifact.notes == (ONE_BY_ONE,)


def test_a_graph_of_one_length_is_published_without_a_time_axis(tmp_path: Path) -> None:
    result = imported(made.last_step(steps=12), tmp_path)
    assert signature(result.artifact.inputs) == {("x", "FP32", ("batch", 12, FEATURES))}
    assert "all of the one length that the graph takes" in str(result)


@pytest.mark.parametrize("is_given", [True, False])
def test_steps_before_rows_are_found_and_can_be_given(is_given: bool, tmp_path: Path) -> None:
    model = made.with_lengths()
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[:2], ("s0", "s1"), strict=True):
        dim.dim_param = name
    options = OnnxOptions(dry_run=True, time_first=is_given)
    assert X in signature(imported(model, tmp_path, options, example=ROWS).artifact.inputs)


def test_answers_that_were_recorded_elsewhere_must_be_met(tmp_path: Path) -> None:
    run: Any = onnxruntime.InferenceSession(made.tagger().SerializeToString()).run
    answers = [run(None, {"x": row[None]})[0][0] for row in ROWS]
    result = imported(made.tagger(), tmp_path, example=ROWS, expected=answers)
    assert "expected answers" in {check.name for check in result.verdict.checks}
    with pytest.raises(ModelImportError, match="the expected answers are not the file's"):
        imported(made.tagger(), tmp_path, example=ROWS, expected=[answer + 1 for answer in answers])


@pytest.mark.parametrize(
    ("make", "options", "example", "message"),
    [
        (made.batch_statistics, DRY, ROWS, 'the answer "y" for a row depends on the other rows in its batch'),
        (made.tagger, DRY, ROWS[:1], "expected two or more rows"),
        (made.tagger, DRY, [row[0] for row in ROWS], "a row has 2 axes"),
        (made.tagger, DRY, floats(6, 9, features=4), "is [batch, time, 5] in the file, the example rows have shape (6, 4)"),
        (made.tagger, DRY, [{"z": row} for row in ROWS], "has the inputs ['z'], the graph reads ['x']"),
        (made.tokens, DRY, [row.astype(np.float32) for row in words(4, 6)], "the graph reads int32, the example has float32"),
        (made.tokens, DRY, [row + 1000 for row in words(4, 6)], "a row alone"),
        (made.tagger, OnnxOptions(lengths="n"), ROWS, 'no input is called "n"'),
        (made.tagger, OnnxOptions(lengths="x"), ROWS, "lengths are integers, one for a row"),
        (made.tagger, OnnxOptions(state={"h": "y"}), ROWS, 'no input is called "h"'),
        (made.tagger, OnnxOptions(state={"x": "z"}), ROWS, 'no output is called "z"'),
        (made.tagger, OnnxOptions(batching="any"), ROWS, "batching: expected"),  # type: ignore[arg-type]
        (made.last_step, OnnxOptions(task=Forecast(4)), ROWS, "4 steps of 5 targets are 20 numbers, the graph gives 3"),
        (made.two_inputs, OnnxOptions(task=Forecast(3)), None, "the graph reads 2 inputs, the task gives it one"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    make: Callable[[], ModelProto], options: OnnxOptions, example: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as refusal:
        imported(make(), tmp_path, options, example=example)
    assert message in str(refusal.value)
    assert not (tmp_path / "models").exists()


def test_the_folder_says_what_was_checked_and_answers_its_example(tmp_path: Path) -> None:
    options = OnnxOptions(description="a trial", licence="CC0-1.0")
    result = imported(made.with_lengths(), tmp_path, options, example=ROWS)
    assert result.folder == tmp_path / "models" / "net" / "1"
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["description"] == "a trial"
    assert manifest["graphs"][0]["opset"] == 17
    about = manifest["training"]
    assert about["import"]["file"] == "net.onnx"
    assert about["import"]["batching"] == "ragged"
    assert about["checks"]["graph = file"]["error"] < 1e-5
    with pytest.raises(PublishError, match="exists"):
        imported(made.with_lengths(), tmp_path, OnnxOptions(version=1), example=ROWS)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["net"]


def test_a_forecast_is_published_with_the_blocks_of_its_task(tmp_path: Path) -> None:
    task = Forecast(3, targets=["value_1"], frequencies=["H"])
    result = imported(made.last_step(), tmp_path, OnnxOptions(task=task), example=floats(20, 24))
    assert result.folder is not None
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["forecast"]["horizon"] == 3
    assert manifest["forecast"]["context_length"] == 24


def test_quantiles_come_out_in_order_and_the_median_is_the_forecast(tmp_path: Path) -> None:
    task = Forecast(2, features=list("abcde"), targets=["b"], quantiles=[0.1, 0.5, 0.9])
    result = imported(made.last_step(numbers=6), tmp_path, OnnxOptions(task=task), example=floats(20, 24))
    assert result.folder is not None
    example = json.loads((result.folder / "example.json").read_text())
    session = onnxruntime.InferenceSession(made.last_step(numbers=6).SerializeToString())
    row = np.array(example["request"]["instances"][0]["history"], np.float32)
    own = np.sort(session.run(None, {"x": row[None]})[0].reshape(2, 3))
    prediction = example["response"]["predictions"][0]
    np.testing.assert_allclose(prediction["forecast"], own[:, 1], atol=1e-5)
    np.testing.assert_allclose(prediction["quantiles"]["0.9"], own[:, 2], atol=1e-5)


def test_a_forecast_of_a_graph_that_reads_the_padding_is_made_row_by_row(tmp_path: Path) -> None:
    task = Forecast(3, targets=["value_1"])
    result = imported(made.last_step(opset=12), tmp_path, OnnxOptions(task=task), example=floats(20, 24))
    assert result.artifact.notes == (ONE_BY_ONE,)
    assert result.artifact.batching == "ragged"
    assert "padding changes nothing" in {check.name for check in result.verdict.checks}


def test_a_forecast_of_any_length_without_an_example_needs_the_context(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match="give --context-length, or rows by --example"):
        imported(made.last_step(), tmp_path, OnnxOptions(task=Forecast(3, targets=["value_1"])))


def test_a_forecast_of_one_length_reads_that_many_steps(tmp_path: Path) -> None:
    task = Forecast(3, targets=["value_1"])
    result = imported(made.last_step(steps=12), tmp_path, OnnxOptions(task=task))
    assert result.folder is not None
    block = json.loads((result.folder / "manifest.json").read_text())["forecast"]
    assert (block["context_length"], block["min_length"]) == (12, 12)


def tokenizer_file(folder: Path) -> Path:
    vocabulary = {"[UNK]": 0, **{word: number for number, word in enumerate(["good", "bad", "film", "very"], 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("are_probabilities", [None, True, False])
def test_a_classifier_of_texts_takes_a_tokenizer(are_probabilities: bool | None, tmp_path: Path) -> None:
    task = Classify(["no", "yes"], tokenizer_file(tmp_path), are_probabilities=are_probabilities)
    result = imported(made.tokens(), tmp_path, OnnxOptions(task=task), example=["good film", "very very bad film"])
    assert result.folder is not None
    example = json.loads((result.folder / "example.json").read_text())
    own = onnxruntime.InferenceSession(made.tokens().SerializeToString()).run(None, {"input_ids": np.array([[1, 3]], np.int32)})[
        0
    ][0]
    wanted = np.exp(own) / np.exp(own).sum() if are_probabilities is False else own
    found = example["response"]["predictions"][0]["probabilities"]
    np.testing.assert_allclose([found["no"], found["yes"]], wanted, atol=1e-5)


def test_a_classifier_of_one_number_gives_two_labels(tmp_path: Path) -> None:
    g = made.Graph()
    ids = g.input("ids", made.INT64, ["batch", "time"])
    x = g.add("Transpose", [g.add("Gather", [g.weights(made.WORDS, FEATURES), ids])], perm=[1, 0, 2])
    g.recurrent("GRU", x, ["", "h"])
    g.add("MatMul", [g.add("Squeeze", ["h", g.constant([0])]), g.weights(HIDDEN, 1)], "logit")
    g.output("logit", made.FLOAT, ["batch", 1])
    task = Classify(["no", "yes"], tokenizer_file(tmp_path))
    result = imported(g.model(), tmp_path, OnnxOptions(task=task), example=["good film", "very very bad film"])
    assert result.folder is not None
    example = json.loads((result.folder / "example.json").read_text())
    logit = onnxruntime.InferenceSession(g.model().SerializeToString()).run(None, {"ids": np.array([[1, 3]])})[0][0, 0]
    found = example["response"]["predictions"][0]["probabilities"]
    np.testing.assert_allclose(found["yes"], 1 / (1 + np.exp(-logit)), atol=1e-5)
