"""A model that Keras saved becomes a model folder: read → build → weights → graph → verify → publish, as one page.

Reads no file format (`keras_file.py`) and knows no layer (`layers/keras.py`); trains nothing. Whatever cannot be taken is
refused before anything is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError
from tokenizers import Tokenizer

from training.export.answers import format_classify, format_forecast
from training.export.graph import graph_tensors, write_graph
from training.export.publish import Publication, publish, require_free
from training.export.verify import Verification, verify
from training.importers.keras.keras_file import KerasFile, KerasFileError, StoredLayer, read_keras_file
from training.importers.keras.layers import from_keras_config
from training.layers.registry import Layer, LayerError
from training.network.heads.classify import ClassifySpec
from training.network.heads.forecast import ForecastSpec
from training.network.heads.tensor import TensorInput, TensorSpec
from training.network.network import Network
from training.network.spec import NetworkSpec
from training.scoring.evaluate import Graph

SEED = 0
NUM_DIGITS = 9  # what gives a float32 back exactly
LENGTHS = "lengths"
UNKNOWN_TOKENS = ("[UNK]", "<unk>", "<UNK>", "UNK")
# Each step of these layers' output depends on that step alone, and a mask goes through them.
_STEPWISE = ("dense", "activation", "dropout", "spatial_dropout1d", "gaussian_noise", "time_distributed", "masking")
_NORMALIZING = ("layer_normalization", "batch_normalization")
_RECURRENT = ("simple_rnn", "lstm", "gru", "bidirectional")

Name = Annotated[str, StringConstraints(min_length=1)]


class ImportFailed(ValueError):
    """The model cannot become a folder as asked: names the option, the layer or the instance."""


@dataclass(frozen=True)
class Question:
    """One instance of the example as the graph takes it, a batch of one row."""

    inputs: dict[str, NDArray[Any]]
    is_truncated: bool = False


class ImportOptions(BaseModel):
    """How a Keras model is published: what the command line takes, and what the manifest keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: PositiveInt | None = None
    task: Literal["tensor", "forecast", "classify"] = "tensor"
    description: str = ""
    licence: str = ""
    # classify
    labels: tuple[Name, ...] = ()
    tokenizer: Path | None = None
    max_length: PositiveInt | None = None
    padding: Literal["pre", "post"] = "pre"
    truncating: Literal["pre", "post"] = "pre"
    language: str = "und"
    # forecast
    horizon: PositiveInt | None = None
    context_length: PositiveInt | None = None
    frequencies: tuple[Literal["S", "T", "H", "D", "W", "M", "Q", "Y"], ...] = ()
    season_length: PositiveInt = 1
    features: tuple[Name, ...] = ()
    targets: tuple[Name, ...] = ()


OPTIONS_OF_TASK = {
    "classify": ("labels", "tokenizer", "max_length", "padding", "truncating", "language"),
    "forecast": ("horizon", "context_length", "frequencies", "season_length", "features", "targets"),
}


def read_options(**values: Any) -> ImportOptions:
    """Check what the command line was given. Raises ImportFailed that names the option."""
    try:
        options = ImportOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        flag = _flag({"frequencies": "frequency"}.get(str(error["loc"][0]), str(error["loc"][0])))
        raise ImportFailed(f"{flag}: {error['msg']}, got {error['input']!r}") from exc
    for task, names in OPTIONS_OF_TASK.items():
        foreign = [name for name in names if name in options.model_fields_set]
        if task != options.task and foreign:
            raise ImportFailed(f"{_flag(foreign[0])} belongs to --task {task}, the task is {options.task}")
    required = {"classify": ("labels", "tokenizer"), "forecast": ("horizon",), "tensor": ()}[options.task]
    for name in required:
        if not getattr(options, name):
            raise ImportFailed(f"--task {options.task} needs {_flag(name)}")
    return options


@dataclass(frozen=True)
class Imported:
    """A Keras model in our terms: its layers' tables, each with the layer that it was, and how long its rows may be."""

    file: KerasFile
    tables: tuple[dict[str, Any], ...]
    stored: tuple[StoredLayer | None, ...]  # None: a table that stands for no layer of the file
    max_length: int | None  # None: rows of any length
    is_open: bool  # whether rows may be shorter than that

    @property
    def has_tokens(self) -> bool:
        return bool(self.tables[0]["type"] == "embedding")

    def place(self, index: int) -> str:
        """A table's layer, as the file calls it."""
        stored = self.stored[index]
        return f'layer "{stored.name}" ({stored.class_name})' if stored else f"layers[{index}]"


@dataclass(frozen=True)
class Result:
    """What an import tells: the folder, what the equalities measured, and what the layers have to say."""

    folder: Path
    network: Network
    verification: Verification
    notes: tuple[str, ...]


def import_keras(
    path: Path, options: ImportOptions, models: Path, *, example: Path | None = None, replace_version: bool = False
) -> Result:
    """Publish the model at `path` as `models/<name>/<version>`; `example` is a JSON list of instances for its example.json.

    Raises KerasFileError, LayerError, ImportFailed or PublishError before anything is written: the file, a layer or an option
    cannot be taken; VerificationFailed if the graph does not compute what the network does.
    """
    model = read_model(read_keras_file(path))
    require_free(Subject(options, model), models, replace=replace_version)
    face = _FACES[options.task](model, options)
    network = _build(face.model, face.spec)

    instances = face.draw(network) if example is None else _read_instances(example)
    questions = [face.read(network, instance, f"instance {index}") for index, instance in enumerate(instances)]

    payload = write_graph(network).SerializeToString()
    verification = verify(network, payload, SEED)

    graph = Graph(payload)
    predictions = [face.format(network, graph.run(question.inputs), question) for question in questions]
    publication = Publication(
        recipe=Subject(options, face.model),
        graph=payload,
        tensors=graph_tensors(network),
        spec=face.manifest(network),
        instances=instances,
        predictions=predictions,
        metrics={},
        baselines={},
        data=[],
        facts={
            "num_parameters": network.num_parameters + network.num_fixed_parameters,
            "network": network.spec.model_dump(mode="json", exclude_defaults=True),
        },
        files=face.files,
    )
    folder = publish(publication, models, replace=replace_version)
    return Result(folder, network, verification, (*face.notes, *network.notes))


def read_network(path: Path) -> Network:
    """The network of a Keras file with its weights, as a plain stack of layers. Raises KerasFileError or LayerError."""
    model = read_model(read_keras_file(path))
    return _build(model, _tensor_spec(model))


@dataclass(frozen=True)
class Subject:
    """What the folder is of, in the place of a recipe."""

    options: ImportOptions
    model: Imported
    seed: int = SEED

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def version(self) -> int | None:
        return self.options.version

    @property
    def task(self) -> str:
        return self.options.task

    @property
    def description(self) -> str:
        return self.options.description or f"imported from {self.model.file.path.name}"

    @property
    def licence(self) -> str:
        return self.options.licence

    def as_json(self) -> dict[str, Any]:
        """The file, the options and the layers, plain JSON."""
        file = self.model.file
        given = self.options.model_dump(mode="json", exclude_defaults=True)
        if self.options.tokenizer is not None:
            given["tokenizer"] = self.options.tokenizer.name
        source = {"file": file.path.name, "format": file.format, "sha256": file.sha256, "keras_version": file.keras_version}
        return {**given, "import": source, "layers": list(self.model.tables)}


# ---------------------------------------------------------------------------------------------------- the file's layers


def read_model(file: KerasFile) -> Imported:
    """The layers of a file as tables. Raises LayerError that names the layer and the option, or KerasFileError."""
    tables = [_read_table(layer, file.keras_version) for layer in file.layers]
    tables[-1] = _with_outputs(tables[-1], file)
    shape = file.input.shape
    place = f"{file.path}: the input {('batch', *shape)}".replace("None", "any")
    if not shape or None in shape[1:]:
        raise KerasFileError(f"{place}: only the first axis behind the batch may be open, and there must be one")
    if tables[0]["type"] == "embedding":
        if len(shape) != 1:
            raise KerasFileError(f"{place}: an Embedding needs token ids, (batch, time)")
        is_open = shape[0] is None or _passes_masked_steps_over(tables)
    else:
        if not file.input.dtype.startswith(("float", "bfloat")):
            raise KerasFileError(f"{place}: numbers of the type {file.input.dtype} need an Embedding as the first layer")
        if shape == (None,):
            raise KerasFileError(f"{place}: a vector needs a fixed number of features")
        is_open = shape[0] is None
    return Imported(file, tuple(tables), file.layers, shape[0], is_open)


def _read_table(layer: StoredLayer, keras_version: str) -> dict[str, Any]:
    entry = dict(layer.entry)
    if layer.class_name == "GRU" and keras_version.split(".")[0] in ("1", "2"):
        # Files older than the option were written by a GRU that resets before the product.
        entry["config"] = {"reset_after": False, **entry["config"]}
    return from_keras_config(entry, keras_version=keras_version)


def _with_outputs(table: dict[str, Any], file: KerasFile) -> dict[str, Any]:
    """The last layer, giving what the model gives. Raises KerasFileError if that is neither its first result nor all."""
    inner = dict(table["layer"]) if table["type"] == "bidirectional" else table
    gives_more = inner.get("return_state") or (table["type"] == "bidirectional" and table.get("merge_mode", "concat") is None)
    if not gives_more or not file.outputs:
        return table
    if file.outputs == tuple(range(len(file.outputs))) and len(file.outputs) > 1:
        return table
    if file.outputs == (0,) and table["type"] != "bidirectional":
        return {**table, "return_state": False}
    layer = file.layers[-1]
    chosen = ", ".join(map(str, file.outputs))
    place = f'layer "{layer.name}" ({layer.class_name})'
    raise KerasFileError(f"{place}: the model gives its results {chosen}; only the first or all, in order, can be served")


def _passes_masked_steps_over(tables: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row gives the same with and without masked steps at its end, so that rows may have any length.

    So it is as long as Keras carries the mask of an Embedding to the layer that ends the sequence, or to the end.
    """
    if not tables[0].get("mask_zero"):
        return False
    for table in tables[1:]:
        kind = table["type"]
        if kind in _RECURRENT:
            inner = table["layer"] if kind == "bidirectional" else table
            if not inner.get("return_sequences"):
                return True
        elif kind == "global_average_pooling1d":
            return True
        elif kind in _NORMALIZING:
            if table.get("axis", -1) not in (-1, 2, [-1], [2]):
                return False
        elif kind not in _STEPWISE:
            return False
    return True


def _build(model: Imported, spec: NetworkSpec) -> Network:
    """The network with the file's weights, ready to predict. Raises LayerError in the file's words."""
    try:
        network = Network(spec)
    except LayerError as exc:
        raise _in_words_of_the_file(exc, model) from exc
    for index, (layer, stored) in enumerate(zip(network.layers, model.stored, strict=True)):
        assert isinstance(layer, Layer)
        if stored is not None:
            _load_weights(layer, stored, model.place(index))
    return network.eval()


def _load_weights(layer: Layer, stored: StoredLayer, place: str) -> None:
    """Give a layer the file's weights. Raises KerasFileError that names the weight which is missing or of another shape."""
    expected = _named_shapes(layer)
    held = [(weight.name, weight.values.shape) for weight in stored.weights]
    if len(held) < len(expected):
        missing = ", ".join(_missing([name for name, _ in expected], [name for name, _ in held]))
        raise KerasFileError(
            f"{place}: weights are missing: {missing}; expected {_listed(expected)}; the file holds {_listed(held)}"
        )
    if len(held) > len(expected):
        raise KerasFileError(f"{place}: the file holds weights that no option speaks of: {_listed(held[len(expected) :])}")
    for (name, shape), (own, found) in zip(expected, held, strict=True):
        if found != shape:
            raise KerasFileError(f'{place}: weight {name} ("{own}"): expected {list(shape)}, the file holds {list(found)}')
    layer.load_keras_weights([weight.values for weight in stored.weights])


def _named_shapes(layer: Layer) -> list[tuple[str, tuple[int, ...]]]:
    """A layer's weights in Keras's order; where names repeat, those of a Bidirectional, the direction before them."""
    names = [weight.name for weight in layer.weights]
    if len(set(names)) < len(names):
        names = [f"{'backward' if name in names[:i] else 'forward'} {name}" for i, name in enumerate(names)]
    return [(name, tuple(weight.shape)) for name, weight in zip(names, layer.weights, strict=True)]


def _listed(weights: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in weights) or "none"


def _missing(expected: Sequence[str], found: Sequence[str]) -> list[str]:
    """Which weights a file lacks: by their names in an .h5 file (cell/kernel:0), by their numbers in a .keras archive."""
    groups = {name.rpartition("/")[0] for name in found}
    words = [re.sub(r":\d+$", "", name.rpartition("/")[2]) for name in found]
    if len(groups) == 1 and all(word.isdigit() for word in words):
        return [name for number, name in enumerate(expected) if str(number) not in words]
    return [name for name in expected if name not in words] or list(expected[len(found) :])


def _in_words_of_the_file(exc: LayerError, model: Imported) -> LayerError:
    found = re.match(r"layers\[(\d+)\]", exc.where)
    if not found or model.stored[int(found[1])] is None:
        return exc
    place = model.place(int(found[1]))
    said = str(exc)[len(f"{exc.where} ({exc.kind})" if exc.kind else exc.where) :].removeprefix(": ")
    return LayerError(place, "", None, said)


# ------------------------------------------------------------------------------------------------------------ the faces


class TensorFace:
    """Task `tensor`: nested lists in, nested lists out."""

    files: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    def __init__(self, model: Imported, options: ImportOptions) -> None:
        self.model = model
        self.spec = _tensor_spec(model)

    def draw(self, network: Network) -> list[Any]:
        """Two random rows; of different length, where that may be."""
        rng = np.random.default_rng(SEED)
        assert self.spec.input is not None
        rows: list[Any] = []
        for length in _two_lengths(network, self.model):
            shape = (length, *(int(axis) for axis in self.spec.input.shape[1:]))
            if network.vocabulary_size is None:
                rows.append(rng.uniform(-1, 1, shape).round(4).tolist())
            else:
                rows.append(rng.integers(min(1, network.vocabulary_size - 1), network.vocabulary_size, shape).tolist())
        return rows

    def read(self, network: Network, instance: Any, place: str) -> Question:
        """One instance as the graph takes it. Raises ImportFailed."""
        given = self.spec.input
        assert given is not None
        if isinstance(instance, Mapping):
            if set(instance) != {given.name}:
                raise ImportFailed(f'{place}: expected the input "{given.name}", got {sorted(instance)}')
            instance = instance[given.name]
        values = _read_numbers(instance, len(given.shape), place)
        expected = tuple(values.shape[0] if axis == "time" else axis for axis in given.shape)
        if values.shape != expected:
            raise ImportFailed(f"{place}: expected the shape {list(given.shape)}, got {list(values.shape)}")
        if network.vocabulary_size is not None:
            if (values != np.floor(values)).any() or values.min() < 0 or values.max() >= network.vocabulary_size:
                raise ImportFailed(f"{place}: token ids are whole numbers from 0 to {network.vocabulary_size - 1}")
            values = values.astype(np.int64)
        else:
            values = values.astype(np.float32)
        inputs = {given.name: values[None]}
        if given.is_open:
            _check_length(len(values), network.min_length, self.model.max_length, place)
            inputs[LENGTHS] = np.array([len(values)], np.int64)
        return Question(inputs)

    def format(self, network: Network, answer: Mapping[str, NDArray[Any]], question: Question) -> Any:
        """The graph's answer for one row as a prediction of POST /predict."""
        values = {name: _plain(answer[name][0]) for name in network.outputs}
        return values if len(values) > 1 else next(iter(values.values()))

    def manifest(self, network: Network) -> dict[str, Any]:
        return {}


class ForecastFace:
    """Task `forecast`: rows of a series in, its next steps out."""

    files: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    def __init__(self, model: Imported, options: ImportOptions) -> None:
        assert options.horizon is not None
        shape = model.file.input.shape
        if model.has_tokens or len(shape) != 2:
            raise ImportFailed(f"--task forecast needs a model that reads (batch, time, features), it reads {('batch', *shape)}")
        num_features = shape[1]
        assert num_features is not None
        self.features = options.features or (
            ("value",) if num_features == 1 else tuple(f"value_{index}" for index in range(num_features))
        )
        if len(self.features) != num_features or len(set(self.features)) != num_features:
            raise ImportFailed(f"--features must name the model's {num_features} features, got {', '.join(self.features)}")
        self.targets = options.targets or self._guess_targets(model, options.horizon, num_features)
        unknown = [name for name in self.targets if name not in self.features]
        if unknown:
            raise ImportFailed(f'--targets: "{unknown[0]}" is none of the features {", ".join(self.features)}')
        if model.max_length is None and options.context_length is None:
            raise ImportFailed("--task forecast needs --context-length for a model that reads any number of steps")
        if model.max_length is not None and options.context_length not in (None, model.max_length):
            raise ImportFailed(f"--context-length: the model reads {model.max_length} steps, got {options.context_length}")
        self.context_length = model.max_length or options.context_length
        self.options = options
        self.model = model
        self.spec = ForecastSpec(
            layers=model.tables,
            num_features=num_features,
            targets=tuple(self.features.index(name) for name in self.targets),
            horizon=options.horizon,
        )

    def _guess_targets(self, model: Imported, horizon: int, num_features: int) -> tuple[str, ...]:
        """All features, where the last layer says that many; with several features and fewer units someone must say."""
        units = model.tables[-1].get("layer", model.tables[-1]).get("units")
        if num_features == 1 or units in (horizon * num_features, None):
            return self.features
        if model.tables[-1]["type"] == "time_distributed" and units == num_features:
            return self.features
        raise ImportFailed(
            f"--targets: which of the features {', '.join(self.features)} are forecast? "
            f"{model.place(len(model.tables) - 1)} gives {units} values for {horizon} steps"
        )

    def min_length(self, network: Network) -> int:
        return network.min_length if self.model.is_open else self.context_length or 1

    def draw(self, network: Network) -> list[Any]:
        """Two random histories; of different length, where that may be."""
        rng = np.random.default_rng(SEED)
        instances = []
        for length in _two_lengths(network, replace(self.model, max_length=self.context_length)):
            values = rng.uniform(-1, 1, (length, len(self.features))).round(4)
            instances.append({"history": (values[:, 0] if len(self.features) == 1 else values).tolist()})
        return instances

    def read(self, network: Network, instance: Any, place: str) -> Question:
        """One instance as the graph takes it. Raises ImportFailed."""
        if not isinstance(instance, Mapping) or set(instance) != {"history"}:
            raise ImportFailed(f'{place}: expected {{"history": [...]}}')
        num_features = len(self.features)
        is_flat = num_features == 1 and not (instance["history"] and isinstance(instance["history"][0], list))
        values = _read_numbers(instance["history"], 1 if is_flat else 2, place).astype(np.float32)
        values = values[:, None] if is_flat else values
        if values.shape[1] != num_features:
            raise ImportFailed(f"{place}: expected rows of {num_features} features, got {values.shape[1]}")
        _check_length(len(values), self.min_length(network), self.context_length, place)
        return Question({"history": values[None], LENGTHS: np.array([len(values)], np.int64)})

    def format(self, network: Network, answer: Mapping[str, NDArray[Any]], question: Question) -> Any:
        """The graph's answer for one row as a prediction of POST /predict."""
        return format_forecast(answer, [])

    def manifest(self, network: Network) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "min_length": self.min_length(network),
            "horizon": self.spec.horizon,
            "frequencies": list(self.options.frequencies),
            "season_length": self.options.season_length,
            "quantiles": [],
            "point": self.spec.point,
            "features": list(self.features),
            "targets": list(self.targets),
        }


class ClassifyFace:
    """Task `classify`: texts in, probabilities of labels out."""

    def __init__(self, model: Imported, options: ImportOptions) -> None:
        assert options.tokenizer is not None
        self.options = options
        if not model.has_tokens:
            first = model.place(0)
            raise ImportFailed(f"--task classify reads texts: the first layer must be an Embedding, it is {first}")
        if model.max_length is None and options.max_length is None:
            raise ImportFailed("--task classify needs --max-length for a model that reads any number of tokens")
        if model.max_length is not None and options.max_length not in (None, model.max_length):
            raise ImportFailed(f"--max-length: the model reads {model.max_length} tokens, got {options.max_length}")
        self.max_length = model.max_length or options.max_length or 1
        self.tokenizer, self.unknown_id = _read_tokenizer(options.tokenizer)
        vocabulary = model.tables[0]["input_dim"]
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocabulary:
            raise ImportFailed(
                f"--tokenizer: its ids go up to {largest}, {model.place(0)} knows {vocabulary}: 0 to {vocabulary - 1}"
            )
        self.model, note = _with_logits(_with_padding(model, options))
        self.notes: tuple[str, ...] = (note,) if note else ()
        labels = options.labels
        if len(set(labels)) != len(labels) or len(labels) < 2:
            raise ImportFailed(f"--labels: two or more different ones, got {', '.join(labels)}")
        self.spec = ClassifySpec(layers=self.model.tables, vocabulary_size=vocabulary, labels=labels)
        self.files = {"tokenizer.json": self.tokenizer.to_str()}

    def draw(self, network: Network) -> list[Any]:
        """Two random texts of the tokenizer's words, of different length."""
        rng = np.random.default_rng(SEED)
        words = sorted(word for word in self.tokenizer.get_vocab() if word.isalnum()) or sorted(self.tokenizer.get_vocab())
        counts = (max(1, self.max_length // 2), self.max_length + 1)
        return [" ".join(rng.choice(words, min(count, 12))) for count in counts]

    def read(self, network: Network, instance: Any, place: str) -> Question:
        """One instance as the graph takes it. Raises ImportFailed."""
        text = instance.get("text") if isinstance(instance, Mapping) and set(instance) == {"text"} else instance
        if not isinstance(text, str) or not text.strip():
            raise ImportFailed(f'{place}: expected a text or {{"text": "..."}}')
        ids = self.tokenizer.encode(text).ids or [self.unknown_id]
        head, tail = self._truncation
        kept = ids if len(ids) <= self.max_length else ids[:head] + ids[len(ids) - tail :]
        inputs = {"tokens": np.array([kept], np.int64), LENGTHS: np.array([len(kept)], np.int64)}
        return Question(inputs, is_truncated=len(ids) > self.max_length)

    def format(self, network: Network, answer: Mapping[str, NDArray[Any]], question: Question) -> Any:
        """The graph's answer for one row as a prediction of POST /predict."""
        return format_classify(answer["probabilities"][0], self.options.labels, question.is_truncated)

    def manifest(self, network: Network) -> dict[str, Any]:
        head, tail = self._truncation
        return {
            "labels": list(self.options.labels),
            "tokenizer": "tokenizer.json",
            "max_length": self.max_length,
            "truncation": {"head": head, "tail": tail},
            "language": self.options.language,
        }

    @property
    def _truncation(self) -> tuple[int, int]:
        """How many ids are kept of the beginning and of the end of a longer text; Keras cuts off the beginning by default."""
        return (0, self.max_length) if self.options.truncating == "pre" else (self.max_length, 0)


_FACES: Mapping[str, type[TensorFace] | type[ForecastFace] | type[ClassifyFace]] = {
    "tensor": TensorFace,
    "forecast": ForecastFace,
    "classify": ClassifyFace,
}


def _tensor_spec(model: Imported) -> TensorSpec:
    shape = model.file.input.shape
    axes = ("time" if model.is_open else shape[0], *shape[1:])
    given = TensorInput(name=_input_name(model), kind="tokens" if model.has_tokens else "floats", shape=axes)  # type: ignore[arg-type]
    return TensorSpec(layers=model.tables, input=given)


def _input_name(model: Imported) -> str:
    """The name that someone gave the input; "input" where Keras made one up."""
    name = model.file.input.name
    is_made_up = re.fullmatch(r"(input|input_layer|keras_tensor)(_\d+)?|.*_input", name)
    return "input" if is_made_up or name in (LENGTHS, "output") or name.startswith("output_") else name


def _with_padding(model: Imported, options: ImportOptions) -> Imported:
    """Rows are padded in the graph where the model reads a fixed number of steps and does not pass the padding over."""
    if model.is_open:
        return model
    padding = {
        "type": "pad_sequences",
        "maxlen": model.max_length,
        "padding": options.padding,
        "truncating": options.truncating,
    }
    return replace(model, tables=(padding, *model.tables), stored=(None, *model.stored))


def _with_logits(model: Imported) -> tuple[Imported, str]:
    """The last activation belongs to the last Dense, where the network looks for it; and what to say if there is none."""
    dense, last = ({}, *model.tables)[-2:]
    if last["type"] == "activation" and dense.get("type") == "dense" and "activation" not in dense:
        tables = (*model.tables[:-2], {**dense, "activation": last["activation"]})
        return replace(model, tables=tables, stored=model.stored[:-1]), ""
    if last["type"] == "dense" and "activation" not in last:
        kind = "sigmoid" if last["units"] == 1 else "softmax"
        return model, f"{model.place(len(model.tables) - 1)} gives logits: the served probabilities are their {kind}"
    return model, ""


# ----------------------------------------------------------------------------------------------------------- small things


def _read_instances(path: Path) -> list[Any]:
    """Two or more instances of POST /predict from a JSON file. Raises ImportFailed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ImportFailed(f"--example: {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ImportFailed(f"--example: {path} is not JSON: {exc}") from exc
    if isinstance(content, Mapping) and "instances" in content:
        content = content["instances"]
    if not isinstance(content, list) or len(content) < 2:
        raise ImportFailed(f"--example: {path} must be a list of two or more instances")
    return content


def _read_numbers(value: Any, num_axes: int, place: str) -> NDArray[np.float64]:
    """A nested list as an array. Raises ImportFailed."""
    try:
        values = np.array(value, np.float64)
    except (TypeError, ValueError) as exc:
        raise ImportFailed(f"{place}: expected numbers, nested {num_axes} deep and even: {exc}") from exc
    if values.ndim != num_axes or not values.size:
        raise ImportFailed(f"{place}: expected numbers nested {num_axes} deep, got the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ImportFailed(f"{place}: every number must be finite")
    return values


def _check_length(length: int, shortest: int, longest: int | None, place: str) -> None:
    if length < shortest or (longest is not None and length > longest):
        bounds = f"{shortest} or more" if longest is None else f"{shortest} to {longest}" if shortest != longest else f"{longest}"
        raise ImportFailed(f"{place}: expected {bounds} steps, got {length}")


def _two_lengths(network: Network, model: Imported) -> tuple[int, int]:
    if not model.is_open:
        assert model.max_length is not None
        return model.max_length, model.max_length
    longest = model.max_length or network.min_length + 8
    return longest, max(network.min_length, longest // 2)


def _read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """A tokenizer.json of the `tokenizers` library, with truncation and padding off; and the id of its unknown token."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ImportFailed(f"--tokenizer: {path}: {exc.strerror}") from exc
    except Exception as exc:  # the library raises plain Exception for a file it does not understand
        raise ImportFailed(f"--tokenizer: {path} is not a file of the tokenizers library: {exc}") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in (getattr(tokenizer.model, "unk_token", None), *UNKNOWN_TOKENS):
        if token is not None and (unknown_id := tokenizer.token_to_id(token)) is not None:
            return tokenizer, int(unknown_id)
    raise ImportFailed(f"--tokenizer: {path} has no unknown token, as {UNKNOWN_TOKENS[0]}")


def _plain(values: NDArray[Any]) -> Any:
    """Nested lists of numbers short enough for a file and long enough to give a float32 back."""
    if values.ndim:
        return [_plain(part) for part in values]
    return float(f"{float(values):.{NUM_DIGITS}g}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
