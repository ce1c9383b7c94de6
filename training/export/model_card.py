"""The model card: README.md of a published folder, written from its manifest alone. Reads no files and computes no score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from training.scoring.measures import MEASURES, is_better, kind_of

CARD_FILE = "README.md"
FREQUENCIES = {
    "S": "by the second",
    "T": "by the minute",
    "H": "hourly",
    "D": "daily",
    "W": "weekly",
    "M": "monthly",
    "Q": "quarterly",
    "Y": "yearly",
}


def render_card(manifest: Mapping[str, Any]) -> str:
    """The card of a folder with this content of manifest.json, in Markdown.

    What it is for, data and licence, scores beside baselines, calibration, limits, and how to make it again; parts of which the
    manifest says nothing say so.
    """
    training: Mapping[str, Any] = manifest.get("training", {})
    parts = [
        [f"# {manifest['name']}, version {manifest['version']}"],
        [manifest["description"]] if manifest.get("description") else [],
        ["Written from `manifest.json`; `sluice card` writes it again. What is written into it by hand is lost then."],
        ["## What it is for", *_purpose(manifest)],
        ["## Data and licence", *_data(manifest, training)],
        ["## Scores", *_scores(manifest, training)],
        ["## Calibration", *_calibration(training)],
        ["## Limits", "\n".join(f"* {limit}" for limit in _limits(manifest, training))],
        ["## How to make it again", *_reproduction(manifest, training)],
    ]
    return "\n\n".join(paragraph for part in parts for paragraph in part) + "\n"


# --------------------------------------------------------------------------------------------------------- what it is for


def _purpose(manifest: Mapping[str, Any]) -> Iterator[str]:
    facts = [("Task", f"`{manifest['task']}`"), *DESCRIPTIONS.get(manifest["task"], _describe_tensors)(manifest)]
    if streams := _streaming(manifest):
        facts.append(("Sequences in pieces", streams))
    facts.append(("Graphs", ", ".join(f"`{graph['file']}` ({graph['precision']})" for graph in manifest["graphs"])))
    yield _table(["", ""], facts)
    path = f"models/{manifest['name']}/{manifest['version']}/example.json"
    yield "Its own example, which a server verifies before the model is ready:"
    yield (
        f"```sh\njq .request {path} \\\n"
        "  | curl -s localhost:8000/predict -H 'content-type: application/json' --data-binary @-\n```"
    )


def _describe_forecast(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    block = manifest["forecast"]
    names = [FREQUENCIES.get(name, name) for name in block.get("frequencies", ())]
    yield "Series", ", ".join(names) or "of any frequency"
    history = []
    if "min_length" in block:
        history.append(f"{_count(block['min_length'], 'value')} at least")
    if "context_length" in block:
        history.append(f"the last {block['context_length']:,} of more are read")
    yield "History", "; ".join(history) or "of any length"
    features = block.get("features", [])
    if len(features) > 1:
        yield "Features", ", ".join(f"`{name}`" for name in features)
        yield "Forecast features", ", ".join(f"`{name}`" for name in block.get("targets", features))
    if block.get("covariates"):
        yield "Known ahead", ", ".join(f"`{name}`" for name in block["covariates"])
    if block.get("calendar"):
        yield "Calendar, from timestamps", ", ".join(f"`{name}`" for name in block["calendar"])
    yield "Horizon", f"{_count(block['horizon'], 'step')} in one run"
    points = block.get("points") or [block.get("point", "mean")]
    also = "".join(f', or on request `"point": "{name}"`' for name in points[1:])
    yield "Point forecast", f"{points[0]}{also}"
    yield "Quantiles", ", ".join(f"{level:g}" for level in block.get("quantiles", ())) or "none"


def _describe_classifier(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    block = manifest["classify"]
    yield "Labels", ", ".join(f"`{label}`" for label in block["labels"])
    if block.get("subject"):
        yield "Subject", block["subject"]
    yield "Language", block.get("language", "und")


def _describe_tensors(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("inputs", "outputs"):
        tensors = [f"`{entry['name']}` {entry['datatype']} {_shape(entry['shape'])}" for entry in manifest.get(kind, ())]
        yield kind.capitalize(), "; ".join(tensors)


DESCRIPTIONS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]]] = {
    "forecast": _describe_forecast,
    "classify": _describe_classifier,
}


def _streaming(manifest: Mapping[str, Any]) -> str:
    if manifest.get("cannot_stream"):
        return f"no: {manifest['cannot_stream']}"
    return "yes, with the state of the piece before" if manifest.get("state") else ""


# -------------------------------------------------------------------------------------------------------- data and scores


def _data(manifest: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    yield f"Licence of the data: {manifest['licence']}." if manifest.get("licence") else "The licence of the data is not stated."
    files = training.get("data", ())
    if not files:
        yield "The manifest names no file that it learned from."
        return
    rows = [
        (
            entry.get("name", ""),
            entry.get("origin", ""),
            entry.get("licence", ""),
            f"`{entry['sha256'][:12]}`" if "sha256" in entry else "",
        )
        for entry in files
    ]
    yield _table(["file", "origin", "licence", "sha256 begins with"], rows)


def _scores(manifest: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    metrics: Mapping[str, float] = training.get("metrics", {})
    if not metrics:
        yield "None are known: the model was imported, or published without a test part."
        return
    baselines: Mapping[str, Mapping[str, float]] = training.get("baselines", {})
    others = {graph["precision"]: graph.get("score", {}) for graph in manifest["graphs"][1:]}
    yield "Of the graph, on the test part, which training never read; beside baselines on the same data."
    head = ["measure", "this model", *(f"its {name} graph" for name in others), *(_words(name) for name in baselines)]
    rows = []
    for measure, score in metrics.items():
        beside = [found.get(measure) for found in (*others.values(), *baselines.values())]
        rows.append([_words(measure), f"**{_number(score)}**", *("" if value is None else _number(value) for value in beside)])
    yield _table(head, rows)
    if windows := training.get("windows"):
        yield "MASE by the first step that was forecast:"
        names = list(windows[0]["mase"])
        rows = [
            [str(window["first"]), *(_number(window["mase"][name]) if name in window["mase"] else "" for name in names)]
            for window in windows
        ]
        yield _table(["first step", *map(_words, names)], rows)
    kinds = dict.fromkeys(kind for kind in map(kind_of, metrics) if kind in MEASURES)
    yield "\n".join(f"* {kind}: {MEASURES[kind]}" for kind in kinds)


def _calibration(training: Mapping[str, Any]) -> Iterator[str]:
    metrics: Mapping[str, float] = training.get("metrics", {})
    found = []
    for measure, score in metrics.items():
        if match := re.fullmatch(r"(.*?)_?coverage_(\d+)", measure):
            about = f" ({_words(match[1])})" if match[1] else ""
            found.append(f"* The {match[2]} % band{about} holds {100 * score:.1f} % of the values of the test part.")
        elif kind_of(measure) == "ece":
            about = f"expected calibration error, `{measure}`"
            found.append(f"* Probabilities are {100 * score:.1f} points from how often they are right ({about}).")
    yield "\n".join(found) if found else "Not measured."


# ------------------------------------------------------------------------------------------------- limits, and once more


def _limits(manifest: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    yield from LIMITS.get(manifest["task"], _no_limits)(manifest)
    for name, scores in training.get("baselines", {}).items():
        metrics: Mapping[str, float] = training.get("metrics", {})
        ahead = [measure for measure, own in metrics.items() if measure in scores and is_better(measure, scores[measure], own)]
        if ahead:
            yield f"The baseline {_words(name)} is better by {', '.join(map(_words, ahead))}."
    yield from training.get("recipe", {}).get("limits", ())
    yield "On data of another kind than those above nothing was measured: score it on your own before you rely on it."


def _forecast_limits(manifest: Mapping[str, Any]) -> Iterator[str]:
    block = manifest["forecast"]
    left = [name for name in block.get("features", ()) if name not in block.get("targets", ())]
    if block.get("streaming"):
        yield f"It forecasts no more than {_count(block['horizon'], 'step')}: a stream goes on from what was observed."
    elif left:
        names = ", ".join(f"`{name}`" for name in left)
        yield f"It forecasts no more than {_count(block['horizon'], 'step')}: {names} would have to be known ahead."
    else:
        errors = block.get("recursive_errors", "independent")
        bands = f"; its bands widen as if the errors of its runs were {errors}" if block.get("quantiles") else ""
        yield f"Beyond {_count(block['horizon'], 'step')} it goes on from its own forecasts{bands}."
    if block.get("covariates"):
        names = ", ".join(f"`{name}`" for name in block["covariates"])
        known = f"{names} have to be known for each step that is forecast"
        yield f"{known}; where they are forecasts themselves, their errors come on top."
    elif block.get("calendar"):
        yield "It knows the history and the calendar alone: no holidays, no other series."
    else:
        yield "It knows the history alone: no calendar, no holidays, no other series."


def _classifier_limits(manifest: Mapping[str, Any]) -> Iterator[str]:
    block = manifest["classify"]
    longest = f"Of a text of more than {block['max_length']:,} tokens"
    if block.get("long_texts") == "pieces":
        yield f"{longest} pieces are read one by one, and their answers averaged: what spans two of them is not seen."
    else:
        cut = block["truncation"]
        yield f"{longest} the first {cut['head']:,} and the last {cut['tail']:,} are read alone."
    if block.get("min_known"):
        share = f"Below a share of {block['min_known']:g} of known tokens"
        yield f"{share} its answer says `uncertain`, and has a label all the same."
    else:
        yield "It gives a label for any text, in other languages too, and on texts that have none."


def _no_limits(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield from ()


LIMITS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "forecast": _forecast_limits,
    "classify": _classifier_limits,
}


def _reproduction(manifest: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    recipe: Mapping[str, Any] = training.get("recipe", {})
    folder = f"models/{manifest['name']}/{manifest['version']}"
    if "data" in recipe:
        yield "Its recipe is `training.recipe` in `manifest.json`; the same recipe, data and libraries give the same model."
        yield f"```sh\nSLUICE_DATA=data sluice train {folder} --models again\n```"
    elif origin := training.get("import") or recipe.get("import"):
        shown = ", ".join(
            f"{key} {value}" for key, value in origin.items() if isinstance(value, (str, int, float)) and value != ""
        )
        yield f"It was imported ({_cell(shown)})." if shown else "It was imported."
    else:
        yield "The manifest does not say where the network comes from."
    facts = []
    if training.get("num_parameters"):
        facts.append(f"{training['num_parameters']:,} parameters")
    if training.get("epochs"):
        facts.append(
            f"{_count(training['epochs'], 'epoch')} (the weights of epoch {training.get('best_epoch', training['epochs'])})"
        )
    if training.get("seed") is not None:
        facts.append(f"seed {training['seed']}")
    if training.get("created"):
        facts.append(f"made at {training['created']}")
    if facts:
        yield f"{', '.join(facts)[0].upper()}{', '.join(facts)[1:]}."
    versions = training.get("versions", {})
    if versions:
        yield f"With {', '.join(f'{name} {number}' for name, number in versions.items())}."


# ------------------------------------------------------------------------------------------------------------------ words


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shape(axes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
