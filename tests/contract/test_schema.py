"""What is written for people and programs about the folder equals what the reader takes."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from service.manifest import Graph, Manifest, PrecisionLoss, StatePair, TensorEntry, Tolerance, Training
from service.tasks.classify import Truncation
from service.tasks.registry import built_in_tasks

MODELS = Path(__file__).parent.parent.parent / "models"


def test_the_published_schema_is_the_readers() -> None:
    assert (MODELS / "manifest.schema.json").read_text() == built_in_tasks().manifest_schema(), "run `make schema`"


def test_the_folder_page_names_every_field_of_the_manifest() -> None:
    words = set(re.findall(r"`([a-z_0-9]+)`", (MODELS / "README.md").read_text()))
    blocks: list[type[BaseModel]] = [definition.spec for definition in built_in_tasks() if definition.spec is not None]
    parts: list[type[BaseModel]] = [Manifest, Graph, PrecisionLoss, Tolerance, TensorEntry, StatePair, Truncation, Training]
    fields = {name for model in (*parts, *blocks) for name in model.model_fields}
    assert fields - words == set()
