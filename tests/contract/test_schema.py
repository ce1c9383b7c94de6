"""What is written for people and programs about the folder equals what the reader takes."""

from __future__ import annotations

import re
from pathlib import Path

from service.manifest import (
    Classify,
    Forecast,
    Graph,
    Loss,
    Manifest,
    State,
    Tensor,
    Tolerance,
    Training,
    Truncation,
    manifest_schema,
)

MODELS = Path(__file__).parent.parent.parent / "models"


def test_the_published_schema_is_the_readers() -> None:
    assert (MODELS / "manifest.schema.json").read_text() == manifest_schema(), "run `make schema`"


def test_the_folder_page_names_every_field_of_the_manifest() -> None:
    words = set(re.findall(r"`([a-z_0-9]+)`", (MODELS / "README.md").read_text()))
    fields = {
        name
        for model in (Manifest, Graph, Loss, Tolerance, Tensor, State, Forecast, Classify, Truncation, Training)
        for name in model.model_fields
    }
    assert fields - words == set()
