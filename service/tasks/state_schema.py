"""The field `state` of instances and predictions, for the OpenAPI document: the same in every task whose models may stream."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

InstanceState = Annotated[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None,
    Field(
        description="For a model that can stream, the `state` of the last answer: the instance goes on from there. `null` begins "
        "a sequence. Absent: the instance is a whole, and the answer holds no state. All instances have it, or none.",
        examples=[None],
    ),
]
PredictionState = Annotated[
    str | None,
    Field(
        description="What the next piece of the sequence goes on from, to be sent with it as it is; present where the instance "
        "had a `state`.",
        examples=["U0xTMQEAAAAYAAAAAAAAAA"],
    ),
]
