"""Histories of a series ↔ forecasts: encodes instances, feeds forecasts back beyond the model's horizon, decodes. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from service.errors import PayloadTooLarge
from service.manifest import Manifest
from service.runtime.tensors import LENGTHS, Array, Item, Signature, Tensors
from service.tasks.base import (
    HEAVY_NUM_INSTANCES,
    HEAVY_NUM_ROWS,
    HEAVY_SIZE,
    IS_FINITE,
    Criterion,
    Endpoint,
    GroupRows,
    Prediction,
    PublicTensors,
    ReadFile,
    Steps,
    Task,
    TaskDefinition,
    expect_finite,
    expect_instances,
    finite_rows,
)
from service.tasks.forecast_request import CheckedInstance, RequestDefaults, refuse_long_piece, takes_frequency
from service.tasks.forecast_rows import AnswerForm, ForecastRows, find_histories, read_histories
from service.tasks.forecast_schema import EXAMPLES, Forecast, ForecastDescription, ForecastInstance, ForecastParameters
from service.tasks.forecast_spec import ForecastSpec
from service.tasks.forecast_table import Histories, LongForm
from service.tasks.frequencies import read_frequency, timestamps
from service.tasks.measures import Measures, last_values
from service.tasks.refusals import refuse_length, refuse_type
from service.tasks.tables import TableOptions
from service.tasks.widening import join_runs

HISTORY = "history"
FORECAST, QUANTILES = "forecast", "quantiles"
FORECAST_MAPE = "forecast_mape"
PAST_COVARIATES, FUTURE_COVARIATES = "past_covariates", "future_covariates"
OLD_FORECAST = "mean"
"""How graphs and examples called the point forecast when folders were first written."""
COMBINED = "forecast and quantiles"
"""What `prepare` makes of the outputs."""
ANOMALY = "anomaly"
"""The score of each value of the history, of a model that reads streams."""

_Known = Sequence[tuple[Array, Array]]
"""Per row the columns (T, C) of its history's steps, and (H, C) of the steps that are forecast; empty: the model has none."""

MAX_NUMBERS = 5_000_000
"""The largest answer: 10,000 forecasts of 48 steps and nine quantiles are some 40 MB of JSON."""


class ForecastTask(Task):
    """Histories of a series in, its next steps out.

    A horizon beyond the model's is reached by feeding the point forecast back as history. The quantiles of those later steps
    are widened by what was uncertain of the values fed back (`widening.py`). What is known ahead is fed to
    each run as it is; behind the requested horizon its last step is repeated, on which no step that is answered depends.
    """

    def __init__(self, spec: ForecastSpec, signature: Signature, max_horizon_multiple: int = 10) -> None:
        super().__init__(signature)
        self.spec = spec
        self.horizon = spec.horizon
        self.can_feed_back = set(spec.features) == set(spec.targets) and not spec.streaming
        """Whether a forecast holds all that the next run must know."""
        self.max_horizon = spec.horizon * (max_horizon_multiple if self.can_feed_back else 1)
        """The longest forecast, in steps."""
        places = [spec.features.index(target) for target in spec.targets if target in spec.features]
        self._places = None if places == list(range(len(spec.features))) else places
        """Where a history has the targets; None: it has nothing else, in the same order."""
        self._has_one_series = self._places is None and len(spec.targets) == 1
        self._levels = tuple(spec.quantiles)
        self._numbers_per_step = len(spec.targets) * (1 + len(spec.quantiles))
        self._has_mape = spec.has_mape
        self._output = next((name for name in (FORECAST, OLD_FORECAST) if name in signature.output_names), FORECAST)

    @cached_property
    def _no_parameters(self) -> RequestDefaults:
        return RequestDefaults(self.spec, self.max_horizon, self.can_feed_back, {})

    def is_heavy(self, instances: Sequence[object], parameters: Mapping[str, object]) -> bool:
        if self._has_one_series and 1 < len(instances) <= HEAVY_NUM_ROWS:
            horizon = parameters.get("horizon") or self.spec.horizon
            is_one_run = isinstance(horizon, int) and horizon <= self.spec.horizon
            histories = find_histories(instances) if is_one_run else None
            if histories is not None and len(set(map(len, histories))) == 1:
                return sum(map(len, histories)) > HEAVY_SIZE
        if len(instances) > HEAVY_NUM_INSTANCES:
            return True
        size = 0
        for instance in instances:
            if isinstance(instance, dict):
                history = instance.get(HISTORY)
                horizon = instance.get("horizon") or parameters.get("horizon") or self.spec.horizon
                size += len(history) * (len(self.spec.features) + self.spec.num_known) if isinstance(history, list) else 0
                size += horizon * self._numbers_per_step if isinstance(horizon, int) else 0
        return size > HEAVY_SIZE

    def describe(self) -> dict[str, Any]:
        absent = {name for name in ("streaming", "covariates", "categories", "calendar") if not getattr(self.spec, name)}
        about = self.spec.model_dump(exclude_none=True, exclude=absent)
        return about | {"points": self.spec.point_names, "max_horizon": self.max_horizon}

    def why_not_streaming(self) -> str:
        return ""

    def run_steps(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        group: GroupRows,
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> Steps:
        expect_instances(instances)
        defaults = self._read_parameters(parameters)
        if self._has_one_series and len(instances) > 1:
            histories = read_histories(instances, defaults, is_plain=is_plain, steps_seen=steps_seen)
            if histories is not None:
                self._expect_bounded(len(histories), 1)
                return (yield from self._run_together(histories, defaults, group))
        checked = self._encode(instances, defaults, is_plain, steps_seen)
        num_runs = -(-max([instance.horizon for instance in checked]) // self.spec.horizon)
        self._expect_bounded(len(checked), num_runs)
        if num_runs == len(checked) == 1:  # the usual request, without the lists of what follows: 3 µs
            known = checked[0].known
            ahead = () if known is None else [self._known_at(known, len(checked[0].history), len(checked[0].history))]
            (output,) = yield [self._collate([checked[0].history], (), ahead)]
            expect_finite(output, (0,))
            return [self.decode(checked[0], output[COMBINED][0], output[ANOMALY][0] if self.spec.streaming else None)]
        forecasts, anomalies = yield from self._run_all(checked, group, steps_seen)
        return [self.decode(*each) for each in zip(checked, forecasts, anomalies, strict=True)]

    def _expect_bounded(self, num_instances: int, num_runs: int) -> None:
        """Raise PayloadTooLarge for so many instances of so many runs each."""
        num_numbers = num_instances * num_runs * self.spec.horizon * self._numbers_per_step
        if num_numbers > MAX_NUMBERS:
            raise PayloadTooLarge(
                f"the answer would hold {num_numbers} numbers, at most {MAX_NUMBERS} are given: send fewer instances "
                "or a shorter horizon",
                found=num_numbers,
                limit=MAX_NUMBERS,
            )

    def _run_together(
        self, histories: Array, defaults: RequestDefaults, group: GroupRows
    ) -> Generator[list[Item], list[Tensors], ForecastRows]:
        """The predictions for histories of one length, FP32 (N, T, 1), of one run each."""
        num_rows, num_steps, _ = histories.shape
        groups = group([num_steps] * num_rows)
        items = []
        for indices in groups:
            part = histories if len(groups) == 1 else histories[indices]
            tensors: Tensors = {HISTORY: part, LENGTHS: np.full(len(part), num_steps, np.int64)}
            items.append(Item(tensors, len(part), num_steps, [num_steps] * len(part), (), indices))
        outputs = yield items
        for indices, output in zip(groups, outputs, strict=True):
            expect_finite(output, indices)
        forecasts = _in_order([output[COMBINED] for output in outputs], groups)  # (N, 1 + Q, H)
        levels, is_mape = defaults.levels, defaults.is_mape
        if self._has_mape or levels != self._levels:
            forecasts = self._all_at_levels(forecasts, levels, is_mape)
        anomalies = None
        if self.spec.streaming:
            scores = _in_order([output[ANOMALY][:, :num_steps, 0] for output in outputs], groups)  # (N, T)
            anomalies = np.where(np.isnan(histories[:, :, 0]), np.float32(np.nan), scores)

        def decode(row: int) -> Prediction:
            instance = CheckedInstance(histories[row], defaults.horizon, levels)
            return self._describe(instance, forecasts[row], None if anomalies is None else anomalies[row, :, np.newaxis])

        return ForecastRows(AnswerForm(_keys(levels), defaults.horizon), forecasts, anomalies, decode)

    def run_histories(
        self, histories: Histories, defaults: RequestDefaults, group: GroupRows
    ) -> Generator[list[Item], list[Tensors], Any]:
        """`run_steps` of histories that were checked before, whose predictions are left as the graph gives them.

        An array FP32 (N, 1 + Q, ≥ horizon), or (N, 1 + Q, ≥ horizon, targets): each row is what `decode` takes.
        """
        if defaults.horizon > self.spec.horizon or self.spec.streaming:
            checked = [
                CheckedInstance(each, defaults.horizon, defaults.levels, is_mape=defaults.is_mape) for each in histories.each()
            ]
            forecasts, _ = yield from self._run_all(checked, group, None)
            return forecasts
        groups = group(histories.lengths)
        items = []
        for indices in groups:
            stacked, lengths = histories.stack(indices)
            tensors: Tensors = {HISTORY: stacked, LENGTHS: lengths}
            items.append(Item(tensors, len(indices), stacked.shape[1], lengths.tolist(), (), indices))
        outputs = yield items
        for indices, output in zip(groups, outputs, strict=True):
            expect_finite(output, indices)
        return _in_order([output[COMBINED] for output in outputs], groups)

    def _run_all(
        self, checked: Sequence[CheckedInstance], group: GroupRows, steps_seen: Sequence[int] | None
    ) -> Generator[list[Item], list[Tensors], tuple[list[Array], list[Array | None]]]:
        step = self.spec.horizon
        num_runs = -(-max([instance.horizon for instance in checked]) // step)
        forecasts: list[list[Array]] = [[] for _ in checked]  # per instance and run: as `prepare` gives a row
        anomalies: list[Array | None] = [None] * len(checked)
        histories = [instance.history for instance in checked]
        for start in range(0, num_runs * step, step):
            unfinished = [index for index, instance in enumerate(checked) if instance.horizon > start]
            if start > 0:
                for index in unfinished:
                    point = forecasts[index][-1][-1 if checked[index].is_mape else 0]
                    # With state the next run goes on from where the last one ended.
                    before = histories[index] if steps_seen is None else histories[index][:0]
                    histories[index] = self._feed_back(before, point)
            groups = group([len(histories[index]) for index in unfinished])
            rows = [[unfinished[number] for number in numbers] for numbers in groups]
            outputs = yield [
                self._collate([histories[index] for index in indices], indices, self._known(checked, histories, indices, start))
                for indices in rows
            ]
            for indices, output in zip(rows, outputs, strict=True):
                expect_finite(output, indices)
                for index, forecast in zip(indices, output[COMBINED], strict=True):
                    forecasts[index].append(forecast)
                if self.spec.streaming:
                    for index, scores in zip(indices, output[ANOMALY], strict=True):
                        anomalies[index] = scores
        joined = [self._join(runs, one) for runs, one in zip(forecasts, checked, strict=True)]
        return joined, anomalies

    def _join(self, runs: Sequence[Array], checked: CheckedInstance) -> Array:
        """The runs of one instance as one."""
        if len(runs) == 1:
            return runs[0]
        is_never_negative = bool((checked.history >= 0).all())
        are_correlated = self.spec.recursive_errors == "correlated"
        return join_runs(runs, self._levels, is_never_negative=is_never_negative, are_correlated=are_correlated)

    def open_table(self, options: TableOptions) -> LongForm:
        """Series in the long form: columns `unique_id`, `ds` and `y`, or one for each of several features. Raises TableError."""
        defaults = RequestDefaults(self.spec, self.max_horizon, self.can_feed_back, options.parameters)
        return LongForm(self.spec, defaults, options, self.run_histories, self.at_levels)

    def prepare(self, outputs: Tensors) -> Tensors:
        """Forecast and quantiles as one FP32 tensor, the forecast first: (B, 1 + Q, H), or (B, 1 + Q, H, targets) for several.

        A second point forecast comes last.
        """
        point = outputs[self._output]  # (B, H, targets)
        num_levels = len(self._levels)
        combined = np.empty((len(point), 1 + num_levels + self._has_mape, *point.shape[1:]), np.float32)
        combined[:, 0] = point
        if num_levels:
            combined[:, 1 : 1 + num_levels] = outputs[QUANTILES].transpose(0, 3, 1, 2)
        if self._has_mape:
            combined[:, -1] = outputs[FORECAST_MAPE]
        prepared: Tensors = {COMBINED: combined[..., 0] if len(self.spec.targets) == 1 else combined}
        checked = [combined]
        if self.spec.streaming:
            prepared[ANOMALY] = outputs[ANOMALY]
            checked.append(outputs[ANOMALY])
        is_finite = finite_rows(checked)
        return prepared if is_finite is None else {**outputs, **prepared, IS_FINITE: is_finite}

    def measure(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Measures:
        """Of each row the last value of every feature, the mean forecast of every target, and the length of a whole history."""
        history, lengths = inputs[HISTORY], inputs[LENGTHS]
        last, forecast = last_values(history, lengths), outputs[self._output].mean(axis=1)
        return {
            **({} if self.signature.state else {"length": lengths}),
            **{f"input.{name}": last[:, index] for index, name in enumerate(self.spec.features)},
            **{f"output.{name}": forecast[:, index] for index, name in enumerate(self.spec.targets)},
        }

    def encode(
        self,
        instances: Sequence[object],
        parameters: Mapping[str, object],
        *,
        is_plain: bool = False,
        steps_seen: Sequence[int] | None = None,
    ) -> list[CheckedInstance]:
        """Check every instance; fill gaps and cut histories to what the network reads. A piece of a series is read whole."""
        expect_instances(instances)
        return self._encode(instances, self._read_parameters(parameters), is_plain, steps_seen)

    def _read_parameters(self, parameters: Mapping[str, object]) -> RequestDefaults:
        return RequestDefaults(self.spec, self.max_horizon, self.can_feed_back, parameters) if parameters else self._no_parameters

    def _encode(
        self, instances: Sequence[object], defaults: RequestDefaults, is_plain: bool, steps_seen: Sequence[int] | None
    ) -> list[CheckedInstance]:
        if steps_seen is not None:
            return [
                defaults.read_instance(instance, index, is_plain, seen)
                for index, (instance, seen) in enumerate(zip(instances, steps_seen, strict=True))
            ]
        return [defaults.read_instance(instance, index, is_plain) for index, instance in enumerate(instances)]

    def decode(self, instance: CheckedInstance, forecast: Array, anomaly: Array | None = None) -> Prediction:
        """The prediction for one instance from (1 + Q, ≥ h) or (1 + Q, ≥ h, targets): the forecast, behind it the quantiles.

        Of a model with a second point forecast that is the last row. `anomaly` (≥ T, targets) has a score per value of the
        history, of models that give one.
        """
        if self._has_mape or instance.levels != self._levels:
            forecast = self.at_levels(forecast, instance.levels, instance.is_mape)
        return self._describe(instance, forecast, anomaly)

    def _describe(self, instance: CheckedInstance, forecast: Array, anomaly: Array | None) -> Prediction:
        """`decode` of a forecast (1 + L, ...) at the levels that are wanted."""
        levels, horizon = instance.levels, instance.horizon
        point, *at_levels = forecast[:, :horizon]
        prediction: dict[str, object] = {FORECAST: point}
        if levels:
            prediction["quantiles"] = dict(zip(_keys(levels), at_levels, strict=True))
        if instance.start is not None and instance.frequency is not None:
            steps = range(instance.num_given, instance.num_given + horizon)
            prediction["timestamps"] = timestamps(instance.start, instance.frequency, steps)
        if instance.num_interpolated:
            prediction["num_interpolated"] = instance.num_interpolated
        if anomaly is not None:
            prediction[ANOMALY] = self._scores(instance.history, anomaly)
        return prediction

    def at_levels(self, forecast: Array, levels: tuple[float, ...], is_mape: bool) -> Array:
        """The forecast that is wanted and its quantiles at these levels (1 + L, ...), of (1 + Q, ...) as `prepare` gives them."""
        if self._has_mape:
            chosen = forecast[-1:] if is_mape else forecast[:1]
            forecast = np.concatenate((chosen, forecast[1:-1]))
        if levels != self._levels:
            places = _find_places(self._levels, levels)
            if places is not None:
                return forecast[places]
            forecast = np.tensordot(_interpolation(self._levels, levels), forecast, axes=1).astype(np.float32)
        return forecast

    def _all_at_levels(self, forecasts: Array, levels: tuple[float, ...], is_mape: bool) -> Array:
        """`at_levels` of each of (N, 1 + Q, ...)."""
        places = _find_places(self._levels, levels)
        if places is None:
            return np.stack([self.at_levels(forecast, levels, is_mape) for forecast in forecasts])
        return forecasts[:, [-1 if is_mape else 0, *places[1:]]]

    def _scores(self, history: Array, anomaly: Array) -> Array:
        """The scores of a history (T, F), NaN, which is written as null, where a value is missing; rows of several targets."""
        given = history if self._places is None else history[:, self._places]
        scores, is_missing = anomaly[: len(history)], np.isnan(given)
        if is_missing.any():
            scores = np.where(is_missing, np.float32(np.nan), scores)
        return np.ascontiguousarray(scores[:, 0] if scores.shape[1] == 1 else scores)

    def encode_tensors(self, tensors: Tensors, steps_seen: int | None = None) -> Tensors:
        """`history` FP32 (B, T, F) and `lengths`, cut to the steps that the network reads: as `encode` cuts a history.

        What is known of those steps is cut likewise.
        """
        history, lengths = tensors.get(HISTORY), tensors.get(LENGTHS)
        if history is None or history.ndim != 3 or (lengths is not None and lengths.shape != history.shape[:1]):
            return tensors  # which `check` refuses
        steps, context = history.shape[1], self.spec.context_length
        shortest = steps if lengths is None else int(lengths.min(initial=steps))
        if shortest + (steps_seen or 0) < self.spec.min_length:
            row = 0 if lengths is None else int(lengths.argmin())
            raise refuse_length(row, HISTORY, f"at least {self.spec.min_length}", "steps", shortest)
        if steps <= context:
            return tensors
        if steps_seen is not None:
            if self.spec.streaming:
                raise refuse_long_piece(self.spec, 0, steps)
            return tensors
        in_time = [HISTORY]
        past = tensors.get(PAST_COVARIATES)
        if past is not None:
            if past.ndim != 3 or past.shape[:2] != history.shape[:2]:
                return tensors  # which `check` refuses
            in_time.append(PAST_COVARIATES)
        if lengths is None:
            return {**tensors, **{name: tensors[name][:, -context:] for name in in_time}}
        if lengths.max() > steps:
            return tensors  # which `check` refuses
        cut = {name: np.zeros((len(history), context, tensors[name].shape[2]), np.float32) for name in in_time}
        for name, places in cut.items():
            for place, values, length in zip(places, tensors[name], lengths.tolist(), strict=True):
                kept = values[max(0, length - context) : length]
                place[: len(kept)] = kept
        return {**tensors, **cut, LENGTHS: np.minimum(lengths, context)}

    def decode_tensors(self, outputs: Tensors) -> Tensors:
        names = {FORECAST: self._output, **{name: name for name in (QUANTILES, FORECAST_MAPE, ANOMALY)}}
        return {public: outputs[name] for public, name in names.items() if name in outputs}

    def _feed_back(self, history: Array, forecast: Array) -> Array:
        """The history (T, F) for the next run; `forecast` is (H,) or (H, targets)."""
        forecast = forecast.reshape(len(forecast), -1)
        columns = [self.spec.targets.index(feature) for feature in self.spec.features]
        return np.concatenate((history, forecast[:, columns]))[-self.spec.context_length :]

    def _known(
        self, checked: Sequence[CheckedInstance], histories: Sequence[Array], indices: Sequence[int], start: int
    ) -> _Known:
        """Of these instances what is known of their histories' steps, and of those that the run forecasts, from `start` on."""
        found = []
        for index in indices:
            known = checked[index].known
            if known is None:
                return ()
            found.append(self._known_at(known, len(histories[index]), len(checked[index].history) + start))
        return found

    def _known_at(self, known: Array, num_past: int, end: int) -> tuple[Array, Array]:
        """Columns (T, C) of the `num_past` steps before step `end`, and (H, C) of those from there on."""
        horizon = self.spec.horizon
        ahead = known[end : end + horizon]
        if len(ahead) < horizon:
            ahead = np.concatenate((ahead, np.repeat(ahead[-1:], horizon - len(ahead), axis=0)))
        return known[end - num_past : end], ahead

    def _collate(self, histories: Sequence[Array], instances: Sequence[int] = (), known: _Known = ()) -> Item:
        if len(histories) == 1:
            (history,) = histories
            tensors: Tensors = {HISTORY: history[np.newaxis]}
            if known:
                tensors[PAST_COVARIATES], tensors[FUTURE_COVARIATES] = (part[np.newaxis] for part in known[0])
            return Item(tensors, 1, len(history), (len(history),), (), instances)
        lengths = [len(history) for history in histories]
        longest = max(lengths)
        padded = np.zeros((len(histories), longest, len(self.spec.features)), np.float32)  # (B, T, F)
        for row, history in zip(padded, histories, strict=True):
            row[: len(history)] = history
        tensors = {HISTORY: padded, LENGTHS: np.array(lengths, np.int64)}
        if known:
            past = np.zeros((len(histories), longest, self.spec.num_known), np.float32)  # (B, T, C)
            for row, (columns, _) in zip(past, known, strict=True):
                row[: len(columns)] = columns
            tensors[PAST_COVARIATES], tensors[FUTURE_COVARIATES] = past, np.stack([ahead for _, ahead in known])
        return Item(tensors, len(histories), longest, lengths, (), instances)


@dataclass(frozen=True)
class ForecastDefinition(TaskDefinition):
    """The task `forecast`: `history` FP32 [batch, time, features] → `forecast` [batch, horizon, targets], and `quantiles`."""

    max_horizon_multiple: int = 10
    """The longest forecast, in horizons of the model."""

    name: ClassVar = "forecast"
    spec: ClassVar = ForecastSpec
    description: ClassVar = ForecastDescription
    endpoints: ClassVar = (
        Endpoint(
            "/predict/forecast",
            "forecast",
            "Forecast series",
            "Continue series. Without `model`, the forecasting model for the request's `frequency` answers; without a frequency "
            "the one that SLUICE_DEFAULT_FORECAST_MODEL names, or the only one. Where several fit: 409.",
            default_setting="default_forecast_model",
            instance=ForecastInstance,
            parameters=ForecastParameters,
            prediction=Forecast,
            examples=EXAMPLES,
        ),
    )

    def configure(self, settings: Mapping[str, object]) -> Self:
        multiple = settings.get("max_horizon_multiple", self.max_horizon_multiple)
        assert isinstance(multiple, int)
        return replace(self, max_horizon_multiple=multiple)

    def mismatches(self, manifest: Manifest) -> list[str]:
        spec = manifest.spec_of(ForecastSpec)
        inputs: dict[str, list[int | str]] = {HISTORY: ["batch", "time", len(spec.features)]}
        if spec.num_known:
            inputs[PAST_COVARIATES] = ["batch", "time", spec.num_known]
            inputs[FUTURE_COVARIATES] = ["batch", spec.horizon, spec.num_known]
        is_old = not any(tensor.name == FORECAST for tensor in manifest.outputs)
        is_old = is_old and any(tensor.name == OLD_FORECAST for tensor in manifest.outputs)
        point: list[int | str] = ["batch", spec.horizon, len(spec.targets)]
        outputs = {OLD_FORECAST if is_old else FORECAST: point}
        if spec.quantiles:
            outputs[QUANTILES] = [*point, len(spec.quantiles)]
        if spec.streaming:
            outputs[ANOMALY] = ["batch", "time", len(spec.targets)]
        if spec.has_mape:
            outputs[FORECAST_MAPE] = point
        return [
            *(text for name, shape in inputs.items() for text in manifest.mismatch("inputs", name, "FP32", shape)),
            *(text for name, shape in outputs.items() for text in manifest.mismatch("outputs", name, "FP32", shape)),
        ]

    def build(self, manifest: Manifest, signature: Signature, read_file: ReadFile) -> ForecastTask:
        return ForecastTask(manifest.spec_of(ForecastSpec), signature, self.max_horizon_multiple)

    def longest_row(self, manifest: Manifest) -> int:
        return manifest.spec_of(ForecastSpec).context_length

    def public_tensors(self, manifest: Manifest, signature: Signature) -> PublicTensors:
        tensors = super().public_tensors(manifest, signature)
        outputs = (replace(spec, name=FORECAST) if spec.name == OLD_FORECAST else spec for spec in tensors.outputs)
        return PublicTensors(tensors.inputs, tuple(outputs))

    def is_special(self, manifest: Manifest) -> bool:
        spec = manifest.spec_of(ForecastSpec)
        return spec.streaming or spec.num_known > 0 or len(spec.features) > 1

    def example_instance(self, manifest: Manifest) -> object | None:
        spec = manifest.spec_of(ForecastSpec)
        if len(spec.features) > 1 or spec.num_known:
            return None
        history = [round(10 + 3 * float(np.sin(2 * np.pi * step / 24)), 1) for step in range(max(24, spec.min_length))]
        return {HISTORY: history, "horizon": min(6, spec.horizon)}

    def upgrade_predictions(self, predictions: list[Any]) -> list[Any]:
        return [
            {FORECAST if name == OLD_FORECAST else name: value for name, value in prediction.items()}
            if isinstance(prediction, dict)
            else prediction
            for prediction in predictions
        ]

    def criterion(self, instances: Sequence[object], parameters: Mapping[str, object]) -> Criterion | None:
        """The frequencies of a request: an instance's own, else the parameters'. Raises InvalidInput for what is no text."""
        common = parameters.get("frequency")
        frequencies: dict[str, None] = {}
        for index, instance in enumerate(instances):
            own = instance.get("frequency") if isinstance(instance, dict) else None
            value = common if own is None else own
            if isinstance(value, str):
                frequencies[value] = None
            elif value is not None:
                raise refuse_type(None if own is None else index, "frequency", "a string", value)
        return Criterion("frequency", tuple(frequencies), "timestamp") if frequencies else None

    def fits(self, manifest: Manifest, criterion: Criterion) -> bool:
        spec = manifest.spec_of(ForecastSpec)
        found = map(read_frequency, criterion.values)
        return all(frequency is not None and takes_frequency(spec, frequency) for frequency in found)


TASK = ForecastDefinition()


def _in_order(parts: Sequence[Array], groups: Sequence[Sequence[int]]) -> Array:
    """The rows of several groups, in the order of their numbers."""
    if len(parts) == 1:
        return parts[0]
    found = np.concatenate(parts)
    order = np.concatenate([np.array(indices, np.int64) for indices in groups])
    if (np.diff(order) == 1).all():
        return found
    ordered = np.empty_like(found)
    ordered[order] = found
    return ordered


@lru_cache(maxsize=64)
def _find_places(own: tuple[float, ...], levels: tuple[float, ...]) -> list[int] | None:
    """Where (1 + Q) has the forecast and these levels, None where one of them is not the model's own."""
    return [0, *(1 + own.index(level) for level in levels)] if set(levels) <= set(own) else None


@lru_cache(maxsize=64)
def _interpolation(own: tuple[float, ...], levels: tuple[float, ...]) -> Array:
    """The matrix (1 + L, 1 + Q) that keeps the forecast and takes the model's quantiles to other levels, linear in between."""
    matrix = np.zeros((1 + len(levels), 1 + len(own)))
    matrix[0, 0] = 1
    for column, unit in enumerate(np.eye(len(own)), 1):
        matrix[1:, column] = np.interp(levels, own, unit)
    return matrix


@lru_cache(maxsize=64)
def _keys(levels: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{level:.12g}" for level in levels)
