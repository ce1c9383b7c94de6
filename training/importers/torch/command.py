"""The command line's way to a torch module: a function or class that makes it, its weights, and rows in files."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.importers.safetensors_file import read_safetensors
from training.importers.torch.errors import ModuleRefused

MAX_NAMED = 5


def load_network(source: str, weights: Path | None) -> nn.Module:
    """The network that `package.module:name` makes or is, with the weights of a file; of a Lightning checkpoint too.

    Runs the caller's code. Raises ModuleRefused that says what is not there, or which weights do not fit.
    """
    module_name, _, name = source.partition(":")
    working = os.getcwd()
    if working not in sys.path:
        sys.path.insert(0, working)  # a program's own folder stands there, not the caller's
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as exc:
        raise ModuleRefused(f"{source}: {module_name} cannot be imported: {exc}") from exc
    for part in name.split("."):
        if not hasattr(found, part):
            raise ModuleRefused(f"{source}: {module_name} has no {name}")
        found = getattr(found, part)
    content = None if weights is None else _read_weights(weights)
    if not isinstance(found, nn.Module):
        found = _make(found, source, content)
    if not isinstance(found, nn.Module):
        raise ModuleRefused(f"{source} gives {type(found).__name__}, not a torch.nn.Module")
    if content is not None:
        _load(found, _state_dict(content), weights)
    return found


def _make(factory: Any, source: str, content: Any) -> Any:
    """Call a function or class; a Lightning checkpoint knows its arguments."""
    if not callable(factory):
        raise ModuleRefused(f"{source} is {type(factory).__name__}, not a network or a function that makes one")
    given = content.get("hyper_parameters", {}) if isinstance(content, Mapping) else {}
    accepted = inspect.signature(factory).parameters
    arguments = {key: value for key, value in dict(given).items() if key in accepted}
    try:
        return factory(**arguments)
    except TypeError as exc:
        raise ModuleRefused(f"{source}: {exc}: write a function without arguments that makes the network") from exc


def _read_weights(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        raise ModuleRefused(f"--weights: {path}: {exc.strerror}") from exc
    except pickle.UnpicklingError as exc:
        raise ModuleRefused(
            f"--weights: {path} holds more than tensors{_objects_in(path)}, and is not opened: it could run code. "
            "Save net.state_dict() and give that"
        ) from exc
    except Exception as exc:  # torch's reader of untrusted files raises what its bytes lead to
        what = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModuleRefused(f"--weights: {path} is not a file that torch saved: {what}") from exc


def _objects_in(path: Path) -> str:
    """The classes and functions that a file's pickle names, which is read for them and not run."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the older format, whose pickle is not listed
        return ""
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f" ({', '.join(sorted(found)[:MAX_NAMED])}{more})" if found else ""


def _state_dict(content: Any) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModuleRefused("--weights: expected a state_dict, or a checkpoint that holds one")
    # Wrappers of torch put a word before every name.
    for prefix in ("module.", "_orig_mod."):
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def _load(network: nn.Module, weights: Mapping[str, Tensor], path: Path | None) -> None:
    own = network.state_dict()
    shapes = [
        f"{name} is {list(weights[name].shape)}, the network has {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    # A file of safetensors holds a tensor that goes by two names once.
    held = {own[name].data_ptr() for name in weights.keys() & own.keys()}
    missing = [f"{name} is missing" for name in own if name not in weights and own[name].data_ptr() not in held]
    unknown = [f"{name} is none of the network's" for name in weights if name not in own]
    faults = [*shapes, *missing, *unknown]
    if faults:
        more = f", and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise ModuleRefused(f"--weights: {path} does not fit: {'; '.join(faults[:MAX_NAMED])}{more}")
    network.load_state_dict(dict(weights), strict=False)


def read_pairs(pairs: list[str], option: str) -> dict[str, str] | None:
    """`a=b` as a mapping; None where there is none."""
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (separator and key and value):
            raise ModuleRefused(f"{option}: expected ARGUMENT=OUTPUT, got {pair!r}")
        found[key] = value
    return found or None
