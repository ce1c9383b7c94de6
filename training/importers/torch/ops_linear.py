"""Rules of products, convolutions, pooling, normalisation, embeddings and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.importers.torch.axes import BATCH, Axis, Time, Value
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_elementwise import sqrt
from training.importers.torch.ops_reduce import mean_of, places_of, reduce, softmax
from training.importers.torch.ops_shape import cut, pad_axis, reshape_to, squeeze, unsqueeze
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer, join, positive

FLOAT = torch.float32


@rule("linear")
def linear(w: Writer, input: Value, weight: Value, bias: Value | None = None) -> Value:
    kernel = w.transpose(weight, [1, 0])
    features = weight.axes[0]
    value = Value(w.graph.add("MatMul", w.name(input), w.name(kernel)), (*input.axes[:-1], features), FLOAT)
    if isinstance(input.axes[-1], Time):
        raise Untranslatable("a Linear layer over the time axis")
    if bias is not None:
        value = value.named(w.graph.add("Add", value.name, w.name(bias)))
    return Value(value.name, value.axes, FLOAT, is_packed=input.is_packed)


@rule("matmul", "__matmul__", "bmm", "mm", "mv", "dot", "inner")
def matmul(w: Writer, input: Value, mat2: Value) -> Value:
    if input.rank == 0 or mat2.rank == 0:
        raise Untranslatable("a product with a number")
    one, other = w.cast(input, FLOAT), w.cast(mat2, FLOAT)
    place = one.rank - 1
    contracted = one.axes[-1]
    behind = other.axes[-2] if other.rank > 1 else other.axes[-1]
    if contracted != behind:
        raise Untranslatable(f"a product over the axes {contracted} and {behind}")
    if isinstance(contracted, Time):
        one = w.masked(one, place, 0.0)
        other = w.masked(other, max(other.rank - 2, 0), 0.0)
    elif not isinstance(contracted, int):
        raise Untranslatable(f"a product over the {contracted} axis: a row's answer would depend on the others")
    axes: tuple[Axis, ...] = ()
    if one.rank > 2 or other.rank > 2:
        axes = join([one.axes[:-2], other.axes[:-2]])
    axes += one.axes[-2:-1] if one.rank > 1 else ()
    axes += other.axes[-1:] if other.rank > 1 else ()
    return Value(w.graph.add("MatMul", w.name(one), w.name(other)), axes, FLOAT)


@rule("__rmatmul__")
def reverse_matmul(w: Writer, input: Value, other: Value) -> Value:
    return matmul(w, other, input)


@rule("addmm", "baddbmm")
def addmm(w: Writer, input: Value, mat1: Value, mat2: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product = matmul(w, mat1, mat2)
    if alpha != 1:
        product = w.elementwise("Mul", [product, float(alpha)], FLOAT, FLOAT)
    if beta != 1:
        input = w.elementwise("Mul", [input, float(beta)], FLOAT, FLOAT)
    return w.elementwise("Add", [input, product], FLOAT, FLOAT)


@rule("einsum")
def einsum(w: Writer, equation: str, *operands: Any) -> Value:
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    equation = equation.replace(" ", "")
    if "..." in equation:
        raise Untranslatable("einsum with an ellipsis")
    inputs, _, output = equation.partition("->")
    labels = inputs.split(",")
    if not _:
        every = "".join(labels)
        output = "".join(sorted(label for label in set(every) if every.count(label) == 1))
    axes: dict[str, Axis] = {}
    for letters, tensor in zip(labels, tensors, strict=True):
        for letter, axis in zip(letters, tensor.axes, strict=True):
            known = axes.get(letter, 1)
            if 1 not in (axis, known) and axis != known:
                raise Untranslatable(f"einsum over the axes {axis} and {known}")
            axes[letter] = axis if known == 1 else known
    names = []
    for letters, tensor in zip(labels, tensors, strict=True):
        value = w.cast(tensor, FLOAT)
        for place, letter in enumerate(letters):
            if letter not in output:
                if not isinstance(axes[letter], int | Time):
                    raise Untranslatable(f"a sum over the {axes[letter]} axis: a row's answer would depend on the others")
                value = w.masked(value, place, 0.0)
        names.append(w.name(value))
    name = w.graph.add("Einsum", *names, equation=f"{','.join(labels)}->{output}")
    return Value(name, tuple(axes[letter] for letter in output), FLOAT)


@rule("bilinear")
def bilinear(w: Writer, input1: Value, input2: Value, weight: Value, bias: Value | None = None) -> Value:
    letters = "abcdefgh"[: input1.rank - 1]
    value = einsum(w, f"{letters}x,oxy,{letters}y->{letters}o", input1, weight, input2)
    return value if bias is None else w.elementwise("Add", [value, bias], FLOAT, FLOAT)


@rule("embedding")
def embedding(
    w: Writer,
    input: Value,
    weight: Value,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    if input.constant is None and weight.constant is not None and max_norm is not None:
        raise Untranslatable("an embedding with max_norm, which changes its weights as it reads them")
    if isinstance(padding_idx, Value):  # aten's order of arguments
        raise Untranslatable("an embedding of a computed table")
    name = w.graph.add("Gather", w.name(weight), w.name(w.cast(input, torch.int64)), axis=0)
    return Value(name, (*input.axes, weight.axes[1]), FLOAT)


# ------------------------------------------------------------------------------------------------------- normalisation


@rule("layer_norm")
def layer_norm(
    w: Writer,
    input: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    num_axes = len(normalized_shape)
    if not all(isinstance(axis, int) for axis in input.axes[-num_axes:]):
        raise Untranslatable("a LayerNorm over the time axis")
    scale = weight or w.constant(torch.ones(tuple(normalized_shape)))
    names = [w.name(input), w.name(scale), *([w.name(bias)] if bias else [])]
    name = w.graph.add("LayerNormalization", *names, axis=-num_axes, epsilon=eps)
    return Value(name, input.axes, FLOAT, is_packed=input.is_packed and num_axes == 1)


@rule("rms_norm")
def rms_norm(w: Writer, input: Value, normalized_shape: Any, weight: Value | None = None, eps: float | None = None) -> Value:
    places = list(range(input.rank - len(normalized_shape), input.rank))
    squares = w.elementwise("Mul", [input, input], FLOAT, FLOAT)
    mean = reduce(w, "ReduceMean", squares, places, 0, True)
    size = sqrt(w, w.elementwise("Add", [mean, torch.finfo(FLOAT).eps if eps is None else eps], FLOAT, FLOAT))
    value = w.elementwise("Div", [input, size], FLOAT, FLOAT)
    return value if weight is None else w.elementwise("Mul", [value, weight], FLOAT, FLOAT)


@rule("batch_norm")
def batch_norm(
    w: Writer,
    input: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    if running_mean is None or running_var is None:
        raise Untranslatable("a BatchNorm without running statistics: a row's answer would depend on the others")
    if training:
        raise Untranslatable("a BatchNorm in training: a row's answer would depend on the others")
    constants = [running_mean, running_var, *(part for part in (weight, bias) if part)]
    if any(part.constant is None for part in constants):
        raise Untranslatable("a BatchNorm with computed statistics")
    mean, deviation = _numbers(running_mean), np.sqrt(_numbers(running_var).astype(np.float64) + eps)
    scale = (1 if weight is None else _numbers(weight)) / deviation
    shift = (0 if bias is None else _numbers(bias)) - mean * scale
    shape = (-1, *[1] * (input.rank - 2))
    scaled = w.graph.add("Mul", w.name(input), w.graph.constant(scale.reshape(shape)))
    return Value(w.graph.add("Add", scaled, w.graph.constant(shift.reshape(shape))), input.axes, FLOAT)


def _numbers(value: Value) -> Any:
    assert value.constant is not None
    return value.constant.numpy()


@rule("group_norm")
def group_norm(
    w: Writer, input: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    channels = input.axes[1]
    assert isinstance(channels, int)
    sizes = [_sizes(w, axis) for axis in input.axes]
    share = channels // num_groups
    groups = reshape_to(w, input, [sizes[0], (num_groups,) * len(w.batch), (share,) * len(w.batch), *sizes[2:]])
    value = _standardised(w, groups, list(range(2, groups.rank)), eps)
    return _scaled(w, reshape_to(w, value, sizes), weight, bias)


@rule("instance_norm")
def instance_norm(
    w: Writer,
    input: Value,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    if not use_input_stats:
        return batch_norm(w, input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _scaled(w, _standardised(w, input, list(range(2, input.rank)), eps), weight, bias)


def _sizes(w: Writer, axis: Axis) -> tuple[int, ...]:
    if axis == BATCH:
        return w.batch
    return axis.steps if isinstance(axis, Time) else (axis,) * len(w.batch)  # type: ignore[return-value]


def _standardised(w: Writer, value: Value, places: Sequence[int], eps: float) -> Value:
    apart = w.elementwise("Sub", [value, mean_of(w, value, places, True)], FLOAT, FLOAT)
    squares = w.elementwise("Mul", [apart, apart], FLOAT, FLOAT)
    size = sqrt(w, w.elementwise("Add", [mean_of(w, squares, places, True), eps], FLOAT, FLOAT))
    return w.elementwise("Div", [apart, size], FLOAT, FLOAT)


def _scaled(w: Writer, value: Value, weight: Value | None, bias: Value | None) -> Value:
    shape = (-1, *[1] * (value.rank - 2))
    for operator, part in (("Mul", weight), ("Add", bias)):
        if part is not None:
            value = w.elementwise(operator, [value, w.constant(_numbers(part).reshape(shape))], FLOAT, FLOAT)
    return value


# -------------------------------------------------------------------------------------------------- windows over time


def _only(number: Any) -> int:
    return int(number[0]) if isinstance(number, list | tuple) else int(number)


@rule("conv1d")
def conv1d(
    w: Writer,
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    if weight.constant is None:
        raise Untranslatable("a convolution with computed weights")
    if input.rank != 3:
        raise Untranslatable("a convolution of one row without a batch axis")
    stride, dilation = _only(stride), _only(dilation)
    filters, _, kernel = weight.constant.shape
    span = dilation * (kernel - 1) + 1
    if isinstance(padding, str):
        total = span - 1 if padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = _only(padding)
    padded = _padded(w, input, before, after, 0.0)
    names = [w.name(padded), w.name(weight), *([w.name(bias)] if bias else [])]
    name = w.graph.add(
        "Conv", *names, kernel_shape=[kernel], strides=[stride], dilations=[dilation], group=groups, pads=[before, after]
    )
    axis = _window_axis(w, input.axes[2], before + after - span, stride, name)
    return Value(name, (input.axes[0], filters, axis), FLOAT)


def _padded(w: Writer, input: Value, before: int, after: int, fill: float) -> Value:
    """The input with `fill` behind every row's end, where a window that counts reaches there."""
    return w.masked(input, 2, fill) if after else input


def _window_axis(w: Writer, axis: Axis, change: int, stride: int, name: str) -> Axis:
    """How many windows there are: (length + change) // stride + 1."""
    if isinstance(axis, int):
        return (axis + change) // stride + 1
    if not isinstance(axis, Time):
        raise Untranslatable(f"a window over the {axis} axis")
    if stride == 1:
        lengths = w.linear(axis.lengths, 1, change + 1)
    else:
        # Rounded down: numbers below zero would be rounded up, but a row has at least one window.
        lengths = w.linear(w.graph.add("Div", w.linear(axis.lengths, 1, change), w.graph.constant([stride])), 1, 1)
    time = Time(lengths, tuple((steps + change) // stride + 1 for steps in axis.steps))
    w.add_time(time, name, 2)
    return time


@rule("max_pool1d", "max_pool1d_with_indices", "boolean_dispatch", "_max_pool1d")
def max_pool1d(
    w: Writer,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if ceil_mode or return_indices or input.rank != 3:
        raise Untranslatable("max_pool1d with ceil_mode or return_indices")
    kernel, padding, dilation = _only(kernel_size), _only(padding), _only(dilation)
    stride = kernel if stride is None or stride == [] else _only(stride)
    padded = _padded(w, input, padding, padding, -math.inf)
    name = w.graph.add(
        "MaxPool", w.name(padded), kernel_shape=[kernel], strides=[stride], pads=[padding, padding], dilations=[dilation]
    )
    span = dilation * (kernel - 1) + 1
    axis = _window_axis(w, input.axes[2], 2 * padding - span, stride, name)
    return Value(name, (*input.axes[:2], axis), FLOAT)


@rule("avg_pool1d")
def avg_pool1d(
    w: Writer,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Value:
    kernel, padding = _only(kernel_size), _only(padding)
    stride = kernel if stride is None or stride in ((), []) else _only(stride)
    if ceil_mode or input.rank != 3 or (padding and not count_include_pad):
        raise Untranslatable("avg_pool1d with ceil_mode, or whose padding does not count")
    value = pad_axis(w, input, 2, padding, padding, 0.0) if padding else input
    name = w.graph.add("AveragePool", w.name(value), kernel_shape=[kernel], strides=[stride])
    axis = _window_axis(w, input.axes[2], 2 * padding - kernel, stride, name)
    return Value(name, (*input.axes[:2], axis), FLOAT)


def _whole_axis(w: Writer, input: Value, output_size: Any) -> tuple[int, int | None]:
    """The axis to pool and, where it is of fixed size, how many windows it is cut into."""
    size = _only(output_size)
    axis = input.axes[-1]
    if size == 1:
        return input.rank - 1, None
    if isinstance(axis, int) and axis % size == 0:
        return input.rank - 1, axis // size
    raise Untranslatable("adaptive pooling of the time axis to more than one step")


@rule("adaptive_avg_pool1d")
def adaptive_avg_pool1d(w: Writer, input: Value, output_size: Any) -> Value:
    place, window = _whole_axis(w, input, output_size)
    return mean_of(w, input, [place], True) if window is None else avg_pool1d(w, input, window)


@rule("adaptive_max_pool1d", "adaptive_max_pool1d_with_indices")
def adaptive_max_pool1d(w: Writer, input: Value, output_size: Any, return_indices: bool = False) -> Value:
    place, window = _whole_axis(w, input, output_size)
    return reduce(w, "ReduceMax", input, [place], -math.inf, True) if window is None else max_pool1d(w, input, window)


# ----------------------------------------------------------------------------------------------------------- attention


@rule("scaled_dot_product_attention")
def attention(
    w: Writer,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        raise Untranslatable("attention that drops")
    return _attend(w, query, key, value, attn_mask, is_causal, scale)[0]


def _attend(
    w: Writer, query: Value, key: Value, value: Value, mask: Value | None, is_causal: bool, scale: float | None
) -> tuple[Value, Value]:
    features = query.axes[-1]
    assert isinstance(features, int)
    order = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    scores = matmul(w, query, w.transpose(key, order))
    scores = w.elementwise("Mul", [scores, scale or 1 / math.sqrt(features)], FLOAT, FLOAT)
    if is_causal:
        rows = w.unsqueeze(w.steps_range(w.size(scores.axes[-2])), [1])
        seen = w.graph.add("LessOrEqual", w.steps_range(w.size(scores.axes[-1])), rows)
        scores = scores.named(w.graph.add("Where", seen, scores.name, w.graph.constant(-math.inf)))
    if mask is not None and mask.dtype == torch.bool:
        name = w.graph.add("Where", w.name(mask), scores.name, w.graph.constant(-math.inf))
        scores = Value(name, scores.axes, FLOAT)
    elif mask is not None:
        scores = w.elementwise("Add", [scores, mask], FLOAT, FLOAT)
    weights = softmax(w, scores, -1)
    return matmul(w, weights, value), weights


@rule("multi_head_attention_forward")
def multi_head_attention(
    w: Writer,
    query: Value,
    key: Value,
    value: Value,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Value | None,
    in_proj_bias: Value | None,
    bias_k: Value | None,
    bias_v: Value | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Value,
    out_proj_bias: Value | None,
    training: bool = True,
    key_padding_mask: Value | None = None,
    need_weights: bool = True,
    attn_mask: Value | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Value | None = None,
    k_proj_weight: Value | None = None,
    v_proj_weight: Value | None = None,
    static_k: Value | None = None,
    static_v: Value | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Time first, as torch's function takes it."""
    if bias_k or bias_v or add_zero_attn or static_k or static_v or query.rank != 3:
        raise Untranslatable("MultiheadAttention with bias_k, bias_v or add_zero_attn")
    if training and dropout_p:
        raise Untranslatable("attention that drops")
    size = embed_dim_to_check
    if use_separate_proj_weight:
        kernels = [q_proj_weight, k_proj_weight, v_proj_weight]
    else:
        assert in_proj_weight is not None
        kernels = [cut(w, in_proj_weight, 0, number * size, (number + 1) * size) for number in range(3)]
    biases = [cut(w, in_proj_bias, 0, number * size, (number + 1) * size) if in_proj_bias else None for number in range(3)]

    def heads(source: Value, number: int) -> Value:
        kernel = kernels[number]
        assert kernel is not None
        projected = w.transpose(linear(w, source, kernel, biases[number]), [1, 0, 2])  # (B, T, E)
        sizes = [_sizes(w, axis) for axis in projected.axes[:2]]
        split = [(num_heads,) * len(w.batch), (size // num_heads,) * len(w.batch)]
        return w.transpose(reshape_to(w, projected, [*sizes, *split]), [0, 2, 1, 3])  # (B, heads, T, E / heads)

    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.named(w.graph.add("Not", w.name(mask)))  # here true is hidden, in the other function seen
    if mask is not None and mask.rank == 3:
        raise Untranslatable("MultiheadAttention with a mask for every head")
    if key_padding_mask is not None:
        hidden = unsqueeze(w, unsqueeze(w, key_padding_mask, 1), 1)  # (B, 1, 1, T)
        if hidden.dtype == torch.bool:
            numbers = w.graph.add("Where", w.name(hidden), w.graph.constant(-math.inf), w.graph.constant(0.0))
            hidden = Value(numbers, hidden.axes, FLOAT)
        if mask is not None and mask.dtype == torch.bool:
            numbers = w.graph.add("Where", w.name(mask), w.graph.constant(0.0), w.graph.constant(-math.inf))
            mask = Value(numbers, mask.axes, FLOAT)
        mask = hidden if mask is None else w.elementwise("Add", [mask, hidden], FLOAT, FLOAT)
    attended, weights = _attend(w, heads(query, 0), heads(key, 1), heads(value, 2), mask, is_causal and mask is None, None)
    together = w.transpose(attended, [2, 0, 1, 3])  # (T, B, heads, E / heads)
    sizes = [_sizes(w, axis) for axis in together.axes[:2]]
    result = linear(w, reshape_to(w, together, [*sizes, (size,) * len(w.batch)]), out_proj_weight, out_proj_bias)
    if not need_weights:
        return result, None
    return result, mean_of(w, weights, [1], False) if average_attn_weights else weights


__all__ = ["places_of", "positive", "squeeze"]
