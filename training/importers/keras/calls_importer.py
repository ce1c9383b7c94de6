"""A Keras model whose layers branch, join or attend becomes a model folder: as a torch module, which is published as any is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.importers.adapters.base import SEED
from training.importers.adapters.classify import ClassifyOptions
from training.importers.adapters.forecast import ForecastOptions
from training.importers.keras.chain import StoredInput
from training.importers.keras.entry import KerasFileError
from training.importers.keras.keras_file import KerasCalls
from training.importers.keras.leaf import run_layer
from training.importers.keras.module import CallsModule
from training.importers.keras.reading import input_name
from training.importers.keras.scales import NO_SCALES, Scales, require_scales_that_fit
from training.importers.model import ModelImportError
from training.importers.options import ImportOptions
from training.importers.rows_file import read_rows_file
from training.importers.tokenizer_file import read_tokenizer
from training.importers.torch.checks import Verdict
from training.importers.torch.publishing import PublishedModel, publish
from training.importers.torch.tasks import Classify, Example, Forecast, Lists, Row, Task
from training.layers.registry import Layer, Shape, build_layer

# Lengths at which layers are built and an open model is tried, where the caller gives no rows.
OPEN_LENGTHS = (32, 19)
NUM_SHOWN = 4  # rows of the example that go into the folder
MAX_EXAMPLE_WORDS = 12

Array = NDArray[Any]
Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class ModelInput:
    """An input: the axes of a row ("time" where it is open), and how many ids there are, if it holds ids."""

    name: str
    axes: Axes
    vocabulary: int | None

    @property
    def is_open(self) -> bool:
        return "time" in self.axes

    def draw(self, rng: np.random.Generator, length: int) -> Array:
        """A random row; `length` is that of an open axis."""
        shape = tuple(length if axis == "time" else int(axis) for axis in self.axes)
        if self.vocabulary is None:
            return rng.random(shape).round(4).astype(np.float32)
        return rng.integers(min(1, self.vocabulary - 1), self.vocabulary, shape)


@dataclass(frozen=True)
class ImportedCalls:
    """The folder that was published, and what was measured."""

    folder: Path
    published: PublishedModel


def import_calls(
    file: KerasCalls,
    options: ImportOptions,
    models: Path,
    *,
    example: Path | None = None,
    replace_version: bool = False,
    scales: Scales = NO_SCALES,
    state: Mapping[str, str] | None = None,
) -> ImportedCalls:
    """Publish a model of any shape; `state` maps an input to the output that carries it on, for a model of task `tensor`.

    Raises KerasFileError, LayerError, ModelImportError, ModuleRefused or PublishError.
    """
    inputs = read_inputs(file)
    module = CallsModule(file.graph, file.weights, file.keras_version)
    first = inputs[0]
    require_scales_that_fit(scales, options, first.name, None if first.vocabulary is not None else int(first.axes[-1]))
    served = _as_task(module, inputs, options)
    task = replace(served.task, scaler=scales.scaler) if isinstance(served.task, Forecast) else served.task
    if state and not isinstance(task, Lists):
        raise ModelImportError(f"--state belongs to --task tensor, the task is {options.task}")
    rows = served.draw() if example is None else read_rows_file(example, "--example")
    origin = {"file": file.path.name, "format": file.format, "sha256": file.sha256, "keras_version": file.keras_version}
    published = publish(
        served.module.eval(),
        options.name,
        example=served.complete(rows),
        task=task,
        inputs=served.axes,
        state=state,
        scale=scales.scale,
        unscale=scales.unscale,
        description=options.description or f"imported from {file.path.name}",
        licence=options.licence,
        version=options.version,
        replace=replace_version,
        models=models,
        origin={"from": "keras", **origin},
    )
    assert published.folder is not None  # no dry run
    folder = published.folder
    pairs = file.graph.state_pairs()
    if pairs and not state and isinstance(task, Lists):
        options_of_pairs = " ".join(f"--state {inputs[begin].name}={module.output_names[end]}" for begin, end in pairs)
        note = f"states are inputs and outputs like any other; {options_of_pairs} lets the server carry them, from zeros on"
        published = replace(published, notes=(*published.notes, note))
    return ImportedCalls(folder, published)


def read_calls_module(file: KerasCalls) -> CallsModule:
    """The module of a file, ready to predict. Raises KerasFileError or LayerError."""
    module = CallsModule(file.graph, file.weights, file.keras_version)
    _prepare(module, read_inputs(file))
    return module.eval()


def read_inputs(file: KerasCalls) -> list[ModelInput]:
    """The inputs of a model. Raises KerasFileError for one that cannot be served."""
    graph = file.graph
    found: list[ModelInput] = []
    for tensor, stored in zip(graph.inputs, graph.stored_inputs, strict=True):
        place = f'the input "{stored.name}" {("batch", *stored.shape)}'.replace("None", "any")
        vocabulary = graph.vocabulary(tensor)
        if not stored.shape or None in stored.shape[1:]:
            raise KerasFileError(f"{place}: only the first axis behind the batch may be open, and there must be one")
        if vocabulary is None and not stored.dtype.startswith(("float", "bfloat")):
            raise KerasFileError(f"{place}: numbers of the type {stored.dtype} need an Embedding as the first layer")
        if vocabulary is None and stored.shape == (None,):
            raise KerasFileError(f"{place}: a vector needs a fixed number of features")
        axes = tuple("time" if axis is None else axis for axis in stored.shape)
        found.append(ModelInput(_name(stored, found, len(graph.inputs)), axes, vocabulary))
    return found


def _name(stored: StoredInput, others: Sequence[ModelInput], count: int) -> str:
    name = input_name(stored.name) if count == 1 else stored.name
    name = f"{name}_input" if name == "lengths" else name
    return f"{name}_{len(others)}" if any(other.name == name for other in others) else name


def _prepare(module: CallsModule, inputs: Sequence[ModelInput]) -> None:
    rng = np.random.default_rng(SEED)
    samples = [
        [torch.from_numpy(np.stack([given.draw(rng, length) for _ in range(2)])) for given in inputs] for length in OPEN_LENGTHS
    ]
    try:
        module.prepare(samples)
    except (RuntimeError, IndexError) as exc:
        raise KerasFileError(f"the layers do not fit together: {str(exc).splitlines()[0]}") from exc


# --------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class _ServedModule:
    """The module as its task has it, the axes of its inputs, and rows to try it on."""

    module: nn.Module
    task: Literal["tensor"] | Task
    axes: Mapping[str, Axes]
    inputs: Sequence[ModelInput]

    def draw(self) -> list[Any]:
        """Random rows, of two lengths where rows may differ."""
        rng = np.random.default_rng(SEED)
        return [{given.name: given.draw(rng, length) for given in self.inputs} for length in OPEN_LENGTHS]

    def complete(self, rows: Sequence[Any]) -> list[Any]:
        """Rows of the caller with the types of the inputs, and one of another length where they have none."""
        read = [self._read(row, number) for number, row in enumerate(rows)]
        lengths = {len(row[given.name]) for row in read for given in self.inputs if given.is_open}
        if len(lengths) == 1 and lengths != {1}:
            read += [*read[:1] * max(0, NUM_SHOWN - len(read)), self._shorten(read[0])]
        return read

    def _read(self, row: Any, number: int) -> dict[str, Array]:
        given = row if isinstance(row, Mapping) else {self.inputs[0].name: row}
        if set(given) != {own.name for own in self.inputs}:
            names = ", ".join(f'"{own.name}"' for own in self.inputs)
            raise ModelImportError(f"instance {number}: expected the inputs {names}, got {sorted(given)}")
        return {own.name: np.asarray(given[own.name], np.float32 if own.vocabulary is None else np.int64) for own in self.inputs}

    def _shorten(self, row: Mapping[str, Array]) -> dict[str, Array]:
        return {own.name: row[own.name][:-1] if own.is_open else row[own.name] for own in self.inputs}


@dataclass(frozen=True)
class _Texts(_ServedModule):
    tokenizer: Path
    max_length: int

    def draw(self) -> list[Any]:
        tokenizer, _ = read_tokenizer(self.tokenizer)
        words = sorted(word for word in tokenizer.get_vocab() if word.isalnum()) or sorted(tokenizer.get_vocab())
        rng = np.random.default_rng(SEED)
        counts = (max(1, self.max_length // 2), self.max_length + 1)
        return [" ".join(rng.choice(words, min(count, MAX_EXAMPLE_WORDS - place))) for place, count in enumerate(counts)]

    def complete(self, rows: Sequence[Any]) -> list[Any]:
        return [row["text"] if isinstance(row, Mapping) and set(row) == {"text"} else row for row in rows]


@dataclass(frozen=True)
class _NamedInputs(Lists):
    """The model's inputs under their names, which its module does not say."""

    names: tuple[str, ...]

    def prepare(self, model: nn.Module, example: Sequence[Any]) -> tuple[nn.Module, list[str], Sequence[Any]]:
        return model, list(self.names), example


@dataclass(frozen=True)
class _TextTask(Classify):
    """Truncation at the end that Keras cuts off, and what the labels are about."""

    truncating: Literal["pre", "post"] = "pre"
    subject: str = ""

    def encode(self, text: str) -> list[int]:
        tokenizer, unknown = read_tokenizer(Path(self.tokenizer))
        ids = list(tokenizer.encode(text).ids) or [unknown]
        return ids[-self.max_length :] if self.truncating == "pre" else ids[: self.max_length]

    def word(self, example: Sequence[Any], rows: Sequence[Row], answers: Sequence[Row], verdict: Verdict) -> Example:
        worded = super().word(example, rows, answers, verdict)
        head, tail = (0, self.max_length) if self.truncating == "pre" else (self.max_length, 0)
        about = {"subject": self.subject} if self.subject else {}
        return replace(worded, block={**worded.block, "truncation": {"head": head, "tail": tail}, **about})


@dataclass(frozen=True)
class _SeriesTask(Forecast):
    """A model that was trained on histories of one length reads no other."""

    only_length: int | None = None

    def word(self, example: Sequence[Any], rows: Sequence[Row], answers: Sequence[Row], verdict: Verdict) -> Example:
        worded = super().word(example, rows, answers, verdict)
        if self.only_length is None:
            return worded
        return replace(worded, block={**worded.block, "min_length": self.only_length, "context_length": self.only_length})


class _Padded(nn.Module):
    """Token ids of any number, padded to as many as the model reads."""

    def __init__(self, model: nn.Module, length: int, vocabulary: int, options: ClassifyOptions) -> None:
        super().__init__()
        self.model = model
        table = {"type": "pad_sequences", "maxlen": length, "padding": options.padding, "truncating": options.truncating}
        shape = Shape(("time",), vocabulary=vocabulary)
        self.padding: Layer = build_layer(table, shape, shape, "the padding")

    def forward(self, tokens: Tensor) -> Tensor:
        (padded,) = run_layer(tokens, None, layer=self.padding)
        result: Tensor = self.model(padded)
        return result


def _as_task(module: CallsModule, inputs: list[ModelInput], options: ImportOptions) -> _ServedModule:
    """What the options make of the model. Raises ModelImportError where they do not fit."""
    if isinstance(options, ForecastOptions):
        return _as_forecast(module, inputs, options)
    if isinstance(options, ClassifyOptions):
        return _as_texts(module, inputs, options)
    _prepare(module, inputs)
    names = tuple(given.name for given in inputs)
    return _ServedModule(module, _NamedInputs(names), {given.name: given.axes for given in inputs}, inputs)


def _as_forecast(module: CallsModule, inputs: list[ModelInput], options: ForecastOptions) -> _ServedModule:
    given = inputs[0]
    if len(inputs) > 1 or given.vocabulary is not None or len(given.axes) != 2:
        listed = " and ".join(str(("batch", *own.axes)) for own in inputs)
        raise ModelImportError(f"--task forecast needs a model that reads (batch, time, features), it reads {listed}")
    length, num_features = given.axes
    only = length if isinstance(length, int) else None
    if only is None and options.context_length is None:
        raise ModelImportError("--task forecast needs --context-length for a model that reads any number of steps")
    if only is not None and options.context_length not in (None, only):
        raise ModelImportError(f"--context-length: the model reads {only} steps, got {options.context_length}")
    history = ModelInput("history", ("time", num_features), None)
    _prepare(module, [history])
    task = _SeriesTask(
        options.horizon,
        features=options.features,
        targets=options.targets,
        frequencies=options.frequency,
        season_length=options.season_length,
        context_length=only or options.context_length,
        only_length=only,
    )
    return _Histories(module, task, {"history": history.axes}, [history], only or options.context_length or 1, only is not None)


@dataclass(frozen=True)
class _Histories(_ServedModule):
    length: int
    is_fixed: bool

    def draw(self) -> list[Any]:
        rng = np.random.default_rng(SEED)
        lengths = (self.length, self.length if self.is_fixed else max(1, self.length // 2))
        return [{"history": self.inputs[0].draw(rng, length)} for length in lengths]

    def _read(self, row: Any, number: int) -> dict[str, Array]:
        found = super()._read(row, number)
        history = found["history"]
        return {"history": history[:, None] if history.ndim == 1 else history}


def _as_texts(module: CallsModule, inputs: list[ModelInput], options: ClassifyOptions) -> _ServedModule:
    given = inputs[0]
    if len(inputs) > 1 or given.vocabulary is None or len(given.axes) != 1:
        raise ModelImportError("--task classify reads texts: the model must have one input of token ids, for an Embedding")
    (length,) = given.axes
    only = length if isinstance(length, int) else None
    if only is None and options.max_length is None:
        raise ModelImportError("--task classify needs --max-length for a model that reads any number of tokens")
    if only is not None and options.max_length not in (None, only):
        raise ModelImportError(f"--max-length: the model reads {only} tokens, got {options.max_length}")
    tokenizer, _ = read_tokenizer(options.tokenizer_path)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= given.vocabulary:
        raise ModelImportError(f"--tokenizer: its ids go up to {largest}, the Embedding has 0 to {given.vocabulary - 1}")
    _prepare(module, inputs)
    max_length = only or options.max_length or 1
    task = _TextTask(
        options.labels,
        options.tokenizer_path,
        max_length,
        options.language,
        truncating=options.truncating,
        subject=options.subject,
    )
    whole = module if only is None else _Padded(module, only, given.vocabulary, options)
    tokens = ModelInput("tokens", ("time",), given.vocabulary)
    return _Texts(whole, task, {"tokens": tokens.axes}, [tokens], options.tokenizer_path, max_length)
