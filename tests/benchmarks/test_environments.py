"""An environment counts only after a complete install; a failed one is removed, with the reason."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rivals import RIVALS
from benchmarks.rivals.environments import NotInstalledError, environment, folder, is_complete

HANDWRITTEN, RIVAL = (next(rival for rival in RIVALS if rival.name == name) for name in ("hand-written", "LitServe"))


def test_a_rival_without_packages_runs_in_this_environment(tmp_path: Path) -> None:
    assert environment(HANDWRITTEN, tmp_path) == Path(sys.executable)
    assert not any(tmp_path.iterdir())


def test_an_environment_is_complete_only_for_the_requirements_it_was_created_with(tmp_path: Path) -> None:
    home = folder(RIVAL, tmp_path)
    home.mkdir()
    assert not is_complete(RIVAL, tmp_path)
    (home / "complete").write_text("\n".join(RIVAL.packages) + "\n")
    assert is_complete(RIVAL, tmp_path)
    assert environment(RIVAL, tmp_path) == home / "bin" / "python"
    assert not is_complete(replace(RIVAL, packages=("litserve==0.0.1",)), tmp_path)


@pytest.mark.slow
def test_a_failed_install_has_a_reason_and_is_removed(tmp_path: Path) -> None:
    rival = replace(RIVAL, packages=(str(tmp_path / "no-such-package"),))
    with pytest.raises(NotInstalledError, match="no-such-package"):
        environment(rival, tmp_path)
    assert not folder(rival, tmp_path).exists()
