from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service import __version__
from sluice.__main__ import CANNOT_START, COMMANDS, WRONG_COMMAND, help_text, main

ROOT = Path(__file__).parents[2]


def run(*args: str, code: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python -m sluice args` with `code` before it."""
    start = f"{code}\nimport sys\nfrom sluice.__main__ import main\nsys.exit(main())\n"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{start}", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def without(*libraries: str) -> str:
    return f"import sys; sys.modules.update(dict.fromkeys({libraries!r}))"


def test_the_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.startswith(f"  {name} ") and line.endswith(command.about) for line in lines), name


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == WRONG_COMMAND
    assert capsys.readouterr().out == help_text() + "\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sevre"], 'no command "sevre"; did you mean "serve"?'),
        (["data", "fecth", "ett"], 'no command "data fecth"; did you mean "data fetch"?'),
        (["data"], 'no command "data"; '),
        (["--quiet"], 'no command "--quiet"; `sluice --help` lists what there is'),
    ],
)
def test_a_command_that_is_not_there_is_refused_with_the_nearest(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == WRONG_COMMAND
    assert message in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sluice {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_under_its_own_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert f"sluice {name} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["settings"], 0),
        (["check", "EMPTY"], 1),  # findings
        (["check", "no-such-folder"], 3),  # cannot start
        (["serve", "--no-such-option"], 2),  # argparse
        (["summary", "--no-such-option"], 2),  # click
        (["summary", "no-such-recipe"], 1),
    ],
)
def test_exit_statuses_are_those_of_the_packages(args: list[str], status: int, tmp_path: Path) -> None:
    try:
        found: object = main([str(tmp_path) if arg == "EMPTY" else arg for arg in args])
    except SystemExit as ended:
        found = ended.code
    assert found == status


def test_the_front_imports_neither_package_before_a_command_asks(tmp_path: Path) -> None:
    code = "import sys; from sluice.__main__ import main; main(['--help']); print({'service', 'training'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines()[-1] == "set()", found.stderr


@pytest.mark.parametrize(
    ("missing", "args", "extras"),
    [
        ("onnxruntime", ("serve",), "cpu"),
        ("fastapi", ("serve",), "cpu"),
        ("typer", ("train", "passengers"), "cpu,train"),
        ("polars", ("train", "passengers"), "cpu,train"),
        ("torch", ("summary", "passengers"), "cpu,train"),
    ],
)
def test_a_library_that_is_not_installed_is_one_sentence_with_its_extra(missing: str, args: tuple[str, ...], extras: str) -> None:
    found = run(*args, code=without(missing))
    assert found.returncode not in (0, WRONG_COMMAND), found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert f"pip install 'sluice-serving[{extras}]'" in found.stderr


def test_the_service_is_served_without_the_libraries_of_training() -> None:
    found = run("settings", code=without("torch", "onnx", "typer", "rich", "polars", "lightning"))
    assert (found.returncode, "SLUICE_PORT" in found.stdout) == (0, True), found.stderr


@pytest.mark.parametrize("form", ["training/__init__.py", "training.py"])
def test_a_package_of_the_same_name_is_noticed_before_its_code_runs(form: str, tmp_path: Path) -> None:
    other = tmp_path / form
    other.parent.mkdir(exist_ok=True)
    other.write_text("raise SystemExit('the other package ran')")
    found = run("train", "passengers", code=f"import sys; sys.path.insert(0, {str(tmp_path)!r})", cwd=tmp_path)
    assert found.returncode == CANNOT_START, found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert f'{tmp_path / form.removesuffix("/__init__.py")} hides Sluice\'s own package "training": rename it' in found.stderr


def test_a_folder_of_the_same_name_without_code_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "service").mkdir()
    found = run("settings", code=f"import sys; sys.path.insert(0, {str(tmp_path)!r})", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_an_installation_without_the_package_says_so(tmp_path: Path) -> None:
    (tmp_path / "sluice").mkdir()
    for name in ("__init__.py", "__main__.py", "packages.py"):
        (tmp_path / "sluice" / name).write_bytes((ROOT / "sluice" / name).read_bytes())
    code = "import sys; sys.path.insert(0, ''); sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    code += "from sluice.__main__ import main; sys.exit(main(['settings']))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, "install sluice-serving anew" in found.stderr) == (CANNOT_START, True), found.stderr
