"""A folder that `NeuralForecast.save` wrote (3.3 and later: JSON and safetensors): what its LSTM, GRU or RNN is, and its weights.

Reads no pickle, and needs no neuralforecast. What a model needs besides the history of one series is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from training.importers.model import ModelImportError
from training.importers.safetensors_file import read_safetensors

Kind = Literal["LSTM", "GRU", "RNN"]
MAX_CONFIGURATION = 256 << 20
MAX_STEPS = 65536
# One number for each step: what the loss was matters to the training alone.
POINT_LOSSES = ("MAE", "MSE", "RMSE", "MAPE", "SMAPE", "MASE", "HuberLoss", "FreDF")
QUANTILE_LOSSES = ("MQLoss", "HuberMQLoss")
SCALERS = ("identity", "standard", "robust", "minmax", "minmax1", "invariant", "revin")
PICKLES = "neuralforecast before 3.3 saved pickles, which are not opened: load the folder with 3.3 and save it again"
# Pandas' names of a step, and those of polars; the rest of a name says on which day a week or year ends.
_FREQUENCY = re.compile(r"1?(?P<name>[A-Za-z]+)(-[A-Z]{3})?$")
_FREQUENCIES = {
    name: code
    for code, names in {
        "S": "S s",
        "T": "T min m",
        "H": "H h",
        "D": "D d",
        "W": "W w",
        "M": "M MS ME mo",
        "Q": "Q QS QE q",
        "Y": "Y YS YE A AS y",
    }.items()
    for name in names.split()
}


class NetworkOptions(BaseModel):
    """The arguments that a model was made with, as far as a prediction depends on them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    h: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    input_size: Annotated[int, Field(le=MAX_STEPS)]
    inference_input_size: Annotated[int, Field(le=MAX_STEPS)] | None = None
    encoder_n_layers: Annotated[int, Field(ge=1, le=64)] = 2
    encoder_hidden_size: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    encoder_bias: bool = True
    decoder_hidden_size: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 128
    decoder_layers: Annotated[int, Field(ge=1, le=64)] = 2
    decoder_activation: str | None = None
    futr_exog_list: list[Any] | None = None
    hist_exog_list: list[Any] | None = None
    stat_exog_list: list[Any] | None = None
    exclude_insample_y: bool = False
    recurrent: bool = False
    scaler_type: str | None = None
    loss: dict[str, Any]

    @property
    def num_history(self) -> int:
        """The steps of a window."""
        given = self.input_size if self.input_size >= 1 else 3 * self.h
        if not self.recurrent:
            return given
        own = self.inference_input_size
        # One step more: a recurrent model reads the values that its first forecasts were made from.
        return (given if own is None or own < 1 else own) + 1


@dataclass(frozen=True)
class SavedModel:
    """One model of a folder. `quantiles` are the levels of its outputs in their order; none for a model of one output."""

    name: str
    kind: Kind
    options: NetworkOptions
    weights: Mapping[str, Tensor]
    quantiles: tuple[float, ...]
    frequency: str | None
    target: str

    @property
    def num_outputs(self) -> int:
        """Numbers for each step."""
        return max(1, len(self.quantiles))


def read_folder(folder: Path, name: str | None = None) -> SavedModel:
    """The model of a folder; `name` says which, where it holds several. Raises ModelImportError for what is not served."""
    if not (folder / "configuration.json").is_file():
        raise ModelImportError(f"{folder}: {PICKLES if (folder / 'configuration.pkl').is_file() else 'no configuration.json'}")
    configuration = _read_configuration(folder / "configuration.json")
    file = _choose(folder, name)
    alias = file.stem.rpartition("_")[0]
    weights, header = read_safetensors(file)
    kind = header.get("model_class")
    if kind not in get_args(Kind):
        raise ModelImportError(f"{file}: the model is {kind or 'not named'}; {', '.join(get_args(Kind))} are imported")
    options = _read_options(file, header.get("hyper_parameters", ""))
    _require_plain(alias, options, configuration)
    quantiles = _read_quantiles(alias, options, weights)
    own = {key: value for key, value in weights.items() if not key.startswith(("loss.", "valid_loss.", "__hparams__."))}
    target = configuration.get("target_col")
    frequency = _read_frequency(configuration.get("freq"))
    target = target if isinstance(target, str) and target else "y"
    return SavedModel(alias, kind, options, own, quantiles, frequency, target)  # type: ignore[arg-type]  # one of the three


def _read_configuration(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIGURATION:
            raise ModelImportError(f"{path}: more than {MAX_CONFIGURATION >> 20} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelImportError(f"{path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelImportError(f"{path} is not JSON: {str(exc) or type(exc).__name__}") from exc
    found = content.get("configuration") if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise ModelImportError(f"{path} is not as neuralforecast 3.3 writes it")
    return found


def _choose(folder: Path, name: str | None) -> Path:
    """The file of the one model, or of the model that is called `name`."""
    others = ("configuration.safetensors", "dataset.safetensors")
    files = {file.stem.rpartition("_")[0]: file for file in sorted(folder.glob("*.safetensors")) if file.name not in others}
    if name is not None:
        if name not in files:
            raise ModelImportError(f'--model: {folder} has no model "{name}", it has {", ".join(files) or "none"}')
        return files[name]
    if len(files) != 1:
        raise ModelImportError(f"{folder} holds {len(files)} models ({', '.join(files)}): name one by --model")
    return next(iter(files.values()))


def _read_options(file: Path, text: str) -> NetworkOptions:
    try:
        return NetworkOptions.model_validate(json.loads(text))
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in error["loc"])
        raise ModelImportError(f'{file}: argument "{where}": {error["msg"]}') from exc
    except (ValueError, RecursionError) as exc:
        raise ModelImportError(f"{file}: the model's arguments cannot be read: {str(exc) or type(exc).__name__}") from exc


def _require_plain(name: str, options: NetworkOptions, configuration: Mapping[str, Any]) -> None:
    """Refuse what a model reads besides the history of its series."""
    for key in ("futr_exog_list", "hist_exog_list", "stat_exog_list"):
        columns = getattr(options, key)
        if columns:
            listed = ", ".join(str(column) for column in columns[:5])
            raise ModelImportError(f"{name} reads exogenous columns ({key}: {listed}): a forecast request has a history alone")
    if options.exclude_insample_y:
        raise ModelImportError(f"{name} has exclude_insample_y: it does not read the history")
    if options.scaler_type is not None and options.scaler_type not in SCALERS:
        raise ModelImportError(f"{name} has scaler_type={options.scaler_type!r}; {', '.join(SCALERS)} are imported")
    scaler = configuration.get("local_scaler_type")
    if scaler is not None:
        raise ModelImportError(
            f"local_scaler_type={scaler!r} keeps a scale for each series of the training, a forecast request may be of any: fit "
            "with scaler_type, which scales every window"
        )


def _read_quantiles(name: str, options: NetworkOptions, weights: Mapping[str, Tensor]) -> tuple[float, ...]:
    """The levels of a model's outputs; none of a model that gives one number for each step."""
    loss, arguments = options.loss.get("cls"), options.loss.get("args")
    if loss in POINT_LOSSES or (loss == "QuantileLoss" and isinstance(arguments, Mapping) and arguments.get("q") == 0.5):
        return ()
    if loss not in QUANTILE_LOSSES:
        raise ModelImportError(
            f"{name} was fitted with {loss}: its outputs are no forecast, but what one is drawn from; the losses that are "
            f"imported are {', '.join(POINT_LOSSES)}, and {', '.join(QUANTILE_LOSSES)} for quantiles"
        )
    if options.recurrent:
        raise ModelImportError(f"{name} is recurrent and of quantiles: it goes on from their mean, which is none of them")
    levels = weights.get("loss.quantiles")
    if levels is None or levels.dim() != 1:
        raise ModelImportError(f"{name}: the file does not hold the quantiles of its {loss}")
    found = tuple(round(level, 6) for level in levels.double().tolist())
    if 0.5 not in found:
        raise ModelImportError(f"{name} gives the quantiles {list(found)}: the median must be among them")
    return found


def _read_frequency(name: Any) -> str | None:
    """A frequency's code; None for steps that are numbers, and for those that have no code."""
    match = _FREQUENCY.match(name) if isinstance(name, str) else None
    return _FREQUENCIES.get(match["name"]) if match else None
