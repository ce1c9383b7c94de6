"""What is refused before a module is run, with the sentence that helps: things that are no network, and weights that are none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.importers.torch.errors import ModuleRefused

_LOW = (torch.float16, torch.bfloat16)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def require_network(model: Any) -> nn.Module:
    """The module. Raises ModuleRefused for a file, a state_dict, a checkpoint, a class, and for weights that cannot be served."""
    if isinstance(model, str | Path):
        raise ModuleRefused(
            f"{model} is a file, not a network: build the network and load its weights, as "
            'net = Net(...); net.load_state_dict(torch.load("best.pt", weights_only=True))'
        )
    if isinstance(model, Mapping):
        _refuse_mapping(model)
    if inspect.isclass(model):
        raise ModuleRefused(
            f"{model.__name__} is a class, not a network: {model.__name__}(...) makes one, load_state_dict its weights"
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise ModuleRefused("an ExportedProgram has its shapes frozen: give the module that was exported")
    if not isinstance(model, nn.Module):
        raise ModuleRefused(f"expected a torch.nn.Module, got {type(model).__name__}")
    original = getattr(model, "_orig_mod", None)
    if isinstance(original, nn.Module):
        model = original  # torch.compile's wrapper
    network: nn.Module = model.module if isinstance(model, _PARALLEL) else model
    _check_weights(network)
    return network


def _refuse_mapping(model: Mapping[Any, Any]) -> None:
    load = "net = Net(...); net.load_state_dict(...)"
    if "pytorch-lightning_version" in model or "hyper_parameters" in model:
        raise ModuleRefused("a Lightning checkpoint, not a network: net = MyModule.load_from_checkpoint(path)")
    if any(key in model for key in ("state_dict", "model_state_dict", "model")):
        key = next(key for key in ("state_dict", "model_state_dict", "model") if key in model)
        way = f"net = Net(...); net.load_state_dict(checkpoint[{key!r}])"
        raise ModuleRefused(f'a checkpoint, not a network: its weights are under "{key}": {way}')
    raise ModuleRefused(f"a state_dict holds weights, not a network: {load}, then publish net")


def _tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield "parameter", name, parameter
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer


def _check_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__:
            raise ModuleRefused(f'module "{name}" ({type(module).__name__}) is quantised: publish the network in float32')
    devices: dict[str, str] = {}
    for kind, name, tensor in _tensors(model):
        devices.setdefault(str(tensor.device), f'{kind} "{name}"')
    if len(devices) > 1:
        places = ", ".join(f"{label} on {device}" for device, label in devices.items())
        raise ModuleRefused(f"the network is on several devices ({places}): publish net.cpu()")
    for kind, name, tensor in _tensors(model):
        label = f'{kind} "{name}"'
        if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
            raise ModuleRefused(f"{label} has no shape yet: run the module once, then load its weights")
        if tensor.is_quantized:
            raise ModuleRefused(f"{label} is quantised: publish the network in float32")
        if tensor.dtype in _LOW:
            raise ModuleRefused(f"{label} is {str(tensor.dtype).removeprefix('torch.')}: publish net.float()")
        if tensor.is_complex():
            raise ModuleRefused(f"{label} is complex: ONNX's operators compute with real numbers")
        if tensor.layout != torch.strided:
            raise ModuleRefused(f"{label} is sparse: make it dense with .to_dense()")
        if tensor.is_meta:
            raise ModuleRefused(f"{label} has no values (it is on the meta device): load its weights")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()) and kind == "parameter":
            raise ModuleRefused(f"{label} holds numbers that are not finite")
