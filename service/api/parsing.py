"""Body bytes → a request to predict, read strictly. What its instances hold is known to the task."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from pydantic_core import from_json

from service.errors import InvalidInput, MalformedRequest, PayloadTooLarge, ServiceError
from service.wire import read, read_large

FIELDS = ("model", "version", "instances", "parameters", "timeout_ms")
_FIELD_SET = frozenset(FIELDS)
LARGE_BYTES = 64 * 1024
"""What is wrong in a larger body is named by its place in the text: to look for it among millions of values takes seconds."""
_NONFINITE = re.compile(r"-?(NaN|Infinity)")


class ParsedRequest(NamedTuple):
    """A request to predict, its types checked."""

    model: str | None
    version: str | None
    instances: list[Any]
    parameters: dict[str, Any]
    timeout_s: float | None = None
    """How long the answer may take at most."""


def parse(body: bytes, max_instances: int) -> ParsedRequest:
    """Read a request strictly: no unknown fields, no wrong types, no NaN.

    A body of more than LARGE_BYTES takes long, and is for a thread. Raises MalformedRequest, PayloadTooLarge for too many
    instances, and InvalidInput for none or for NaN and Infinity.
    """
    try:
        content = _read(body)
    except ValueError as exc:
        raise _not_json(body, exc) from exc
    if type(content) is not dict:
        raise MalformedRequest(
            f'the body is {_kind(content)}, expected an object such as {{"model": "...", "instances": [...]}}',
            found=_kind(content),
            expected="an object",
        )
    model = content.get("model")
    version = content.get("version")
    instances = content.get("instances")
    parameters = content.get("parameters")
    if type(instances) is not list:
        raise _wrong_field(content, "instances", "a list")
    if not content.keys() <= _FIELD_SET:
        unknown = next(field for field in content if field not in _FIELD_SET)[:100]
        raise MalformedRequest(
            f'"{unknown}" is not a field of a request; the fields are {", ".join(FIELDS)}', where=unknown, expected=FIELDS
        )
    if model is not None and type(model) is not str:
        raise _wrong_field(content, "model", "a string")
    if version is not None and type(version) is not str:
        raise _wrong_field(content, "version", 'a string such as "1"')
    if parameters is None:
        parameters = {}
    elif type(parameters) is not dict:
        raise _wrong_field(content, "parameters", "an object")
    if not instances:
        raise InvalidInput('"instances" is empty, expected at least one', where="instances", found=0, expected="at least 1")
    expect_no_more_than(max_instances, len(instances))
    if (timeout_ms := content.get("timeout_ms")) is not None:
        if type(timeout_ms) not in (int, float) or timeout_ms <= 0:
            raise _wrong_field(content, "timeout_ms", "a number of milliseconds above 0")
        return ParsedRequest(model, version, instances, parameters, timeout_ms / 1000)
    return ParsedRequest(model, version, instances, parameters)


def read_json(text: bytes | memoryview) -> Any:
    """The JSON of a body; one of more than LARGE_BYTES takes long, and is for a thread. Raises MalformedRequest."""
    try:
        return _read(text)
    except ValueError as exc:
        raise MalformedRequest(f"the body is not JSON: {exc}" if text else "the body is empty, expected JSON") from exc


def expect_no_more_than(max_instances: int, found: int) -> None:
    """Raise PayloadTooLarge for more instances, or rows, than one request may hold."""
    if found > max_instances:
        raise PayloadTooLarge(
            f"the request has {found} instances; SLUICE_MAX_INSTANCES is {max_instances}",
            found=found,
            limit=max_instances,
            setting="SLUICE_MAX_INSTANCES",
        )


def _read(text: bytes | memoryview) -> Any:
    return read(text) if len(text) <= LARGE_BYTES else read_large(text)


def _not_json(body: bytes, exc: ValueError) -> ServiceError:
    """The error for a body that the reader refused: NaN and Infinity are named by instance and place."""
    if len(body) > LARGE_BYTES:
        return _not_json_at(exc)
    try:
        content = from_json(body)
    except ValueError:
        return MalformedRequest(f"the body is not JSON: {exc}" if body else "the body is empty, expected JSON")
    instances = content.get("instances") if isinstance(content, dict) else None
    for index, instance in enumerate(instances if isinstance(instances, list) else ()):
        place = _find_nonfinite(instance, "")
        if place is not None:
            where, found = place
            return InvalidInput(
                f"instance {index}: {where + ': ' if where else ''}expected a number or null, got {found}",
                reason="nonfinite",
                instance=index,
                where=where,
                found=found,
                expected="a number or null",
            )
    return MalformedRequest("the body is not JSON: NaN and Infinity are no JSON numbers")


def _not_json_at(exc: ValueError) -> ServiceError:
    """The same for a large body, by where the reader stopped."""
    place: int = getattr(exc, "pos", 0)
    found = _NONFINITE.match(getattr(exc, "doc", ""), place)
    if found is None:
        return MalformedRequest(f"the body is not JSON: {exc}")
    return InvalidInput(
        f"character {place} of the body: expected a number or null, got {found[1]}",
        reason="nonfinite",
        where=f"character {place}",
        found=found[1],
        expected="a number or null",
    )


def _find_nonfinite(value: object, where: str) -> tuple[str, str] | None:
    """The place of the first number in `value` that is not finite.

    It runs on the event loop: a place is written only for what is found, which takes 0.3 s of 1.1 for two million steps.
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, "NaN" if math.isnan(value) else "Infinity")
    if isinstance(value, dict):
        for key, child in value.items():
            if (found := _find_nonfinite(child, f"{where}.{key}" if where else str(key))) is not None:
                return found
    elif isinstance(value, list):
        for number, child in enumerate(value):
            is_fine = math.isfinite(child) if type(child) is float else not isinstance(child, dict | list)
            if not is_fine and (found := _find_nonfinite(child, f"{where}[{number}]")) is not None:
                return found
    return None


def _wrong_field(content: dict[str, Any], field: str, expected: str) -> MalformedRequest:
    if field not in content:
        return MalformedRequest(f'"{field}" is missing, expected {expected}', where=field, expected=expected)
    found = _kind(content[field])
    return MalformedRequest(f'"{field}" is {found}, expected {expected}', where=field, found=found, expected=expected)


def _kind(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
