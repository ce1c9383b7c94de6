"""Where Sluice's packages `service` and `training` are imported: only when needed, and never other packages of those names."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parent.parent
"""The folder that holds `sluice`, `service` and `training` side by side, installed or in a checkout."""


class PackageError(ImportError):
    """One of Sluice's packages cannot be imported; the message says what to do about it."""


def load(module: str) -> ModuleType:
    """Import a module of `service` or `training`.

    Raises PackageError where the name leads to another package, before any of its code runs. What else a module fails to
    import is raised as it is.
    """
    package = module.partition(".")[0]
    origin = _origin(package)
    if origin is None:
        raise PackageError(f"the package {package} is not beside {HOME / 'sluice'}: install sluice-serving anew")
    if origin.parent != HOME / package:
        raise PackageError(
            f'{origin.parent if origin.name == "__init__.py" else origin} hides Sluice\'s own package "{package}": rename it, or '
            "start where neither the working folder nor PYTHONPATH leads to it (`sluice` instead of `python -m sluice`)"
        )
    return importlib.import_module(module)


def _origin(package: str) -> Path | None:
    """The file that `import package` runs; None where there is none, as of a folder without `__init__.py`."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # an imported module that was made without a spec
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()
