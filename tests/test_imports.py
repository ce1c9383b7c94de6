"""Imports point down, one outside library lives in one file, and the service needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the roof to the floor: a module imports only what stands below its own row.
ROWS = (
    ("service.__main__",),
    ("service.server",),
    ("service.protocol",),
    ("service.app", "service.workers", "service.logs"),
    ("service.machine", "service.connections", "service.memory"),
    ("service.api.predict", "service.api.operations"),
    ("service.api.direct", "service.api.middleware", "service.api.schemas"),
    ("service.api.errors", "service.metrics"),
    ("service.repository",),
    ("service.loading", "service.lag"),
    ("service.model",),
    ("service.folder",),
    ("service.tuning", "service.tasks.forecast", "service.tasks.classify", "service.tasks.rows"),
    ("service.batching", "service.tasks.history", "service.proof"),
    ("service.tasks.base", "service.precision"),
    ("service.tokenization", "service.runtime", "service.manifest", "service.frequencies", "service.synthetic"),
    ("service.tensors", "service.settings"),
    ("service.planning", "service.wire", "service.turns"),
    ("service.errors", "service.costs"),
    ("service", "service.api", "service.tasks"),
)
LEVEL = {module: len(ROWS) - number for number, row in enumerate(ROWS) for module in row}
# The library → the only files that import it.
HOMES = {
    "onnxruntime": {"service.runtime"},
    "orjson": {"service.wire"},
    "tokenizers": {"service.tokenization"},
    "prometheus_client": {"service.metrics"},
    "pydantic_settings": {"service.settings"},
    "uvicorn": {"service.server", "service.protocol"},
}
# Beside what the rows say: who may not even look down at some rooms.
FORBIDDEN = {
    "service.api": {"numpy", "onnxruntime", "prometheus_client", "service.metrics", "service.runtime", "service.settings"},
    "service.planning": {"asyncio", "threading", "time", "numpy", "logging"},
    "service.batching": {"fastapi", "starlette", "onnxruntime", "prometheus_client", "numpy"},
    "service.tensors": {"asyncio", "threading", "logging", "time", "pathlib"},
    "service.runtime": {"asyncio"},
    "service.tasks": {"asyncio", "threading", "time", "pathlib"},
    "service.errors": {"fastapi", "starlette", "http"},
}


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            found |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return found


SERVICE = modules("service")


@pytest.mark.parametrize("module", SERVICE)
def test_imports_point_down(module: str) -> None:
    assert module in LEVEL, "a new room: give it its row"
    for imported in imports_of(SERVICE[module]):
        if imported.split(".")[0] == "service":
            assert LEVEL[imported] < LEVEL[module], f"{module} imports {imported}"


@pytest.mark.parametrize("library", HOMES)
def test_an_outside_library_lives_in_one_file(library: str) -> None:
    found = {name for name, path in SERVICE.items() if any(i.split(".")[0] == library for i in imports_of(path))}
    assert found == HOMES[library]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_keeps_to_its_subject(room: str) -> None:
    for name, path in SERVICE.items():
        if name == room or name.startswith(room + "."):
            found = {imported for imported in imports_of(path) if FORBIDDEN[room] & {imported, imported.split(".")[0]}}
            assert found == set(), name


def test_neither_package_imports_the_other() -> None:
    for package, other in (("service", "training"), ("training", "service")):
        for name, path in modules(package).items():
            assert not [i for i in imports_of(path) if i.split(".")[0] == other], name


def test_the_service_starts_where_torch_cannot_be_imported() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'lightning', 'polars', 'sklearn', 'training'): sys.modules[name] = None\n"
        "from service.__main__ import main\n"
        "from service.app import create_app\n"
        "from service.settings import Settings\n"
        "create_app(Settings())\n"
        "main(['settings'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "SLUICE_PORT" in found.stdout
