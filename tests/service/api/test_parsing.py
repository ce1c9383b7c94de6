"""Body bytes → a request to predict, or the error that names what is wrong with them."""

from __future__ import annotations

import pytest

from service.api.parsing import ParsedRequest, parse
from service.errors import InvalidInput


def test_a_request_is_read_with_its_defaults() -> None:
    assert parse(b'{"instances": ["a"]}', 1) == ParsedRequest(None, None, ["a"], {})
    assert parse(b'{"model":"m","version":"2","instances":[1],"parameters":null}', 1) == ParsedRequest("m", "2", [1], {})


def test_a_number_beyond_every_float_is_named_by_its_place() -> None:
    with pytest.raises(InvalidInput, match=r"instance 1: history\[2\]: expected a number or null, got Infinity"):
        parse(b'{"instances": [{}, {"history": [1, 2, 1e999]}]}', 9)


def test_nan_in_a_text_is_a_text() -> None:
    assert parse(b'{"instances": ["NaN Infinity"]}', 1).instances == ["NaN Infinity"]


@pytest.mark.parametrize(
    ("instances", "index", "where", "found"),
    [
        ("[NaN]", 0, "", "NaN"),
        ('[{"history": [1, [2, -Infinity]]}]', 0, "history[1][1]", "Infinity"),
        ('["a", {"x": {"y": NaN}}]', 1, "x.y", "NaN"),
        ('[{"history": [1.5, null, "a", true, {"z": 2}, [3, NaN], Infinity]}]', 0, "history[5][1]", "NaN"),
    ],
)
def test_what_is_no_json_number_is_named_by_instance_and_place(instances: str, index: int, where: str, found: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(f'{{"instances": {instances}}}'.encode(), 10)
    facts = caught.value.facts
    assert (facts["instance"], facts["where"], facts["found"], caught.value.reason) == (index, where, found, "nonfinite")
