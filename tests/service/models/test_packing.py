"""Graphs that are packed once for all processes: those that were verified, as long as a version needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from service.models.folder import ModelOptions
from service.models.packing import keep_packed, pack_graph
from service.models.verification import verify
from service.runtime.onnx_runtime import list_packed
from tests.folders import edit_example, write_forecast_folder

OPTIONS = ModelOptions("cpu")
KEY = ("toy-forecast", "1")


def test_the_graph_that_was_verified_is_packed_under_its_sha256(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    verdict = verify(KEY, folder, OPTIONS)
    for _ in range(2):  # what is there is not written again
        pack_graph(KEY, folder, tmp_path / "packed", verdict, OPTIONS)
        assert list(list_packed(tmp_path / "packed")) == [verdict.sha256]


def test_a_packed_graph_that_does_not_answer_its_example_is_removed(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    verdict = verify(KEY, folder, OPTIONS)
    edit_example(folder, lambda example: example["response"]["predictions"][0].update(forecast=[9e9] * 4))
    pack_graph(KEY, folder, tmp_path / "packed", verdict, OPTIONS)
    assert list_packed(tmp_path / "packed") == {}


def test_a_graph_that_is_not_in_the_folder_is_not_packed(tmp_path: Path) -> None:
    folder = write_forecast_folder(tmp_path)
    for sha256 in (None, "0" * 64):
        pack_graph(KEY, folder, tmp_path / "packed", replace(verify(KEY, folder, OPTIONS), sha256=sha256), OPTIONS)
    assert list_packed(tmp_path / "packed") == {}


def test_what_no_version_needs_is_removed(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    verdicts = []
    for seed in (1, 2):
        folder = write_forecast_folder(tmp_path / str(seed), seed=seed)
        verdicts.append(verify(KEY, folder, OPTIONS))
        pack_graph(KEY, folder, packed, verdicts[-1], OPTIONS)
    keep_packed(packed, {verdicts[0].sha256, None})
    assert list(list_packed(packed)) == [verdicts[0].sha256]
    keep_packed(packed, frozenset())
    assert list(packed.iterdir()) == []
