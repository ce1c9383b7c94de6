"""What a score has to beat: a naive and a strong answer to the same question, without any network.

statsforecast's models for series, scikit-learn's for texts; all of them see only what comes before the test part.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsforecast.models import AutoETS, DynamicOptimizedTheta, SeasonalNaive

from training.data.rows import RowSplit
from training.data.series import Series, evaluation_origins
from training.data.texts import Texts
from training.recipe import Forecast

FORECASTERS = ("seasonal_naive", "theta")
CLASSIFIERS = ("majority", "tfidf_logistic")
ROW_CLASSIFIERS = ("majority", "logistic")
ROW_REGRESSORS = ("average", "linear")
# The strong ones take some 0.04 s (theta) to 3 s (auto_ets) per forecast of a thousand hourly values.
MOST_WINDOWS = 2000

Advance = Callable[[], None]


def remembered(
    file: Path, name: str, facts: Sequence[object], compute: Callable[[], Mapping[str, float] | None]
) -> Mapping[str, float] | None:
    """The scores of a baseline, kept in `file`: computed again only when a fact that they depend on has changed."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    key = hashlib.sha256(json.dumps([name, *facts], sort_keys=True).encode()).hexdigest()
    if key not in kept:
        scores = compute()
        if scores is None:
            return None
        kept[key] = dict(scores)
        file.write_text(json.dumps(kept, indent=2), encoding="utf-8")
    found: Mapping[str, float] = kept[key]
    return found


def forecast_baseline(
    name: str, series: Series, forecast: Forecast, stride: int | None = None, advance: Advance | None = None
) -> npt.NDArray[np.float64] | None:
    """The baseline's forecasts of all test windows, (N, horizon, targets), in the order of `evaluation_windows`.

    None where a strong baseline would have to be fitted more than `MOST_WINDOWS` times.
    """
    origins = evaluation_origins(series, forecast, stride)
    if name == "linear":
        return _linear(series, forecast, origins)
    if name not in ("seasonal_naive", "last_value") and len(origins) * len(series.targets) > MOST_WINDOWS:
        return None
    forecasts = np.empty((len(origins), forecast.horizon, len(series.targets)))
    for row, (index, origin) in enumerate(origins):
        for column, feature in enumerate(series.target_indices):
            past = series.values[index][:origin, feature]
            forecasts[row, :, column] = _forecast(name, past, forecast.horizon, forecast.season_length)
        if advance is not None:
            advance()
    return forecasts


def _forecast(name: str, past: npt.NDArray[np.float64], horizon: int, season_length: int) -> npt.NDArray[np.float64]:
    naive = SeasonalNaive(1 if name == "last_value" else season_length)
    if name in ("seasonal_naive", "last_value"):
        return np.asarray(naive.forecast(y=past, h=horizon)["mean"], dtype=np.float64)
    model = {"theta": DynamicOptimizedTheta, "auto_ets": AutoETS}[name](season_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimizers that do not converge on one series
        try:
            answer = model.forecast(y=past, h=horizon)["mean"]
        except Exception:  # statsforecast's models raise all kinds of errors on series too short or too constant
            answer = None
        if answer is None or not np.isfinite(answer).all():
            answer = naive.forecast(y=past, h=horizon)["mean"]
    return np.asarray(answer, dtype=np.float64)


def _linear(series: Series, forecast: Forecast, origins: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Least squares from a window, less its last value, to what follows, less that value (NLinear, Zeng et al. 2023)."""
    length, horizon = forecast.context_length, forecast.horizon

    def window(index: int, origin: int) -> npt.NDArray[np.float64]:
        history = series.values[index][max(0, origin - length) : origin]
        history = np.concatenate([np.repeat(history[:1], length - len(history), axis=0), history])
        return np.append((history[:-1] - history[-1]).ravel(), 1.0)

    def last(index: int, origin: int) -> npt.NDArray[np.float64]:
        return series.values[index][origin - 1, series.target_indices]

    places = [
        (index, origin)
        for index in range(len(series.ids))
        for origin in range(min(length, series.training_end(index) - horizon), series.training_end(index) - horizon + 1)
    ]
    places = places[:: 1 + len(places) // 50_000]
    x = np.stack([window(*place) for place in places])
    y = np.stack([(series.values[i][o : o + horizon][:, series.target_indices] - last(i, o)).ravel() for i, o in places])
    weights, *_ = np.linalg.lstsq(x, y, rcond=1e-6)
    answers = np.stack([window(*place) for place in origins]) @ weights
    levels = np.stack([last(*place) for place in origins])
    found: npt.NDArray[np.float64] = answers.reshape(len(origins), horizon, -1) + levels[:, None, :]
    return found


def classify_baseline(
    name: str, train: Texts, tests: Mapping[str, Texts], num_labels: int, replacements: Mapping[str, str]
) -> dict[str, npt.NDArray[np.float64]]:
    """Probabilities (N, labels) for each test set: of the labels' shares, or of TF-IDF and logistic regression."""
    if name == "majority":
        shares = np.bincount(train.labels, minlength=num_labels) / len(train)
        return {key: np.tile(shares, (len(test), 1)) for key, test in tests.items()}
    # Words and pairs, as Wang and Manning (2012) found strong; characters where words are not separated by spaces.
    has_words = np.mean([text.count(" ") / max(1, len(text)) for text in train.texts[:1000]]) > 0.05
    vectorizer = TfidfVectorizer(
        analyzer="word" if has_words else "char",
        token_pattern=r"(?u)\b\w+\b" if has_words else None,
        ngram_range=(1, 2),
        min_df=2 if len(train) > 100 else 1,
        sublinear_tf=True,
        max_features=200_000,
    )
    model = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000))
    model.fit(_clean(train.texts, replacements), train.labels)
    answers = {}
    for key, test in tests.items():
        probabilities = np.zeros((len(test), num_labels))
        probabilities[:, model.classes_] = model.predict_proba(_clean(test.texts, replacements))
        answers[key] = probabilities
    return answers


def row_baseline(name: str, split: RowSplit) -> npt.NDArray[np.float64]:
    """Probabilities (N, labels) or numbers (N, targets) of the test rows, by scikit-learn on standardised features."""
    train, num_rows = split.train, len(split.test)
    if name == "majority":
        shares = np.bincount(train.answers, minlength=len(split.labels)) / len(train)
        return np.tile(shares, (num_rows, 1))
    if name == "average":
        return np.tile(train.answers.mean(0, dtype=np.float64), (num_rows, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if split.labels else Ridge())
    model.fit(train.values.astype(np.float64), train.answers)
    given = split.test.values.astype(np.float64)
    if not split.labels:
        return np.asarray(model.predict(given), dtype=np.float64).reshape(num_rows, -1)
    found = np.zeros((num_rows, len(split.labels)))
    found[:, model.classes_] = model.predict_proba(given)
    return found


def _clean(texts: Sequence[str], replacements: Mapping[str, str]) -> list[str]:
    cleaned = list(texts)
    for old, new in replacements.items():
        cleaned = [text.replace(old, new) for text in cleaned]
    return cleaned
