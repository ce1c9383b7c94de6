"""Model folders whose networks can stream, of each cell and task, and series to send to them in pieces."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from tests.folders import WORDS, run_graph
from tests.torch_models import FEATURES as TORCH_FEATURES
from tests.torch_models import WORDS as TORCH_WORDS
from tests.torch_models import CharModel, StatefulGRU, floats, words
from training.export.graph import describe_tensors, write_graph
from training.importers.importer import read_options
from training.importers.keras.importer import import_keras
from training.importers.torch.publishing import publish
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network

Json = dict[str, Any]
Layers = Sequence[Json]
FEATURES, LABELS, HORIZON, LEVELS = 3, ("negative", "positive"), 4, (0.1, 0.5, 0.9)
CELLS = ("lstm", "gru", "simple_rnn")


def cells(kind: str, units: int = 8, *, is_stacked: bool = False, gives_steps: bool = False) -> list[Json]:
    """One recurrent layer, or two with a dense one between."""
    last = {"type": kind, "units": units, "return_sequences": gives_steps}
    if not is_stacked:
        return [last]
    return [{"type": kind, "units": units, "return_sequences": True}, {"type": "dense", "units": 5, "activation": "relu"}, last]


@dataclass(frozen=True)
class StreamCase:
    """A folder to be written, and what its instances are made of."""

    write: Callable[[Path], Path]
    draw: Callable[[np.random.Generator, int], list[Any]]
    """A series of so many steps."""
    make_instance: Callable[[list[Any]], Any]
    """An instance of a piece of a series, as an object."""
    is_exact: bool = True
    """Whether any pieces give the same bits as the whole."""
    has_steps: bool = False
    """Whether the prediction has an entry per step."""


def write_stream_folder(models: Path, name: str, network: Network, block: Mapping[str, Any] | None = None) -> Path:
    """The folder of a network, with an example; `block` is the manifest's block of its task."""
    graph = write_graph(network).SerializeToString()
    task = network.spec.task
    tensors = describe_tensors(network)
    folder = models / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    entry = {"file": "model.onnx", "sha256": hashlib.sha256(graph).hexdigest(), "precision": "fp32", "opset": 17}
    manifest = {"schema_version": 1, "name": name, "version": "1", "task": task, "graphs": [entry], **tensors}
    (folder / "manifest.json").write_text(json.dumps(manifest | ({task: dict(block)} if block is not None else {})))
    if task == "classify":
        words = {"[UNK]": 0} | {word: i for i, word in enumerate(WORDS, 1)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
    draw = np.random.default_rng(5)
    instances: list[Any] = []
    predictions: list[Any] = []
    for length in (3, 6):
        zeros = {part["input"]: np.zeros((1, part_size(tensors, part["input"]))) for part in tensors["state"]}
        if task == "classify":
            ids = draw.integers(1, len(WORDS) + 1, length)
            instances.append(" ".join(WORDS[i - 1] for i in ids))
            row = run_graph(folder, {"tokens": ids[None], "lengths": np.array([length]), **zeros})["probabilities"][0].tolist()
            best = int(np.argmax(row))
            predictions.append({"label": LABELS[best], "score": row[best], "probabilities": dict(zip(LABELS, row, strict=True))})
            continue
        values = draw.normal(size=(length, FEATURES if task == "tensor" else 1)).round(3)
        source = network.head.input_name
        answer = run_graph(folder, {source: values[None], "lengths": np.array([length]), **zeros})
        if task == "tensor":
            instances.append({source: values.tolist()})
            predictions.append(answer["y"][0].tolist())
            continue
        instances.append({"history": values[:, 0].tolist()})
        assert block is not None
        levels = {f"{level:g}": answer["quantiles"][0, :, 0, i].tolist() for i, level in enumerate(block["quantiles"])}
        predictions.append({"forecast": answer["forecast"][0, :, 0].tolist(), "quantiles": levels})
    example = {
        "request": {"model": name, "instances": instances},
        "response": {"predictions": predictions},
        "tolerance": {"absolute": 1e-4, "relative": 1e-3},
    }
    (folder / "example.json").write_text(json.dumps(example))
    return folder


def part_size(tensors: Mapping[str, Any], name: str) -> int:
    """The units of a state input."""
    size: int = next(entry["shape"][1] for entry in tensors["inputs"] if entry["name"] == name)
    return size


def write_tensor_stream(models: Path, layers: Layers, name: str = "toy-stream") -> Path:
    """Numbers in, `y` out."""
    torch.manual_seed(7)
    spec = TensorSpec(layers=tuple(layers), input=TensorInput(name="x", shape=("time", FEATURES)), output="y")
    return write_stream_folder(models, name, Network(spec).eval())


def write_forecast_stream(models: Path, layers: Layers, name: str = "toy-sensor", *, min_length: int = 1) -> Path:
    """A series in, the next steps with quantiles out; values are scaled by statistics of the training."""
    torch.manual_seed(7)
    options: Json = {"scaling": {"kind": "standard"}}
    spec = ForecastSpec(layers=(*layers, {"type": "dense"}), horizon=HORIZON, quantiles=LEVELS, **options)
    network = Network(spec).eval()
    network.set_statistics(5 + 10 * torch.rand(50, 1))
    block = {
        "context_length": 24,
        "min_length": min_length,
        "horizon": HORIZON,
        "frequencies": ["H"],
        "quantiles": list(LEVELS),
        "point": "median",
        "features": ["y"],
        "targets": ["y"],
    }
    return write_stream_folder(models, name, network, block)


def write_text_stream(models: Path, layers: Layers, name: str = "toy-chat") -> Path:
    """Words in, the probabilities of labels out."""
    torch.manual_seed(7)
    embedding = {"type": "embedding", "output_dim": 4}
    spec = ClassifySpec(layers=(embedding, *layers, {"type": "dense"}), labels=LABELS, vocabulary_size=len(WORDS) + 1)
    block = {"labels": list(LABELS), "max_length": 8, "truncation": {"head": 4, "tail": 4}, "language": "en"}
    return write_stream_folder(models, name, Network(spec).eval(), block)


def draw_rows(random: np.random.Generator, length: int) -> list[Any]:
    rows: list[Any] = random.normal(size=(length, FEATURES)).astype(np.float32).tolist()
    return rows


def draw_values(random: np.random.Generator, length: int) -> list[Any]:
    values: list[Any] = (5 + random.normal(size=length)).astype(np.float32).tolist()
    return values


def draw_words(random: np.random.Generator, length: int) -> list[Any]:
    return [WORDS[number] for number in random.integers(0, len(WORDS), length)]


def _tensor_case(kind: str, *, is_stacked: bool = False, gives_steps: bool = False) -> StreamCase:
    layers = cells(kind, is_stacked=is_stacked, gives_steps=gives_steps)
    if not gives_steps:
        layers.append({"type": "dense", "units": 4})
    return StreamCase(
        lambda models: write_tensor_stream(models, layers),
        draw_rows,
        lambda piece: {"x": piece},
        is_exact=kind != "simple_rnn",
        has_steps=gives_steps,
    )


def stream_cases() -> dict[str, StreamCase]:
    """Networks of each cell and task."""
    cases: dict[str, StreamCase] = {}
    for kind in CELLS:
        cases |= {
            f"{kind}": _tensor_case(kind),
            f"{kind}-steps": _tensor_case(kind, gives_steps=True),
            f"{kind}-stacked": _tensor_case(kind, is_stacked=True),
            f"{kind}-stacked-steps": _tensor_case(kind, is_stacked=True, gives_steps=True),
            f"{kind}-forecast": StreamCase(
                lambda models, kind=kind: write_forecast_stream(models, cells(kind)),  # type: ignore[misc]
                draw_values,
                lambda piece: {"history": piece},
                is_exact=kind != "simple_rnn",
            ),
            f"{kind}-texts": StreamCase(
                lambda models, kind=kind: write_text_stream(models, cells(kind, is_stacked=True)),  # type: ignore[misc]
                draw_words,
                lambda piece: {"text": " ".join(piece)},
                is_exact=kind != "simple_rnn",
            ),
        }
    return cases


def write_torch_stream(models: Path) -> Path:
    """A torch module whose state is an argument and an output."""
    published = publish(StatefulGRU().eval(), "torch-stream", example=floats(6, 9)(), models=models, state={"h0": "h_n"})
    assert published.folder is not None
    return published.folder


def write_character_stream(models: Path) -> Path:
    """A language model over characters in torch: two layers, an answer for every step."""
    published = publish(CharModel().eval(), "characters", example=words(6, 9)(), models=models, state={"hidden": "hidden"})
    assert published.folder is not None
    return published.folder


def write_keras_stream(models: Path) -> Path:
    """Layers that are stateful in Keras, saved and imported. Skips where Keras is not installed."""
    from tests.keras_models import keras, saved, sequential

    path = models.parent / "keras-stream.keras"
    layers = (keras.layers.LSTM(4, stateful=True, return_sequences=True), keras.layers.GRU(3, stateful=True))
    model = sequential((None, FEATURES), *layers, keras.layers.Dense(2), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Keras's own use of numpy
        saved(model, path)
    return import_keras(path, read_options(name="keras-stream"), models).folder


def imported_cases() -> dict[str, StreamCase]:
    """Networks of other libraries."""

    def draw_floats(random: np.random.Generator, length: int) -> list[Any]:
        rows: list[Any] = random.normal(size=(length, TORCH_FEATURES)).astype(np.float32).tolist()
        return rows

    def draw_ids(random: np.random.Generator, length: int) -> list[Any]:
        found: list[Any] = random.integers(0, TORCH_WORDS, length).tolist()
        return found

    return {
        "torch": StreamCase(write_torch_stream, draw_floats, lambda piece: {"x": piece}),
        "torch-characters": StreamCase(write_character_stream, draw_ids, lambda piece: {"x": piece}, has_steps=True),
        "keras": StreamCase(write_keras_stream, draw_rows, lambda piece: {"input": piece}),
    }
