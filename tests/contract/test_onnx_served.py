"""What an ONNX file of torch's exporters answers for a row alone, Sluice answers for that row in a mixed batch, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.onnx_models import CLASSES, FEATURES, HIDDEN, floats
from tests.serving import client_of
from training.importers.onnx.publishing import OnnxOptions, import_onnx
from training.importers.onnx.reading import read_onnx
from training.importers.torch.export import quiet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
ROWS = floats(5, 9, 3, 12, 7)


class Net(nn.Module):
    """A recurrent layer, and an answer from its last step, its last states or all its steps."""

    def __init__(self, reads: str, bidirectional: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(HIDDEN * (2 if bidirectional else 1), CLASSES)
        self.reads = reads

    def forward(self, x: Tensor) -> Any:
        steps, (states, _) = self.lstm(x)
        if self.reads == "states":
            return self.head(states.transpose(0, 1).flatten(1))
        return self.head(steps[:, -1] if self.reads == "last" else steps.mean(1) if self.reads == "mean" else steps)


@pytest.mark.parametrize(
    ("reads", "bidirectional", "is_dynamo"),
    [
        ("last", False, False),
        ("mean", True, False),
        ("states", True, False),
        pytest.param("last", False, True, marks=pytest.mark.slow),
        pytest.param("steps", True, False, marks=pytest.mark.slow),
    ],
)
async def test_an_export_is_served_as_the_module_answers_alone(
    reads: str, bidirectional: bool, is_dynamo: bool, tmp_path: Path
) -> None:
    net, path = Net(reads, bidirectional).eval(), tmp_path / "net.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch", 1: "time"}, "y": {0: "batch"}}}
    if is_dynamo:
        open_axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
        axes = {"dynamic_shapes": (open_axes,), "external_data": False}
    with quiet():
        example = (torch.zeros(2, 11, FEATURES),)
        torch.onnx.export(net, example, str(path), input_names=["x"], output_names=["y"], dynamo=is_dynamo, **axes)
    result = import_onnx(read_onnx(path), "net", OnnxOptions(), tmp_path / "models")
    assert result.artifact.batching == "ragged"
    async with client_of(tmp_path / "models") as client:
        body = {"model": "net", "instances": [row.tolist() for row in ROWS]}
        response = await client.post("/predict", content=json.dumps(body))
        assert response.status_code == 200, response.text
    for row, prediction in zip(ROWS, response.json()["predictions"], strict=True):
        with torch.no_grad():
            wanted = net(torch.from_numpy(row)[None])[0].numpy()
        np.testing.assert_allclose(prediction, wanted, atol=1e-5)
