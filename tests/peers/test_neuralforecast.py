"""What neuralforecast itself predicts, the folder that its saved model became predicts over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peers.environments import run_in
from tests.serving import client_of
from training.importers.model import ModelImportError
from training.importers.neuralforecast.importer import import_neuralforecast

pytestmark = pytest.mark.slow

# Two series of other sizes: each window has a scale of its own. Recurrent models read one step more than `input_size`.
SCRIPT = """
import logging, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import numpy as np, pandas as pd, torch
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import HuberMQLoss, MQLoss
from neuralforecast.models import GRU, LSTM, RNN

torch.set_num_threads(1)
steps = np.arange(80)
times = pd.date_range("2024-01-01", periods=80, freq="D")
one = 10 + np.sin(steps / 5) + 0.1 * (steps % 7)
two = 300 - 40 * np.cos(steps / 8)
frame = pd.DataFrame({"unique_id": ["a"] * 80 + ["b"] * 80, "ds": [*times, *times], "y": [*one, *two]})
quiet = dict(accelerator="cpu", enable_progress_bar=False, logger=False, enable_model_summary=False)
common = dict(h=4, input_size=12, max_steps=3, encoder_hidden_size=8, decoder_hidden_size=6, **quiet)
cases = {
    "lstm": LSTM(**common),
    "lstm-identity": LSTM(**common, scaler_type="identity", decoder_layers=1),
    "gru-standard": GRU(**common, scaler_type="standard", encoder_n_layers=1, decoder_activation="Tanh"),
    "rnn-minmax": RNN(**common, scaler_type="minmax", encoder_activation="relu", decoder_layers=3),
    "lstm-minmax1": LSTM(**common, scaler_type="minmax1", encoder_bias=False),
    "gru-invariant": GRU(**common, scaler_type="invariant"),
    "lstm-revin": LSTM(**common, scaler_type="revin"),
    "lstm-long": LSTM(**{**common, "h": 15}),
    "lstm-quantiles": LSTM(**common, loss=MQLoss(level=[80])),
    "gru-quantiles": GRU(**common, loss=HuberMQLoss(quantiles=[0.2, 0.5, 0.9])),
    "lstm-recurrent": LSTM(**common, recurrent=True),
    "gru-recurrent": GRU(**common, recurrent=True, inference_input_size=9),
    "rnn-recurrent": RNN(**common, recurrent=True, scaler_type="standard"),
}
for name, model in cases.items():
    nf = NeuralForecast(models=[model], freq="D")
    nf.fit(frame)
    found = nf.predict()
    nf.save(name, save_dataset=False)
    columns = [column for column in found.columns if column not in ("unique_id", "ds")]
    np.savez(name + ".npz", columns=columns, series=np.stack([one, two]), **{
        key: found[found.unique_id == key][columns].to_numpy() for key in ("a", "b")
    })
both = NeuralForecast(models=[LSTM(**common), GRU(**common, alias="second")], freq="D")
both.fit(frame)
both.save("both", save_dataset=True)
local = NeuralForecast(models=[LSTM(**common)], freq="D", local_scaler_type="standard")
local.fit(frame)
local.save("local", save_dataset=False)
frame["load"] = frame.y * 2
exogenous = NeuralForecast(models=[LSTM(**common, hist_exog_list=["load"])], freq="D")
exogenous.fit(frame)
exogenous.save("exogenous", save_dataset=False)
"""
NAMES = (
    "lstm",
    "lstm-identity",
    "gru-standard",
    "rnn-minmax",
    "lstm-minmax1",
    "gru-invariant",
    "lstm-revin",
    "lstm-long",
    "lstm-recurrent",
    "gru-recurrent",
    "rnn-recurrent",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders that neuralforecast saved, and what it predicted."""
    folder = tmp_path_factory.mktemp("neuralforecast")
    run_in("neuralforecast", SCRIPT, folder)
    return folder


async def _predictions(name: str, folders: Path, models: Path) -> tuple[list[Any], list[Any], list[str]]:
    """What is served for both series in one request, and what neuralforecast predicted, with its columns."""
    import_neuralforecast(folders / name, name, models)
    with np.load(folders / f"{name}.npz") as known:
        series, wanted, columns = known["series"], [known["a"], known["b"]], known["columns"].tolist()
    body = {"model": name, "instances": [{"history": row.tolist()} for row in series]}
    async with client_of(models) as client:
        response = await client.post("/predict", content=json.dumps(body))
        assert response.status_code == 200, response.text
    return response.json()["predictions"], wanted, columns


@pytest.mark.parametrize("name", NAMES)
async def test_a_forecast_is_that_of_neuralforecast(name: str, folders: Path, tmp_path: Path) -> None:
    found, wanted, _ = await _predictions(name, folders, tmp_path)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["forecast"], other[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("lstm-quantiles", {"0.1": "-lo-80", "0.5": "-median", "0.9": "-hi-80"}),
        ("gru-quantiles", {"0.2": "-lo-60.0", "0.5": "-median", "0.9": "-hi-80.0"}),
    ],
)
async def test_quantiles_are_those_of_neuralforecast_in_order(
    name: str, levels: dict[str, str], folders: Path, tmp_path: Path
) -> None:
    found, wanted, columns = await _predictions(name, folders, tmp_path)
    places = {level: next(place for place, column in enumerate(columns) if end in column) for level, end in levels.items()}
    for one, other in zip(found, wanted, strict=True):
        ordered = np.sort(other, axis=1)
        assert list(one["quantiles"]) == list(levels)
        assert sorted(places.values()) == list(range(len(levels)))
        for place, level in enumerate(levels):
            np.testing.assert_allclose(one["quantiles"][level], ordered[:, place], rtol=1e-5)


def test_one_of_several_models_is_chosen_by_its_name(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=r"holds 2 models \(LSTM, second\): name one by --model"):
        import_neuralforecast(folders / "both", "net", tmp_path)
    published = import_neuralforecast(folders / "both", "net", tmp_path, model="second")
    assert published.folder is not None
    manifest = json.loads((published.folder / "manifest.json").read_text())
    assert manifest["forecast"]["context_length"] == manifest["forecast"]["min_length"] == 12
    assert manifest["forecast"]["frequencies"] == ["D"]
    assert manifest["training"]["import"]["class"] == "GRU"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("local", "local_scaler_type='standard' keeps a scale for each series"),
        ("exogenous", "reads exogenous columns"),
    ],
)
def test_what_needs_more_than_a_history_is_refused(name: str, words: str, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=words):
        import_neuralforecast(folders / name, "net", tmp_path)
    assert not list(tmp_path.iterdir())
