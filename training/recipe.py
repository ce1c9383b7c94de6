"""A recipe: one TOML file that holds a whole training run, read strictly into pydantic models.

Says what is wrong with a recipe and on which line; loads no data and knows no network (the layers check their own arguments).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

RECIPES = Path(__file__).parent / "recipes"

Frequency = Literal["S", "T", "H", "D", "W", "M", "Q", "Y"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

KERAS_FILTERS = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'


class RecipeError(ValueError):
    """A recipe cannot be read: says the file and line, the dotted key, what was found and what was expected."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Strict):
    """One file of data (or a set that a library ships), and how to read it."""

    path: str = Field(
        default="", description="in $SLUICE_DATA, or else from where one stands; .gz and .xz beside it are found too"
    )
    builtin: Literal["air-passengers", "breast-cancer"] | None = Field(
        default=None, description="a set that needs no file at all"
    )
    name: str = Field(default="", description="names this file's scores, as in `imdb_accuracy`")
    catalogue: str = Field(default="", description="the set's name in `python -m training fetch`")
    origin: str = Field(default="", description="where the public can get it")
    licence: str = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="of the content: of the bytes after decompression, or of a parquet file's columns"
    )
    format: Literal["auto", "wide", "long", "table", "lines"] = Field(
        default="auto", description="wide: one series per row; long: unique_id, ds, y; table: columns; lines: `label text`"
    )
    id: str = Field(default="unique_id", description="long: the column that names the series")
    time: str = Field(default="ds", description="long, table: the column of time, by which the rows are in order")
    values: list[str] = Field(default_factory=list, description="table: the columns that are the features; empty: all")
    text: str = Field(default="text", description="the column of texts")
    label: str = Field(default="label", description="the column of labels")
    group: str = Field(default="", description="a column whose equal values never stand on both sides of the validation cut")
    validation_share: Share | None = Field(default=None, description="cut from this file; None: data.validation_share")
    repeat: Count = Field(default=1, description="times that each epoch sees this file (texts)")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if bool(self.path) == (self.builtin is not None):
            raise ValueError("give either `path` or `builtin`")
        return self

    def __str__(self) -> str:
        return self.path or f"builtin {self.builtin}"


class Data(_Strict):
    """What is learned from, and how it is cut into training, validation and test."""

    train: Annotated[list[Source], Field(min_length=1)]
    validation: list[Source] = Field(default_factory=list, description="texts: instead of a cut from the training files")
    test: list[Source] = Field(default_factory=list)
    # series: the last part in time
    targets: list[str] = Field(
        default_factory=list, description="features that are forecast; empty: all. tensor: columns to predict"
    )
    rows: int | None = Field(default=None, ge=1, description="read only the first rows")
    unit: str = Field(default="", description="of the targets, for the pictures")
    validation_length: int | None = Field(default=None, ge=1, description="steps before the test part; None: one horizon")
    test_length: int | None = Field(default=None, ge=1, description="last steps, where no test file is given; None: one horizon")
    # rows
    test_share: Share | None = Field(default=None, description="tensor: share of the rows kept for the test; None: 0.2, or none")
    # texts and rows
    labels: dict[str, str] | list[str] = Field(
        default_factory=list, description="names of the classes in order, or a table: value in the file = name"
    )
    validation_share: Share | None = Field(
        default=None, description="share of the training texts (whole groups) kept back; None: 0.1, or 0 with validation files"
    )
    drop_shared_texts: bool = Field(
        default=True, description="leave out training texts that stand in validation or test files too"
    )


class Forecast(_Strict):
    """Lengths in time steps of the series."""

    context_length: Count
    min_length: Count | None = Field(default=None, description="shortest history taken; None: one season (or step)")
    horizon: Count
    season_length: Count = 1
    frequencies: list[Frequency] = Field(default_factory=list, description="empty: any")
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    step: Count = Field(default=1, description="values per recurrent step, as 24 hours make one step of a day")
    seasonal_lag: int = Field(default=0, ge=0, description="the forecast corrects the value this many steps earlier; 0: none")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Forecast:
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must ascend without repetition, got {self.quantiles}")
        if self.quantiles and 0.5 not in self.quantiles:
            raise ValueError(f"quantiles must hold 0.5, the point forecast, got {self.quantiles}")
        if self.shortest > self.context_length:
            raise ValueError(f"min_length {self.shortest} is above context_length {self.context_length}")
        return self

    @property
    def shortest(self) -> int:
        return self.min_length if self.min_length is not None else max(self.season_length, self.step, self.seasonal_lag, 1)


class Scaling(_Strict):
    """What the graph does to raw values before the layers see them, and undoes at the end."""

    kind: Literal["none", "minmax", "standard", "window"] = Field(
        default="standard", description="minmax, standard: fitted on the training part; window: each history by its own last part"
    )
    length: Count | None = Field(default=None, description="window: last steps whose mean divides the history; None: all")
    transform: Literal["none", "log", "asinh"] | None = Field(default=None, description="window: what follows the division")
    floor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="log: added to the scaled values, so that zero has one"
    )


class Tokenizer(_Strict):
    """How texts become tokens; learned from the training part only."""

    kind: Literal["words", "wordpiece", "bpe", "characters", "keras"] = "wordpiece"
    vocabulary: Annotated[int, Field(ge=16)] = 20_000
    min_frequency: Count = 2
    lowercase: bool = True
    replacements: dict[str, str] = Field(default_factory=dict, description='as "<br />" = " "')
    head: Annotated[int, Field(ge=0)] = Field(default=200, description="tokens kept of the start of an over-long text")
    tail: Annotated[int, Field(ge=0)] = Field(default=200, description="and of its end")
    # kind "keras": the arguments of keras.preprocessing.text.Tokenizer
    num_words: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="keras: ids below this one are given, so num_words - 1 words; None: all words"
    )
    oov_token: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="keras: stands for every other word, as id 1; None: they are dropped"
    )
    lower: bool = Field(default=True, description="keras: lower case")
    filters: str = Field(default=KERAS_FILTERS, description="keras: characters taken as spaces")

    @model_validator(mode="after")
    def _options_belong_to_the_kind(self) -> Tokenizer:
        if self.head + self.tail < 1:
            raise ValueError("head + tail must keep at least one token")
        keras, others = {"num_words", "oov_token", "lower", "filters"}, {"vocabulary", "min_frequency", "lowercase"}
        for option in sorted(self.model_fields_set & (others if self.kind == "keras" else keras)):
            raise ValueError(f'{option} is not for kind "{self.kind}"')
        return self

    @property
    def most_tokens(self) -> int | None:
        """The bound of the ids; None: as many as the texts have words."""
        return self.num_words if self.kind == "keras" else self.vocabulary


Loss = Literal["mse", "mae", "huber", "quantile", "binary_crossentropy", "categorical_crossentropy"]


class Fit(_Strict):
    """The loop. Names and defaults are Keras's where Keras has them."""

    loss: Loss
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(default=None, description="None: 0.01 for sgd, else 0.001")
    momentum: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(default=None, description="None: 0.004 for adamw, else 0")
    schedule: Literal["none", "cosine", "onecycle"] = "none"
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=0.0, description="bound of the gradients' global norm; 0: none")
    epochs: Count = 10
    batch_size: Count = 32
    steps_per_epoch: Count | None = Field(default=None, description="None: one pass over the training part")
    patience: int | None = Field(default=None, ge=1, description="epochs without a better validation score before stopping")
    short_share: Share = Field(default=0.2, description="forecast: share of windows cut to a random shorter history")
    word_dropout: Share = Field(default=0.0, description="share of a text's tokens replaced by the unknown token")
    label_smoothing: Share = 0.0
    average: Share = Field(
        default=0.0, description="decay of a moving average of the weights, which is then what is kept; 0: none"
    )

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> Fit:
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(f'momentum is for sgd and rmsprop, not "{self.optimizer}"')
        if self.weight_decay and self.optimizer == "rmsprop":
            raise ValueError("weight_decay is for sgd, adam and adamw")
        return self


Baseline = Literal[
    "last_value", "seasonal_naive", "linear", "theta", "auto_ets", "majority", "tfidf_logistic", "logistic", "average"
]
BASELINES: dict[str, tuple[str, ...]] = {
    "forecast": ("last_value", "seasonal_naive", "linear", "theta", "auto_ets"),
    "classify": ("majority", "tfidf_logistic"),
    "tensor": ("majority", "logistic", "average", "linear"),
}


class Evaluate(_Strict):
    """Which windows of a long test part are scored, and beside what."""

    stride: int | None = Field(default=None, ge=1, description="steps between forecasts; None: one horizon")
    baselines: list[Baseline] | None = Field(default=None, description="None: a naive and a strong one of the task")
    naive2_smape: float | None = Field(default=None, gt=0, description="official totals of Naive2; with both, OWA is scored")
    naive2_mase: float | None = Field(default=None, gt=0)
    batch_size: Count = 256


class Quantize(_Strict):
    """A second graph with 8-bit weights. `SLUICE_PRECISION=auto` takes it where it loses no more than this on the test part."""

    max_points_lost: Annotated[float, Field(ge=0)] = Field(default=0.5, description="of each accuracy, percentage points")
    max_error_gained: Annotated[float, Field(ge=0)] = Field(default=1.0, description="of OWA, MAE and pinball loss each, percent")


class Recipe(_Strict):
    """The whole run."""

    task: Literal["forecast", "classify", "tensor"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Count | None = Field(default=None, description="None: the next free number")
    description: str = ""
    licence: str = Field(default="", description="of the data; empty: the sources' licences")
    language: str = Field(default="und", description="BCP 47 tag of the texts")
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data
    forecast: Forecast | None = None
    scaling: Scaling | None = Field(default=None, description="forecast; None: standard")
    tokenizer: Tokenizer = Tokenizer()
    output: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(default="output", description="tensor: the answer's name")
    layers: Annotated[list[dict[str, Any]], Field(min_length=1)]
    fit: Fit
    evaluate: Evaluate = Evaluate()
    quantize: Quantize | None = Field(default=None, description="None: the fp32 graph alone")

    @model_validator(mode="after")
    def _the_parts_fit_together(self) -> Recipe:
        if (self.forecast is not None) != (self.task == "forecast"):
            raise ValueError(f'task "{self.task}" and the table [forecast] do not go together')
        is_crossentropy = self.fit.loss.endswith("crossentropy")
        has_classes = self.task == "classify" or (self.task == "tensor" and not self.data.targets)
        if is_crossentropy != has_classes or (self.fit.loss == "quantile" and self.task != "forecast"):
            raise ValueError(f'loss "{self.fit.loss}" does not fit task "{self.task}"')
        if self.forecast is not None and (self.fit.loss == "quantile") != bool(self.forecast.quantiles):
            raise ValueError('loss "quantile" and forecast.quantiles need each other')
        if self.task != "forecast" and self.scaling is not None:
            layer = '; task "tensor" has the layer normalization' if self.task == "tensor" else ""
            raise ValueError(f'the table [scaling] is for task "forecast"{layer}')
        builtin = {"air-passengers": "forecast", "breast-cancer": "tensor"}
        for source in (*self.data.train, *self.data.validation, *self.data.test):
            if source.builtin and builtin[source.builtin] != self.task:
                raise ValueError(f'builtin "{source.builtin}" is for task "{builtin[source.builtin]}"')
        foreign = [name for name in self.evaluate.baselines or () if name not in BASELINES[self.task]]
        if foreign:
            raise ValueError(f'task "{self.task}" has the baselines {", ".join(BASELINES[self.task])}, not "{foreign[0]}"')
        if self.task == "classify" and not self.data.test:
            raise ValueError("classify needs [[data.test]]: scores are taken on texts that training never saw")
        if self._pads and self.tokenizer.model_fields_set & {"head", "tail"}:
            raise ValueError("tokenizer.head and tail are for recipes without pad_sequences, which says how texts are cut")
        return self

    @property
    def _pads(self) -> bool:
        return self.layers[0].get("type") == "pad_sequences" and isinstance(self.layers[0].get("maxlen"), int)

    @property
    def cut(self) -> tuple[int, int]:
        """Of a longer text, how many tokens of its start and of its end are read."""
        if not self._pads:
            return self.tokenizer.head, self.tokenizer.tail
        maxlen = self.layers[0]["maxlen"]
        return (maxlen, 0) if self.layers[0].get("truncating") == "post" else (0, maxlen)

    def as_json(self) -> dict[str, Any]:
        """The recipe as it goes into the manifest: what differs from the defaults, plain JSON."""
        return json.loads(self.model_dump_json(exclude_defaults=True))  # type: ignore[no-any-return]


def recipe_of_folder(folder: Path) -> Recipe:
    """The recipe that made a published folder. Raises RecipeError where none did, as with an imported model."""
    try:
        recipe = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["training"]["recipe"]
        return Recipe.model_validate_json(json.dumps(recipe))
    except (OSError, ValueError, KeyError) as exc:
        raise RecipeError(f"{folder}: there is no manifest.json with the recipe of a run: {exc}") from exc


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by the name of a bundled one. Raises RecipeError that lists those."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if name in bundled:
        return bundled[name]
    near = difflib.get_close_matches(name, bundled, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else "."
    raise RecipeError(f'no recipe "{name}"{hint} There is no such file, and the bundled recipes are: {", ".join(bundled)}')


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` changes (dotted keys, TOML values). Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path}: cannot be read: {exc}") from exc
    return parse_recipe(text, changes, where=str(path))


def parse_recipe(text: str, changes: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """The recipe in a TOML text, with changes. Raises RecipeError naming every fault with its line and key."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"{where}: not TOML: {exc}") from exc
    changed: dict[tuple[str | int, ...], str] = {}
    for change in changes:
        key, equals, raw = change.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {change}: expected key=value")
        location = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
        _put(table, location, _toml_value(raw), change)
        changed[location] = raw.strip()
    try:
        return Recipe.model_validate(table)
    except ValidationError as exc:
        # `--set description=5` is text where the recipe wants text: the recipe decides the type.
        texts = [loc for loc in changed if any(e["loc"] == loc and e["type"] == "string_type" for e in exc.errors())]
        if texts:
            for location in texts:
                _put(table, location, changed[location], "")
            try:
                return Recipe.model_validate(table)
            except ValidationError as again:
                exc = again
        lines = _lines_of(text)
        faults = [_sentence(dict(error), lines, changed, where) for error in exc.errors(include_url=False)]
        raise RecipeError("\n".join(faults)) from exc


def line_of(path: Path, location: tuple[str | int, ...]) -> int | None:
    """Where a key stands in a recipe file, counted from 1; where it is left out, the table that would hold it."""
    lines = _lines_of(path.read_text(encoding="utf-8"))
    return next((lines[location[:depth]] for depth in range(len(location), 0, -1) if location[:depth] in lines), None)


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw.strip()


def _put(table: Any, location: tuple[str | int, ...], value: Any, change: str) -> None:
    for depth, part in enumerate(location[:-1]):
        if isinstance(table, list):
            table = _element(table, part, change)
        elif isinstance(table, dict):
            table = table.setdefault(str(part), {})
        else:
            raise RecipeError(f"--set {change}: {'.'.join(map(str, location[:depth]))} is a value, not a table")
    last = location[-1]
    if isinstance(table, list):
        _element(table, last, change)
        table[int(last)] = value
    elif isinstance(table, dict):
        table[str(last)] = value
    else:
        raise RecipeError(f"--set {change}: {'.'.join(map(str, location[:-1]))} is a value, not a table")


def _element(items: list[Any], index: str | int, change: str) -> Any:
    if not isinstance(index, int) or index >= len(items):
        raise RecipeError(f"--set {change}: expected an index below {len(items)}, got {index!r}")
    return items[index]


def _sentence(
    error: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int], changed: Iterable[tuple[str | int, ...]], where: str
) -> str:
    location = tuple(error["loc"])
    # pydantic adds the name of a union's branch; the recipe's own keys are what stands in the file.
    key = ".".join(str(part) for part in location if "[" not in str(part))
    place = next((f"--set {key}" for change in changed if location[: len(change)] == change), "")
    if not place:
        line = next((lines[location[:depth]] for depth in range(len(location), 0, -1) if location[:depth] in lines), None)
        place = f"{where}, line {line}" if line else where
    if error["type"] == "extra_forbidden":
        names = _names_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(names)}"
        return f'{place}: unknown key "{key}"; {hint}'
    if error["type"] == "missing":
        return f'{place}: "{key}" is missing'
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    return f'{place}: "{key}": {message}, got {error["input"]!r}' if _is_short(error["input"]) else f'{place}: "{key}": {message}'


def _is_short(value: object) -> bool:
    return not isinstance(value, dict | list)


def _names_at(location: tuple[str | int, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return []
        model = _model_in(fields[part].annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The model inside `Model | None`, `list[Model]` and the like; None if there is none."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(_model_in, get_args(annotation)) if found is not None), None)


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\-.\"']+)\s*=")


def _lines_of(text: str) -> dict[tuple[str | int, ...], int]:
    """Line number of each key and table header, by the location that pydantic reports. Good enough to point with."""
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = tuple(part.strip(" \"'") for part in header[2].split("."))
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *(part.strip("\"'") for part in key[1].split("."))), number)
    return lines
