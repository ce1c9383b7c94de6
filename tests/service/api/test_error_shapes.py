"""The shape of an error follows its path."""

from __future__ import annotations

import pytest

from service.api.error_shapes import ErrorShape, ErrorShapes, ShapedPath
from service.api.errors import Problem
from service.errors import MalformedRequest, ServiceError


def shape(name: bytes) -> ErrorShape:
    def describe(exc: ServiceError) -> Problem:
        return Problem(400, [], name)

    return describe


SHAPES = ErrorShapes(
    [
        ShapedPath("/v1", shape(b"v1")),
        ShapedPath("/v1/series", shape(b"series")),
        ShapedPath("/v1/exact", shape(b"exact"), is_exact=True),
        ShapedPath("/predict", shape(b"vertex"), is_exact=True),
    ]
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1", b"v1"),
        ("/v1/models/a", b"v1"),
        ("/v1x", None),
        ("/v1/series", b"series"),
        ("/v1/series/forecast", b"series"),
        ("/v1/exact", b"exact"),
        ("/v1/exact/below", b"v1"),
        ("/predict", b"vertex"),
        ("/predict/forecast", None),
        ("/", None),
    ],
)
def test_a_shape_is_for_its_path_and_below_unless_it_is_for_that_path_alone(path: str, expected: bytes | None) -> None:
    found = SHAPES.describe(MalformedRequest("no"), path).body
    assert found == expected if expected is not None else b'"type"' in found
