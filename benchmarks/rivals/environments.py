"""A virtual environment for each rival, created once with plain pip and then reused. Starts no server.

They are in benchmarks/.environments/<name>/ and count only when the file `complete` in them holds the requirements of the
registry, so that an interrupted install, or one of other versions, is repeated.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.rivals.registry import Rival

ENVIRONMENTS = Path(__file__).resolve().parent.parent / ".environments"


class NotInstalledError(Exception):
    """A rival's environment could not be created; the message is the reason."""

    def __init__(self, rival: Rival, reason: str) -> None:
        super().__init__(f"{rival.name} is not installed: {reason}")
        self.reason = reason


def folder(rival: Rival, environments: Path = ENVIRONMENTS) -> Path:
    """The folder of the rival's environment, whether it exists or not."""
    return environments / rival.name.lower().replace(" ", "-")


def is_complete(rival: Rival, environments: Path = ENVIRONMENTS) -> bool:
    """Whether `environment(rival)` would return at once."""
    note = folder(rival, environments) / "complete"
    return not rival.packages or (note.exists() and note.read_text() == _note(rival))


def environment(rival: Rival, environments: Path = ENVIRONMENTS) -> Path:
    """The python to start the rival with; creates its environment first where it is not complete, which takes minutes.

    A rival without packages of its own runs with the current python. Raises NotInstalledError with pip's last line as the
    reason; the incomplete environment is removed.
    """
    if not rival.packages:
        return Path(sys.executable)
    home = folder(rival, environments)
    python = home / "bin" / "python"
    if is_complete(rival, environments):
        return python
    shutil.rmtree(home, ignore_errors=True)
    environments.mkdir(parents=True, exist_ok=True)
    try:
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", *rival.packages])
    except (OSError, subprocess.CalledProcessError) as exc:
        shutil.rmtree(home, ignore_errors=True)
        raise NotInstalledError(rival, _reason(exc)) from exc
    (home / "complete").write_text(_note(rival))
    return python


def versions(rival: Rival, python: Path) -> str:
    """The rival's packages, FastAPI and uvicorn, with the versions in its environment."""
    listed = _run([str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]).splitlines()
    names = {package.partition("==")[0].partition("[")[0] for package in rival.packages} | {"fastapi", "uvicorn"}
    return ", ".join(line.replace("==", " ") for line in listed if line.partition("==")[0].lower() in names)


def size_bytes(home: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.lstat().st_size for path in home.rglob("*") if not path.is_dir())


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _reason(exc: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(exc, OSError):
        return str(exc)
    lines = [line for line in f"{exc.stdout}\n{exc.stderr}".splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].strip() if lines else f"{exc.cmd[2]} ended with status {exc.returncode}"


def _note(rival: Rival) -> str:
    return "\n".join(rival.packages) + "\n"
