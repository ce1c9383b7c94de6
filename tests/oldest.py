"""The oldest versions that pyproject.toml allows, as constraints for pip: `make test-oldest` installs and tests them.

    python tests/oldest.py cpu train dev

prints `name==version` for every lower bound of the base and of the extras named, except those that constraints.txt pins for
every environment (torch: another build would bring gigabytes of libraries for GPUs).
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = ("torch",)


def lower_bounds(extras: Sequence[str]) -> dict[str, str]:
    """The lower bound of each direct dependency of the base and of `extras`, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(_bounds(project, project["dependencies"], extras))


def oldest_constraints(extras: Sequence[str]) -> list[str]:
    """Lines of a constraints file."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    bounds = lower_bounds(extras)
    return [f"{name}=={pins[name] if name in PINNED else bound}" for name, bound in sorted(bounds.items())]


def _bounds(project: dict[str, object], requirements: Sequence[str], extras: Sequence[str]) -> Iterator[tuple[str, str]]:
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    for requirement in [*requirements, *(entry for extra in extras for entry in optional[extra])]:
        if requirement.startswith(f"{project['name']}["):
            yield from _bounds(project, [], requirement.partition("[")[2].rstrip("]").split(","))
            continue
        found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9][0-9.!]*)(?:,<[0-9.]+)?(?:;.*)?", requirement)
        assert found, f"{requirement}: a direct dependency has a lower bound"
        yield found[1], found[2]


if __name__ == "__main__":
    print("\n".join(oldest_constraints(sys.argv[1:])))
