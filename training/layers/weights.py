"""Keras's rules for weights: how they start, what is penalised, and what they are held to after every step.

Shapes are Keras's: a kernel is (inputs, units). Random numbers are torch's, from the run's generator: the distributions
are Keras's, the draws are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import PlainValidator
from torch import Tensor, nn

from training.layers.named import read_named

EPSILON = 1e-7  # keras.config.epsilon()


@dataclass(frozen=True)
class Initializer:
    """How a weight starts; `seed` is accepted and not used, see `Layer.notes`."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return _INITIALIZERS[self.name](shape, **dict(self.options))


@dataclass(frozen=True)
class Regularizer:
    """A penalty on a tensor, a scalar."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, values: Tensor) -> Tensor:
        return _REGULARIZERS[self.name](values, **dict(self.options))


@dataclass(frozen=True)
class Constraint:
    """What a weight is replaced by after every step of the optimizer."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, values: Tensor) -> Tensor:
        return _CONSTRAINTS[self.name](values, **dict(self.options))


def _fans(shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) < 2:
        return float(math.prod(shape)), float(math.prod(shape))
    field = math.prod(shape[:-2])
    return float(field * shape[-2]), float(field * shape[-1])


def _random_normal(shape: tuple[int, ...], mean: float = 0.0, stddev: float = 0.05, seed: Any = None) -> Tensor:
    return torch.empty(shape).normal_(mean, stddev)


def _truncated_normal(shape: tuple[int, ...], mean: float = 0.0, stddev: float = 0.05, seed: Any = None) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), mean, stddev, mean - 2 * stddev, mean + 2 * stddev)


def _random_uniform(shape: tuple[int, ...], minval: float = -0.05, maxval: float = 0.05, seed: Any = None) -> Tensor:
    return torch.empty(shape).uniform_(minval, maxval)


def _variance_scaling(
    shape: tuple[int, ...], scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal", seed: Any = None
) -> Tensor:
    fan_in, fan_out = _fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    scale /= max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3 * scale)
        return _random_uniform(shape, -limit, limit)
    if distribution == "untruncated_normal":
        return _random_normal(shape, 0.0, math.sqrt(scale))
    # What is cut off beyond two deviations would make the rest narrower.
    return _truncated_normal(shape, 0.0, math.sqrt(scale) / 0.87962566103423978)


def _scaled(scale: float, mode: str, distribution: str) -> Callable[..., Tensor]:
    def draw(shape: tuple[int, ...], seed: Any = None) -> Tensor:
        return _variance_scaling(shape, scale, mode, distribution)

    return draw


def _orthogonal(shape: tuple[int, ...], gain: float = 1.0, seed: Any = None) -> Tensor:
    if len(shape) < 2:
        raise ValueError(f"orthogonal needs two axes or more, got {list(shape)}")
    flat = torch.empty(math.prod(shape[:-1]), shape[-1])
    return nn.init.orthogonal_(flat, gain).view(shape)


def _identity(shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
    if len(shape) != 2:
        raise ValueError(f"identity needs two axes, got {list(shape)}")
    return gain * torch.eye(*shape)


_INITIALIZERS: dict[str, Callable[..., Tensor]] = {
    "zeros": lambda shape: torch.zeros(shape),
    "ones": lambda shape: torch.ones(shape),
    "constant": lambda shape, value=0.0: torch.full(shape, float(value)),
    "random_normal": _random_normal,
    "random_uniform": _random_uniform,
    "truncated_normal": _truncated_normal,
    "glorot_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "glorot_normal": _scaled(1.0, "fan_avg", "truncated_normal"),
    "he_uniform": _scaled(2.0, "fan_in", "uniform"),
    "he_normal": _scaled(2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": _scaled(1.0, "fan_in", "uniform"),
    "lecun_normal": _scaled(1.0, "fan_in", "truncated_normal"),
    "variance_scaling": _variance_scaling,
    "orthogonal": _orthogonal,
    "identity": _identity,
}
_SYNONYMS = {"uniform": "random_uniform", "normal": "random_normal", "orthogonal_initializer": "orthogonal", "one": "ones"}
_SYNONYMS |= {"zero": "zeros", "identity_initializer": "identity"}


def _l1_l2(values: Tensor, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    return (l1 or 0.0) * values.abs().sum() + (l2 or 0.0) * values.square().sum()


def _orthogonal_regularizer(values: Tensor, factor: float = 0.01, mode: str = "rows") -> Tensor:
    rows = values if mode == "rows" else values.t()
    # Keras bounds the squared norm from below by its epsilon.
    rows = rows * rows.square().sum(1, keepdim=True).clamp(min=EPSILON**2).rsqrt()
    product = (rows @ rows.t()).abs()
    num_pairs = len(rows) * (len(rows) - 1) / 2
    return factor * 0.5 * (product.sum() - product.diagonal().sum()) / num_pairs


_REGULARIZERS: dict[str, Callable[..., Tensor]] = {
    "l1": lambda values, l1=0.01: l1 * values.abs().sum(),
    "l2": lambda values, l2=0.01: l2 * values.square().sum(),
    "l1_l2": _l1_l2,
    "orthogonal_regularizer": _orthogonal_regularizer,
}


def _norms(values: Tensor, axis: int | list[int]) -> Tensor:
    return values.square().sum(axis, keepdim=True).sqrt()


def _min_max_norm(
    values: Tensor, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: int | list[int] = 0
) -> Tensor:
    norms = _norms(values, axis)
    wanted = rate * norms.clamp(min_value, max_value) + (1 - rate) * norms
    return values * (wanted / (EPSILON + norms))


def _max_norm(values: Tensor, max_value: float = 2, axis: int | list[int] = 0) -> Tensor:
    norms = _norms(values, axis)
    return values * (norms.clamp(0, max_value) / (EPSILON + norms))


def _unit_norm(values: Tensor, axis: int | list[int] = 0) -> Tensor:
    return values / (EPSILON + _norms(values, axis))


_CONSTRAINTS: dict[str, Callable[..., Tensor]] = {
    "max_norm": _max_norm,
    "non_neg": lambda values: values.clamp(min=0),
    "unit_norm": _unit_norm,
    "min_max_norm": _min_max_norm,
}


def read_initializer(value: str | Mapping[str, Any] | Initializer) -> Initializer:
    """By name, table or Keras's saved form. Raises ValueError."""
    if isinstance(value, Initializer):
        return value
    if isinstance(value, str):
        value = _SYNONYMS.get(value, value)
    elif "config" in value and isinstance(value["config"], Mapping):
        # Keras saves which axes count as inputs and outputs; None is the usual.
        config = {k: v for k, v in value["config"].items() if not (k in ("input_axes", "output_axes", "dtype") and v is None)}
        value = {"class_name": _synonym(str(value["class_name"])), "config": config}
    name, options = read_named(value, _INITIALIZERS)
    return Initializer(name, tuple(options.items()))


def _synonym(name: str) -> str:
    return {"OrthogonalInitializer": "orthogonal", "IdentityInitializer": "identity"}.get(name, name)


def read_regularizer(value: str | Mapping[str, Any] | Regularizer | None) -> Regularizer | None:
    """By name, table or Keras's saved form. Raises ValueError."""
    if value is None or isinstance(value, Regularizer):
        return value
    if value == "l1_l2":
        value = {"name": "l1_l2", "l1": 0.01, "l2": 0.01}
    if isinstance(value, Mapping) and value.get("class_name") == "L1L2":
        value = {**value, "class_name": "l1_l2"}
    name, options = read_named(value, _REGULARIZERS)
    return Regularizer(name, tuple(options.items()))


def read_constraint(value: str | Mapping[str, Any] | Constraint | None) -> Constraint | None:
    """By name, table or Keras's saved form. Raises ValueError."""
    if value is None or isinstance(value, Constraint):
        return value
    name, options = read_named(value, _CONSTRAINTS)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return Constraint(name, tuple(options.items()))


InitializerOption = Annotated[Initializer, PlainValidator(read_initializer)]
RegularizerOption = Annotated[Regularizer | None, PlainValidator(read_regularizer)]
ConstraintOption = Annotated[Constraint | None, PlainValidator(read_constraint)]
ZEROS, ONES, GLOROT_UNIFORM, ORTHOGONAL, UNIFORM = (
    read_initializer(name) for name in ("zeros", "ones", "glorot_uniform", "orthogonal", "uniform")
)


@dataclass(frozen=True)
class Weight:
    """One weight in Keras's terms: `read` gives it in Keras's shape and order, `write` sets it (without a gradient)."""

    name: str
    read: Callable[[], Tensor]
    write: Callable[[Tensor], None]
    regularizer: Regularizer | None = None
    constraint: Constraint | None = None
    is_statistic: bool = False  # no optimizer changes it

    @property
    def shape(self) -> tuple[int, ...]:
        """As in Keras's summary."""
        with torch.no_grad():
            return tuple(self.read().shape)


def weight_of(
    name: str,
    parameter: Tensor,
    regularizer: Regularizer | None = None,
    constraint: Constraint | None = None,
    *,
    is_statistic: bool = False,
) -> Weight:
    """A parameter whose shape and order are Keras's."""
    return Weight(name, lambda: parameter, lambda values: _set(parameter, values), regularizer, constraint, is_statistic)


def _set(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
