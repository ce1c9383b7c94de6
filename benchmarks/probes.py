"""What a sentiment model makes of texts that are not reviews of films: negations, turns, shouting, products, facts.

    python -m benchmarks.probes
    python -m benchmarks.probes models/sentiment-en/1 ../before/models/sentiment-en/1

Each text goes through the task as a request's would. A positive or negative one is right with the more probable label, a
neutral one with a probability of at most 0.75. The probes were written by hand and no model learned from them; they are few, and
show kinds of mistakes rather than a rate.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.servers import ROOT
from service.models.loading import load_model

Answer = Literal["positive", "negative", "neutral"]
NEUTRAL_AT_MOST = 0.75
SENTIMENT_EN = ROOT / "models" / "sentiment-en" / "1"


@dataclass(frozen=True)
class Probe:
    """A text and the answer that a reader would give."""

    group: str
    text: str
    answer: Answer


def _probes(group: str, answer: Answer, *texts: str) -> tuple[Probe, ...]:
    return tuple(Probe(group, text, answer) for text in texts)


PROBES = (
    *_probes("plain", "positive", "I loved it.", "A wonderful evening.", "Great!", "Simply beautiful."),
    *_probes("plain", "negative", "I hated it.", "A waste of time.", "Awful.", "Two hours I will never get back."),
    *_probes(
        "negation",
        "positive",
        "Not bad at all.",
        "not bad",
        "There is never a dull moment.",
        "You will not be disappointed.",
        "I can't complain.",
        "It isn't boring for a second.",
        "Nothing wrong with it.",
    ),
    *_probes(
        "negation",
        "negative",
        "Not good.",
        "It was not worth my time.",
        "I did not enjoy this.",
        "Nobody could call this funny.",
        "It never gets interesting.",
        "I would not recommend it to anyone.",
        "Neither clever nor funny.",
    ),
    *_probes(
        "turn",
        "negative",
        "The cast is excellent and the pictures are lovely, but I was bored to tears.",
        "It starts brilliantly and then falls apart completely.",
        "I wanted to love it. Everyone told me it was great. It is terrible.",
    ),
    *_probes(
        "turn",
        "positive",
        "The first chapter drags and the cover is ugly, but in the end I loved every page.",
        "I expected rubbish, and was delighted.",
        "Slow at first, yet it becomes a masterpiece.",
    ),
    *_probes("shouting", "positive", "BEST THING EVER!!!", "sooooo goood", "LOVED IT!!!!!"),
    *_probes("shouting", "negative", "WORST PURCHASE EVER!!!", "sooo booooring", "DO NOT BUY THIS."),
    *_probes("typos", "positive", "realy enjoied it, wonderfull acting", "its amzing, i luv it"),
    *_probes("typos", "negative", "absolutly terible, compleet waste of mony", "borring and stupd"),
    *_probes(
        "products",
        "positive",
        "The headphones sound superb and the battery lasts for days.",
        "Fast delivery, works perfectly, I am very happy with this kettle.",
        "Delicious food and friendly waiters; we will come back.",
        "The hotel room was spotless and quiet.",
    ),
    *_probes(
        "products",
        "negative",
        "It broke after two days and nobody answered my mails.",
        "Cold soup, rude staff, overpriced.",
        "The phone overheats and the screen is scratched.",
        "The room was dirty and smelled of smoke.",
    ),
    *_probes(
        "facts",
        "neutral",
        "Paris is the capital of France.",
        "The meeting is on Tuesday at nine.",
        "Water boils at 100 degrees Celsius.",
        "Where is the railway station?",
        "She put the keys on the table.",
        "The file has 300 lines.",
    ),
    *_probes("unknown", "neutral", "asdf qwer zxcv", "今天天气很好", "\N{PILE OF POO}", "xkcd1234 jjjj"),
)


def is_right(probe: Probe, prediction: dict[str, Any]) -> bool:
    """Whether a prediction is what a reader would say; `uncertain` is right for what nobody can read."""
    if probe.answer == "neutral":
        return prediction.get("uncertain", False) or float(prediction["score"]) <= NEUTRAL_AT_MOST
    return bool(prediction["label"] == probe.answer)


async def predict(folder: Path, probes: Sequence[Probe]) -> Sequence[dict[str, Any]]:
    """The predictions of a folder's model. Raises FolderError where the folder cannot be opened."""
    model = await load_model(folder)
    try:
        return await model.predict([probe.text for probe in probes])
    finally:
        await model.stop()


def main() -> None:
    """Print how many of each group are right, by folder, and every text that is not."""
    folders = [Path(argument) for argument in sys.argv[1:]] or [SENTIMENT_EN]
    answers = [asyncio.run(predict(folder, PROBES)) for folder in folders]
    print(f"| probes | number |{'|'.join(f' {folder} ' for folder in folders)}|")
    print(f"|---|---:|{'---:|' * len(folders)}")
    for group in dict.fromkeys(probe.group for probe in PROBES):
        chosen = [index for index, probe in enumerate(PROBES) if probe.group == group]
        counts = [sum(is_right(PROBES[index], given[index]) for index in chosen) for given in answers]
        print(f"| {group} | {len(chosen)} |{'|'.join(f' {count} ' for count in counts)}|")
    totals = [sum(map(is_right, PROBES, given)) for given in answers]
    print(f"| all | {len(PROBES)} |{'|'.join(f' {total} ' for total in totals)}|")
    for folder, given in zip(folders, answers, strict=True):
        print(f"\n{folder}:")
        for probe, prediction in zip(PROBES, given, strict=True):
            if not is_right(probe, prediction):
                print(f"  {probe.answer:8} {prediction['label']} {prediction['score']:.2f}  {probe.text}")


if __name__ == "__main__":
    main()
