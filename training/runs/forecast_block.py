"""What a manifest says of a model that forecasts: the block `forecast`, of whole histories and of streams alike."""

from __future__ import annotations

from typing import Any

from training.data.series import Series
from training.network.heads.forecast import ForecastSpec
from training.recipe import ForecastSettings


def forecast_block(forecast: ForecastSettings, series: Series, spec: ForecastSpec) -> dict[str, Any]:
    """JSON; lengths count steps. What a model has not is left out."""
    return {
        "context_length": forecast.context_length,
        "min_length": forecast.shortest,
        "horizon": forecast.horizon,
        "frequencies": list(forecast.frequencies),
        "season_length": forecast.season_length,
        "quantiles": list(forecast.quantiles),
        "point": spec.point,
        **({"points": spec.points} if len(spec.points) > 1 else {}),
        **({"recursive_errors": "correlated"} if forecast.recursive_errors == "correlated" else {}),
        "features": list(series.features),
        "targets": list(series.targets),
        **{option: value for option in ("covariates", "categories", "calendar") if (value := getattr(forecast, option))},
        **({"streaming": True, "warm_up": forecast.num_unscored} if forecast.streaming else {}),
    }
