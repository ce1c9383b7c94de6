"""The fields of sequences in instances, parameters and predictions, for the OpenAPI document: the same in every task whose models
may stream.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

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


class SequenceFields(BaseModel):
    """The sequence, kept by the server, that an instance is the next step of."""

    sequence_id: (
        Annotated[int, Field(ge=1, le=2**64 - 1)]
        | Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
        | None
    ) = Field(
        default=None,
        description="For a model that can stream: the sequence, kept by the server, of which the instance is the next step. A "
        "number is the same as its digits. In all instances, or for all of them in `parameters`.",
        examples=["sensor-17", 17],
    )
    sequence_start: bool | None = Field(
        default=None, description="Whether the sequence begins with this step; one that is there begins anew.", examples=[True]
    )
    sequence_end: bool | None = Field(
        default=None, description="Whether the sequence ends with this step: nothing is kept of it.", examples=[True]
    )
