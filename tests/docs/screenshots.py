"""The pictures of docs/how-to/playground.md: `python -m tests.docs.screenshots` takes them anew, with the bundled models."""

from __future__ import annotations

import math
from pathlib import Path

from tests import browser
from tests.serving import ROOT, server_process, wait_until

PICTURES = ROOT / "docs" / "pictures"
SIZES = {"playground-forecast": (900, 1250), "playground-text": (900, 960)}
# Hourly demand of a week: low at night, lower at the weekend, with a gap.
DEMAND = [
    round(300 + 80 * math.sin(math.tau * (hour - 9) / 24) + 25 * math.sin(math.tau * hour / 12) - 60 * (hour >= 120))
    for hour in range(168)
]


def series() -> str:
    """A CSV with times."""
    rows = [f"2026-01-{5 + hour // 24:02}T{hour % 24:02}:00,{'' if hour == 30 else value}" for hour, value in enumerate(DEMAND)]
    return "\n".join(["time,demand", *rows])


def take(folder: Path = PICTURES) -> None:
    """Write both pictures into a folder."""
    with server_process(ROOT / "models") as server, browser.open_browser() as window:
        put = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'));"
        for name, model, field, value, is_done in (
            ("playground-forecast", "forecast-hourly", "series", series(), "#forecast-rows td"),
            ("playground-text", "sentiment-en", "text", "A quiet, moving film, though the end comes far too late.", "#words li"),
        ):
            window.resize(*SIZES[name])
            window.open("about:blank")
            window.open(f"{server.url}/play#{model}")
            wait_until(lambda is_done=is_done: window.texts(is_done), "the example is answered")
            before = window.texts(is_done)
            window.run(put, field, value)
            if field == "series":
                wait_until(lambda is_done=is_done, before=before: window.texts(is_done) != before, "the series is forecast")
            (folder / f"{name}.png").write_bytes(window.screenshot())


if __name__ == "__main__":
    take()
