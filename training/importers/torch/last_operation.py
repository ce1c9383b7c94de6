"""What a recorded module does last, behind what only changes shapes: whether its numbers are probabilities or logits."""

from __future__ import annotations

from typing import Any

from training.importers.torch.recording import Recording, Ref

_PROBABILITIES = frozenset(("sigmoid", "sigmoid_", "special_expit", "hardsigmoid", "softmax", "special_softmax"))
# An affine map; the softmax of a log softmax is its softmax.
_LOGITS = frozenset(
    (
        "linear",
        "bilinear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "einsum",
        "conv1d",
        "add",
        "add_",
        "__add__",
        "__radd__",
        "__iadd__",
        "log_softmax",
        "special_log_softmax",
    )
)
_JOINS = frozenset(("cat", "concat", "stack"))
_SHAPES = frozenset(
    (
        "__getitem__",
        "chunk",
        "clone",
        "contiguous",
        "detach",
        "dropout",
        "expand",
        "flatten",
        "float",
        "gather",
        "index_select",
        "movedim",
        "mT",
        "narrow",
        "permute",
        "reshape",
        "select",
        "split",
        "squeeze",
        "swapaxes",
        "t",
        "T",
        "to",
        "transpose",
        "type",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
    )
)


def gives_probabilities(recording: Recording) -> bool | None:
    """Whether the first output is that of a sigmoid or softmax; False for an affine map, None where that does not tell."""
    kinds = find_last_operations(recording)
    if kinds and kinds <= _PROBABILITIES:
        return True
    return False if kinds and kinds <= _LOGITS else None


def find_last_operations(recording: Recording) -> set[str]:
    """The functions that the first output is of, without those that only change shapes or join; "" for no function."""
    kinds: set[str] = set()
    waiting = [_first(recording.result)]
    seen: set[Ref] = set()
    while waiting:
        ref = waiting.pop()
        if not isinstance(ref, Ref) or ref.call < 0:
            kinds.add("")
        elif ref not in seen:
            seen.add(ref)
            call = recording.calls[ref.call]
            source = call.args[0] if call.args else None
            if call.function in _JOINS and isinstance(source, list | tuple):
                waiting += source
            elif call.function in _SHAPES:
                waiting.append(source)
            else:
                kinds.add(call.function)
    return kinds


def _first(result: Any) -> Any:
    while isinstance(result, tuple | list | dict) and result:
        result = next(iter(result.values() if isinstance(result, dict) else result))
    return result
