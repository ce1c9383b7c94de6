"""What a search tries next, and what it has found, kept in a file to go on from. Only this file imports Optuna.

Knows no recipe: options are names with values to choose from, and of scores smaller is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from training.errors import TrainingError
from training.recipe.ranges import Choices, Range, Value

STUDY = "sluice"
DRAWN_AT_RANDOM = 5
"""Trials before the scores of earlier ones decide what is tried (tree-structured Parzen estimator, Bergstra et al. 2011)."""
DIGITS = 3
"""Significant digits of a number that is tried: a learning rate of 0.00314, not of 0.0031415926."""


class SearchError(TrainingError):
    """A search cannot go on from its file: there is none, or it is of another search."""


@dataclass(frozen=True)
class SearchTrial:
    """What was tried; `score` is None where it failed, with the reason in `note`."""

    number: int
    values: Mapping[str, Value]
    score: float | None
    note: str = ""
    seconds: float = 0.0


class Search:
    """A search whose trials lie in `file`. With `resume` it goes on from them, without they are replaced.

    `about` names what is searched: a file of something else is refused with SearchError.
    """

    def __init__(self, file: Path, options: Mapping[str, Range | Choices], *, seed: int, about: str, resume: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if resume and not file.exists():
            raise SearchError(f"nothing to resume: there is no {file}")
        if not resume:
            file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._distributions = {name: _distribution(values) for name, values in options.items()}
        self._options = options
        self._running: dict[int, optuna.Trial] = {}
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))), study_name=STUDY, load_if_exists=True
        )
        if self._study.user_attrs.get("about", about) != about:
            raise SearchError(f"{file} is of another search: the recipe or the options have changed since")
        self._study.set_user_attr("about", about)
        # The draws of a search that goes on are others than those it began with.
        self._study.sampler = TPESampler(seed=seed * 1_000_003 + len(self._study.trials), n_startup_trials=DRAWN_AT_RANDOM)

    def suggest(self, values: Mapping[str, Value]) -> None:
        """Try these values first, where none of that kind was tried; options that are not named are drawn."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self) -> SearchTrial:
        """What to try next, still without a score; a `tell` has to follow (Optuna's words for both)."""
        trial = self._study.ask(self._distributions)
        self._running[trial.number] = trial
        return SearchTrial(trial.number, {name: self._rounded(name, value) for name, value in trial.params.items()}, None)

    def tell(self, trial: SearchTrial) -> None:
        """Keep the score of a trial that `ask` gave."""
        running = self._running.pop(trial.number)
        running.set_user_attr("trial", {"values": dict(trial.values), "note": trial.note, "seconds": trial.seconds})
        if trial.score is None:
            self._study.tell(running, state=TrialState.FAIL)
        else:
            self._study.tell(running, trial.score)

    @property
    def trials(self) -> list[SearchTrial]:
        """All that are finished, in their order; numbers of trials that were broken off are left out."""
        finished = [trial for trial in self._study.trials if "trial" in trial.user_attrs]
        return [SearchTrial(trial.number, score=trial.value, **trial.user_attrs["trial"]) for trial in finished]

    def _rounded(self, name: str, value: Value) -> Value:
        values = self._options[name]
        if not isinstance(values, Range) or values.is_whole:
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high)


def _distribution(values: Range | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.values)
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.is_logarithmic)
    return FloatDistribution(values.low, values.high, log=values.is_logarithmic)
