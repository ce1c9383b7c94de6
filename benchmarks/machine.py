"""The machine and the versions of a run, in words. Linux only."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.servers import ROOT
from service import __version__
from service.process.machine import num_cores

LIBRARIES = ("fastapi", "httptools", "numpy", "onnxruntime", "pydantic", "tokenizers", "uvicorn", "uvloop")


def machine() -> dict[str, str]:
    """Cores, processor, memory, system, and the load average before the run."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return {
        "cores": str(num_cores()),
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0').split()[0]) / 1e6:.0f} GB",
        "system": f"{system}, Linux {platform.release()}",
        "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def versions() -> dict[str, str]:
    """Of Sluice, Python, the libraries that serve, and the load generator."""
    found = {"sluice": _own_version(), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout.split()
    return {**found, "wrk": wrk[1] if len(wrk) > 1 else "unknown"}


def _own_version() -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return f"{__version__} ({commit})" if commit else __version__


def _field(path: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", Path(path).read_text(), re.MULTILINE)
    return found[1].strip() if found else None
