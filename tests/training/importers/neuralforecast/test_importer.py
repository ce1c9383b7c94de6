"""A folder as `NeuralForecast.save` writes it becomes a forecast model; what is not plain is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.serving import client_of
from training.importers.model import ModelImportError
from training.importers.neuralforecast.folder import read_folder
from training.importers.neuralforecast.importer import import_neuralforecast
from training.importers.neuralforecast.module import make_module
from training.importers.sources import kind_of
from training.importers.torch.errors import ModuleRefused

HIDDEN, HISTORY, HORIZON = 6, 9, 4
OPTIONS: dict[str, Any] = {
    "h": HORIZON,
    "input_size": HISTORY,
    "encoder_n_layers": 1,
    "encoder_hidden_size": HIDDEN,
    "decoder_hidden_size": 5,
    "decoder_layers": 2,
    "scaler_type": "robust",
    "loss": {"__nf__": "loss", "cls": "MAE", "args": {}},
    "max_steps": 1000,
}
CONFIGURATION: dict[str, Any] = {"h": HORIZON, "freq": "h", "target_col": "load", "local_scaler_type": None}


def weights(outputs: int = 1) -> dict[str, Tensor]:
    """Those of an LSTM and its decoder, under neuralforecast's names."""
    torch.manual_seed(3)
    encoder, first, last = nn.LSTM(1, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 5), nn.Linear(5, outputs)
    parts = {"hist_encoder": encoder, "mlp_decoder.layers.0": first, "mlp_decoder.layers.3": last}
    return {f"{name}.{key}": value.detach() for name, part in parts.items() for key, value in part.state_dict().items()}


def write(
    folder: Path,
    options: Mapping[str, Any] | None = None,
    *,
    configuration: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    kind: str = "LSTM",
    name: str = "LSTM",
) -> Path:
    """A folder with one model, whose options are changed."""
    folder.mkdir(exist_ok=True)
    header = {"model_class": kind, "hyper_parameters": json.dumps({**OPTIONS, **(options or {})}), "nf_format": "2"}
    save_file(dict(weights() if tensors is None else tensors), folder / f"{name}_0.safetensors", header)
    content = {"nf_format": "2", "configuration": {**CONFIGURATION, **(configuration or {})}}
    (folder / "configuration.json").write_text(json.dumps(content))
    return folder


def test_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    assert kind_of(str(write(tmp_path / "saved")), None) == "neuralforecast"


async def test_a_history_is_forecast_by_the_scaled_window_and_scaled_back(tmp_path: Path) -> None:
    published = import_neuralforecast(write(tmp_path / "saved"), "load", tmp_path / "models")
    assert published.route == "translated"
    assert published.batching == "ragged"
    random = np.random.default_rng(5)
    histories = [random.uniform(100, 120, length) for length in (HISTORY, HISTORY + 6)]
    async with client_of(tmp_path / "models") as client:
        body = {"model": "load", "instances": [{"history": history.tolist()} for history in histories]}
        response = await client.post("/predict", content=json.dumps(body))
        assert response.status_code == 200, response.text
        short = {"model": "load", "instances": [{"history": histories[0][1:].tolist()}]}
        assert (await client.post("/predict", content=json.dumps(short))).status_code == 422
    own = weights()
    encoder = nn.LSTM(1, HIDDEN, batch_first=True)
    encoder.load_state_dict({key.partition(".")[2]: value for key, value in own.items() if key.startswith("hist")})
    for history, found in zip(histories, response.json()["predictions"], strict=True):
        window = torch.tensor(history[-HISTORY:], dtype=torch.float32)
        middle = window.sort().values[(HISTORY - 1) // 2]
        apart = (window - middle).abs().sort().values[(HISTORY - 1) // 2] + 1e-6
        with torch.no_grad():
            steps, _ = encoder(((window - middle) / apart)[None, :, None])
            inner = steps[:, -HORIZON:] @ own["mlp_decoder.layers.0.weight"].T + own["mlp_decoder.layers.0.bias"]
            last = inner.relu() @ own["mlp_decoder.layers.3.weight"].T + own["mlp_decoder.layers.3.bias"]
        np.testing.assert_allclose(found["forecast"], (last[0, :, 0] * apart + middle).numpy(), rtol=1e-5)


def test_what_the_folder_says_is_in_the_manifest(tmp_path: Path) -> None:
    published = import_neuralforecast(write(tmp_path / "saved"), "load", tmp_path / "models", season_length=24)
    assert published.folder is not None
    manifest = json.loads((published.folder / "manifest.json").read_text())
    block = manifest["forecast"]
    assert (block["horizon"], block["context_length"], block["min_length"]) == (HORIZON, HISTORY, HISTORY)
    assert (block["frequencies"], block["targets"], block["season_length"]) == (["H"], ["load"], 24)


def test_quantiles_are_put_in_order(tmp_path: Path) -> None:
    tensors = {**weights(3), "loss.quantiles": torch.tensor([0.5, 0.1, 0.9])}
    loss = {"__nf__": "loss", "cls": "MQLoss", "args": {"level": [80]}}
    model = read_folder(write(tmp_path / "saved", {"loss": loss}, tensors=tensors))
    assert model.quantiles == (0.5, 0.1, 0.9)
    plain = read_folder(write(tmp_path / "other", {"loss": {**loss}, "scaler_type": None}, tensors=tensors))
    module = make_module(plain)
    history = torch.rand(1, HISTORY, 1)
    with torch.no_grad():
        found = module(history)
        own = module.mlp_decoder(module.hist_encoder(history)[0][:, -HORIZON:])  # type: ignore[operator]
    torch.testing.assert_close(found, own[..., [1, 0, 2]])


@pytest.mark.parametrize(
    ("frequency", "code"), [("D", "D"), ("W-SUN", "W"), ("MS", "M"), ("1h", "H"), ("15min", None), ("B", None), (1, None)]
)
def test_a_frequency_is_read_where_it_has_a_code(frequency: Any, code: str | None, tmp_path: Path) -> None:
    assert read_folder(write(tmp_path / "saved", configuration={"freq": frequency})).frequency == code


@pytest.mark.parametrize(
    ("options", "configuration", "words"),
    [
        ({"loss": {"cls": "DistributionLoss"}}, {}, "was fitted with DistributionLoss"),
        ({"loss": {"cls": "QuantileLoss", "args": {"q": 0.9}}}, {}, "was fitted with QuantileLoss"),
        ({"loss": {"cls": "MQLoss"}}, {}, "does not hold the quantiles"),
        ({"loss": {"cls": "MQLoss"}, "recurrent": True}, {}, "recurrent and of quantiles"),
        ({"futr_exog_list": ["price"]}, {}, r"exogenous columns \(futr_exog_list: price\)"),
        ({"exclude_insample_y": True}, {}, "does not read the history"),
        ({"scaler_type": "own"}, {}, "scaler_type='own'"),
        ({}, {"local_scaler_type": "boxcox"}, "local_scaler_type='boxcox' keeps a scale for each series"),
        ({"h": 0}, {}, 'argument "h": Input should be greater than or equal to 1'),
        ({"h": 10**9}, {}, 'argument "h"'),
        ({"loss": None}, {}, 'argument "loss"'),
        ({"decoder_activation": "GLU"}, {}, "decoder_activation='GLU'"),
        ({"encoder_hidden_size": 65536, "encoder_n_layers": 64}, {}, "the weights do not fit"),
        ({"decoder_layers": 3}, {}, "the weights do not fit: mlp_decoder.layers.6.weight is missing"),
        ({"input_size": 3}, {}, "the weights do not fit: upsample_sequence.weight is missing"),
    ],
)
def test_what_is_not_plain_is_refused_by_name(
    options: dict[str, Any], configuration: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "saved", options, configuration=configuration)
    with pytest.raises(ModelImportError, match=words):
        import_neuralforecast(folder, "load", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_another_model_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match="the model is NHITS; LSTM, GRU, RNN are imported"):
        read_folder(write(tmp_path / "saved", kind="NHITS"))


def test_one_of_several_models_is_chosen_by_its_name(tmp_path: Path) -> None:
    folder = write(write(tmp_path / "saved"), {"h": 2}, name="second")
    with pytest.raises(ModelImportError, match=r"holds 2 models \(LSTM, second\): name one by --model"):
        read_folder(folder)
    assert read_folder(folder, "second").options.h == 2
    with pytest.raises(ModelImportError, match='has no model "third"'):
        read_folder(folder, "third")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("configuration.json", b"{", "is not JSON"),
        ("configuration.json", b"[" * 100_000, "is not JSON"),
        ("configuration.json", b"[]", "is not as neuralforecast 3.3 writes it"),
        ("LSTM_0.safetensors", b"", "is no file of safetensors, or is cut off"),
        ("LSTM_0.safetensors", b"\xff" * 64, "is no file of safetensors, or is cut off"),
        ("LSTM_0.safetensors", b"\x10\0\0\0\0\0\0\0" + b"{" * 16, "is no file of safetensors, or is cut off"),
    ],
)
def test_a_damaged_folder_is_refused(file: str, content: bytes, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "saved")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelImportError, match=words):
        read_folder(folder)


def test_a_folder_of_pickles_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "configuration.pkl").touch()
    assert kind_of(str(tmp_path), None) == "neuralforecast"
    with pytest.raises(ModelImportError, match=r"which are not opened: load the folder with 3\.3 and save it again"):
        read_folder(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = weights()
    tensors["mlp_decoder.layers.3.bias"] = torch.tensor([torch.nan])
    with pytest.raises(ModuleRefused, match=r"mlp_decoder\.layers\.3\.bias"):
        import_neuralforecast(write(tmp_path / "saved", tensors=tensors), "load", tmp_path / "models")


def test_a_history_of_the_example_that_is_too_short_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"history": [1.0] * HISTORY}, {"history": [1.0] * 3}]))
    with pytest.raises(ModelImportError, match="row 1 has the shape"):
        import_neuralforecast(write(tmp_path / "saved"), "load", tmp_path / "models", example=rows)
