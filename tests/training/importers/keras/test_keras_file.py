"""What is read of files that Keras wrote, and the messages about files that cannot be read."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.keras_models import QUIET, functional, keras, saved, saved_by_keras_2, sequential
from training.importers.keras.entry import KerasFileError
from training.importers.keras.keras_file import read_keras_calls, read_keras_file
from training.importers.keras.module import CallsModule

pytestmark = QUIET
L = keras.layers


def deep() -> Any:
    return sequential(
        (6,),
        L.Embedding(9, 4, mask_zero=True, name="words"),
        L.SpatialDropout1D(0.1),
        L.Bidirectional(L.LSTM(3, return_sequences=True, dropout=0.1), name="both"),
        L.TimeDistributed(L.Dense(5), name="each"),
        L.BatchNormalization(name="norm"),
        L.GRU(2, return_sequences=True, recurrent_dropout=0.1, seed=1),
        L.GRU(2, name="last"),
        L.LayerNormalization(center=False),
        L.Dense(1),
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_come_in_their_order_with_the_weights_of_get_weights(tmp_path: Path, suffix: str) -> None:
    model = deep()
    file = read_keras_file(saved(model, tmp_path / f"m{suffix}"))
    assert file.format == suffix.removeprefix(".")
    assert file.keras_version == keras.__version__
    assert file.input.shape == (6,)
    assert [layer.name for layer in file.layers] == [layer.name for layer in model.layers]
    for stored, layer in zip(file.layers, model.layers, strict=True):
        arrays = [weight for weight in layer.get_weights() if weight.dtype.kind == "f"]
        assert len(stored.weights) == len(arrays), stored.name
        for weight, array in zip(stored.weights, arrays, strict=True):
            np.testing.assert_array_equal(weight.values, array)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_linear_functional_model_is_followed_from_input_to_output(tmp_path: Path, suffix: str) -> None:
    source = keras.Input((None, 3), name="readings")
    hidden, *_ = L.LSTM(4, return_state=True, name="b")(source)
    model = keras.Model(source, L.Dense(2, name="a")(hidden))
    file = read_keras_file(saved(model, tmp_path / f"m{suffix}"))
    assert [layer.name for layer in file.layers] == ["b", "a"]
    assert (file.input.name, file.input.shape) == ("readings", (None, 3))
    assert file.outputs == (0,)


@pytest.mark.parametrize("is_functional", [False, True], ids=["sequential", "functional"])
def test_what_keras_2_wrote_is_read_like_what_keras_3_writes(tmp_path: Path, is_functional: bool) -> None:
    model = deep()
    old = read_keras_file(saved_by_keras_2(model, tmp_path / "old.h5", is_functional=is_functional))
    new = read_keras_file(saved(model, tmp_path / "new.h5"))
    assert old.keras_version == "2.15.0"
    assert old.input.shape == new.input.shape
    assert [layer.class_name for layer in old.layers] == [layer.class_name for layer in new.layers]
    for one, other in zip(old.layers, new.layers, strict=True):
        for weight, twin in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(weight.values, twin.values)


def test_a_model_that_got_its_shape_from_the_first_batch_is_read(tmp_path: Path) -> None:
    model = keras.Sequential([L.LSTM(3), L.Dense(1)])
    model(np.zeros((2, 5, 4), np.float32))
    assert read_keras_file(saved(model, tmp_path / "m.keras")).input.shape == (5, 4)


def test_long_lists_of_names_that_keras_cuts_into_parts_are_read(tmp_path: Path) -> None:
    path = saved(sequential((4, 2), L.LSTM(3, name="lstm")), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/lstm"]
        names = list(group.attrs["weight_names"])
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:2], names[2:]
    assert len(read_keras_file(path).layers[0].weights) == 3


# ------------------------------------------------------------------------------------------------------------- refusals


def shared() -> Any:
    layer, source = L.Dense(3, name="twice"), keras.Input((3,))
    return keras.Model(source, layer(layer(source)))


def branched() -> Any:
    source = keras.Input((5, 3), name="series")
    return keras.Model(source, L.Add(name="sum")([L.LSTM(2, name="left")(source), L.GRU(2, name="right")(source)]))


def skipping() -> Any:
    source = keras.Input((5, 3), name="series")
    hidden = L.Dense(3, name="dense")(source)
    return keras.Model(source, L.Concatenate(name="join")([hidden, source]))


def two_inputs() -> Any:
    one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
    return keras.Model([one, other], L.Concatenate()([one, other]))


def two_outputs() -> Any:
    source = keras.Input((5, 3))
    hidden = L.LSTM(2, name="lstm")(source)
    return keras.Model(source, [hidden, L.Dense(1, name="dense")(hidden)])


def given_a_state() -> Any:
    source = keras.Input((5, 3))
    _, *state = L.LSTM(2, name="encoder", return_state=True)(source)
    return keras.Model(source, L.LSTM(2, name="decoder")(source, initial_state=state))


def reading_a_state() -> Any:
    source = keras.Input((5, 3))
    _, state, _ = L.LSTM(2, name="lstm", return_state=True)(source)
    return keras.Model(source, L.Dense(1, name="dense")(state))


def always_dropping() -> Any:
    source = keras.Input((3,))
    return keras.Model(source, L.Dropout(0.5, name="drop")(source, training=True))


def given_a_mask() -> Any:
    source = keras.Input((5, 3))
    return keras.Model(source, L.LSTM(2, name="lstm")(source, mask=keras.ops.any(keras.ops.not_equal(source, 1.0), axis=-1)))


def given_another_mask() -> Any:
    source = keras.Input((5, 3))
    mask = keras.ops.any(keras.ops.not_equal(source, 1.0), axis=-1)
    return keras.Model(source, L.LSTM(2, name="lstm")(L.Masking(0.0)(source), mask=mask))


def given_a_mask_that_had_ended() -> Any:
    source = keras.Input((5,))
    embedding = L.Embedding(9, 3, mask_zero=True)
    hidden = L.Conv1D(2, 3, padding="same")(embedding(source))
    return keras.Model(source, L.LSTM(2, name="lstm")(hidden, mask=embedding.compute_mask(source)))


def nested() -> Any:
    inner = keras.Sequential([keras.Input((5, 3)), L.LSTM(2)], name="encoder")
    return keras.Sequential([keras.Input((5, 3)), inner, L.Dense(1)])


GRAPHS: list[tuple[Callable[[], Any], list[str]]] = [
    (shared, ['layer "twice" (Dense)', "used 2 times"]),
    (branched, ['layer "sum" (Add)', '"left" and "right"', "branches"]),
    (skipping, ['layer "join" (Concatenate)', "branches"]),
    (two_inputs, ["several inputs", '"one", "other"']),
    (two_outputs, ["outputs of several layers", '"lstm", "dense"']),
    (given_a_state, ['layer "decoder" (LSTM)', "branches"]),
    (reading_a_state, ['layer "dense" (Dense)', 'result 1 of "lstm"']),
    (given_a_mask, ['layer "lstm" (LSTM)', '"mask"']),
    (given_another_mask, ['layer "lstm" (LSTM)', '"mask"']),
    (given_a_mask_that_had_ended, ['layer "lstm" (LSTM)', '"mask"']),
    (nested, ['layer "encoder" (Sequential)', "a model inside the model"]),
    (always_dropping, ['layer "drop" (Dropout)', '"training"']),
]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(("build", "words"), GRAPHS, ids=[build.__name__ for build, _ in GRAPHS])
def test_what_is_no_chain_of_layers_is_refused_by_the_layer(
    tmp_path: Path, build: Callable[[], Any], words: list[str], suffix: str
) -> None:
    path = saved(build(), tmp_path / f"m{suffix}")
    with pytest.raises(KerasFileError) as caught:
        read_keras_file(path)
    for part in [str(path), *words]:
        assert part in str(caught.value)


def broken(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    return buffer.getvalue()


CONFIG = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"name": "d", "units": 1}}]}}
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "neither a .keras archive nor an .h5 file"),
    "text": (b"weights", "neither a .keras archive nor an .h5 file"),
    "half an archive": (b"PK\x03\x04" + b"\0" * 40, "the archive is damaged"),
    "half an h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "the file is damaged"),
    "no config": (broken({"metadata.json": b"{}"}), "holds no config.json"),
    "no weights": (broken({"config.json": b"{}"}), "holds no model.weights.h5"),
    "config is not JSON": (broken({"config.json": b"{", "model.weights.h5": b""}), "config.json is not JSON"),
    "a class of one's own": (
        broken({"config.json": b'{"class_name": "MyModel", "config": {}}', "model.weights.h5": b""}),
        'a model of the class "MyModel"',
    ),
    "no layers": (
        broken({"config.json": b'{"class_name": "Sequential", "config": {"layers": []}}', "model.weights.h5": b""}),
        "the model has no layers",
    ),
    "layers without a class": (
        broken({"config.json": b'{"class_name": "Sequential", "config": {"layers": [{}]}}', "model.weights.h5": b""}),
        "lists no layers",
    ),
    "never built": (broken({"config.json": json.dumps(CONFIG).encode(), "model.weights.h5": b""}), "the model was never built"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_saved_model_is_refused(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(KerasFileError, match=r"m\.keras") as caught:
        read_keras_file(path)
    assert words in str(caught.value)


def test_an_archive_that_unpacks_to_far_more_than_it_has_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"[" + b" " * 30_000_000)
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(KerasFileError, match="would unpack to 30000001"):
        read_keras_file(path)


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    content = saved(sequential((4, 2), L.LSTM(3)), tmp_path / "m.keras").read_bytes()
    for size in range(0, len(content), 997):
        (tmp_path / "cut.keras").write_bytes(content[:size])
        with pytest.raises(KerasFileError):
            read_keras_file(tmp_path / "cut.keras")


def test_no_file_and_a_folder_get_different_messages(tmp_path: Path) -> None:
    with pytest.raises(KerasFileError, match="no such file"):
        read_keras_file(tmp_path / "absent.keras")
    with pytest.raises(KerasFileError, match="is a folder"):
        read_keras_file(tmp_path)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    model = sequential((4, 2), L.LSTM(3))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(KerasFileError, match="weights and no model"):
        read_keras_file(tmp_path / "m.weights.h5")


def test_an_h5_whose_weight_is_missing_is_refused_by_layer_and_weight(tmp_path: Path) -> None:
    path = saved(functional((4, 2), L.LSTM(3, name="cells")), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights/cells/cells/lstm_cell/bias"]
    with pytest.raises(KerasFileError, match=r'layer "cells" \(LSTM\): weight "cells/lstm_cell/bias" is missing'):
        read_keras_file(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = sequential((3,), L.Dense(1, name="head"))
    model.layers[0].bias.assign([float("nan")])
    with pytest.raises(KerasFileError, match=r'layer "head" \(Dense\): weight "1" holds values that are not finite'):
        read_keras_file(saved(model, tmp_path / "m.keras"))


def test_values_in_another_file_are_not_read(tmp_path: Path) -> None:
    path = saved(functional((3,), L.Dense(1, name="head")), tmp_path / "m.h5")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other.create_dataset("bias", data=np.zeros(1, np.float32))
    with h5py.File(path, "r+") as file:
        del file["model_weights/head/head/bias"]
        file["model_weights/head/head/bias"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "bias")
    with pytest.raises(KerasFileError, match=r'layer "head" \(Dense\)'):
        read_keras_file(path)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {}], ids=["a filter", "a chunk of many"])
def test_a_weight_that_unpacks_to_far_more_than_it_has_is_refused_before_it_is_read(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = saved(functional((3,), L.Dense(1, name="head")), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights/head/head/kernel"]
        head = file["model_weights/head/head"]
        kernel = head.create_dataset("kernel", (50_000, 50_000), np.float32, chunks=(100, 100), **options)
        kernel[:100, :100] = 1.0
    assert path.stat().st_size < 10**6
    with pytest.raises(KerasFileError, match=r'layer "head" \(Dense\): weight "head/kernel" has \d+ bytes and would unpack to'):
        read_keras_file(path)


def test_a_configuration_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"[" * 100_000)
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(KerasFileError, match=r"config\.json is not JSON"):
        read_keras_file(path)


def with_weights(file: Path, change: Callable[[h5py.File, h5py.File], None]) -> Path:
    """The same archive with weights that lie elsewhere: `change` copies from the first file to the second."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    written = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"])) as old, h5py.File(written, "w") as new:
        change(old, new)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, written.getvalue() if name == "model.weights.h5" else content)
    return file


def test_an_archive_with_backslashes_is_read(tmp_path: Path) -> None:
    """As Keras 2 on Windows wrote them: the whole path of a layer is the name of one group."""

    def flatten(old: h5py.File, new: h5py.File) -> None:
        for path in ("layers/lstm/cell", "layers/dense"):
            old.copy(old[path]["vars"], new.create_group(path.replace("/", "\\")), name="vars")

    file = saved(sequential((4, 2), L.LSTM(3), L.Dense(2)), tmp_path / "m.keras")
    before = read_keras_file(file)
    after = read_keras_file(with_weights(file, flatten))
    for one, other in zip(before.layers, after.layers, strict=True):
        assert len(one.weights) == len(other.weights) > 1
        for own, found in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(own.values, found.values)


def test_groups_that_leave_out_numbers_are_taken_in_their_order(tmp_path: Path) -> None:
    """As TensorFlow 2.13 numbers them: lstm, lstm_2, lstm_4."""
    model = sequential((4, 2), L.LSTM(3, return_sequences=True), L.LSTM(4, return_sequences=True), L.LSTM(5))

    def renumber(old: h5py.File, new: h5py.File) -> None:
        for number, other in (("", ""), ("_1", "_2"), ("_2", "_4")):
            old.copy(old[f"layers/lstm{number}"], new.require_group("layers"), name=f"lstm{other}")

    file = with_weights(saved(model, tmp_path / "m.keras"), renumber)
    found = [layer.weights[0].values.shape for layer in read_keras_file(file).layers]
    assert found == [(2, 12), (3, 16), (4, 20)]


@pytest.mark.parametrize("name", ["m.weights.h5", "old.h5"])
def test_weights_alone_are_read_with_their_architecture(tmp_path: Path, name: str) -> None:
    model = sequential((4, 2), L.LSTM(3), L.Dense(2))
    (tmp_path / "model.json").write_text(model.to_json())
    if name.endswith(".weights.h5"):
        model.save_weights(tmp_path / name)
    else:
        file = saved(model, tmp_path / name)
        with h5py.File(file, "r+") as content:
            del content.attrs["model_config"]
            for group in list(content["model_weights"]):
                content.move(f"model_weights/{group}", group)
            del content["model_weights"]
    found = read_keras_file(tmp_path / name, tmp_path / "model.json")
    assert [weight.values.shape for weight in found.layers[1].weights] == [(3, 2), (2,)]
    np.testing.assert_array_equal(found.layers[0].weights[0].values, np.asarray(model.layers[0].get_weights()[0]))


def test_weights_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    sequential((4, 2), L.LSTM(3)).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(KerasFileError, match=r"--architecture model\.json"):
        read_keras_file(tmp_path / "m.weights.h5")


def test_the_layers_are_judged_before_their_weights(tmp_path: Path) -> None:
    file = saved(sequential((3,), L.Lambda(lambda x: 2 * x, name="double")), tmp_path / "m.keras")
    calls = read_keras_calls(file)
    with pytest.raises(KerasFileError, match="its code is Python"):
        CallsModule(calls.graph, {}, calls.keras_version)
