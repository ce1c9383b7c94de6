"""What the bytes of a graph say before anything opens it, gathered in one place: equal bytes always say the same."""

from __future__ import annotations

from typing import NamedTuple

from service.errors import FolderError
from service.manifest import Precision
from service.models.control_flow import is_bounded
from service.models.external_data import find_external_data
from service.models.precision import precision_of
from service.models.streaming import find_directions, reads_one_way


class GraphScan(NamedTuple):
    """An ONNX file whose tensors all lie in it."""

    precision: Precision | None
    """By its operators; None where it has none."""
    is_bounded: bool
    """It has no loops or branches."""
    directions: frozenset[bytes]
    """Of its recurrent nodes, those that are named."""
    reads_one_way: bool
    """No node reads or turns a sequence from its end."""


def scan_graph(content: bytes) -> GraphScan:
    """Raises FolderError for what is no ONNX file, and for a graph that has a tensor in another file."""
    try:
        external = find_external_data(content)
    except ValueError as exc:
        raise FolderError("it is not an ONNX file") from exc
    if external is not None:
        raise FolderError(f'tensor "{external[:100]}" lies in another file; external data is not read')
    directions = find_directions(content)
    return GraphScan(precision_of(content), is_bounded(content), directions, reads_one_way(content, directions))
