"""Runs a module once and writes down every torch function that it calls, with real values. Translates nothing.

`torch.fx` follows values symbolically and gives up at `if x.dim() == 3`, `torch.zeros(2, x.size(0), 8)` and
`for t in range(x.size(1))`, which networks are full of. Here the module runs as it is, on real tensors, under a
`TorchFunctionMode`, which sees every call of torch, factories and item access included; what was a size and what a
constant shows when recordings of several sizes are laid side by side (`program.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from training.importers.torch.errors import ModuleRefused
from training.importers.torch.places import Place, Position, find_position
from training.importers.torch.scripted import run_script


@dataclass(frozen=True)
class Ref:
    """Result `part` of call number `call`; inputs of the module are call -1."""

    call: int
    part: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that no call of the recording made: a parameter, a buffer, a literal."""

    tensor: Tensor


@dataclass(frozen=True)
class SliceOf:
    """A slice whose bounds may be references."""

    start: Any
    stop: Any
    step: Any


@dataclass
class Call:
    """One call of a torch function: its arguments with tensors as references, and what came out."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    position: Position
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    reads_input: bool
    values: list[Tensor]
    """The results themselves where they do not depend on an input; else empty."""

    @property
    def signature(self) -> tuple[Any, ...]:
        return (self.function, self.position.trail)


@dataclass
class Recording:
    """All calls of one run; `result` is what the module returned, with tensors as references."""

    inputs: list[str]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    calls: list[Call]
    result: Any = None


# Values leave torch here: what follows may depend on them, and no graph can.
_READS = {
    "__bool__": "a branch on values",
    "__int__": "int(...) of a tensor",
    "__float__": "float(...) of a tensor",
    "__index__": "a tensor as a Python index",
    "__complex__": "complex(...) of a tensor",
    "__contains__": "`in` of a tensor",
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": "numpy in forward",
    "__array__": "numpy in forward",
    "is_nonzero": "a branch on values",
    "equal": "a branch on values",
    "allclose": "a branch on values",
}
_CHECKS_OF_FINITENESS = ("isnan", "isinf", "isfinite")
_RANDOM = {
    "rand",
    "randn",
    "randint",
    "rand_like",
    "randn_like",
    "randint_like",
    "randperm",
    "bernoulli",
    "multinomial",
    "normal",
    "uniform",
    "normal_",
    "uniform_",
    "bernoulli_",
    "gumbel_softmax",
    "rrelu",
    "poisson",
}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"}


def record(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> Recording:
    """Run `model(*args, **kwargs)` and record it; `inputs` are the tensors among the arguments that vary from row to row.

    Raises ModuleRefused where values leave torch inside `forward` or random numbers are drawn, and what the module raises.
    """
    recorder = _Recorder(inputs, {id(module): name for name, module in model.named_modules()})
    with torch.no_grad(), recorder:
        recorder.root = sys._getframe()
        if isinstance(model, torch.jit.ScriptModule):
            result = run_script(model, [*args, *kwargs.values()], recorder.notify)
        else:
            result = model(*args, **kwargs)
    recorder.recording.result = recorder.encode(result)
    return recorder.recording


@dataclass
class _Taint:
    """What a result depends on: 0 nothing, 1 only the lengths, 2 values; or a check whether values are finite."""

    level: int = 0
    is_check: bool = False


class _Recorder(TorchFunctionMode):
    def __init__(self, inputs: Mapping[str, Tensor], names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.root: Any = None
        self.script: tuple[Place | None, int] | None = None
        self.kept: list[Tensor] = []  # an id is only a name while its tensor lives
        self.refs: dict[int, Ref] = {}
        self.taints: dict[Ref, _Taint] = {}
        self.recording = Recording(
            list(inputs), [tuple(tensor.shape) for tensor in inputs.values()], [tensor.dtype for tensor in inputs.values()], []
        )
        for part, (name, tensor) in enumerate(inputs.items()):
            self._bind(tensor, Ref(-1, part), _Taint(1 if name == "lengths" else 2))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func)
        encoded = [self.encode(arg) for arg in args]
        encoded_kwargs = {key: self.encode(value) for key, value in kwargs.items()}
        refs = list(_refs((encoded, encoded_kwargs)))
        taints = [self.taints[ref] for ref in refs]
        level = max((taint.level for taint in taints), default=0)
        if name in _READS and level == 2 and not all(taint.is_check for taint in taints):
            self._refuse(_READS[name], "a graph computes the same for all values: use torch.where or a mask")
        if name in _RANDOM or (name in _DROPOUTS and _is_training(name, args, kwargs)):
            self._refuse(f"random numbers ({name})", "a model answers the same twice: dropout takes training=self.training")
        result = func(*args, **kwargs)
        mutated = name in ("__setitem__",) or kwargs.get("out") is not None
        outputs = list(_tensors(args[0] if mutated else result))
        if not outputs:
            return result
        position = self._position()
        number = len(self.recording.calls)
        is_check = level == 2 and (
            name in _CHECKS_OF_FINITENESS
            or (bool(taints) and all(t.is_check for t in taints if t.level) and name in _FOLDS_OF_CHECKS)
        )
        self.recording.calls.append(
            Call(
                name,
                encoded,
                encoded_kwargs,
                position,
                [tuple(output.shape) for output in outputs],
                [output.dtype for output in outputs],
                level > 0,
                [output.detach().clone() for output in outputs] if level == 0 else [],
            )
        )
        for part, output in enumerate(outputs):
            # How many rows go on at each step of packed ones follows from the lengths alone.
            own = taints[-1].level if name == "_pack_padded_sequence" and part == 1 and len(taints) > 1 else level
            self._bind(output, Ref(number, part), _Taint(own, is_check))
        return result

    def notify(self, place: Place | None, number: int) -> None:
        """The line of a script that is run next."""
        self.script = (place, number)

    def _position(self) -> Position:
        position = find_position(self.root, self.names)
        if self.script is None:
            return position
        place, number = self.script
        return Position(place, (("script", number),), position.scope)

    def encode(self, value: Any) -> Any:
        """`value` with its tensors as references."""
        if isinstance(value, Tensor):
            return self.refs.get(id(value)) or self._constant(value)
        if isinstance(value, nn.utils.rnn.PackedSequence):
            return tuple(self.encode(part) for part in value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {name: self.encode(part) for name, part in zip(value._fields, value, strict=True)}
        if isinstance(value, list):
            return [self.encode(part) for part in value]
        if isinstance(value, tuple):
            return tuple(self.encode(part) for part in value)
        if isinstance(value, Mapping):
            return {key: self.encode(part) for key, part in value.items()}
        if isinstance(value, slice):
            return SliceOf(self.encode(value.start), self.encode(value.stop), self.encode(value.step))
        if isinstance(value, range):
            return list(value)
        if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
            return {name: self.encode(getattr(value, name)) for name in value.__dataclass_fields__}
        return value

    def _constant(self, tensor: Tensor) -> Constant:
        self.kept.append(tensor)
        return Constant(tensor)

    def _bind(self, tensor: Tensor, ref: Ref, taint: _Taint) -> None:
        self.kept.append(tensor)
        self.refs[id(tensor)] = ref
        self.taints[ref] = taint

    def _refuse(self, what: str, instead: str) -> None:
        place = self._position().place
        raise ModuleRefused(f"{place}: {what}: {instead}" if place else f"{what}: {instead}")


_FOLDS_OF_CHECKS = {
    "any",
    "all",
    "logical_not",
    "__invert__",
    "sum",
    "logical_or",
    "logical_and",
    "__or__",
    "__and__",
    "not_equal",
}


def _is_training(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a dropout drops; torch's default for the functional form is to."""
    training = kwargs.get("training", args[2] if len(args) > 2 else name != "feature_dropout" and True)
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return bool(training) and bool(share)


def _name_of(func: Any) -> str:
    """`add` for torch.add and Tensor.add, `T` for the property, `select` for torch.ops.aten.select.int."""
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(func.__self__.__name__)
    return name.split(".")[0] if getattr(func, "__module__", "").startswith("torch._ops") else name


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _refs(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _refs(part)
    elif isinstance(value, SliceOf):
        yield from _refs((value.start, value.stop, value.step))
