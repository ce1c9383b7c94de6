"""What every recipe has: the strict tables that all tasks share, and the base class that a task's own recipe extends.

Reads no files (`reading.py`), loads no data and knows no network: the layers check their own options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.errors import TrainingError
from training.recipe.ranges import read_values, require_comparable

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Labels = dict[str, str] | list[str]
Loss = Literal["mse", "mae", "huber", "quantile", "smape", "binary_crossentropy", "categorical_crossentropy"]


class RecipeError(TrainingError):
    """A recipe cannot be read: names the file and line, the dotted key, what was found and what was expected."""


class RecipeTable(BaseModel):
    """One table of a recipe: unknown keys are refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(RecipeTable):
    """One file of data, and how to read it."""

    path: str = Field(description="the file, under `$SLUICE_DATA` or else the working directory; `.gz` and `.xz` are found too")
    catalogue: str = Field(default="", description="name of the set in `sluice data fetch`")
    origin: str = Field(default="", description="where the public can get the file")
    licence: str = Field(default="", description="licence of the file")
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="of the content: of the bytes after decompression, or of a parquet file's columns; empty: any"
    )

    @property
    def builtin_set(self) -> str | None:
        """The set without a file that is read instead of `path`; None: there is a file."""
        return None

    def __str__(self) -> str:
        return self.path


class FileOrBuiltin(Source):
    """A source that may also be a set which a library ships; a subclass lists those as the values of `builtin`."""

    path: str = Field(
        default="", description="the file, under `$SLUICE_DATA` or else the working directory; `.gz` and `.xz` are found too"
    )
    builtin: str | None = Field(default=None, description="a set that needs no file, instead of `path`")

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if bool(self.path) == (self.builtin is not None):
            raise ValueError("give either `path` or `builtin`")
        return self

    @property
    def builtin_set(self) -> str | None:
        return self.builtin

    def __str__(self) -> str:
        return self.path or f"builtin {self.builtin}"


class Data(RecipeTable):
    """The files of a run; a task adds how they are split into training, validation and test parts."""

    train: Annotated[Sequence[Source], Field(min_length=1)]
    test: Sequence[Source] = ()

    @property
    def sources(self) -> list[Source]:
        """All files."""
        return [*self.train, *self.test]

    @property
    def is_validation_apart(self) -> bool:
        """Whether training leaves the validation part alone."""
        return True


class Fit(RecipeTable):
    """The training loop. Names and defaults are Keras's where Keras has them."""

    loss: str
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = Field(default="adam", description="the optimizer, by Keras's name")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="the learning rate; left out: 0.01 for `sgd`, else 0.001"
    )
    momentum: Share = Field(default=0.0, description="momentum of `sgd` and `rmsprop`")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="decay of the weights, not for `rmsprop`; left out: 0.004 for `adamw`, else 0"
    )
    schedule: Literal["none", "cosine", "onecycle"] = Field(
        default="none", description="the learning rate over the run: constant, cosine to zero, or one cycle"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(default=0.0, description="bound of the gradients' global norm; 0: none")
    epochs: Count = Field(default=10, description="epochs at most")
    batch_size: Count = Field(default=32, description="rows per batch")
    steps_per_epoch: Count | None = Field(
        default=None, description="batches per epoch; left out: one pass over the training part"
    )
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better validation score before stopping; left out: none stops early"
    )
    minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="minutes after which the loop stops, in the middle of an epoch too; left out: it does not"
    )
    average: Share = Field(
        default=0.0, description="decay of a moving average of the weights, which is then validated and published; 0: none"
    )
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="factors of the learning rate by a layer's type or name, as `{ embedding = 0.25 }`; of other layers 1",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the products while training: `bfloat16` takes half the time on processors and GPUs that multiply it",
    )
    devices: Count = Field(
        default=1, description="processes of a node, each on a GPU of its own, or on the CPU; each takes its share of every batch"
    )
    num_nodes: Count = Field(
        default=1, description="machines; each runs the same command with `MASTER_ADDR`, `MASTER_PORT` and its own `NODE_RANK`"
    )
    strategy: Literal["auto", "ddp"] = Field(
        default="auto", description="how several processes keep their weights equal, by Lightning's name; `auto` chooses `ddp`"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="whose weights are published: of the epoch with the best validation score, or of the last"
    )

    @model_validator(mode="after")
    def _check_optimizer_options(self) -> Self:
        if self.momentum and self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(f'momentum is for sgd and rmsprop, not "{self.optimizer}"')
        if self.weight_decay and self.optimizer == "rmsprop":
            raise ValueError("weight_decay is for sgd, adam and adamw")
        return self


class Ensemble(RecipeTable):
    """Several networks of the same layers in one graph, trained together from different weights, each on rows of its own."""

    members: Count = Field(default=1, description="networks in the graph, each with a `batch_size` of its own")
    combine: Literal["mean", "median"] = Field(
        default="mean", description="how the last layers' values become one answer, before scaling is undone"
    )


class Evaluation(RecipeTable):
    """How the test part is scored, and beside what."""

    baselines: Sequence[str] | None = None
    batch_size: Count = Field(default=256, description="rows that the graph answers at a time")


class Quantize(RecipeTable):
    """A second graph with 8-bit weights. `SLUICE_PRECISION=auto` serves it where it loses no more than this on the test part."""

    max_points_lost: Annotated[float, Field(ge=0)] = Field(default=0.5, description="of each accuracy, in percentage points")
    max_error_gained: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="of OWA, MAE and pinball loss each, in percent"
    )


class Tune(RecipeTable):
    """What `sluice tune` searches, and for how long. The validation part decides."""

    options: dict[str, str | list[str | int | float | bool]] = Field(
        default_factory=dict,
        description='values to try by the key of each option, as `{ "fit.learning_rate" = "1e-4..1e-2", "layers.0.units" = [32, '
        "64] }`: a range, or a list. Keys begin with `fit`, `layers`, `ensemble`, `tokenizer` or `vectors`",
    )
    minutes: Annotated[float, Field(gt=0)] = Field(default=10.0, description="after so many no further trial begins")
    trials: Count = Field(default=30, description="trials at most")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for key, given in self.options.items():
            try:
                require_comparable(key)
                read_values(given)
            except ValueError as exc:
                raise ValueError(f"options: {key}: {exc}") from exc
        return self


class Recipe(RecipeTable):
    """A whole training run. Each task has a subclass with its own tables, registered in `training/recipe/registry.py`."""

    default_baselines: ClassVar[tuple[str, ...]] = ()

    task: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        description="name of the model: letters, digits, dots, underscores and hyphens"
    )
    version: Count | None = Field(default=None, description="version that is published; left out: the next free number")
    description: str = Field(default="", description="one sentence about the model, for `GET /models`")
    licence: str = Field(default="", description="licence of the data; empty: the licences of the sources")
    limits: list[str] = Field(default_factory=list, description="sentences on what the model is not for, for its card")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of all random numbers: splits, initial weights, batches")
    data: Data
    layers: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field(
        description="the layers in their order, each with `type` and the options of that layer ([layers](layers.md))"
    )
    fit: Fit
    ensemble: Ensemble = Ensemble()
    evaluate: Evaluation = Evaluation()
    quantize: Quantize | None = Field(default=None, description="a second graph with 8-bit weights; left out: none")
    tune: Tune | None = Field(default=None, description="what `sluice tune` searches; left out: what its own options say")

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        for name in self.fit.rates:
            if not any(name in names_of_layer(table, index) for index, table in enumerate(self.layers)):
                known = dict.fromkeys(names_of_layer(table, index)[0] for index, table in enumerate(self.layers))
                raise ValueError(f'fit.rates: no layer has the type or the name "{name}"; there are {", ".join(known)}')
        return self

    @property
    def rows_per_batch(self) -> int:
        """Rows of one step of training, of all members of an ensemble."""
        return self.fit.batch_size * self.ensemble.members

    @property
    def baselines(self) -> tuple[str, ...]:
        """The baselines that are scored beside the model: those that the recipe names, or else the task's own."""
        return self.default_baselines if self.evaluate.baselines is None else tuple(self.evaluate.baselines)

    def as_json(self) -> dict[str, Any]:
        """The recipe as it goes into the manifest: what differs from the defaults, plain JSON."""
        return json.loads(self.model_dump_json(exclude_defaults=True))  # type: ignore[no-any-return]


def names_of_layer(table: Mapping[str, Any], index: int) -> tuple[str, str]:
    """What a layer is called by in a recipe: its type, and its name or, without one, its type and place as `lstm_1`."""
    kind = str(table.get("type"))
    return kind, str(table.get("name") or f"{kind}_{index}")
