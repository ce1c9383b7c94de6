"""The examples of docs/streams.md, against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import server_process
from tests.streams import cells, write_forecast_stream

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
MAX_LINES = 14


def example(title: str) -> dict[str, Any]:
    """What a block of the page defines."""
    found = re.search(rf'^```python title="{title}"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    assert len(found[1].splitlines()) <= MAX_LINES
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models")
    write_forecast_stream(models, cells("lstm"), name="sensor-stream")
    with server_process(models) as server:
        yield server.url


def test_a_sensor_gets_with_each_reading_the_forecast_of_all_its_readings(url: str) -> None:
    readings = [20.0, 20.5, 21.5, 21.0, 19.5]
    forecasts = list(example("sensor")["watch"](readings, url))
    instances = [{"history": readings[: end + 1], "state": None} for end in range(len(readings))]
    answer = httpx.post(f"{url}/predict/forecast", json={"instances": instances}, trust_env=False)
    assert forecasts == [each["forecast"] for each in answer.json()["predictions"]]
