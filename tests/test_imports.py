"""What each folder may import: a rule per folder of service and training, one for the front. Arrows point one way, no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Everybody in the service may import these; they import one another from right to left only.
LEAVES = (
    "service.manifest",
    "service.wire",
    "service.json_pieces",
    "service.clock",
    "service.files",
    "service.context",
    "service.errors",
    "service",
)
# Folder (or file beside the folders) → the folders that it may import, leaves not counted. Whoever adds a folder adds its rule.
SERVICE_RULES: dict[str, set[str]] = {
    "service.__main__": {
        "service.server",
        "service.controlling",
        "service.app",
        "service.api",
        "service.models",
        "service.observability",
        "service.scoring",
    }
    | {"service.process", "service.runtime", "service.settings"},
    "service.server": {"service.app", "service.api", "service.models", "service.observability", "service.process"}
    | {"service.sequences", "service.settings"},
    "service.controlling": {"service.app", "service.models", "service.observability", "service.process", "service.settings"},
    "service.app": {
        "service.api",
        "service.models",
        "service.tasks",
        "service.scheduling",
        "service.sequences",
        "service.runtime",
    }
    | {"service.observability", "service.process", "service.settings"},
    "service.api": set(),
    "service.observability": set(),
    "service.scoring": {"service.models", "service.tasks", "service.runtime"},
    "service.models": {"service.tasks", "service.scheduling", "service.sequences", "service.runtime"},
    "service.tasks": {"service.runtime"},
    "service.scheduling": {"service.runtime"},
    "service.sequences": {"service.runtime"},
    "service.runtime": set(),
    "service.process": set(),
    "service.settings": set(),
}
TRAINING_RULES: dict[str, set[str]] = {
    "training.__main__": {"training.commands"},
    "training.commands": {"training.runs", "training.importers", "training.summary", "training.reporting", "training.export"}
    | {"training.starter", "training.data", "training.evaluation", "training.recipe"},
    "training.evaluation": {"training.data", "training.recipe"},
    "training.starter": {"training.data", "training.recipe"},
    "training.summary": {"training.runs", "training.importers", "training.network", "training.layers", "training.recipe"},
    "training.runs": {"training.export", "training.fitting", "training.scoring", "training.reporting", "training.network"}
    | {"training.layers", "training.data", "training.recipe"},
    "training.importers": {"training.export", "training.scoring", "training.network", "training.layers", "training.graph"},
    "training.reporting": {"training.export", "training.fitting", "training.scoring", "training.network", "training.data"}
    | {"training.recipe"},
    "training.export": {"training.scoring", "training.network", "training.graph", "training.data", "training.recipe"},
    "training.fitting": {"training.network", "training.recipe"},
    "training.scoring": {"training.data", "training.recipe"},
    "training.network": {"training.layers", "training.graph"},
    "training.layers": {"training.graph"},
    "training.graph": set(),
    "training.data": {"training.recipe"},
    "training.recipe": set(),
    "training.errors": set(),
}
# The library → the only files that import it.
HOMES = {
    "onnxruntime": {"service.runtime.onnx_runtime"},
    "orjson": {"service.wire"},
    "tokenizers": {"service.tasks.tokenization"},
    "prometheus_client": {"service.observability.prometheus"},
    "opentelemetry": {"service.observability.tracing"},
    "pydantic_settings": {"service.settings"},
    "redis": {"service.sequences.redis_store"},
    "uvicorn": {"service.server", "service.api.regular_path", "service.api.websocket_protocol"},
    "httptools": {"service.api.regular_path"},
    "fastapi_swagger": {"service.api.page"},
    "pyarrow": {"service.scoring.chunks", "service.scoring.outputs", "service.scoring.sources"},
    "ray": {"service.scoring.folders"},
    "rich": {"service.scoring.progress"},
}
# The same of the front, whose other files import none.
FRONT_HOMES = {"httpx": {"sluice.client.clients"}}
# Libraries that a folder does without, though the service has them.
WITHOUT = {
    "service.api": {"numpy", "onnxruntime", "prometheus_client"},
    "service.models": {"fastapi", "starlette", "prometheus_client"},
    "service.scoring": {"fastapi", "starlette", "onnxruntime", "prometheus_client"},
    "service.scheduling.planning": {"asyncio", "threading", "time", "numpy", "logging"},
    "service.scheduling": {"fastapi", "starlette", "onnxruntime", "prometheus_client"},
    "service.runtime.tensors": {"asyncio", "threading", "logging", "time", "pathlib"},
    "service.runtime": {"asyncio"},
    "service.tasks": {"asyncio", "threading", "time"},
    "service.process": {"fastapi", "numpy", "onnxruntime", "uvicorn"},
    "service.errors": {"fastapi", "starlette", "http"},
}


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SERVICE = modules("service")
TRAINING = modules("training")
FRONT = modules("sluice")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in SERVICE or name in TRAINING}
            found |= submodules if len(submodules) == len(names) else submodules | {node.module}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            found |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def folder_of(module: str) -> str:
    """The folder of the package that a module lies in, or the module itself where it stands beside the folders."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", [*SERVICE, *TRAINING])
def test_a_folder_imports_what_its_rule_allows(module: str) -> None:
    package, folder = module.split(".")[0], folder_of(module)
    leaves, rules = (LEAVES, SERVICE_RULES) if package == "service" else (("training", "training.errors"), TRAINING_RULES)
    allowed = {*leaves[leaves.index(folder) + 1 :]} if folder in leaves else {*leaves, folder, *rules[folder]}
    for imported in imports_of((SERVICE | TRAINING)[module]):
        if imported.split(".")[0] == package:
            assert folder_of(imported) in allowed, f"{module} imports {imported}"


@pytest.mark.parametrize("rules", [SERVICE_RULES, TRAINING_RULES], ids=["service", "training"])
def test_no_two_folders_may_import_each_other(rules: dict[str, set[str]]) -> None:
    remaining = {folder: set(allowed) for folder, allowed in rules.items()}
    while remaining:
        floor = {folder for folder, allowed in remaining.items() if not allowed & remaining.keys()}
        assert floor, f"a circle among {sorted(remaining)}"
        remaining = {folder: allowed for folder, allowed in remaining.items() if folder not in floor}


@pytest.mark.parametrize("package", [SERVICE, TRAINING], ids=["service", "training"])
def test_no_files_import_each_other_in_a_circle(package: dict[str, Path]) -> None:
    remaining = {module: imports_of(path) & package.keys() - {module} for module, path in package.items()}
    while remaining:
        floor = {module for module, imported in remaining.items() if not imported & remaining.keys()}
        assert floor, f"a circle among {sorted(remaining)}"
        remaining = {module: imported for module, imported in remaining.items() if module not in floor}


@pytest.mark.parametrize("library", HOMES)
def test_an_outside_library_lives_in_one_file(library: str) -> None:
    found = {name for name, path in SERVICE.items() if any(i.split(".")[0] == library for i in imports_of(path))}
    assert found == HOMES[library]


def test_on_the_network_side_of_training_only_the_builder_imports_onnx() -> None:
    sides = ("training.graph", "training.layers", "training.network")
    found = {name for name, path in TRAINING.items() if name.startswith(sides) and "onnx" in imports_of(path)}
    assert found == {"training.graph.builder"}


def test_a_single_layer_is_imported_by_the_layers_alone() -> None:
    shared = {"registry", "base", "activations", "decomposition", "named", "ragged", "scaling", "running_scaling", "weights"}
    shared |= {"bases", "covariates", "theta"}
    layers = {name for name in TRAINING if name.startswith("training.layers.") and name.rpartition(".")[2] not in shared}
    assert "training.layers.lstm" in layers
    for name, path in TRAINING.items():
        assert name.startswith("training.layers") or not imports_of(path) & layers, name


def test_of_the_network_the_heads_alone_differ_by_task() -> None:
    heads = {"training.network.heads.forecast", "training.network.heads.classify", "training.network.heads.tensor"}
    heads.add("training.network.heads.stream")
    assert heads <= TRAINING.keys()
    folders = ("training.network", "training.export", "training.fitting", "training.layers", "training.graph")
    for name, path in TRAINING.items():
        if name.startswith(folders) and name not in {*heads, "training.network.heads.registry"}:
            assert not imports_of(path) & heads, name


def test_training_has_lightning_in_one_file() -> None:
    found = {name for name, path in TRAINING.items() if any(i.split(".")[0] == "lightning" for i in imports_of(path))}
    assert found == {"training.fitting.fit"}


def test_training_has_optuna_in_one_file() -> None:
    found = {name for name, path in TRAINING.items() if any(i.split(".")[0] == "optuna" for i in imports_of(path))}
    assert found == {"training.runs.search"}


@pytest.mark.parametrize("place", WITHOUT)
def test_a_folder_keeps_to_its_subject(place: str) -> None:
    for name, path in SERVICE.items():
        if name == place or name.startswith(place + "."):
            assert not {imported.split(".")[0] for imported in imports_of(path)} & WITHOUT[place], name


def test_the_command_of_the_server_has_numpy_imported_only_after_its_threads_are_bounded() -> None:
    # numpy's BLAS starts its threads at the import, and a process with threads cannot be forked.
    code = "import service.__main__, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_neither_package_imports_the_other_or_the_front() -> None:
    for package, other in ((SERVICE, "training"), (TRAINING, "service")):
        for name, path in package.items():
            assert not [i for i in imports_of(path) if i.split(".")[0] in (other, "sluice")], name


@pytest.mark.parametrize("module", FRONT)
def test_the_front_imports_the_packages_in_functions_only_and_outside_libraries_in_their_homes(module: str) -> None:
    tree = ast.parse(FRONT[module].read_text())
    in_functions = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
            packages = {"service", "training"} if node in in_functions else set()
            packages |= {library for library, homes in FRONT_HOMES.items() if module in homes}
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"sluice"} | packages, f"{module} imports {name}"


def test_the_front_is_imported_without_any_library() -> None:
    code = "import sys, sluice; sys.exit(bool({'httpx', 'numpy', 'asyncio', 'json'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_client_knows_neither_package() -> None:
    for name, path in FRONT.items():
        if name.startswith("sluice.client"):
            assert not {imported.split(".")[0] for imported in imports_of(path)} & {"service", "training"}, name


@pytest.mark.parametrize("module", SERVICE)
def test_the_file_of_a_task_is_known_in_its_folder_only(module: str) -> None:
    if folder_of(module) != "service.tasks":
        known = {imported for imported in imports_of(SERVICE[module]) if folder_of(imported) == "service.tasks"}
        assert known <= {"service.tasks.base", "service.tasks.registry", "service.tasks.tables"}


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


def test_a_model_is_imported_where_the_libraries_of_training_alone_cannot_be() -> None:
    libraries = ("lightning", "torchmetrics", "polars", "statsforecast", "utilsforecast", "sklearn", "matplotlib")
    code = f"import sys; sys.modules.update(dict.fromkeys({libraries!r}))\n"
    code += "import training.__main__, training.importers.keras.importer, training.reporting.imports\n"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
