"""State that clients carry: the field `state` of instances and predictions. HTTP only: what a state holds is known to the model.

Keeps nothing from one request to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from service.errors import InvalidInput, StateError

STATE = "state"
FEW_TOKENS = 64
"""Beyond so many, states are read and written on a thread: each takes some 10 µs."""


class StateTokens(Protocol):
    """States ↔ tokens (`service/sequences/tokens.py`)."""

    def write(self, state: Any) -> str: ...

    def read(self, token: object, identity: Any, num_bytes: int) -> Any:
        """The state of a token. Raises StateError for what is no token of this graph."""
        ...


class StreamingModel(Protocol):
    """What is needed of a model to go on from a state."""

    @property
    def identity(self) -> Any:
        """Which states are its own."""
        ...

    @property
    def state_bytes(self) -> int: ...

    @property
    def has_own_state_field(self) -> bool:
        """Whether the field is a tensor of its own."""
        ...

    def expect_streaming(self) -> None:
        """Raise StateError where the model cannot stream."""
        ...

    async def advance(
        self,
        instances: Sequence[Any],
        states: Sequence[Any],
        parameters: Mapping[str, Any],
        *,
        deadline: float,
        is_plain: bool,
        has_turn: bool = False,
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """The predictions, and the new states."""
        ...

    def with_state(self, prediction: Any, state: object) -> Any: ...


def holds_state(instances: Sequence[Any]) -> bool:
    """Whether an instance of a request has the field `state`.

    Looks at each, 0.1 µs for one: to search the text for the name takes longer, and a name may be written in escapes.
    """
    for each in instances:  # noqa: SIM110  (a generator takes three times as long)
        if type(each) is dict and STATE in each:
            return True
    return False


async def predict_carried(
    model: StreamingModel,
    tokens: StateTokens,
    instances: Sequence[Any],
    parameters: Mapping[str, Any],
    *,
    deadline: float,
    is_plain: bool,
    has_turn: bool = False,
) -> Sequence[Any]:
    """The predictions of instances that carry their states, each with its new one.

    Raises StateError for a model that cannot stream and a state that is not its own, InvalidInput where some instances carry a
    state and others do not, and what `advance` raises.
    """
    index = next(index for index, each in enumerate(instances) if type(each) is dict and STATE in each)
    try:
        model.expect_streaming()
    except StateError as exc:
        raise exc.at(index) from exc
    is_long = len(instances) > FEW_TOKENS
    states = await asyncio.to_thread(_read, model, tokens, instances) if is_long else _read(model, tokens, instances)
    pieces = [{name: value for name, value in each.items() if name != STATE} for each in instances]
    predictions, new = await model.advance(pieces, states, parameters, deadline=deadline, is_plain=is_plain, has_turn=has_turn)
    return (
        await asyncio.to_thread(_write, model, tokens, predictions, new) if is_long else _write(model, tokens, predictions, new)
    )


def _read(model: StreamingModel, tokens: StateTokens, instances: Sequence[Any]) -> list[Any]:
    """The state of each instance, None where it begins a sequence."""
    states = []
    for index, instance in enumerate(instances):
        if type(instance) is not dict or STATE not in instance:
            raise InvalidInput(
                f"instance {index}: {STATE} is missing: all instances of a request have one, or none has",
                instance=index,
                where=STATE,
                expected="the state of an answer, or null to begin a sequence",
            )
        token = instance[STATE]
        try:
            states.append(None if token is None else tokens.read(token, model.identity, model.state_bytes))
        except StateError as exc:
            raise exc.at(index) from exc
    return states


def _write(model: StreamingModel, tokens: StateTokens, predictions: Sequence[Any], states: Sequence[Any]) -> list[Any]:
    return [model.with_state(prediction, tokens.write(state)) for prediction, state in zip(predictions, states, strict=True)]
