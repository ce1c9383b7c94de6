"""What an import publishes, and what it refuses, before anything is written, by the names of layer and option."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tokenizers import Tokenizer, models
from typer.testing import CliRunner, Result

from tests.keras_models import QUIET, functional, keras, saved, sequential
from training.__main__ import app
from training.importers.importer import read_options
from training.importers.keras.importer import import_keras, read_network
from training.importers.model import ModelImportError

pytestmark = QUIET
L = keras.layers


def command(file: Path, *options: str) -> Result:
    models = ["--models", str(file.parent / "models")]
    return CliRunner().invoke(app, ["import-keras", str(file), "--name", "toy", *models, *options], catch_exceptions=False)


def refused(file: Path, *options: str) -> str:
    """The words of a refusal, on one line; nothing was written."""
    result = command(file, *options)
    assert result.exit_code == 1, result.output
    assert not (file.parent / "models").exists()
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def texts() -> Any:
    return sequential((6,), L.Embedding(9, 3, mask_zero=True, name="words"), L.LSTM(4), L.Dense(1, "sigmoid", name="head"))


def series() -> Any:
    return sequential((6, 2), L.LSTM(4), L.Dense(3, name="head"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]")).save(str(path))
    return path


# ----------------------------------------------------------------------------------------------------------- what it is


def test_the_command_prints_the_network_the_checks_and_the_folder(tmp_path: Path) -> None:
    file = saved(sequential((None, 2), L.LSTM(4, unroll=True), L.Dense(1)), tmp_path / "m.keras")
    result = command(file, "--version", "3", "--description", "a toy", "--licence", "CC0-1.0")
    words = " ".join(result.output.split())
    assert result.exit_code == 0, words
    for part in ("2 layers, 117 parameters", "unroll", "graph vs torch", "streamed vs whole", "published", "toy/3"):
        assert part in words
    manifest = json.loads((tmp_path / "models" / "toy" / "3" / "manifest.json").read_text())
    assert (manifest["description"], manifest["licence"], manifest["task"]) == ("a toy", "CC0-1.0", "tensor")
    assert len(manifest["state"]) == 2
    source = manifest["training"]["recipe"]["import"]
    assert (source["file"], source["format"], source["keras_version"]) == ("m.keras", "keras", keras.__version__)
    assert re.fullmatch("[0-9a-f]{64}", source["sha256"])


def test_a_version_is_replaced_only_with_the_option_for_it(tmp_path: Path) -> None:
    file = saved(series(), tmp_path / "m.keras")
    assert command(file, "--version", "2").exit_code == 0
    again = command(file, "--version", "2")
    assert again.exit_code == 1
    assert "exists" in again.output
    assert command(file, "--version", "2", "--replace").exit_code == 0
    assert command(file).exit_code == 0
    assert sorted(folder.name for folder in (tmp_path / "models" / "toy").iterdir()) == ["2", "3"]


def test_the_example_has_two_rows_of_different_length_where_rows_may_differ(tmp_path: Path) -> None:
    for build, is_open in ((texts, True), (series, False)):
        folder = import_keras(saved(build(), tmp_path / "m.keras"), read_options(name="toy"), tmp_path / "models").folder
        instances = json.loads((folder / "example.json").read_text())["request"]["instances"]
        assert len(instances) == 2
        assert (len(instances[0]) != len(instances[1])) == is_open


def test_the_network_of_a_file_answers_like_keras(tmp_path: Path) -> None:
    model = series()
    network = read_network(saved(model, tmp_path / "m.h5"))
    assert network.num_parameters == model.count_params()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_summary_of_a_file_and_of_its_folder_counts_what_keras_counts(tmp_path: Path, suffix: str) -> None:
    model = sequential((6,), L.Embedding(9, 3, name="words"), L.LSTM(4, name="reader"), L.BatchNormalization(), L.Dense(1))
    file = saved(model, tmp_path / f"m{suffix}")
    folder = import_keras(file, read_options(name="toy"), tmp_path / "models").folder
    for what in (file, folder):
        result = CliRunner().invoke(app, ["summary", str(what)], catch_exceptions=False)
        words = " ".join(result.output.split())
        assert result.exit_code == 0, words
        for part in ("reader (LSTM)", "(None, 4)", f"Total params: {model.count_params():,}", "Non-trainable params: 8"):
            assert part in words


def test_everything_an_import_publishes_is_named_after_the_files_layers(tmp_path: Path) -> None:
    model = functional((None, 2), L.GRU(3, name="reader", return_sequences=True), L.Dense(1, name="teller"), name="series")
    folder = import_keras(saved(model, tmp_path / "m.keras"), read_options(name="toy"), tmp_path / "models").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [tensor["name"] for tensor in manifest["inputs"]] == ["series", "lengths", "reader_hidden"]
    assert manifest["outputs"][0] == {"name": "output", "datatype": "FP32", "shape": ["batch", "time", 1]}


# ------------------------------------------------------------------------------------------------------ what it refuses

LAYERS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "lambda": (
        lambda: sequential((3,), L.Lambda(lambda x: 2 * x, name="double")),
        ['layer "double" (Lambda)', "its code is Python"],
    ),
    "convolution in two axes": (lambda: sequential((4, 4, 1), L.Conv2D(2, 3, name="image")), ['layer "image" (Conv2D)']),
    "convolution inside a step": (
        lambda: sequential((4, 4, 4, 1), L.ConvLSTM2D(2, 3, name="video")),
        ['layer "video" (ConvLSTM2D)', "has no node in ONNX"],
    ),
    "half precision": (lambda: sequential((5, 2), L.LSTM(3, name="cells", dtype="mixed_float16")), ['"cells"', '"dtype"']),
    "data_format": (
        lambda: sequential((5, 2), L.GlobalMaxPooling1D(data_format="channels_first", name="pool")),
        ['layer "pool" (GlobalMaxPooling1D)', '"data_format"'],
    ),
    "softmax over the rows": (lambda: sequential((5, 2), L.Softmax(axis=0, name="soft")), ['layer "soft"', "rows of the batch"]),
    "images": (lambda: sequential((None, None, 3), L.Flatten()), ["only the first axis"]),
    "whole numbers without an embedding": (
        lambda: keras.Sequential([keras.Input((3,), dtype="int32"), L.Dense(1)]),
        ["int32", "Embedding"],
    ),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_not_supported_is_refused_by_layer_and_option(tmp_path: Path, name: str, suffix: str) -> None:
    build, words = LAYERS[name]
    message = refused(saved(build(), tmp_path / f"m{suffix}"))
    for part in words:
        assert part in message


def test_a_custom_class_is_refused_by_its_name(tmp_path: Path) -> None:
    class Doubling(L.Layer):  # type: ignore[misc, name-defined]
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    message = refused(saved(sequential((3,), Doubling(name="mine"), L.Dense(1)), tmp_path / "m.keras"))
    assert 'layer "mine" (Doubling)' in message


def without(file: Path, dataset: str) -> Path:
    """The same file with a weight less."""
    if file.suffix == ".h5":
        with h5py.File(file, "r+") as content:
            del content[dataset]
        return file
    folder = file.parent / "unpacked"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    with h5py.File(folder / "model.weights.h5", "r+") as content:
        del content[dataset]
    file.unlink()
    shutil.make_archive(str(file), "zip", folder)
    return Path(f"{file}.zip").rename(file)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("layers/lstm/cell/vars/1", ["(LSTM)", "weights are missing: recurrent_kernel;"]),
        ("layers/lstm/cell", ["(LSTM)", "weights are missing: kernel, recurrent_kernel, bias;", "the file holds none"]),
        ("layers/dense/vars/0", ['layer "head" (Dense)', "weights are missing: kernel;"]),
    ],
)
def test_a_weight_that_a_keras_file_lacks_is_named(tmp_path: Path, dataset: str, words: list[str]) -> None:
    message = refused(without(saved(series(), tmp_path / "m.keras"), dataset))
    for part in words:
        assert part in message


def test_a_weight_that_an_h5_file_lacks_is_named(tmp_path: Path) -> None:
    model = functional((6, 2), L.Bidirectional(L.GRU(4), name="both"), L.Dense(3, name="head"))
    file = saved(model, tmp_path / "m.h5")
    with h5py.File(file, "r+") as content:
        group = content["model_weights/head"]
        group.attrs["weight_names"] = [name for name in group.attrs["weight_names"] if not name.endswith("bias")]
    assert 'layer "head" (Dense): weights are missing: bias; expected kernel [8, 3], bias [3]' in refused(file)
    file = saved(model, tmp_path / "m.h5")
    with h5py.File(file, "r+") as content:
        del content["model_weights/both"]
    message = refused(file)
    assert 'layer "both" (Bidirectional): weights are missing: forward kernel' in message
    assert "backward bias" in message


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    file = saved(functional((6, 2), L.LSTM(4, name="cells")), tmp_path / "m.h5")
    with h5py.File(file, "r+") as content:
        del content["model_weights/cells/cells/lstm_cell/bias"]
        content["model_weights/cells/cells/lstm_cell"].create_dataset("bias", data=np.zeros(12, np.float32))
    message = refused(file)
    assert 'layer "cells" (LSTM): weight bias ("cells/lstm_cell/bias"): expected [16], the file holds [12]' in message


def test_no_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.keras")


def flat() -> Any:
    return sequential((6, 1), L.Flatten(name="flat"), L.Dense(3))


OPTIONS: list[tuple[Callable[[], Any], list[str], str]] = [
    (flat, ["--task", "forecast", "--horizon", "3"], 'layer "flat" (Flatten)'),
    (series, ["--task", "sorting"], "--task"),
    (series, ["--name", "a/b"], "--name"),
    (series, ["--version", "0"], "--version"),
    (series, ["--labels", "a,b"], "--labels belongs to --task classify"),
    (series, ["--horizon", "3"], "--horizon belongs to --task forecast"),
    (series, ["--task", "forecast"], "--task forecast needs --horizon"),
    (series, ["--task", "forecast", "--horizon", "3"], "--targets: which of the features value_0, value_1"),
    (series, ["--task", "forecast", "--horizon", "3", "--features", "a"], "--features must name the model's 2 features"),
    (series, ["--task", "forecast", "--horizon", "3", "--features", "a,b", "--targets", "c"], '--targets: "c" is none of'),
    (series, ["--task", "forecast", "--horizon", "2", "--features", "a,b", "--targets", "a"], 'layer "head" (Dense)'),
    (series, ["--task", "forecast", "--horizon", "3", "--targets", "value_0", "--context-length", "9"], "--context-length"),
    (series, ["--task", "forecast", "--horizon", "3", "--frequency", "X"], "--frequency"),
    (texts, ["--task", "forecast", "--horizon", "1"], "--task forecast needs a model that reads"),
    (series, ["--task", "classify", "--labels", "a,b", "--tokenizer", "{tokenizer}"], "the first layer must be an Embedding"),
    (texts, ["--task", "classify", "--labels", "a,b"], "--task classify needs --tokenizer"),
    (texts, ["--task", "classify", "--tokenizer", "{tokenizer}"], "--task classify needs --labels"),
    (texts, ["--task", "classify", "--labels", "a,a", "--tokenizer", "{tokenizer}"], "--labels: two or more different"),
    (texts, ["--task", "classify", "--labels", "a,b,c", "--tokenizer", "{tokenizer}"], 'layer "head" (Dense)'),
    (texts, ["--task", "classify", "--labels", "a,b", "--tokenizer", "{absent}"], "--tokenizer"),
    (texts, ["--task", "classify", "--labels", "a,b", "--tokenizer", "{broken}"], "is not a file of the tokenizers library"),
    (texts, ["--task", "classify", "--labels", "a,b", "--tokenizer", "{large}"], "its ids go up to 20"),
    (series, ["--example", "{absent}"], "--example"),
    (series, ["--example", "{broken}"], "is not JSON"),
]


@pytest.mark.parametrize(("build", "options", "words"), OPTIONS, ids=[" ".join(options) for _, options, _ in OPTIONS])
def test_an_option_that_does_not_fit_is_named(
    tmp_path: Path, tokenizer: Path, build: Callable[[], Any], options: list[str], words: str
) -> None:
    (tmp_path / "broken").write_text("{")
    large = tmp_path / "large.json"
    Tokenizer(models.WordLevel({"[UNK]": 0, "z": 20}, unk_token="[UNK]")).save(str(large))
    places = {"tokenizer": tokenizer, "absent": tmp_path / "absent", "broken": tmp_path / "broken", "large": large}
    given = [option.format(**places) for option in options]
    assert words in refused(saved(build(), tmp_path / "m.keras"), *given)


EXAMPLES: list[tuple[Callable[[], Any], str, str]] = [
    (series, "[]", "two or more"),
    (series, "[[1, 2]]", "two or more"),
    (series, "[[[1, 2]], [[1, 2]]]", "instance 0: expected the shape [6, 2], got [1, 2]"),
    (series, '[{"x": []}, {}]', 'instance 0: expected the input "input"'),
    (series, '[[["a", 2]], []]', "instance 0: expected numbers"),
    (series, "[[[NaN, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2]], []]", "instance 0: every number must be finite"),
    (texts, "[[1, 2], [9]]", "instance 1: token ids are whole numbers from 0 to 8"),
    (texts, "[[1, 2], [1.5]]", "instance 1: token ids are whole numbers from 0 to 8"),
    (texts, "[[1, 2], []]", "instance 1: it is empty"),
    (texts, "[[1, 2], [1, 1, 1, 1, 1, 1, 1]]", "instance 1: expected 1 to 6 steps, got 7"),
]


@pytest.mark.parametrize(("build", "text", "words"), EXAMPLES)
def test_an_instance_that_does_not_fit_is_named(tmp_path: Path, build: Callable[[], Any], text: str, words: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert words in refused(saved(build(), tmp_path / "m.keras"), "--example", str(tmp_path / "rows.json"))


def test_options_are_checked_without_a_file() -> None:
    with pytest.raises(ModelImportError, match="--name"):
        read_options(name="")


class Block(L.Layer):  # type: ignore[misc, name-defined]  # Keras has no types
    """A layer of one's own, with a layer inside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("branches", [False, True])
def test_a_class_that_is_not_known_is_named_before_its_weights_are_read(branches: bool, tmp_path: Path) -> None:
    source = keras.Input((None, 2))
    h = Block(name="own")(source)
    model = keras.Model(source, L.LSTM(4)(L.Add()([h, h]) if branches else h))
    assert 'layer "own" (Block): there is no such layer' in refused(saved(model, tmp_path / "model.keras"))


def test_a_row_of_no_step_in_the_example_says_so(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("[[[1, 2]], []]")
    file = saved(sequential((None, 2), L.LSTM(4)), tmp_path / "model.keras")
    assert "instance 1: it is empty; a row has at least one step" in refused(file, "--example", str(rows))
