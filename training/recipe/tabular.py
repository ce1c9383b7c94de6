"""The recipe of a model of rows of features: a label, or numbers, for each row. The task's name is `tensor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from training.recipe.base import Data, Evaluation, FileOrBuiltin, Fit, Labels, Recipe, Share, Source


class RowSource(FileOrBuiltin):
    """One file of rows, or a set that a library ships."""

    builtin: Literal["breast-cancer"] | None = Field(default=None, description="a set that needs no file, instead of `path`")
    values: list[str] = Field(default_factory=list, description="the columns of features; left out: all but the answers")
    label: str = Field(default="label", description="the column of labels, where no numbers are predicted")


class RowData(Data):
    """The rows of a run. Rows are held back at random for validation and test, of each label its share."""

    train: Annotated[Sequence[RowSource], Field(min_length=1)] = Field(description="files to learn from")
    validation: Sequence[RowSource] = Field(
        default=(), description="files that choose the best epoch; left out: a cut of the training rows"
    )
    test: Sequence[RowSource] = Field(default=(), description="files that are scored; left out: a cut of the training rows")
    targets: list[str] = Field(
        default_factory=list, description="columns of numbers to predict; left out: labels are predicted instead"
    )
    labels: Labels = Field(
        default_factory=list,
        description="names of the classes in order, or a table of value in the file = name; left out: the values in order",
    )
    validation_share: Share | None = Field(
        default=None, description="share of the rows that is the validation part; left out: 0.1, or 0 with validation files"
    )
    test_share: Share | None = Field(
        default=None, description="share of the rows that is the test part; left out: 0.2, or 0 with test files"
    )

    @property
    def sources(self) -> list[Source]:
        return [*self.train, *self.validation, *self.test]


class TabularFit(Fit):
    """The training loop of a model of rows."""

    loss: Literal["mse", "mae", "huber", "binary_crossentropy", "categorical_crossentropy"] = Field(
        description="the loss: a crossentropy for labels, another one for numbers"
    )


class TabularEvaluation(Evaluation):
    """Beside what the test rows are scored."""

    baselines: Sequence[Literal["majority", "logistic", "average", "linear"]] | None = Field(
        default=None,
        description="baselines beside the model; left out: `majority`, `logistic` (labels) or `average`, `linear` (numbers)",
    )


class TabularRecipe(Recipe):
    """A run of task `tensor`: a label, or numbers, for a row of features."""

    label_baselines: ClassVar[tuple[str, ...]] = ("majority", "logistic")
    number_baselines: ClassVar[tuple[str, ...]] = ("average", "linear")

    task: Literal["tensor"] = Field(description="the task")
    output: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        default="output", description="name of the output tensor in the graph"
    )
    data: RowData
    fit: TabularFit
    evaluate: TabularEvaluation = TabularEvaluation()

    @property
    def baselines(self) -> tuple[str, ...]:
        own = self.number_baselines if self.data.targets else self.label_baselines
        return own if self.evaluate.baselines is None else tuple(self.evaluate.baselines)

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.fit.loss.endswith("crossentropy") == bool(self.data.targets):
            wanted = "numbers (data.targets) need mse, mae or huber" if self.data.targets else "labels need a crossentropy"
            raise ValueError(f'loss "{self.fit.loss}" does not fit: {wanted}')
        return self
