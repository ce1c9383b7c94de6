"""What `GET /models/{name}` says of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from service.models.description import describe_model
from service.models.folder import ModelOptions
from service.models.loading import load_model
from tests.folders import (
    write_forecast_folder,
    write_tensor_folder,
    write_text_folder,
)

CPU = ModelOptions(device="cpu")
WRITERS: list[Callable[[Path], Path]] = [write_forecast_folder, write_text_folder, write_tensor_folder]


async def test_the_description_holds_the_manifest_and_how_it_is_run(tmp_path: Path) -> None:
    model = await load_model(write_forecast_folder(tmp_path), ModelOptions(device="cpu", num_workers=3))
    about = describe_model(model)
    assert json.loads(json.dumps(about)) == about
    assert (about["name"], about["version"], about["task"], about["licence"]) == ("toy-forecast", "1", "forecast", "CC0")
    assert (about["provider"], about["device"]) == ("CPUExecutionProvider", "cpu")
    assert about["forecast"]["horizon"] == 4
    assert about["forecast"]["max_horizon"] == 40
    assert about["inputs"][0] == {"name": "history", "datatype": "FP32", "shape": ["batch", "time", 1]}
    assert about["training"]["metrics"] == {"mase": 0.9}
    assert about["training"]["baselines"] == {"seasonal naive": {"mase": 1.1}}
    assert about["batching"]["num_workers"] == 3
    await model.stop()
