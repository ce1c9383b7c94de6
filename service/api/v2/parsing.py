"""Body bytes → a request to infer, in JSON, binary, or both (the binary tensor extension). Strict.

What the tensors hold is read by the model; here they are lists of JSON values, or views of the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from service.api.parsing import read_json
from service.api.sequences import SequenceStep, read_step
from service.errors import MalformedRequest

JSON_LENGTH_HEADER = b"inference-header-content-length"
MAX_TENSORS = 256
"""Inputs, or outputs, of one request."""
MAX_ID_LENGTH = 1024
MAX_AXES = 32


class InputTensor(NamedTuple):
    """One input of a request."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | memoryview


class RequestedOutput(NamedTuple):
    """One output that a request wants."""

    name: str
    is_binary: bool
    num_classes: int = 0


class InferRequest(NamedTuple):
    """A request to infer, its types checked."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None
    """None: all."""
    is_binary: bool
    """How outputs are answered that are not named."""
    id: str | None = None
    timeout_s: float | None = None
    """How long the answer may take at most."""
    step: SequenceStep | None = None
    """Of the sequence that it is the next step of; None: it is of none."""


class RawTensor(NamedTuple):
    """The body of a raw request: the bytes of the model's only input, whose name and shape the model knows."""

    data: memoryview


def read_json_length(headers: Any, body_size: int) -> int | None:
    """How many bytes of the body are JSON; None: all. Raises MalformedRequest where that is no size within the body."""
    found = [value for name, value in headers if name == JSON_LENGTH_HEADER]
    if not found:
        return None
    value = found[0]
    if len(found) > 1 or not value.isdigit() or len(value) > 18 or int(value) > body_size:
        shown = value.decode("latin-1")[:40]
        raise MalformedRequest(f"inference header size should be in range (0, {body_size}), got: {shown}", found=shown)
    return int(value)


def parse(body: bytes, json_length: int | None) -> InferRequest | RawTensor:
    """Read a request: `json_length` bytes of JSON, all of them where it is None, and behind them the binary inputs in order.

    Raises MalformedRequest.
    """
    if json_length == 0:
        return RawTensor(memoryview(body))
    text = memoryview(body)[:json_length]
    content = read_json(text)
    if type(content) is not dict:
        raise MalformedRequest("the body is no JSON object")
    identifier = content.get("id")
    if identifier is not None and (type(identifier) is not str or len(identifier) > MAX_ID_LENGTH):
        raise MalformedRequest(f'"id": expected a string of at most {MAX_ID_LENGTH} characters', where="id")
    parameters = _parameters(content, "the request")
    binary = _Tail(memoryview(body)[len(text) :])
    inputs = [_input(tensor, binary) for tensor in _tensors(content, "inputs")]
    if not inputs:
        raise MalformedRequest('"inputs" is missing or empty', where="inputs")
    binary.expect_end()
    is_binary = _flag(parameters, "binary_data_output", default=False)
    outputs = [_output(tensor, is_binary) for tensor in _tensors(content, "outputs")] if content.get("outputs") else None
    if outputs is not None and len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequest('"outputs": a name is there twice', where="outputs")
    timeout_us = parameters.get("timeout")
    if timeout_us is not None and (type(timeout_us) is not int or timeout_us < 0):
        raise MalformedRequest('"timeout": expected a whole number of microseconds', where="parameters")
    step = read_step(parameters, zero_is_none=True) if parameters else None
    return InferRequest(inputs, outputs, is_binary, identifier, timeout_us / 1e6 if timeout_us else None, step)


class _Tail:
    """The bytes behind the JSON, taken from the front."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def take(self, size: int, name: str) -> memoryview:
        if size > len(self._rest):
            raise MalformedRequest(
                f'input "{name[:100]}": {size} bytes are announced, {len(self._rest)} are left', where="inputs"
            )
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def expect_end(self) -> None:
        if self._rest:
            raise MalformedRequest(f"unexpected additional input data: {len(self._rest)} bytes behind the last input")


def _tensors(content: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    tensors = content.get(field)
    if tensors is None:
        return []
    if type(tensors) is not list or len(tensors) > MAX_TENSORS or set(map(type, tensors)) - {dict}:
        raise MalformedRequest(f'"{field}": expected a list of at most {MAX_TENSORS} objects', where=field)
    return tensors


def _input(tensor: dict[str, Any], binary: _Tail) -> InputTensor:
    name, datatype, shape = _name(tensor, "inputs"), tensor.get("datatype"), tensor.get("shape")
    if type(datatype) is not str:
        raise MalformedRequest(f'input "{name[:100]}": "datatype" is missing, or no string', where="datatype")
    if type(shape) is not list or len(shape) > MAX_AXES or set(map(type, shape)) - {int}:
        raise MalformedRequest(
            f'input "{name[:100]}": "shape": expected a list of at most {MAX_AXES} whole numbers', where="shape"
        )
    parameters = _parameters(tensor, f'input "{name[:100]}"')
    size = parameters.get("binary_data_size")
    data = tensor.get("data")
    if size is None:
        if type(data) is not list:
            raise MalformedRequest(f'input "{name[:100]}": "data" is missing, or no list', where="data")
        return InputTensor(name, datatype[:40], shape, data)
    if type(size) is not int or size < 0:
        raise MalformedRequest(f'input "{name[:100]}": "binary_data_size": expected a number of bytes', where="parameters")
    if data is not None:
        raise MalformedRequest(f'input "{name[:100]}": both "data" and "binary_data_size" are there', where="data")
    return InputTensor(name, datatype[:40], shape, binary.take(size, name))


def _output(tensor: dict[str, Any], is_binary: bool) -> RequestedOutput:
    name = _name(tensor, "outputs")
    parameters = _parameters(tensor, f'output "{name[:100]}"')
    num_classes = parameters.get("classification", 0)
    if type(num_classes) is not int or num_classes < 0:
        raise MalformedRequest(f'output "{name[:100]}": "classification": expected a number of classes', where="parameters")
    return RequestedOutput(name, _flag(parameters, "binary_data", default=is_binary), num_classes)


def _name(tensor: dict[str, Any], field: str) -> str:
    name = tensor.get("name")
    if type(name) is not str or not name:
        raise MalformedRequest(f'"{field}": a tensor has no "name"', where=field)
    return name


def _parameters(content: Mapping[str, Any], whose: str) -> dict[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict or set(map(type, parameters.values())) - {str, int, float, bool}:
        raise MalformedRequest(f'"parameters" of {whose}: expected strings, numbers, true and false', where="parameters")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise MalformedRequest(f'"{name}": expected true or false', where="parameters")
    return value
