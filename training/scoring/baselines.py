"""Scores of the baselines of a run, kept in a file so that a second run on the same data need not compute them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from training.scoring.evaluate import Scores


def score_baselines(
    names: Sequence[str], score: Callable[[str], Scores | None], file: Path, facts: Sequence[object]
) -> dict[str, Scores]:
    """The scores of each baseline by name; one that `score` gives None for is left out.

    Scores are read from `file` where they were computed from the same `facts` (plain JSON), and added to it otherwise.
    """
    found: dict[str, Scores] = {}
    for name in names:
        key = hashlib.sha256(json.dumps([name, *facts], sort_keys=True).encode()).hexdigest()
        cache = _read(file)
        if key not in cache:
            scores = score(name)
            if scores is None:
                continue
            cache[key] = dict(scores)
            file.write_text(json.dumps(cache, indent=2), encoding="utf-8")
        found[name] = cache[key]
    return found


def _read(file: Path) -> dict[str, Scores]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
