"""Runs a TorchScript module call by call, so that its functions can be recorded: torch's own interpreter shows none.

Only what a frozen graph holds: constants, lists and tuples, branches and loops on numbers, and `aten` functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from training.importers.torch.errors import Untranslatable
from training.importers.torch.places import Place

Notify = Callable[[Place | None, int], None]


def run_script(module: Any, args: Sequence[Any], notify: Notify) -> Any:
    """`module(*args)`; `notify` is told the source line and the number of each call before it is made."""
    frozen = module if not hasattr(module, "training") else _frozen(module)
    graph = frozen.inlined_graph
    inputs = list(graph.inputs())
    values: dict[str, Any] = {inputs[0].debugName(): frozen}
    given = list(args)
    for number, entry in enumerate(inputs[1:]):
        values[entry.debugName()] = given[number] if number < len(given) else None
    runner = _Runner(notify)
    runner.run(graph, values)
    results = [values[output.debugName()] for output in graph.outputs()]
    return results[0] if len(results) == 1 else tuple(results)


def _frozen(module: Any) -> Any:
    if module.training:
        module = module.eval()
    try:
        return torch.jit.freeze(module)
    except RuntimeError:
        return module  # frozen before


class _Runner:
    def __init__(self, notify: Notify) -> None:
        self.notify = notify
        self.numbers: dict[Any, int] = {}

    def run(self, block: Any, values: dict[str, Any]) -> None:
        for number, node in enumerate(block.nodes()):
            self.execute(node, values, number)

    def execute(self, node: Any, values: dict[str, Any], number: int) -> None:
        kind = node.kind()
        inputs = [values[entry.debugName()] for entry in node.inputs()]
        outputs = [entry.debugName() for entry in node.outputs()]
        if kind == "prim::If":
            block = list(node.blocks())[0 if inputs[0] else 1]
            self.run(block, values)
            results = [values[entry.debugName()] for entry in block.outputs()]
        elif kind == "prim::Loop":
            results = self.loop(node, inputs, values)
        elif kind.startswith("prim::"):
            results = self.primitive(kind.removeprefix("prim::"), node, inputs)
        else:
            file = re.search(r'File "([^"]+)", line (\d+)', node.sourceRange())
            self.notify(Place(file[1], int(file[2])) if file else None, hash((number, node.sourceRange())))
            result = call(kind, inputs)
            results = list(result) if len(outputs) > 1 else [result]
        for name, value in zip(outputs, results, strict=True):
            values[name] = value

    def loop(self, node: Any, inputs: Sequence[Any], values: dict[str, Any]) -> list[Any]:
        most, goes_on, *carried = inputs
        (block,) = node.blocks()
        names = [entry.debugName() for entry in block.inputs()]
        turn = 0
        while goes_on and turn < most:
            values.update(zip(names, [turn, *carried], strict=True))
            self.run(block, values)
            goes_on, *carried = (values[entry.debugName()] for entry in block.outputs())
            turn += 1
        return list(carried)

    def primitive(self, kind: str, node: Any, inputs: Sequence[Any]) -> list[Any]:
        match kind:
            case "Constant":
                return [node.output().toIValue()]
            case "ListConstruct":
                return [list(inputs)]
            case "TupleConstruct":
                return [tuple(inputs)]
            case "ListUnpack" | "TupleUnpack":
                return list(inputs[0])
            case "TupleIndex":
                return [inputs[0][inputs[1]]]
            case "DictConstruct":
                return [dict(zip(inputs[::2], inputs[1::2], strict=True))]
            case "GetAttr":
                return [getattr(inputs[0], node.s("name"))]
            case "dtype":
                return [inputs[0].dtype]
            case "device":
                return [inputs[0].device]
            case "unchecked_cast" | "unchecked_unwrap_optional":
                return [inputs[0]]
            case "NumToTensor":
                return [torch.tensor(inputs[0])]
            case "Uninitialized":
                return [None]
            case "min" | "max":
                return [(min if kind == "min" else max)(*(inputs if len(inputs) > 1 else inputs[0]))]
            case "RaiseException":
                raise RuntimeError(str(inputs[0]))
        raise Untranslatable(f"TorchScript's {kind}")


def call(kind: str, inputs: list[Any]) -> Any:
    """One `aten` function. Those of lists and numbers are Python's: the registered ones copy their lists."""
    name = kind.removeprefix("aten::")
    first: Any = inputs[0] if inputs else None
    is_plain = not isinstance(first, torch.Tensor)
    match name:
        case "append" if is_plain:
            first.append(inputs[1])
            return first
        case "len" if is_plain:
            return len(first)
        case "__getitem__" if is_plain:
            return first[inputs[1]]
        case "list" if is_plain:
            return list(first)
        case "format":
            return first.format(*inputs[1:])
        case "size":
            return list(first.shape) if len(inputs) == 1 else first.shape[inputs[1]]
        case "dim":
            return first.dim()
        case "warn":
            return None
        case "__not__":
            return not first
        case "__is__":
            return first is inputs[1]
        case "__isnot__":
            return first is not inputs[1]
        case "eq" | "ne" if is_plain:
            return (first == inputs[1]) == (name == "eq")
        case "__contains__" if is_plain:
            return inputs[1] in first
        case "Bool" | "Int" | "Float" if is_plain:
            return {"Bool": bool, "Int": int, "Float": float}[name](first)
        case "zeros" | "ones" | "empty":
            return getattr(torch, name)(first, dtype=_dtype(inputs[1]))
        case "to" if not is_plain:
            return first.to(_dtype(next((value for value in inputs[1:] if isinstance(value, int | torch.dtype)), first.dtype)))
    namespace, _, own = kind.partition("::")
    return getattr(getattr(torch.ops, namespace), own)(*inputs)


def _dtype(value: Any) -> torch.dtype | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, torch.dtype):
        return value
    # TorchScript counts its types.
    return {4: torch.int64, 5: torch.float16, 6: torch.float32, 7: torch.float64, 11: torch.bool, 3: torch.int32}.get(value)
