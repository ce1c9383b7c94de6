"""The example of a model folder, replayed: `example.json` through the path that requests take, number by number.

Decides nothing: it returns what differs, in sentences.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import FolderError, ServiceError
from service.manifest import EXAMPLE_FILE, Tolerance, read_file
from service.models.folder import ModelOptions, Parts
from service.models.model import Model
from service.runtime.tensors import Tensors, collate
from service.wire import read, write

MAX_DIFFERENCES = 20


class ExampleRequest(BaseModel):
    """A body for POST /predict."""

    model_config = ConfigDict(extra="forbid")
    model: str
    version: str | None = None
    instances: list[Any] = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)


class ExampleResponse(BaseModel):
    """What it answers; further fields are not compared."""

    predictions: list[Any]


class Example(BaseModel):
    """`example.json`: a request, its answer, and how far a number may be from it."""

    model_config = ConfigDict(extra="forbid")
    request: ExampleRequest
    response: ExampleResponse
    tolerance: Tolerance


async def replay_example(folder: Path, parts: Parts, options: ModelOptions, *, is_strict: bool = False) -> list[str]:
    """Run the task's own checks of the graph, and the example; return what is wrong. Reading happens on a thread."""
    try:
        content = parts.example
        if content is None:
            content = await asyncio.to_thread(read_file, folder, EXAMPLE_FILE)
        example = Example.model_validate(json.loads(content))
    except FolderError as exc:
        return [exc.message]
    except ValidationError as exc:
        return [f"{EXAMPLE_FILE}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False)]
    except ValueError as exc:
        return [f"{EXAMPLE_FILE} is not JSON: {exc}"]

    def run(tensors: Tensors) -> Tensors:
        return parts.runtime.run(collate([tensors], parts.signature))

    findings = await asyncio.to_thread(parts.task.check_graph, run)
    if example.request.model != parts.manifest.name:
        findings.append(f'{EXAMPLE_FILE}: request.model is "{example.request.model}", the model is "{parts.manifest.name}"')
    if is_strict and len(example.request.instances) < 2:
        findings.append(f"{EXAMPLE_FILE}: expected at least two instances, of different length, got one")
    # No delay: nothing else will be in its batches, and a queue that waits for more would only delay the start.
    limits = replace(options.limits.with_defaults(), max_queue_delay_s=0.0)
    model = Model(parts, options, limits)
    await model.start()
    try:
        found = read(write(await model.predict(example.request.instances, example.request.parameters)))
    except ServiceError as exc:
        return [*findings, f"{EXAMPLE_FILE}: the model did not answer: {exc.message}"]
    finally:
        await model.stop()
    expected = parts.definition.upgrade_predictions(example.response.predictions)
    tolerance = parts.graph.tolerance or example.tolerance
    different = find_differences(found, expected, tolerance.absolute, tolerance.relative, "predictions")
    return findings + [f"{EXAMPLE_FILE}: {difference}" for difference in different[:MAX_DIFFERENCES]]


def find_differences(found: object, expected: object, absolute: float, relative: float, where: str = "") -> list[str]:
    """Where two JSON values differ: numbers by more than absolute + relative x |expected|, everything else at all."""
    if _is_number(found) and _is_number(expected):
        allowed = absolute + relative * abs(expected)
        if abs(found - expected) <= allowed:  # false for NaN
            return []
        return [f"{where}: expected {expected:.7g}, found {found:.7g} ({abs(found - expected):.2g} apart, allowed {allowed:.2g})"]
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{where}: expected {len(expected)} entries, found {len(found)}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (a, b) in pairs for line in find_differences(a, b, absolute, relative, f"{where}[{i}]")]
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            return [f"{where}: expected the fields {sorted(expected)}, found {sorted(found)}"]
        return [line for k in expected for line in find_differences(found[k], expected[k], absolute, relative, f"{where}.{k}")]
    return [] if found == expected and type(found) is type(expected) else [f"{where}: expected {expected!r}, found {found!r}"]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
