"""Sends a forecast and a text to a Sluice four times a second, for the dashboard to have something to show.

    python traffic.py http://localhost:8000 [SECONDS]

Needs nothing but Python. Ends after SECONDS, or when it is interrupted.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
import urllib.error
import urllib.request

PAUSE_S = 0.25
TEXTS = ["A quiet, clever film.", "Two hours of my life that nobody gives back.", "It has a beginning and an end."]


def post(url: str, body: object) -> int:
    """The status of one request; 0 where nothing answered."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


def main(url: str, seconds: float) -> None:
    draw = random.Random()
    until = time.monotonic() + seconds
    hour = 0
    while time.monotonic() < until:
        length = draw.randint(200, 500)
        history = [100 + 20 * math.sin((hour + n) * math.pi / 12) + draw.gauss(0, 3) for n in range(length)]
        post(f"{url}/predict/forecast", {"instances": [{"history": history}], "parameters": {"frequency": "H", "horizon": 24}})
        post(f"{url}/predict/sentiment", {"instances": [draw.choice(TEXTS)]})
        hour += 1
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    try:
        main(sys.argv[1].rstrip("/"), float(sys.argv[2]) if len(sys.argv) > 2 else math.inf)
    except KeyboardInterrupt:
        sys.exit(130)
