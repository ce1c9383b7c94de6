"""What a network is but for its weights: the options that every task has. A task's own options stand beside its head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from training.errors import TrainingError


class NetworkError(TrainingError):
    """The parts of a network do not fit together, or a call does not fit the network."""


class NetworkSpec(BaseModel):
    """All that a network is, but for its weights: its task, its layers' tables, and the options that the task's spec adds.

    Frozen. `model_dump()`, with `exclude_defaults` too, and `read_spec` of the heads' registry are each other's inverse.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    layers: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    members: PositiveInt = 1
    """Networks of these layers, each with weights of its own, whose last values are combined into one answer."""
    combine: Literal["mean", "median"] = "mean"

    @model_serializer(mode="wrap")
    def _dump_with_task(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"task": self.task, **dump(self)}
