"""The wire formats that this server speaks beside its own, with their routes and the shapes of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.api.adapters import invocations, kserve_v1, nixtla, operations, timeseries, vertex
from service.api.adapters.base import Adapter
from service.api.error_shapes import ShapedPath


class WireFormats(NamedTuple):
    """What the application adds for them."""

    adapters: Sequence[Adapter]
    error_shapes: Sequence[ShapedPath]


def wire_formats(vertex_path: str | None = None) -> WireFormats:
    """All of them; `vertex_path` is the route that Vertex AI names, None: the server does not run there."""
    adapters: list[Adapter] = [kserve_v1.KServeV1(), invocations.Invocations(), timeseries.TimeSeries(), nixtla.Nixtla()]
    shapes = [
        ShapedPath("/v1", kserve_v1.describe_error),
        ShapedPath("/v1/timeseries", timeseries.describe_error),
        ShapedPath(nixtla.PATH, nixtla.describe_error, is_exact=True),
        ShapedPath(nixtla.PARAMETERS_PATH, nixtla.describe_error, is_exact=True),
        ShapedPath(nixtla.KEY_PATH, nixtla.describe_error, is_exact=True),
        ShapedPath(invocations.PATH, invocations.describe_error, is_exact=True),
        ShapedPath(operations.PING, invocations.describe_error, is_exact=True),
    ]
    if vertex_path is not None:
        adapters.append(vertex.VertexAi(vertex_path))
        shapes.append(ShapedPath(vertex_path, vertex.describe_error, is_exact=True))
    return WireFormats(adapters, shapes)
