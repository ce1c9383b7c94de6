"""Files of safetensors: named tensors and texts, read within bounds. No code of a file runs."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.importers.model import ModelImportError

MAX_BYTES = 4 << 30


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and the texts in its header. Raises ModelImportError that names the file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelImportError(f"{path}: {size >> 20} MB; at most {MAX_BYTES >> 20} MB are read")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  it is no mapping
    except OSError as exc:
        raise ModelImportError(f"{path}: {exc.strerror or exc}") from exc
    except (SafetensorError, ValueError, TypeError) as exc:
        raise ModelImportError(f"{path} is no file of safetensors, or is cut off: {exc}") from exc
