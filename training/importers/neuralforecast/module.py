"""A recurrent model of neuralforecast as a torch module: from a history in its own units to a forecast in them.

It computes what `predict` does: the last window is scaled by its own statistics, the network reads it, and what comes out is
scaled back. Sources: `TemporalNorm`, `BaseModel.predict_step` and the models of neuralforecast 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from training.importers.model import ModelImportError
from training.importers.neuralforecast.folder import SavedModel

EPS = 1e-6
MAD_OF_DEVIATION = 0.6744897501960817  # of a normal distribution
# Those of neuralforecast but for the ones that change the number of values or have weights.
ACTIVATIONS = (
    "ReLU",
    "Softplus",
    "Tanh",
    "SELU",
    "LeakyReLU",
    "Sigmoid",
    "GELU",
    "ELU",
    "SiLU",
    "Mish",
    "Softsign",
    "CELU",
    "Hardshrink",
    "Softshrink",
    "LogSigmoid",
    "Hardtanh",
    "Hardswish",
    "Identity",
)
_LAYERS: Mapping[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}

Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]


def make_module(model: SavedModel) -> nn.Module:
    """The module with the model's weights. Raises ModelImportError where they do not fit its arguments."""
    # On "meta" nothing is allocated before the shapes are known to be those of the file.
    with torch.device("meta"):
        module = WindowForecaster(model)
    weights = {name: value for name, value in model.weights.items() if name.startswith(module.parts)}
    if model.kind == "LSTM" and model.options.recurrent:
        weights = _unproject(weights, model.options.encoder_n_layers)
    own = {name: value.shape for name, value in module.state_dict().items()}
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} is none of the model's" for name in weights if name not in own]
    faults += [
        f"{name} is {list(weights[name].shape)}, its arguments say {list(shape)}"
        for name, shape in own.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults:
        raise ModelImportError(f"{model.name}: the weights do not fit: {'; '.join(faults[:3])}")
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _unproject(weights: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """An LSTM with `proj_size` as one without: the projection goes into the weights that read it, the last behind the layer.

    Raises ModelImportError where a weight is missing or has another shape.
    """
    found = dict(weights)
    try:
        for layer in range(num_layers):
            projection = found.pop(f"hist_encoder.weight_hr_l{layer}")
            readers = [f"hist_encoder.weight_hh_l{layer}", f"hist_encoder.weight_ih_l{layer + 1}"]
            for name in readers[: 1 if layer == num_layers - 1 else 2]:
                found[name] = found[name] @ projection
    except (KeyError, RuntimeError) as exc:
        raise ModelImportError(f"the weights of the projected LSTM do not fit: {exc}") from exc
    return {**found, "proj.weight": projection}


class WindowForecaster(nn.Module):
    """(B, T, 1) with T of at least `num_history` steps to (B, horizon, outputs); outputs are quantiles in ascending order."""

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        options = model.options
        self.num_history, self.horizon = options.num_history, options.h
        self.order = [model.quantiles.index(level) for level in sorted(model.quantiles)]
        self.scaler = WindowScaler(options.scaler_type or "identity")
        hidden = options.encoder_hidden_size
        # With tanh in an RNN, whatever `encoder_activation` says: neuralforecast 3.3 keeps that argument and does not use it.
        self.hist_encoder = _LAYERS[model.kind](
            1, hidden, num_layers=options.encoder_n_layers, bias=options.encoder_bias, batch_first=True
        )
        self.proj: nn.Module | None = None
        self.mlp_decoder: nn.Module | None = None
        self.upsample_sequence: nn.Module | None = None
        if options.recurrent:
            self.proj = nn.Linear(hidden, 1, bias=model.kind != "LSTM")
        else:
            self.mlp_decoder = Decoder(model)
            if self.horizon > self.num_history:
                self.upsample_sequence = nn.Linear(self.num_history, self.horizon)

    @property
    def parts(self) -> tuple[str, ...]:
        """How the names of its weights begin."""
        return "hist_encoder.", "proj.", "mlp_decoder.", "upsample_sequence.", "scaler."

    def forward(self, history: Tensor) -> Tensor:
        # Fails for a row that is shorter than a window, which neuralforecast fills with zeros.
        window = history[:, -self.num_history :].reshape(history.shape[0], self.num_history, 1)
        statistics = self.scaler.measure(window)
        scaled = self.scaler.scale(window, *statistics)
        result = self._read_at_once(scaled) if self.proj is None else self._go_on(scaled)  # (B, horizon, outputs)
        result = self.scaler.unscale(result, *statistics)
        return result[..., self.order] if self.order else result

    def _read_at_once(self, window: Tensor) -> Tensor:
        assert self.mlp_decoder is not None
        hidden, _ = self.hist_encoder(window)  # (B, T, H)
        if self.upsample_sequence is None:
            hidden = hidden[:, -self.horizon :]
        else:
            hidden = self.upsample_sequence(hidden.transpose(1, 2)).transpose(1, 2)
        result: Tensor = self.mlp_decoder(hidden)
        return result

    def _go_on(self, window: Tensor) -> Tensor:
        """Step by step, each forecast being read for the next."""
        assert self.proj is not None
        hidden, state = self.hist_encoder(window)
        steps = [self.proj(hidden[:, -1:])]
        for _ in range(self.horizon - 1):
            hidden, state = self.hist_encoder(steps[-1], state)
            steps.append(self.proj(hidden))
        return torch.cat(steps, 1)


class Decoder(nn.Module):
    """The layers of neuralforecast's MLP, under its names for their weights; one linear layer where `decoder_layers` is 1."""

    def __init__(self, model: SavedModel) -> None:
        super().__init__()
        options = model.options
        name = options.decoder_activation or "ReLU"
        if options.decoder_layers > 1 and name not in ACTIVATIONS:
            raise ModelImportError(f"{model.name} has decoder_activation={name!r}; known are {', '.join(ACTIVATIONS)}")
        layers: list[nn.Module] = []
        size = options.encoder_hidden_size
        for _ in range(options.decoder_layers - 1):
            layers += [nn.Linear(size, options.decoder_hidden_size), getattr(nn, name)(), nn.Dropout(0.0)]
            size = options.decoder_hidden_size
        self.layers = nn.Sequential(*layers, nn.Linear(size, model.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class WindowScaler(nn.Module):
    """What `TemporalNorm` does to a window (B, T, 1): shift and scale are measured on it, and undone behind the network."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "revin":
            self.revin_bias = nn.Parameter(torch.zeros(1, 1, 1, 1))
            self.revin_weight = nn.Parameter(torch.ones(1, 1, 1, 1))

    def measure(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (B, 1, 1)."""
        return _STATISTICS[self.kind](window)

    def scale(self, window: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The window as the network reads it."""
        if self.kind == "identity":
            return window
        scaled = (window - shift) / scale
        if self.kind == "minmax1":
            return scaled * 2 - 1
        return torch.asinh(scaled) if self.kind == "invariant" else scaled

    def unscale(self, result: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What the network gives, in the units of the series."""
        if self.kind == "identity":
            return result
        if self.kind == "minmax1":
            result = (result + 1) / 2
        elif self.kind == "invariant":
            result = torch.sinh(result)
        elif self.kind == "revin":
            shift = shift + self.revin_bias.reshape(1, 1, 1)
            scale = scale * (torch.relu(self.revin_weight.reshape(1, 1, 1)) + EPS)
        return result * scale + shift


def _identity(window: Tensor) -> tuple[Tensor, Tensor]:
    return window[:, :1] * 0, window[:, :1] * 0 + 1


def _standard(window: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = window.mean(1, keepdim=True), _deviation(window)
    return mean, torch.where(deviation == 0, 1.0, deviation) + EPS


def _deviation(window: Tensor) -> Tensor:
    return ((window - window.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()


def _minmax(window: Tensor) -> tuple[Tensor, Tensor]:
    low = window.amin(1, keepdim=True)
    size = window.amax(1, keepdim=True) - low
    return low, torch.where(size == 0, 1.0, size) + EPS


def _robust(window: Tensor) -> tuple[Tensor, Tensor]:
    median = _median(window)
    apart = _median((window - median).abs())
    apart = torch.where(apart == 0, _deviation(window) * MAD_OF_DEVIATION, apart)
    return median, torch.where(apart == 0, 1.0, apart) + EPS


def _median(window: Tensor) -> Tensor:
    """The lower of the two middle values, as torch has it."""
    middle = (window.shape[1] - 1) // 2
    return window.sort(dim=1).values[:, middle : middle + 1]


_STATISTICS: Mapping[str, Statistics] = {
    "identity": _identity,
    "standard": _standard,
    "robust": _robust,
    "minmax": _minmax,
    "minmax1": _minmax,
    "invariant": _robust,
    "revin": _standard,
}
