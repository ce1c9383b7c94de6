"""Rules of the functions that compute each number by itself: arithmetic, comparison, activations, types."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from training.importers.torch.axes import Value, canonical
from training.importers.torch.errors import Untranslatable
from training.importers.torch.ops_shape import chunk
from training.importers.torch.program import VaryingNumber
from training.importers.torch.rules import rule
from training.importers.torch.writer import Writer


def _common(w: Writer, *values: Any) -> torch.dtype:
    """The type in which torch compares these."""
    tensors = [value for value in values if isinstance(value, Value)]
    if any(tensor.dtype == torch.float32 for tensor in tensors) or any(isinstance(value, float) for value in values):
        return torch.float32
    if any(tensor.dtype == torch.int64 for tensor in tensors) or any(
        isinstance(value, int | VaryingNumber) and not isinstance(value, bool) for value in values
    ):
        return torch.int64
    return torch.bool


def _arithmetic(operator: str) -> Callable[..., Value]:
    def write(w: Writer, input: Any, other: Any, *, alpha: Any = 1) -> Value:
        dtype = w.result_dtype()
        if alpha != 1:
            other = w.elementwise("Mul", [other, alpha], dtype, dtype)
        return w.elementwise(operator, [input, other], dtype, dtype)

    return write


add = rule("add", "__add__", "__radd__", "add_", "__iadd__")(_arithmetic("Add"))
subtract = rule("sub", "subtract", "__sub__", "sub_", "__isub__")(_arithmetic("Sub"))
multiply = rule("mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__")(_arithmetic("Mul"))


@rule("rsub", "__rsub__")
def reverse_subtract(w: Writer, input: Any, other: Any, *, alpha: Any = 1) -> Value:
    return subtract(w, other, input, alpha=alpha)


@rule("div", "divide", "true_divide", "__truediv__", "div_", "__itruediv__")
def divide(w: Writer, input: Any, other: Any, *, rounding_mode: str | None = None) -> Value:
    dtype = w.result_dtype()
    if rounding_mode is None:
        return w.elementwise("Div", [input, other], torch.float32, dtype)
    if rounding_mode == "floor":
        return floor_divide(w, input, other)
    if dtype == torch.int64:
        return w.elementwise("Div", [input, other], dtype, dtype)
    quotient = w.elementwise("Div", [input, other], dtype, dtype)
    toward_zero = w.graph.add("Mul", w.graph.add("Sign", quotient.name), _floor_of_absolute(w, quotient.name))
    return quotient.named(toward_zero)


def _floor_of_absolute(w: Writer, name: str) -> str:
    return w.graph.add("Floor", w.graph.add("Abs", name))


@rule("rdiv", "__rtruediv__", "__rdiv__")
def reverse_divide(w: Writer, input: Any, other: Any) -> Value:
    return divide(w, other, input)


@rule("floor_divide", "__floordiv__")
def floor_divide(w: Writer, input: Any, other: Any) -> Value:
    dtype = w.result_dtype()
    quotient = w.elementwise("Div", [input, other], torch.float32, torch.float32)
    return w.cast(quotient.named(w.graph.add("Floor", quotient.name)), dtype)


@rule("pow", "__pow__", "pow_", "float_power")
def power(w: Writer, input: Any, exponent: Any) -> Value:
    dtype = w.result_dtype()
    if exponent == 2:
        return w.elementwise("Mul", [input, input], dtype, dtype)
    if exponent == 0.5:
        return _unary("Sqrt")(w, input)
    return w.elementwise("Pow", [input, exponent], torch.float32, dtype)


@rule("__rpow__")
def reverse_power(w: Writer, input: Any, other: Any) -> Value:
    return power(w, other, input)


@rule("remainder", "__mod__", "fmod")
def remainder(w: Writer, input: Any, other: Any) -> Value:
    if w.result_dtype() != torch.int64:
        raise Untranslatable("the remainder of numbers that are not whole")
    return w.elementwise(lambda a, b: w.graph.add("Mod", a, b), [input, other], torch.int64, torch.int64)


@rule("addcmul")
def addcmul(w: Writer, input: Value, tensor1: Any, tensor2: Any, *, value: float = 1) -> Value:
    product = multiply(w, tensor1, tensor2)
    return add(w, input, product if value == 1 else multiply(w, product, value))


@rule("lerp")
def lerp(w: Writer, input: Value, end: Value, weight: Any) -> Value:
    return add(w, input, multiply(w, subtract(w, end, input), weight))


def _comparison(operator: str) -> Callable[..., Value]:
    def write(w: Writer, input: Any, other: Any) -> Value:
        dtype = _common(w, input, other)
        if dtype == torch.bool and operator != "Equal":
            dtype = torch.int64
        return w.elementwise(operator, [input, other], dtype, torch.bool)

    return write


equal = rule("eq", "__eq__")(_comparison("Equal"))
greater = rule("gt", "__gt__", "greater")(_comparison("Greater"))
greater_equal = rule("ge", "__ge__", "greater_equal")(_comparison("GreaterOrEqual"))
less = rule("lt", "__lt__", "less")(_comparison("Less"))
less_equal = rule("le", "__le__", "less_equal")(_comparison("LessOrEqual"))


@rule("ne", "__ne__", "not_equal")
def not_equal(w: Writer, input: Any, other: Any) -> Value:
    return logical_not(w, equal(w, input, other))


@rule("logical_not", "__invert__", "bitwise_not")
def logical_not(w: Writer, input: Value) -> Value:
    value = w.cast(input, torch.bool)
    return value.named(w.graph.add("Not", w.name(value)))


def _logical(operator: str) -> Callable[..., Value]:
    def write(w: Writer, input: Any, other: Any) -> Value:
        return w.elementwise(operator, [input, other], torch.bool, torch.bool)

    return write


rule("logical_and", "__and__", "bitwise_and", "__rand__")(_logical("And"))
rule("logical_or", "__or__", "bitwise_or", "__ror__")(_logical("Or"))
rule("logical_xor", "__xor__", "bitwise_xor")(_logical("Xor"))


@rule("where")
def where(w: Writer, condition: Value, input: Any, other: Any) -> Value:
    dtype = w.result_dtype()
    branches = [w.operand(value, dtype) if not isinstance(value, VaryingNumber) else value for value in (input, other)]

    def write(*names: str) -> str:
        return w.graph.add("Where", w.small(w.cast(condition, torch.bool)), *names)

    result = w.elementwise(write, branches, dtype, dtype)
    return Value(result.name, w.result_axes(), dtype)


@rule("masked_fill", "masked_fill_")
def masked_fill(w: Writer, input: Value, mask: Value, value: Any) -> Value:
    dtype = w.result_dtype()
    return Value(where(w, mask, value, input).name, input.axes, dtype)


@rule("clamp", "clip", "clamp_", "clip_")
def clamp(w: Writer, input: Value, min: Any = None, max: Any = None) -> Value:
    dtype = w.result_dtype()
    result = input
    if min is not None:
        result = w.elementwise("Max", [result, min], dtype, dtype)
    if max is not None:
        result = w.elementwise("Min", [result, max], dtype, dtype)
    return result


@rule("clamp_min", "clamp_min_")
def clamp_min(w: Writer, input: Value, min: Any) -> Value:
    return clamp(w, input, min)


@rule("clamp_max", "clamp_max_")
def clamp_max(w: Writer, input: Value, max: Any) -> Value:
    return clamp(w, input, None, max)


@rule("maximum", "fmax")
def maximum(w: Writer, input: Any, other: Any) -> Value:
    dtype = w.result_dtype()
    return w.elementwise("Max", [input, other], dtype, dtype)


@rule("minimum", "fmin")
def minimum(w: Writer, input: Any, other: Any) -> Value:
    dtype = w.result_dtype()
    return w.elementwise("Min", [input, other], dtype, dtype)


def _unary(operator: str, **attributes: Any) -> Callable[..., Value]:
    def write(w: Writer, input: Value, *, inplace: bool = False) -> Value:
        value = w.cast(input, torch.float32)
        keeps_zero = operator in _KEEP_ZERO
        name = w.graph.add(operator, w.name(value), **attributes)
        return Value(name, value.axes, torch.float32, is_clean=keeps_zero and value.is_clean, is_packed=value.is_packed)

    return write


_KEEP_ZERO = {"Tanh", "Relu", "Sqrt", "Sin", "Elu", "Selu", "LeakyRelu", "Softsign", "Erf", "Neg"}
tanh = rule("tanh", "tanh_")(_unary("Tanh"))
sigmoid = rule("sigmoid", "sigmoid_", "expit")(_unary("Sigmoid"))
relu = rule("relu", "relu_")(_unary("Relu"))
exp = rule("exp", "exp_")(_unary("Exp"))
log = rule("log", "log_")(_unary("Log"))
sqrt = rule("sqrt", "sqrt_")(_unary("Sqrt"))
reciprocal = rule("reciprocal")(_unary("Reciprocal"))
for _name, _operator in {"sin": "Sin", "cos": "Cos", "tan": "Tan", "erf": "Erf", "softsign": "Softsign"}.items():
    rule(_name)(_unary(_operator))
for _name, _operator in {"sinh": "Sinh", "cosh": "Cosh", "atan": "Atan", "arctan": "Atan", "asinh": "Asinh"}.items():
    rule(_name)(_unary(_operator))


def _unary_of_any(operator: str) -> Callable[..., Value]:
    """One that keeps whole numbers whole."""

    def write(w: Writer, input: Value) -> Value:
        return input.named(w.graph.add(operator, w.name(input)), is_clean=input.is_clean)

    return write


negative = rule("neg", "__neg__", "negative", "neg_")(_unary_of_any("Neg"))
absolute = rule("abs", "__abs__", "absolute", "abs_")(_unary_of_any("Abs"))
rule("sign", "sgn")(_unary_of_any("Sign"))
for _name, _operator in {"floor": "Floor", "ceil": "Ceil", "round": "Round"}.items():
    rule(_name)(_unary(_operator))


@rule("rsqrt")
def rsqrt(w: Writer, input: Value) -> Value:
    return reciprocal(w, sqrt(w, input))


@rule("square")
def square(w: Writer, input: Value) -> Value:
    return w.elementwise("Mul", [input, input], input.dtype, input.dtype)


def _log_with_base(base: float) -> Callable[..., Value]:
    def write(w: Writer, input: Value) -> Value:
        return w.elementwise("Mul", [log(w, input), 1 / math.log(base)], torch.float32, torch.float32)

    return write


rule("log2")(_log_with_base(2))
rule("log10")(_log_with_base(10))


@rule("log1p")
def log1p(w: Writer, input: Value) -> Value:
    return log(w, w.elementwise("Add", [input, 1], torch.float32, torch.float32))


@rule("expm1")
def expm1(w: Writer, input: Value) -> Value:
    return w.elementwise("Sub", [exp(w, input), 1], torch.float32, torch.float32)


@rule("logit")
def logit(w: Writer, input: Value, eps: float | None = None) -> Value:
    value = input if eps is None else clamp(w, input, eps, 1 - eps)
    one = w.elementwise("Sub", [1, value], torch.float32, torch.float32)
    return log(w, w.elementwise("Div", [value, one], torch.float32, torch.float32))


@rule("leaky_relu", "leaky_relu_")
def leaky_relu(w: Writer, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    return _unary("LeakyRelu", alpha=negative_slope)(w, input)


@rule("elu", "elu_")
def elu(w: Writer, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return _unary("Elu", alpha=alpha)(w, input)


@rule("celu")
def celu(w: Writer, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    return _unary("Celu", alpha=alpha)(w, input)


@rule("selu", "selu_")
def selu(w: Writer, input: Value, inplace: bool = False) -> Value:
    return _unary("Selu")(w, input)


@rule("softplus")
def softplus(w: Writer, input: Value, beta: float = 1, threshold: float = 20) -> Value:
    # onnxruntime's Softplus does not overflow; beyond the threshold torch gives the input, which equals it in float32.
    if beta == 1:
        return _unary("Softplus")(w, input)
    scaled = _unary("Softplus")(w, w.elementwise("Mul", [input, beta], torch.float32, torch.float32))
    return w.elementwise("Div", [scaled, beta], torch.float32, torch.float32)


@rule("logsigmoid")
def logsigmoid(w: Writer, input: Value) -> Value:
    return negative(w, _unary("Softplus")(w, negative(w, input)))


@rule("hardtanh", "hardtanh_")
def hardtanh(w: Writer, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return clamp(w, input, float(min_val), float(max_val))


@rule("relu6")
def relu6(w: Writer, input: Value, inplace: bool = False) -> Value:
    return clamp(w, input, 0.0, 6.0)


@rule("hardsigmoid")
def hardsigmoid(w: Writer, input: Value, inplace: bool = False) -> Value:
    return _unary("HardSigmoid", alpha=1 / 6, beta=0.5)(w, input)


@rule("hardswish")
def hardswish(w: Writer, input: Value, inplace: bool = False) -> Value:
    return w.elementwise("Mul", [input, hardsigmoid(w, input)], torch.float32, torch.float32)


@rule("silu", "silu_")
def silu(w: Writer, input: Value, inplace: bool = False) -> Value:
    return w.elementwise("Mul", [input, sigmoid(w, input)], torch.float32, torch.float32)


@rule("mish")
def mish(w: Writer, input: Value, inplace: bool = False) -> Value:
    return w.elementwise("Mul", [input, tanh(w, softplus(w, input))], torch.float32, torch.float32)


@rule("gelu")
def gelu(w: Writer, input: Value, approximate: str = "none") -> Value:
    def times(*factors: Any) -> Value:
        result: Value = factors[0]
        for factor in factors[1:]:
            result = w.elementwise("Mul", [result, factor], torch.float32, torch.float32)
        return result

    def plus(one: Any, other: Any) -> Value:
        return w.elementwise("Add", [one, other], torch.float32, torch.float32)

    if approximate == "tanh":
        cubic = plus(input, times(input, input, input, 0.044715))
        return times(input, 0.5, plus(tanh(w, times(cubic, math.sqrt(2 / math.pi))), 1.0))
    return times(input, 0.5, plus(_unary("Erf")(w, times(input, math.sqrt(0.5))), 1.0))


@rule("glu")
def glu(w: Writer, input: Value, dim: int = -1) -> Value:
    values, gates = chunk(w, input, 2, dim)
    return w.elementwise("Mul", [values, sigmoid(w, gates)], torch.float32, torch.float32)


@rule("prelu")
def prelu(w: Writer, input: Value, weight: Value) -> Value:
    if weight.constant is None:
        raise Untranslatable("PReLU with a computed slope")
    slope = weight.constant
    if slope.numel() > 1 and input.rank > 2:
        slope = slope.reshape(-1, *[1] * (input.rank - 2))
    positive = relu(w, input)
    below = w.elementwise("Min", [input, 0.0], torch.float32, torch.float32)
    return add_of(w, positive, w.elementwise("Mul", [below, w.constant(slope)], torch.float32, torch.float32))


def add_of(w: Writer, one: Any, other: Any) -> Value:
    """The sum of two tensors of floats, whatever the call at hand gives."""
    return w.elementwise("Add", [one, other], torch.float32, torch.float32)


@rule("threshold", "threshold_")
def threshold(w: Writer, input: Value, threshold: float, value: float, inplace: bool = False) -> Value:
    condition = w.elementwise("Greater", [input, float(threshold)], torch.float32, torch.bool)
    name = w.graph.add("Where", condition.name, w.name(input), w.graph.constant(float(value)))
    return Value(name, input.axes, torch.float32)


@rule("tanhshrink")
def tanhshrink(w: Writer, input: Value) -> Value:
    return w.elementwise("Sub", [input, tanh(w, input)], torch.float32, torch.float32)


@rule("isnan")
def isnan(w: Writer, input: Value) -> Value:
    return Value(w.graph.add("IsNaN", w.name(w.cast(input, torch.float32))), input.axes, torch.bool)


@rule("isinf")
def isinf(w: Writer, input: Value) -> Value:
    return Value(w.graph.add("IsInf", w.name(w.cast(input, torch.float32))), input.axes, torch.bool)


@rule("nan_to_num")
def nan_to_num(w: Writer, input: Value, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Value:
    if posinf is not None or neginf is not None:
        raise Untranslatable("nan_to_num with numbers for infinity")
    name = w.graph.add("Where", isnan(w, input).name, w.graph.constant(float(nan or 0.0)), w.name(input))
    return Value(name, input.axes, torch.float32)


# ---------------------------------------------------------------------------------------------- same values, other type


@rule(
    "contiguous",
    "clone",
    "detach",
    "detach_",
    "cpu",
    "cuda",
    "requires_grad_",
    "data",
    "alias",
    "refine_names",
    "positive",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "feature_dropout",
    "lift_fresh",
    "identity",
)
def identity(w: Writer, input: Value, *args: Any, **kwargs: Any) -> Value:
    """Dropout too: recording refuses one that drops."""
    return input


@rule("to", "float", "double", "half", "long", "int", "short", "bool", "type", "type_as", "_to_copy")
def to(w: Writer, input: Value, *args: Any, **kwargs: Any) -> Value:
    dtype = w.node.dtypes[0] if w.node else input.dtype
    if dtype in (torch.float16, torch.bfloat16):
        raise Untranslatable(f"numbers of type {str(dtype).removeprefix('torch.')}")
    if canonical(dtype) == torch.int64 and input.dtype == torch.float32:
        truncated = w.graph.add("Cast", w.name(input), to=7)  # towards zero, as in torch
        return Value(truncated, input.axes, torch.int64)
    return w.cast(input, canonical(dtype))
