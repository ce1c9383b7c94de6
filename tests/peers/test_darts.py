"""What darts itself predicts, the folder that its ONNX file became predicts over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.peers.environments import run_in
from tests.serving import client_of
from training.importers.model import ModelImportError
from training.importers.onnx.publishing import OnnxOptions, import_onnx
from training.importers.onnx.reading import read_onnx
from training.importers.torch.tasks import Forecast

pytestmark = pytest.mark.slow
NUM_HISTORY, HORIZON = 12, 8

SCRIPT = f"""
import logging, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel, RNNModel
from darts.utils.likelihood_models import GaussianLikelihood, QuantileRegression

steps = np.arange(120)
values = np.stack([np.sin(steps / 6), np.cos(steps / 9) + 0.1 * np.sin(steps)], 1)
one, two = TimeSeries.from_values(values[:, :1].astype(np.float32)), TimeSeries.from_values(values.astype(np.float32))
double = TimeSeries.from_values(values)
quiet = dict(accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False)
common = dict(input_chunk_length={NUM_HISTORY}, hidden_dim=8, n_epochs=2, random_state=0, pl_trainer_kwargs=quiet)
block = dict(common, output_chunk_length=4)
quantiles = QuantileRegression([0.1, 0.5, 0.9])
cases = {{
    "block-lstm": (BlockRNNModel(model="LSTM", **block), one),
    "block-gru-two": (BlockRNNModel(model="GRU", n_rnn_layers=2, **block), two),
    "block-double": (BlockRNNModel(model="LSTM", **block), double),
    "rnn-lstm": (RNNModel(model="LSTM", training_length=20, **common), one),
    "rnn-gru-two": (RNNModel(model="GRU", n_rnn_layers=2, training_length=20, **common), two),
    "rnn-rnn": (RNNModel(model="RNN", training_length=20, **common), one),
    "block-quantiles": (BlockRNNModel(model="LSTM", likelihood=quantiles, **block), one),
    "block-gaussian": (BlockRNNModel(model="LSTM", likelihood=GaussianLikelihood(), **block), one),
}}
for name, (model, series) in cases.items():
    model.fit(series, verbose=False)
    model.to_onnx(f"{{name}}.onnx")
    history = series[:60]
    if "quantiles" in name or "gaussian" in name:
        found = model.predict(4, series=history, predict_likelihood_parameters=True, verbose=False)
    else:
        found = model.predict({HORIZON}, series=history, verbose=False)
    np.savez(f"{{name}}.npz", history=history.values(), forecast=found.values())
model = BlockRNNModel(model="LSTM", **block)
model.fit(one, past_covariates=two, verbose=False)
model.to_onnx("covariates.onnx")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that darts wrote, and what it predicted."""
    folder = tmp_path_factory.mktemp("darts")
    run_in("darts", SCRIPT, folder)
    return folder


@pytest.mark.parametrize("name", ["block-lstm", "block-gru-two", "block-double", "rnn-lstm", "rnn-gru-two", "rnn-rnn"])
async def test_a_forecast_is_that_of_darts_beyond_the_horizon_too(name: str, files: Path, tmp_path: Path) -> None:
    task = Forecast(HORIZON if name.startswith("rnn") else 0)
    import_onnx(read_onnx(files / f"{name}.onnx"), name, OnnxOptions(task=task), tmp_path)
    with np.load(files / f"{name}.npz") as known:
        history, wanted = known["history"], known["forecast"]
    plain = history[:, 0] if history.shape[1] == 1 else history
    body = {"model": name, "instances": [{"history": plain.tolist(), "horizon": HORIZON}]}
    async with client_of(tmp_path) as client:
        response = await client.post("/predict", content=json.dumps(body))
        assert response.status_code == 200, response.text
        found = response.json()["predictions"][0]["forecast"]
    np.testing.assert_allclose(np.array(found).reshape(wanted.shape), wanted, atol=1e-5)


async def test_quantiles_are_those_of_darts_in_order(files: Path, tmp_path: Path) -> None:
    import_onnx(read_onnx(files / "block-quantiles.onnx"), "quantiles", OnnxOptions(), tmp_path)
    with np.load(files / "block-quantiles.npz") as known:
        history, wanted = known["history"], np.sort(known["forecast"])
    async with client_of(tmp_path) as client:
        body = {"model": "quantiles", "instances": [{"history": history[:, 0].tolist()}]}
        response = await client.post("/predict", content=json.dumps(body))
        assert response.status_code == 200, response.text
        prediction = response.json()["predictions"][0]
    np.testing.assert_allclose(prediction["forecast"], wanted[:, 1], atol=1e-5)
    np.testing.assert_allclose(prediction["quantiles"]["0.9"], wanted[:, 2], atol=1e-5)


@pytest.mark.parametrize(("name", "words"), [("block-gaussian", "likelihood parameters"), ("covariates", "uses past covariates")])
def test_what_needs_more_than_a_history_is_refused(name: str, words: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=words):
        import_onnx(read_onnx(files / f"{name}.onnx"), "net", OnnxOptions(), tmp_path)
    assert not list(tmp_path.iterdir())
