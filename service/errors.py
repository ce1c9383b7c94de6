"""Everything that can go wrong on the way from a request to an answer, as one tree.

    ServiceError
    ├── RequestError            the caller can correct it
    │   ├── MalformedRequest        not JSON, wrong types, unknown fields
    │   ├── PayloadTooLarge         more bytes or more instances than one request may carry
    │   ├── InvalidInput            well-formed, but not what this model takes; says which instance, where, found, expected
    │   │   └── StateError              a recurrent state that cannot be used; says why not
    │   ├── ModelNotFound           no such model, version or task
    │   ├── SequenceNotFound        a step of a sequence that was not started, or has ended
    │   ├── SequenceConflict        a sequence whose state belongs to another graph than the one that answers now
    │   └── AmbiguousModel          the request names no model and several would fit
    ├── CapacityError           later it may succeed
    │   ├── Overloaded              the queue is full
    │   ├── DeadlineExceeded        there was no answer before the deadline
    │   └── StoreUnavailable        what keeps the states of sequences cannot be reached
    ├── ModelNotReady           loading, or its folder is broken
    ├── InferenceFailed         the graph failed; the details are in the log, not in the message
    ├── LoadFailed              a model that a request wants loaded cannot be; what was served before goes on being served
    ├── FolderError             only at load: what is wrong with a model folder
    └── StartError              only at start: this machine lacks what was requested (a runtime, a GPU)

The labels that metrics give to outcomes and reasons stand here too, so that a misspelt one is an error of the type checker.
Knows nothing of HTTP: which status each error becomes stands in one table in `service/api/errors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

Outcome = Literal["ok", "invalid", "rejected", "timeout", "cancelled", "error"]
"""How a request to predict ended."""
InvalidReason = Literal["json", "shape", "dtype", "nonfinite", "length", "timestamp", "payload", "state"]
"""What was wrong with a request that was refused for what it held."""
StateProblem = Literal["damaged", "forged", "model", "version", "graph", "tensors", "nonfinite", "not_streaming"]
"""Why a recurrent state cannot be used: its bytes are damaged, or not signed with a key of the server; it belongs to another
model, version or graph; its tensors are not the graph's, or not finite; the model cannot stream at all."""
SequenceEnd = Literal["end", "restart", "reload", "idle", "lru"]
"""Why a sequence ended: a request ended it, or started it anew on the same graph or on another one; it was not used for its time
to live, or not for longest when there were too many."""
RateScope = Literal["key", "address"]
"""Whose rate a request was beyond."""
ReloadOutcome = Literal["loaded", "unloaded", "error"]
"""What became of a change of what is served: a version was put into service, taken out of it, or could not be loaded."""
ConnectionReason = Literal[
    "too_many",
    "evicted",
    "idle",
    "header_timeout",
    "body_timeout",
    "drained",
    "send_timeout",
    "malformed",
    "head_too_large",
    "url_too_long",
]
"""Why the server refused or closed a connection: there are too many, it made room for another one, its next request did not
come, a head, a body or the reading of an answer took too long, a body was not whole when the server ended, or what came is not
read."""
RestartReason = Literal["crashed", "hung", "ended", "memory"]
"""Why a worker process was replaced: it failed, its event loop stood still, or a signal from outside ended it."""


class ServiceError(Exception):
    """The root: a message for people, a `code` for programs, and the facts as a mapping."""

    code: ClassVar[str] = "service_error"

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, object] = {key: value for key, value in facts.items() if value is not None}


class RequestError(ServiceError):
    """The caller can correct it."""

    code = "request_error"


class MalformedRequest(RequestError):
    """The body is not JSON, or its fields have the wrong names or types."""

    code = "malformed_request"


class PayloadTooLarge(RequestError):
    """The body has more bytes, or more instances, than one request may carry."""

    code = "payload_too_large"


class InvalidInput(RequestError):
    """Well-formed, but not what the model takes: names the instance, the place in it, what was found, what was expected.

    `reason` becomes a label of the metric `sluice_invalid_inputs_total`.
    """

    code = "invalid_input"

    def __init__(
        self,
        message: str,
        *,
        reason: InvalidReason = "shape",
        instance: int | None = None,
        where: str | None = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        super().__init__(message, instance=instance, where=where, found=found, expected=expected)
        self.reason = reason


class StateError(InvalidInput):
    """A recurrent state cannot be used: `problem` says whether it is damaged or forged, of another model, version or graph, or
    whether the model cannot stream.
    """

    code = "invalid_state"

    def __init__(
        self,
        message: str,
        *,
        problem: StateProblem,
        instance: int | None = None,
        where: str | None = "state",
        found: object = None,
        expected: object = None,
    ) -> None:
        super().__init__(message, reason="state", instance=instance, where=where, found=found, expected=expected)
        self.problem: StateProblem = problem
        self.facts["problem"] = problem

    def at(self, instance: int) -> StateError:
        """The same error, of an instance by its number in the request."""
        found, expected = self.facts.get("found"), self.facts.get("expected")
        message = f"instance {instance}: {self.message}"
        return StateError(message, problem=self.problem, instance=instance, found=found, expected=expected)


class ModelNotFound(RequestError):
    """There is no such model, version, or default model for the task; lists what there is."""

    code = "model_not_found"


class SequenceNotFound(RequestError):
    """A step for a sequence that was not started, or has ended: it has to begin with `sequence_start`."""

    code = "sequence_not_found"


class SequenceConflict(RequestError):
    """The state that is kept of the sequence belongs to another version or graph than the one that would go on from it."""

    code = "sequence_conflict"


class AmbiguousModel(RequestError):
    """The request names no model and several would fit: it has to name one of the `candidates`."""

    code = "ambiguous_model"

    def __init__(self, message: str, *, candidates: Sequence[str], **facts: object) -> None:
        super().__init__(message, candidates=list(candidates), **facts)


class CapacityError(ServiceError):
    """Not now: a request after `retry_after_s` seconds may succeed."""

    code = "capacity"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **facts: object) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class Overloaded(CapacityError):
    """There is more to do than can be answered in time, or the model's queue is full; nothing was computed."""

    code = "overloaded"


class DeadlineExceeded(CapacityError):
    """The deadline passed before there was an answer."""

    code = "deadline_exceeded"


class StoreUnavailable(CapacityError):
    """What keeps the states of sequences cannot be reached; nothing of the step was kept, and it may be repeated."""

    code = "store_unavailable"


class ModelNotReady(ServiceError):
    """The model is known but not READY: still loading, or its folder is broken (the reason says how)."""

    code = "model_not_ready"


class InferenceFailed(ServiceError):
    """The graph raised; the message holds no internals."""

    code = "inference_failed"


class LoadFailed(ServiceError):
    """A model cannot be loaded as its folder is; what was served before goes on being served."""

    code = "load_failed"


class FolderError(ServiceError):
    """A model folder is broken: raised only at load, never stops the other models."""

    code = "folder_error"


class StartError(ServiceError):
    """This machine lacks what was requested, a runtime or a GPU: the service does not start."""

    code = "start_error"
