"""What a published module is to its callers: nested lists, a forecast or a text classifier.

Each task wraps the module so that its graph has the task's tensors, and words the example as requests and predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.export.answers import format_classify, format_forecast
from training.importers.tokenizer_file import read_tokenizer
from training.importers.torch.calling import Axis, parameter_names
from training.importers.torch.checks import Verdict
from training.importers.torch.errors import ModuleRefused
from training.importers.torch.last_operation import gives_probabilities
from training.importers.torch.recording import record
from training.importers.torch.wrappers import ClassifyHead, ForecastHead, read_scaler

NUM_DIGITS = 9  # what gives a float32 back exactly
TOKENIZER_FILE = "tokenizer.json"
UNTOLD = (
    "are_probabilities=True (--probabilities) or False (--logits) must be given: whether the module ends in a sigmoid or "
    "softmax, or in a linear layer, cannot be seen"
)

Row = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Example:
    """The example of a folder, the manifest's block of the task, and further files."""

    instances: list[Any]
    predictions: list[Any]
    block: Mapping[str, Any]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Lists:
    """Task `tensor`: rows as nested lists in, the outputs as nested lists out."""

    name = "tensor"

    def prepare(self, model: nn.Module, example: Sequence[Any]) -> tuple[nn.Module, list[str], Sequence[Any]]:
        """The module with the task's outputs, the names of its arguments, and the rows it is tried on."""
        return model, parameter_names(model), example

    def axes(self, example: Sequence[Any]) -> Mapping[str, Sequence[Axis]] | None:
        """The axes of a row, where the task knows them."""
        return None

    def word(self, example: Sequence[Any], rows: Sequence[Row], answers: Sequence[Row], verdict: Verdict) -> Example:
        """The example as the service has it; `rows` are the first of the example's, `answers` the module's own."""
        return Example([_plain(row) for row in rows], [_plain(answer) for answer in answers], {}, {})


@dataclass(frozen=True)
class Forecast:
    """The module reads (time, features) and gives `horizon` steps of the targets.

    Its answer is (horizon,), (horizon, targets), (horizon, quantiles) or (horizon, targets, quantiles) for a row, or that flat.
    With `quantiles`, 0.5 must be among them: it is the point forecast. `features` and `targets` are names; targets are those of
    the features that are forecast, all by default. `scaler` is the fitted scaler of the features: the series goes in and comes
    out in its own units.
    """

    horizon: int
    features: Sequence[str] = ()
    targets: Sequence[str] = ()
    quantiles: Sequence[float] = ()
    frequencies: Sequence[str] = ()
    season_length: int = 1
    context_length: int | None = None
    scaler: Any = None

    name = "forecast"

    def prepare(self, model: nn.Module, example: Sequence[Any]) -> tuple[nn.Module, list[str], Sequence[Any]]:
        """As of `Lists`. Raises ModuleRefused where the names do not fit the rows."""
        rows = [np.asarray(next(iter(row.values())) if isinstance(row, Mapping) else row) for row in example]
        rows = [row[:, None] if row.ndim == 1 else row for row in rows]
        if any(row.ndim != 2 for row in rows):
            raise ModuleRefused(f"a forecast reads rows of (time, features), the example has {[row.shape for row in rows]}")
        features, targets = self.names(rows[0].shape[1])
        if self.horizon < 1:
            raise ModuleRefused(f"horizon: expected 1 or more steps, got {self.horizon}")
        levels = list(self.quantiles)
        if levels and (levels != sorted(set(levels)) or 0.5 not in levels or not 0 < levels[0] <= levels[-1] < 1):
            raise ModuleRefused(f"quantiles: expected levels between 0 and 1 that ascend, 0.5 among them, got {levels}")
        scale = None
        if self.scaler is not None:
            scale = read_scaler(self.scaler, "scaler").for_features(len(features))
            if len(scale.factor) != len(features):
                raise ModuleRefused(f"scaler: it was fitted to {len(scale.factor)} features, the rows have {len(features)}")
        places = [features.index(target) for target in targets]
        head = ForecastHead(model, self.horizon, levels, scale, places)
        return head, ["history"], rows

    def names(self, num_features: int) -> tuple[list[str], list[str]]:
        """Features and targets. Raises ModuleRefused where they do not fit."""
        features = list(self.features) or (
            ["value"] if num_features == 1 else [f"value_{index}" for index in range(num_features)]
        )
        if len(features) != num_features or len(set(features)) != num_features:
            raise ModuleRefused(f"features: expected {num_features} different names, got {features}")
        targets = list(self.targets) or features
        unknown = [target for target in targets if target not in features]
        if unknown or len(set(targets)) != len(targets):
            raise ModuleRefused(f"targets: expected some of the features {features}, got {targets}")
        return features, targets

    def axes(self, example: Sequence[Any]) -> Mapping[str, Sequence[Axis]] | None:
        """As of `Lists`."""
        return {"history": ("time", example[0].shape[1])}

    def word(self, example: Sequence[Any], rows: Sequence[Row], answers: Sequence[Row], verdict: Verdict) -> Example:
        """As of `Lists`."""
        num_features = rows[0]["history"].shape[1]
        features, targets = self.names(num_features)
        block = {
            "context_length": self.context_length or max(len(row) for row in example),
            "min_length": verdict.min_length,
            "horizon": self.horizon,
            "frequencies": list(self.frequencies),
            "season_length": self.season_length,
            "quantiles": list(self.quantiles),
            "point": "median" if self.quantiles else "mean",
            "features": features,
            "targets": targets,
        }
        instances = [{"history": _numbers(row["history"][:, 0] if num_features == 1 else row["history"])} for row in rows]
        batches = [{name: value[None] for name, value in answer.items()} for answer in answers]
        return Example(instances, [format_forecast(batch, list(self.quantiles)) for batch in batches], block, {})


@dataclass(frozen=True)
class Classify:
    """The module reads token ids and gives a number for every label, or one: the second of two labels.

    The numbers are probabilities, or logits, of which the graph makes probabilities; `are_probabilities` says which, None
    looks at what the module does last. The example's rows are texts, which `tokenizer` (a tokenizer.json) cuts into ids,
    `max_length` at most. `subject` says what the labels are about, as "sentiment".
    """

    labels: Sequence[str]
    tokenizer: str | Path
    max_length: int = 512
    language: str = "und"
    subject: str | None = None
    are_probabilities: bool | None = None

    name = "classify"

    def prepare(self, model: nn.Module, example: Sequence[Any]) -> tuple[nn.Module, list[str], Sequence[Any]]:
        """As of `Lists`; the rows become token ids. Raises ModuleRefused, and ModelImportError for the tokenizer."""
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ModuleRefused(f"labels: expected two or more different ones, got {list(self.labels)}")
        texts = [text for text in example if isinstance(text, str)]
        if len(texts) != len(example):
            raise ModuleRefused("example: a classifier's rows are texts, which the tokenizer cuts into ids")
        rows = [np.array(self.encode(text), np.int64) for text in texts]
        are_probabilities = self.are_probabilities
        if are_probabilities is None:
            are_probabilities = self.look(model, rows)
        names = parameter_names(model)
        return ClassifyHead(model, len(self.labels), are_probabilities), ["tokens", *names[1:]], rows

    def encode(self, text: str) -> list[int]:
        """A text's token ids, as many as are read."""
        tokenizer, unknown = read_tokenizer(Path(self.tokenizer))
        ids = tokenizer.encode(text).ids or [unknown]
        return list(ids[: self.max_length])

    def look(self, model: nn.Module, rows: Sequence[NDArray[Any]]) -> bool:
        """Whether the module's answers are probabilities: by what it does last, or by the answers where that does not tell.

        Raises ModuleRefused where they do not tell either: any logit may lie between 0 and 1.
        """
        are_single = False
        for row in rows:
            tokens = torch.from_numpy(row)[None]
            others: list[torch.Tensor] = []
            try:
                with torch.no_grad():
                    try:
                        result = model(tokens)
                    except Exception:
                        if len(parameter_names(model)) < 2:
                            return False  # it is run again, and its error worded, when it is tried
                        others = [torch.tensor([len(row)])]  # what else a classifier needs is most often the rows' lengths
                        result = model(tokens, *others)
            except Exception as exc:
                raise ModuleRefused(f"{UNTOLD}: it takes more than tokens and lengths") from exc
            try:
                known = gives_probabilities(record(model, [tokens, *others], {}, {"tokens": tokens}))
            except Exception:  # it has ways to a graph that are not recorded
                known = None
            if known is not None:
                return known
            while isinstance(result, tuple):
                result = result[0]
            values = result.reshape(-1)
            are_single |= len(values) == 1
            is_one = len(values) == 1 or abs(float(values.sum()) - 1) < 1e-4
            if not is_one or float(values.min()) < 0 or float(values.max()) > 1:
                return False
        if are_single:
            raise ModuleRefused(f"{UNTOLD}: it gives one number, between 0 and 1 at every example row, and ends in neither")
        return True

    def axes(self, example: Sequence[Any]) -> Mapping[str, Sequence[Axis]] | None:
        """As of `Lists`."""
        return {"tokens": ("time",)}

    def word(self, example: Sequence[Any], rows: Sequence[Row], answers: Sequence[Row], verdict: Verdict) -> Example:
        """As of `Lists`."""
        tokenizer, _ = read_tokenizer(Path(self.tokenizer))
        block = {
            "labels": list(self.labels),
            "tokenizer": TOKENIZER_FILE,
            "max_length": self.max_length,
            "truncation": {"head": self.max_length, "tail": 0},
            "language": self.language,
            **({"subject": self.subject} if self.subject else {}),
        }
        texts = list(example[: len(rows)])
        truncated = [len(tokenizer.encode(text).ids) > self.max_length for text in texts]
        predictions = [
            format_classify(answer["probabilities"], list(self.labels), is_cut)
            for answer, is_cut in zip(answers, truncated, strict=True)
        ]
        return Example(texts, predictions, block, {TOKENIZER_FILE: tokenizer.to_str()})


Task = Lists | Forecast | Classify


def read_task(task: Literal["tensor"] | Task) -> Task:
    """The task as an object. Raises ModuleRefused for what is none."""
    if isinstance(task, Lists | Forecast | Classify):
        return task
    if task != "tensor":
        raise ModuleRefused(f'task: expected "tensor", Forecast(...) or Classify(...), got {task!r}')
    return Lists()


def _plain(values: Row) -> Any:
    """One tensor as nested lists, several as an object."""
    lists = {name: _numbers(array) for name, array in values.items()}
    return lists if len(lists) != 1 else next(iter(lists.values()))


def _numbers(array: NDArray[Any]) -> Any:
    if array.ndim:
        return [_numbers(part) for part in array]
    return float(f"{float(array):.{NUM_DIGITS}g}") if array.dtype.kind == "f" else array.item()
