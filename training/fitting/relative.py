"""Errors relative to the values, as sMAPE and MAPE take them, with gradients that stay finite. Compares raw values."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-12
"""Keeps quotients finite where a value and its forecast are both zero."""
LARGEST = 10.0
"""Of a percentage error: one value near zero would else decide what a whole batch teaches. Beyond it nothing is learned, so it
lies above the errors of forecasts that are far too high."""

SMALLEST_SIZE = 1.0
"""In units of a history's scale: forecasts nearer to zero count as much as one of this size, or a series about zero would decide
what a batch teaches."""


def symmetric_error(forecast: Tensor, truth: Tensor, denominator_gradient: float = 0.0) -> Tensor:
    """2 (y - f) / (|y| + |f|), between -2 and 2: the absolute value is a term of sMAPE (Makridakis 1993).

    `denominator_gradient`, 0 to 1, is the share of the gradient through |f|. With 0 the denominator is a constant, as in N-BEATS
    (Oreshkin et al. 2020); 1 is the true gradient, which is small where a forecast is far too high and large where it is too
    low. No share draws a forecast away from the truth.
    """
    size = forecast.abs()
    size = denominator_gradient * size + (1 - denominator_gradient) * size.detach()
    return 2 * (truth - forecast) / (truth.abs() + size + TINY)


def size_weight(median: Tensor, scale: Tensor) -> Tensor:
    """scale / |f|, at most 1 / `SMALLEST_SIZE`: what makes an error in units of `scale` one relative to the forecast.

    Of the forecast alone, and without a gradient: the truth has no part in the weight, so that the quantiles that minimise a
    weighted quantile loss are those of the values still. Over |y| + |f|, as sMAPE has it, low values would draw all of them down.
    """
    return scale / median.detach().abs().maximum(SMALLEST_SIZE * scale)


def percentage_error(forecast: Tensor, truth: Tensor) -> Tensor:
    """|y - f| / |y|, a term of MAPE; 0 where the truth is zero, for which MAPE is undefined, and `LARGEST` at most."""
    error = (truth - forecast).abs() / truth.abs().clamp(min=TINY)
    return error.masked_fill(truth == 0, 0.0).clamp(max=LARGEST)
