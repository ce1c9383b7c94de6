"""The requests of a case: histories with a daily rhythm and texts of common words, drawn with a fixed seed. No data set.

Every server gets the same instances. Encodes no bodies: each target has its own form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case
from service.runtime.tensors import Tensors

Instance = dict[str, list[float]] | str
"""{"history": [..]} or a text, as every server here takes them."""
SEED = 4
_COMMON = (
    "a about acting actors after again all almost also always an and another any are as at away awful back bad be because "
    "before best better big book boring bright but by camera can cast character characters clever comes could dark day "
    "dialogue did director do does down drama dull during each easily effort end ending enough even ever every excellent "
    "expected eyes face fails far feel few film films find fine first for found from full fun funny gets give good got great "
    "had hard has have he heart her here him his home hope hour how however i idea if in into is it its job just keep kind "
    "know last laugh least life like line little long look lost lot love made make many may me mess minutes moments more most "
    "movie much music must my never new nice no not nothing now of off old on once one only or other our out over own part "
    "people perfect performance piece place play plays plot point poor quite rather real really right role said same saw say "
    "scenario scenarios script second see seems seen set she short should show simple so some something sometimes soon sound "
    "special start still story strong style such sure take talent than that the their them then there these they thing "
    "things think this those though thought through time to too turns two under until up us very viewer voice want was waste "
    "watch watching way we weak well went were what when where which while who whole why wife will with without wonderful "
    "words work world worst worth would written year years yet you young"
)
WORDS = tuple(_COMMON.split())


@dataclass(frozen=True)
class Workload:
    """The requests of a case, each a list of instances, and the graph's own outputs for the instances of the first one."""

    requests: Sequence[Sequence[Instance]]
    expected: Sequence[Tensors]


def num_requests(case: Case) -> int:
    """How many different requests are sent in turn: many where their lengths differ, few where each is large."""
    return max(4, (256 if case.is_ragged else 64) // case.num_instances)


def draw_requests(case: Case) -> list[list[Instance]]:
    """The instances of each request, `case.num_instances` per request; lengths are uniform between the case's two."""
    shortest, longest = case.lengths
    random = np.random.default_rng([SEED, shortest, longest, case.num_instances])
    draw = _text if case.task == "classify" else _history
    return [
        [draw(random, int(random.integers(shortest, longest + 1))) for _ in range(case.num_instances)]
        for _ in range(num_requests(case))
    ]


def _history(random: np.random.Generator, length: int) -> Instance:
    level, swing, noise = random.uniform(20, 500), random.uniform(0.1, 0.4), random.uniform(0.01, 0.05)
    hours = np.arange(length) + random.integers(24)
    values = level * (1 + swing * np.sin(2 * np.pi * hours / 24) + noise * random.standard_normal(length))
    return {"history": values.round(2).tolist()}


def _text(random: np.random.Generator, num_words: int) -> Instance:
    return " ".join(random.choice(WORDS, num_words)).capitalize() + "."
