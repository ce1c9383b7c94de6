"""A folder that holds an ONNX graph and no manifest, as in Triton's repositories: names, types and axes are the graph's.

Rows of different requests share a batch only where the graph's first axis is open and a row's outputs were seen to be its own;
else each request is a run of its own.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from service.errors import FolderError, InvalidInput, ServiceError
from service.manifest import EXAMPLE_FILE, MANIFEST_FILE, Graph, Manifest, TensorEntry, Training, read_file
from service.models.control_flow import is_bounded
from service.models.external_data import find_external_data
from service.models.precision import precision_of
from service.models.protobuf import read_fields, read_numbers
from service.runtime.base import Device, OpenRuntime, Runtime
from service.runtime.synthetic import synthetic
from service.runtime.tensors import Array, Signature, Tensors, TensorSpec

log = logging.getLogger(__name__)

GRAPH_FILE = "model.onnx"
TASK = "tensor"
# Rows that are run together and alone to see whether they are independent, and the size of their open axes.
NUM_ROWS, NUM_STEPS = 3, 8
TOLERANCE = 1e-3
# Field numbers of onnx.proto.
_MODEL_OPSET, _OPSET_DOMAIN, _OPSET_VERSION = 8, 1, 2


Identity = tuple[str, str]
"""Name and version of a model."""


class PlainGraph(NamedTuple):
    """A graph, and the manifest that it would have."""

    manifest: Manifest
    runtime: Runtime
    is_batched: bool
    is_bounded: bool
    """As `Parts.is_bounded`."""


def is_plain_folder(folder: Path) -> bool:
    """Whether a version folder holds a graph, and neither a manifest nor an example: with one, the other has got lost."""
    return (folder / GRAPH_FILE).exists() and not any((folder / name).exists() for name in (MANIFEST_FILE, EXAMPLE_FILE))


def identity_of(folder: Path, identity: Identity | None = None) -> Identity:
    """What a version folder has to be: `identity`, None: what its path says."""
    if identity is not None:
        return identity
    folder = folder.resolve()
    return folder.parent.name, folder.name


def open_plain(
    folder: Path, device: Device, open_graph: OpenRuntime, identity: Identity | None = None, *, is_batched: bool | None = None
) -> PlainGraph:
    """Open the graph of such a folder, as the model and version of `identity`, None: of its path.

    It is run to see whether rows can share a batch, unless `is_batched` says it.
    Raises FolderError, and StartError where the device cannot be had.
    """
    content = read_file(folder, GRAPH_FILE)
    try:
        external = find_external_data(content)
        opset = _find_opset(content)
    except (ValueError, IndexError) as exc:
        raise FolderError(f"{GRAPH_FILE}: it is not an ONNX file") from exc
    if external is not None:
        raise FolderError(f'{GRAPH_FILE}: tensor "{external[:100]}" lies in another file; external data is not read')
    try:
        runtime = open_graph(content, device)
    except FolderError as exc:
        raise FolderError(f"{GRAPH_FILE}: {exc.message}") from exc
    if is_batched is None:
        reason = _find_dependence(runtime)
        is_batched = reason is None
        if reason is not None:
            log.info("the graph runs requests one by one", extra={"model": identity_of(folder, identity)[0], "reason": reason})
    if not is_batched:
        runtime = UnbatchedRuntime(runtime)
    try:
        manifest = _make_manifest(identity_of(folder, identity), content, opset, runtime)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise FolderError(f"{GRAPH_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
    return PlainGraph(manifest, runtime, is_batched, is_bounded(content))


def _make_manifest(identity: Identity, content: bytes, opset: int, runtime: Runtime) -> Manifest:
    return Manifest(
        schema_version=1,
        name=identity[0],
        version=identity[1],
        task=TASK,
        licence="",
        graphs=[
            Graph(
                file=GRAPH_FILE,
                sha256=hashlib.sha256(content).hexdigest(),
                precision=precision_of(content) or "fp32",
                opset=opset,
                tolerance=None,
            )
        ],
        inputs=_entries(runtime.inputs),
        outputs=_entries(runtime.outputs),
        cannot_stream="",
        statistics=None,
        training=Training(created=None),
    )


class UnbatchedRuntime:
    """A runtime whose tensors have a batch of one in front, which the graph does not see."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.requested: Device = inner.requested
        self.provider = inner.provider
        self.fallback: str | None = inner.fallback
        self.inputs = tuple(_behind_batch(spec) for spec in inner.inputs)
        self.outputs = tuple(_behind_batch(spec) for spec in inner.outputs)
        self.terminate = inner.terminate

    def run(self, tensors: Tensors) -> Tensors:
        """All outputs of one request. Raises InvalidInput for several, and what the graph raises."""
        if any(len(array) != 1 for array in tensors.values()):
            raise InvalidInput("the graph takes one request at a time", expected="a batch of one")
        outputs = self._inner.run({name: array.reshape(array.shape[1:]) for name, array in tensors.items()})
        return {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()}


def _behind_batch(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, ("batch", *spec.shape))


def _entries(specs: Sequence[TensorSpec]) -> list[TensorEntry]:
    """The tensors of a manifest: open axes by their names as a manifest writes them, the first of a batched graph `batch`."""
    return [
        TensorEntry(
            name=spec.name,
            datatype=spec.datatype,  # type: ignore[arg-type]  # of the runtime, whose names are the manifest's
            shape=["batch", *(size if isinstance(size, int) else _axis_name(size) for size in spec.shape[1:])],
        )
        for spec in specs
    ]


def _axis_name(name: str) -> str:
    """An axis is called `time` only beside `lengths`, and `batch` only in front."""
    clean = re.sub(r"[^a-z0-9_]+", "_", name.lower())
    return clean if re.match(r"[a-z]", clean) and clean not in ("time", "batch") else f"axis_{clean}"


def _find_dependence(runtime: Runtime) -> str | None:
    """Why rows of different requests must not share a run of the graph; None: they may."""
    for spec in (*runtime.inputs, *runtime.outputs):
        if not spec.shape or isinstance(spec.shape[0], int):
            return f'"{spec.name}" is {spec}: its first axis is not open'
    batched = Signature(tuple(_batch_first(spec) for spec in runtime.inputs), tuple(map(_batch_first, runtime.outputs)))
    rows = synthetic(batched, [NUM_STEPS] * NUM_ROWS)
    try:
        together = runtime.run(rows)
        for row in range(NUM_ROWS):
            alone = runtime.run({name: np.ascontiguousarray(array[row : row + 1]) for name, array in rows.items()})
            for name, array in alone.items():
                if not _is_same(together[name], array, row):
                    return f'output "{name}" of a row depends on the rows beside it'
    except ServiceError as exc:
        return f"it takes no made-up rows: {exc.message}"
    return None


def _batch_first(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, ("batch", *spec.shape[1:]))


def _is_same(together: Array, alone: Array, row: int) -> bool:
    if together.ndim == 0 or len(together) != NUM_ROWS or alone.shape != (1, *together.shape[1:]):
        return False
    if alone.dtype.kind != "f":
        return bool((together[row] == alone[0]).all())
    return bool(np.allclose(together[row], alone[0], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def _find_opset(content: bytes) -> int:
    """The version of ONNX's own operators that the graph uses. Raises ValueError where it names none."""
    for opset in read_fields(memoryview(content), _MODEL_OPSET):
        if not any(bytes(domain) not in (b"", b"ai.onnx") for domain in read_fields(opset, _OPSET_DOMAIN)):
            return max(read_numbers(opset, _OPSET_VERSION), default=0)
    raise ValueError("it names no version of ONNX's operators")
