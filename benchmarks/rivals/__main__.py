"""Creates the environment of every rival and prints a line for each: its versions and size, or why it could not be created."""

from __future__ import annotations

from benchmarks.rivals import RIVALS
from benchmarks.rivals.environments import NotInstalledError, environment, folder, size_bytes, versions

for rival in RIVALS:
    try:
        python = environment(rival)
    except NotInstalledError as exc:
        print(f"{rival.name}: not installed: {exc.reason}", flush=True)
    else:
        size = f"{size_bytes(folder(rival)) / 1e6:.0f} MB" if rival.packages else "in this environment"
        print(f"{rival.name}: {versions(rival, python)}; {size}", flush=True)
