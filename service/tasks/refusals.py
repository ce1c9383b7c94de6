"""How a task words what it refuses: which instance, where in it, what was found, what was expected. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.errors import InvalidInput, InvalidReason, MalformedRequest


def refuse_parameters(unknown: Sequence[str], known: Sequence[str]) -> MalformedRequest:
    """Some parameters of the request are not among those that the model takes."""
    expected = f"this model takes {list(known)}" if known else "this model takes none"
    return MalformedRequest(f"parameters: unknown {show(unknown[0])}; {expected}", where="parameters", expected=list(known))


def refuse_fields(index: int, unknown: Iterable[object], known: Iterable[str]) -> MalformedRequest:
    """An instance has fields that are not among those of the task."""
    first, expected = min(map(str, unknown)), sorted(known)
    return MalformedRequest(
        f"instance {index}: unknown field {show(first)}; expected {expected}", instance=index, where=first, expected=expected
    )


def refuse_missing(index: int, field: str) -> InvalidInput:
    """An instance lacks a field."""
    return InvalidInput(f"instance {index}: {field} is missing", instance=index, where=field)


def refuse_type(index: int | None, where: str, expected: str, found: object, *, reason: InvalidReason = "dtype") -> InvalidInput:
    """A value has another type than expected; `index` None: it is a parameter of the request."""
    return InvalidInput(
        f"{locate(index, where)}: expected {expected}, got {show(found)}",
        reason=reason,
        instance=index,
        where=where or None,
        found=show(found),
        expected=expected,
    )


def refuse_length(index: int | None, where: str, bound: str, unit: str, found: int, advice: str = "") -> InvalidInput:
    """There are too few of something, or too many: `bound` as "at most 99", `unit` what is counted; `advice` ends the message."""
    return InvalidInput(
        f"{locate(index, where)}: expected {bound} {unit}, got {found}{advice}",
        reason="length",
        instance=index,
        where=where,
        found=found,
        expected=bound,
    )


def locate(index: int | None, where: str) -> str:
    """The place of a value, as messages begin with it."""
    if index is None:
        return f"parameters: {where}"
    return f"instance {index}: {where}" if where else f"instance {index}"


def show(value: object) -> str:
    """A value as it stood in the JSON, cut short; never the whole of what a caller sent."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value[:60]}"' + ("…" if len(value) > 60 else "")
    return str(value)[:60]
