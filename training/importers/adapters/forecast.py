"""Task `forecast`: rows of a series in, its next steps out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from training.export.answers import format_forecast
from training.importers.adapters.base import LENGTHS, SEED, ExampleRow, Target, check_length, example_lengths, read_numbers
from training.importers.model import ModelImportError, SourceModel
from training.importers.options import ImportOptions, Name
from training.layers.registry import LAYERS
from training.layers.scaling import ScalingConfig
from training.network.heads.forecast import ForecastSpec
from training.network.network import Network


class ForecastOptions(ImportOptions):
    """Options of task `forecast`."""

    task: Literal["forecast"]
    horizon: PositiveInt
    context_length: PositiveInt | None = None
    frequency: tuple[Literal["S", "T", "H", "D", "W", "M", "Q", "Y"], ...] = ()
    season_length: PositiveInt = 1
    features: tuple[Name, ...] = ()
    targets: tuple[Name, ...] = ()


class ForecastAdapter:
    """A model that reads (time, features) and gives `horizon` steps of some of the features."""

    Options: ClassVar[type[ImportOptions]] = ForecastOptions

    def __init__(self, model: SourceModel, options: ForecastOptions) -> None:
        shape = model.input_shape
        if model.has_tokens or len(shape) != 2:
            axes = ("batch", *shape)
            raise ModelImportError(f"--task forecast needs a model that reads (batch, time, features), it reads {axes}")
        num_features = shape[1]
        assert num_features is not None
        self.features = options.features or (
            ("value",) if num_features == 1 else tuple(f"value_{index}" for index in range(num_features))
        )
        if len(self.features) != num_features or len(set(self.features)) != num_features:
            raise ModelImportError(f"--features must name the model's {num_features} features, got {', '.join(self.features)}")
        self.targets = options.targets or self._guess_targets(model, options.horizon, num_features)
        unknown = [name for name in self.targets if name not in self.features]
        if unknown:
            raise ModelImportError(f'--targets: "{unknown[0]}" is none of the features {", ".join(self.features)}')
        if len(set(self.targets)) < len(self.targets):
            raise ModelImportError(f"--targets must differ, got {', '.join(self.targets)}")
        if model.max_length is None and options.context_length is None:
            raise ModelImportError("--task forecast needs --context-length for a model that reads any number of steps")
        if model.max_length is not None and options.context_length not in (None, model.max_length):
            raise ModelImportError(f"--context-length: the model reads {model.max_length} steps, got {options.context_length}")
        self.context_length = model.max_length or options.context_length or 1
        self.options = options
        self.spec = ForecastSpec(
            layers=model.tables,
            num_features=num_features,
            targets=tuple(self.features.index(name) for name in self.targets),
            horizon=options.horizon,
            scaling=ScalingConfig(kind="none" if model.scale is None else "standard"),
        )
        self.scale = model.scale
        self.target = Target(model, self.spec)

    def _guess_targets(self, model: SourceModel, horizon: int, num_features: int) -> tuple[str, ...]:
        """All features, where the last layer says that many; with several features and fewer units an option must say."""
        last = model.layers[-1]
        units = last.table.get("layer", last.table).get("units")
        if num_features == 1 or units in (horizon * num_features, None):
            return self.features
        if LAYERS[last.table["type"]].is_per_step and units == num_features:
            return self.features
        raise ModelImportError(
            f"--targets: which of the features {', '.join(self.features)} are forecast? "
            f"{last.place} gives {units} values for {horizon} steps"
        )

    def min_length(self, network: Network) -> int:
        """The fewest steps of a history."""
        return network.min_length if self.target.model.is_open else self.context_length

    def draw_instances(self, network: Network) -> list[Any]:
        rng = np.random.default_rng(SEED)
        instances = []
        for length in example_lengths(network, self.context_length, self.target.model.is_open):
            values = rng.uniform(0, 1, (length, len(self.features)))
            if self.scale is not None:
                values = self.scale.offset + self.scale.deviation * values
            values = values.round(4)
            instances.append({"history": (values[:, 0] if len(self.features) == 1 else values).tolist()})
        return instances

    def read_instance(self, network: Network, instance: Any, place: str) -> ExampleRow:
        if not isinstance(instance, Mapping) or set(instance) != {"history"}:
            raise ModelImportError(f'{place}: expected {{"history": [...]}}')
        num_features = len(self.features)
        is_flat = num_features == 1 and not (instance["history"] and isinstance(instance["history"][0], list))
        values = read_numbers(instance["history"], 1 if is_flat else 2, place).astype(np.float32)
        values = values[:, None] if is_flat else values
        if values.shape[1] != num_features:
            raise ModelImportError(f"{place}: expected rows of {num_features} features, got {values.shape[1]}")
        check_length(len(values), self.min_length(network), self.context_length, place)
        return ExampleRow({"history": values[None], LENGTHS: np.array([len(values)], np.int64)})

    def format_prediction(self, network: Network, answer: Mapping[str, NDArray[Any]], row: ExampleRow) -> Any:
        return format_forecast(answer, [])

    def manifest_block(self, network: Network) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "min_length": self.min_length(network),
            "horizon": self.options.horizon,
            "frequencies": list(self.options.frequency),
            "season_length": self.options.season_length,
            "quantiles": [],
            "point": self.spec.point,
            "features": list(self.features),
            "targets": list(self.targets),
        }
