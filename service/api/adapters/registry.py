"""The wire formats that this server speaks beside its own, with their routes and the shapes of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.api.adapters import invocations, kserve_v1, nixtla, operations, timeseries, vertex
from service.api.adapters.base import Adapter
from service.api.error_shapes import ErrorShape


class WireFormats(NamedTuple):
    """What the application adds for them."""

    adapters: Sequence[Adapter]
    error_shapes: dict[str, ErrorShape]
    """By the beginning of a path."""


def wire_formats(vertex_path: str | None = None) -> WireFormats:
    """All of them; `vertex_path` is the route that Vertex AI names, None: the server does not run there."""
    adapters: list[Adapter] = [kserve_v1.KServeV1(), invocations.Invocations(), timeseries.TimeSeries(), nixtla.Nixtla()]
    shapes = {
        "/v1": kserve_v1.describe_error,
        "/v1/timeseries": timeseries.describe_error,
        nixtla.PATH: nixtla.describe_error,
        nixtla.PARAMETERS_PATH: nixtla.describe_error,
        nixtla.KEY_PATH: nixtla.describe_error,
        invocations.PATH: invocations.describe_error,
        operations.PING: invocations.describe_error,
    }
    if vertex_path is not None:
        adapters.append(vertex.VertexAi(vertex_path))
        shapes[vertex_path] = vertex.describe_error
    return WireFormats(adapters, shapes)
