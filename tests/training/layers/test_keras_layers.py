"""Every layer and option against Keras itself: the same weights, the same rows, torch and graph within 1e-5."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")

from training.export.graph import write_graph
from training.export.verify import verify
from training.importers.keras.layers import from_keras_config, keras_classes
from training.layers.registry import LayerError
from training.network.heads.tensor import TensorSpec
from training.network.network import Network

# Keras warns of layers that end a mask, which is what some of these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer '.*' .of type:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

L = keras.layers
TOLERANCE = 1e-5
STEPS, FEATURES = 7, 3
Array = NDArray[Any]
Answers = list[Array]

CELLS: dict[str, Any] = {"lstm": L.LSTM, "gru": L.GRU, "simple_rnn": L.SimpleRNN}
NODE_ACTIVATIONS = ["linear", "relu", "sigmoid", "hard_sigmoid", "elu", "softsign", "softplus", "leaky_relu"]
SCAN_ACTIVATIONS = ["selu", "silu", "gelu", "softmax", "relu6", "hard_tanh"]
random = np.random.default_rng(5)


def rows(num_rows: int = 5, steps: int = STEPS, features: int = FEATURES) -> Array:
    return random.normal(size=(num_rows, steps, features)).astype(np.float32)


def rows_with_holes() -> Array:
    """Padding behind, padding in front, holes, nothing at all, and a whole row."""
    values = rows()
    values[0, 4:] = 0
    values[1, :3] = 0
    values[2, [0, 3, 6]] = 0
    values[3] = 0
    return values


def tokens_with_holes(vocabulary: int) -> Array:
    ids = random.integers(1, vocabulary, (5, STEPS))
    masked: Array = ids * (rows_with_holes()[:, :, 0] != 0)
    return masked


def make(*layers: Any, shape: tuple[int | None, ...] = (STEPS, FEATURES), dtype: str = "float32") -> Any:
    """A chain of Keras layers as a functional model, with weights that are not what they start as."""
    value = given = keras.Input(shape, dtype=dtype)
    for layer in layers:
        value = layer(value[0] if isinstance(value, list | tuple) else value)
    model = keras.Model(given, value)
    for layer in model.layers:
        # variances must be positive
        layer.set_weights([random.uniform(0.1, 0.9, weight.shape) - 0.4 * (weight.ndim > 1) for weight in layer.get_weights()])
    return model


def convert(model: Any, shape: Sequence[int | str], kind: str = "floats") -> Network:
    layers = [layer for layer in model.layers if not isinstance(layer, L.InputLayer)]
    tables = [from_keras_config(keras.saving.serialize_keras_object(layer)) for layer in layers]
    network = Network(TensorSpec(layers=tables, input={"kind": kind, "shape": shape}))  # type: ignore[arg-type]
    for ours, theirs in zip(network.layers, layers, strict=True):
        ours.load_keras_weights(theirs.get_weights())  # type: ignore[operator]
    return network.eval()


def answer_of_keras(model: Any, values: Array) -> Answers:
    with torch.no_grad():
        answer = model(torch.from_numpy(values), training=False)
    return [part.cpu().numpy() for part in (answer if isinstance(answer, list | tuple) else [answer])]


def inputs_of(network: Network, values: Array, lengths: Array | None = None) -> dict[str, Array]:
    inputs = {"input": values}
    if network.has_lengths:
        inputs["lengths"] = np.full(len(values), values.shape[1]) if lengths is None else lengths
    return inputs


def answer_of_torch(network: Network, inputs: dict[str, Array]) -> Answers:
    with torch.no_grad():
        answer = network({name: torch.from_numpy(array) for name, array in inputs.items()})
    return [part.numpy() for part in answer.values()]


class Graph:
    """The network's graph in onnxruntime."""

    def __init__(self, network: Network) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = write_graph(network)
        self.session = onnxruntime.InferenceSession(self.model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Array]) -> Answers:
        return list(self.session.run(None, inputs))

    @property
    def operators(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]


def assert_same(found: Answers, expected: Answers, where: str) -> None:
    assert [part.shape for part in found] == [part.shape for part in expected], where
    for part, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, wanted, atol=TOLERANCE, rtol=TOLERANCE, err_msg=where)


def compare(model: Any, values: Array, *, kind: str = "floats", is_open: bool = True) -> None:
    """Keras = torch = graph, for fixed and for open time axes, in batches of several sizes."""
    expected = answer_of_keras(model, values)
    fixed = values.shape[1:]
    shapes: list[tuple[int | str, ...]] = [fixed, ("time", *fixed[1:])] if is_open else [fixed]
    for shape in shapes:
        network = convert(model, shape, kind)
        graph = Graph(network)
        for start, end in ((0, len(values)), (1, 2), (2, 5)):
            inputs = inputs_of(network, values[start:end])
            inputs |= {part.input: np.zeros((end - start, part.units), np.float32) for part in network.state}
            num_outputs = len(expected)
            wanted = [part[start:end] for part in expected]
            where = f"{shape}, rows {start} to {end}"
            assert_same(answer_of_torch(network, inputs)[:num_outputs], wanted, f"torch, {where}")
            assert_same(graph(inputs)[:num_outputs], wanted, f"graph, {where}")


RETURNS: list[dict[str, Any]] = [
    {},
    {"return_sequences": True},
    {"return_state": True},
    {"return_sequences": True, "return_state": True},
]
WAYS: list[dict[str, Any]] = [
    *RETURNS,
    {"go_backwards": True},
    {"go_backwards": True, "return_sequences": True},
    {"go_backwards": True, "return_state": True, "return_sequences": True},
    {"zero_output_for_mask": True},
    {"zero_output_for_mask": True, "return_sequences": True},
    {"zero_output_for_mask": True, "go_backwards": True},
    {"zero_output_for_mask": True, "go_backwards": True, "return_sequences": True},
    {"use_bias": False, "return_sequences": True},
    {"unroll": True, "return_sequences": True},
    {"activation": "relu", "return_sequences": True, "go_backwards": True, "return_state": True},
]


@pytest.mark.parametrize("kind", [*CELLS, "gru, reset before"])
def test_a_recurrent_layer_gives_keras_numbers_under_every_mask(kind: str) -> None:
    options: dict[str, Any] = {"reset_after": False} if "," in kind else {}
    cell = CELLS[kind.partition(",")[0]]
    for way in WAYS:
        if way.get("unroll"):  # Keras's own unrolled loop does not run backwards under a mask
            assert not way.get("go_backwards")
        compare(make(cell(4, **options, **way)), rows())
        compare(make(L.Masking(), cell(4, **options, **way)), rows_with_holes())


@pytest.mark.parametrize("activation", [*NODE_ACTIVATIONS, *SCAN_ACTIVATIONS])
def test_other_activations_give_keras_numbers(activation: str) -> None:
    for options in ({"activation": activation}, {"recurrent_activation": activation, "reset_after": False}):
        compare(make(L.Masking(), L.GRU(4, return_sequences=True, **options)), rows_with_holes())
    compare(make(L.Masking(), L.SimpleRNN(4, activation=activation, go_backwards=True)), rows_with_holes())
    compare(make(L.LSTM(4, activation=activation, return_state=True)), rows())
    model = make(L.Masking(), L.LSTM(4, recurrent_activation=activation, return_sequences=True))
    compare(model, rows_with_holes())


@pytest.mark.parametrize("activation", NODE_ACTIVATIONS)
@pytest.mark.parametrize("kind", CELLS)
def test_activations_that_onnx_has_keep_the_layer_one_node(kind: str, activation: str) -> None:
    operator = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "RNN"}[kind]
    plain = make(CELLS[kind](4, activation=activation))
    both = make(L.Bidirectional(CELLS[kind](4, activation=activation), backward_layer=CELLS[kind](4, go_backwards=True)))
    for model in (plain, both):
        operators = Graph(convert(model, ("time", FEATURES))).operators
        assert operators.count(operator) == 1
        assert "Scan" not in operators
    compare(both, rows())


def test_hard_sigmoid_has_the_slope_of_its_version() -> None:
    entry = keras.saving.serialize_keras_object(L.LSTM(4, recurrent_activation="hard_sigmoid"))
    assert from_keras_config(entry)["recurrent_activation"] == "hard_sigmoid"
    assert from_keras_config(entry, keras_version="2.15.0")["recurrent_activation"] == "hard_sigmoid_keras2"
    values = np.linspace(-4, 4, 33, dtype=np.float32).reshape(-1, 1)
    for name, slope in (("hard_sigmoid", 1 / 6), ("hard_sigmoid_keras2", 0.2)):
        table = {"type": "activation", "activation": name}
        network = Network(TensorSpec(layers=[table], input={"shape": (1,)}))  # type: ignore[arg-type]
        expected = [np.clip(slope * values + 0.5, 0, 1)]
        assert_same(answer_of_torch(network, {"input": values}), expected, name)
        assert_same(Graph(network)({"input": values}), expected, name)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("kind", CELLS)
def test_both_directions_give_keras_numbers(kind: str, mode: str | None) -> None:
    for way in RETURNS:
        compare(make(L.Bidirectional(CELLS[kind](4, **way), merge_mode=mode)), rows())
        compare(make(L.Masking(), L.Bidirectional(CELLS[kind](4, **way), merge_mode=mode)), rows_with_holes())


@pytest.mark.parametrize("mode", ["concat", "sum", None])
@pytest.mark.parametrize("sequences", [False, True])
def test_two_different_layers_for_the_directions_give_keras_numbers(mode: str | None, sequences: bool) -> None:
    def cell(kind: str, **options: Any) -> Any:
        return CELLS[kind](4, return_sequences=sequences, **options)

    pairs = [
        (cell("lstm"), cell("gru", go_backwards=True)),
        (cell("gru"), cell("gru", reset_after=False, go_backwards=True)),
        (cell("lstm", activation="relu"), cell("lstm", go_backwards=True, use_bias=False)),
        (cell("lstm", go_backwards=True), cell("lstm")),
        (cell("lstm", go_backwards=True), cell("simple_rnn", activation="softsign")),
    ]
    if mode == "concat":
        pairs.append((cell("gru"), L.GRU(2, return_sequences=sequences, go_backwards=True)))
    for forward, backward in pairs:
        layer = L.Bidirectional(forward, merge_mode=mode, backward_layer=backward)
        compare(make(layer), rows())
        layer = L.Bidirectional(forward, merge_mode=mode, backward_layer=backward)
        compare(make(L.Masking(), layer), rows_with_holes())


SHAPES_OF_USE: dict[str, Callable[[], list[Any]]] = {
    "many to one": lambda: [L.LSTM(5), L.Dense(1)],
    "many to many": lambda: [L.LSTM(5, return_sequences=True), L.TimeDistributed(L.Dense(2, "relu"))],
    "one to many": lambda: [L.GRU(5), L.RepeatVector(4), L.LSTM(3, return_sequences=True), L.TimeDistributed(L.Dense(1))],
    "stacked": lambda: [
        L.LSTM(5, return_sequences=True),
        L.Dropout(0.2),
        L.LSTM(4, return_sequences=True),
        L.SimpleRNN(3),
        L.Dense(1),
    ],
    "deep bidirectional": lambda: [
        L.Bidirectional(L.LSTM(4, return_sequences=True)),
        L.SpatialDropout1D(0.2),
        L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum"),
        L.Bidirectional(L.LSTM(2)),
        L.Dense(3, "softmax"),
    ],
    "regression of several": lambda: [L.LSTM(5), L.Dense(8, "relu"), L.Dropout(0.5), L.Dense(4)],
    "a state in the middle": lambda: [L.LSTM(5, return_state=True), L.Dense(2)],
    "convolution first": lambda: [
        L.Conv1D(6, 3, padding="causal", activation="relu"),
        L.BatchNormalization(),
        L.LSTM(4, return_sequences=True),
        L.GaussianNoise(0.1),
        L.GlobalAveragePooling1D(),
        L.Dense(1, "sigmoid"),
    ],
}


@pytest.mark.parametrize("name", SHAPES_OF_USE)
def test_every_shape_of_use_gives_keras_numbers(name: str) -> None:
    compare(make(*SHAPES_OF_USE[name]()), rows())
    if name != "convolution first":
        compare(make(L.Masking(), *SHAPES_OF_USE[name]()), rows_with_holes())


def test_feature_vectors_as_sequences_of_one_step_give_keras_numbers() -> None:
    values = rows(6, 1, 9)
    compare(make(L.LSTM(5, return_sequences=True), L.LSTM(4), L.Dense(1, "sigmoid"), shape=(1, 9)), values)
    compare(make(L.Reshape((1, 9)), L.LSTM(4), L.Dense(2), shape=(9,)), values[:, 0], is_open=False)


TOKEN_STACKS: dict[str, Callable[[], list[Any]]] = {
    "plain": lambda: [L.Embedding(11, 4), L.LSTM(5), L.Dense(1, "sigmoid")],
    "masked": lambda: [L.Embedding(11, 4, mask_zero=True), L.LSTM(5), L.Dense(1, "sigmoid")],
    "masked, stacked": lambda: [
        L.Embedding(11, 4, mask_zero=True),
        L.SpatialDropout1D(0.1),
        L.LayerNormalization(),
        L.LSTM(5, return_sequences=True),
        L.Activation("tanh"),
        L.GRU(3, return_sequences=True),
        L.Dense(2),
    ],
    "masked, backwards, then masked still": lambda: [
        L.Embedding(11, 4, mask_zero=True),
        L.GRU(3, go_backwards=True, return_sequences=True),
        L.LSTM(2),
    ],
    "masked, pooled": lambda: [
        L.Embedding(11, 4, mask_zero=True),
        L.Bidirectional(L.LSTM(3, return_sequences=True)),
        L.GlobalMaxPooling1D(),
    ],
    "masked, convolved": lambda: [L.Embedding(11, 4, mask_zero=True), L.Conv1D(3, 2), L.LSTM(3)],
    "masked, per step": lambda: [
        L.Embedding(11, 4, mask_zero=True),
        L.TimeDistributed(L.Dense(3, "relu")),
        L.BatchNormalization(),
        L.Bidirectional(L.GRU(3), merge_mode="ave"),
    ],
}


@pytest.mark.parametrize("name", TOKEN_STACKS)
def test_token_ids_with_zeros_anywhere_give_keras_numbers(name: str) -> None:
    model = make(*TOKEN_STACKS[name](), shape=(STEPS,), dtype="int64")
    compare(model, tokens_with_holes(11), kind="tokens")


def test_the_mean_of_masked_steps_is_keras_mean() -> None:
    model = make(L.Masking(), L.LSTM(3, return_sequences=True), L.GlobalAveragePooling1D())
    values = np.delete(rows_with_holes(), 3, axis=0)  # of no steps at all the mean is NaN, in Keras too
    compare(model, np.concatenate([values, rows(1)]))


VECTOR, TABLE = (6,), (STEPS, FEATURES)
SIMPLE: list[tuple[Callable[[], Any], tuple[int, ...], bool]] = [
    (lambda: L.Dense(4, "gelu"), VECTOR, False),
    (lambda: L.Dense(4, "relu", use_bias=False), TABLE, True),
    (lambda: L.Dropout(0.3, noise_shape=(None, 1, 3)), TABLE, True),
    (lambda: L.SpatialDropout1D(0.3), TABLE, True),
    (lambda: L.GaussianNoise(0.3), TABLE, True),
    (lambda: L.RepeatVector(3), VECTOR, False),
    (lambda: L.Flatten(), TABLE, False),
    (lambda: L.Flatten(), VECTOR, False),
    (lambda: L.Reshape((2, 3)), VECTOR, False),
    (lambda: L.Reshape((3, -1)), TABLE, False),
    (lambda: L.Reshape((-1,)), TABLE, False),
    (lambda: L.LayerNormalization(), TABLE, True),
    (lambda: L.LayerNormalization(axis=[1, 2], epsilon=0.1), TABLE, False),
    (lambda: L.LayerNormalization(axis=2, center=False), TABLE, True),
    (lambda: L.LayerNormalization(scale=False), VECTOR, False),
    (lambda: L.BatchNormalization(), TABLE, True),
    (lambda: L.BatchNormalization(axis=2, scale=False, epsilon=0.1), TABLE, True),
    (lambda: L.BatchNormalization(center=False), VECTOR, False),
    (lambda: L.GlobalMaxPooling1D(), TABLE, True),
    (lambda: L.GlobalMaxPooling1D(keepdims=True), TABLE, True),
    (lambda: L.GlobalAveragePooling1D(), TABLE, True),
    (lambda: L.GlobalAveragePooling1D(keepdims=True), TABLE, True),
    (lambda: L.TimeDistributed(L.Dense(4)), TABLE, True),
    (lambda: L.TimeDistributed(L.LayerNormalization()), TABLE, True),
    (lambda: L.TimeDistributed(L.RepeatVector(2)), TABLE, True),
    (lambda: L.TimeDistributed(L.BatchNormalization()), TABLE, True),
    (lambda: L.TimeDistributed(L.Flatten()), (4, 3, 2), True),
    (lambda: L.TimeDistributed(L.Reshape((3, 2))), (4, 2, 3), True),
    (lambda: L.TimeDistributed(L.LSTM(3)), (4, 5, 2), True),
    (lambda: L.TimeDistributed(L.Bidirectional(L.GRU(3, return_sequences=True))), (4, 5, 2), True),
    (lambda: L.TimeDistributed(L.Conv1D(3, 2)), (4, 5, 2), True),
    (lambda: L.ReLU(), TABLE, True),
    (lambda: L.ReLU(max_value=6), TABLE, True),
    (lambda: L.LeakyReLU(negative_slope=0.1), TABLE, True),
    (lambda: L.ELU(alpha=0.5), TABLE, True),
    (lambda: L.Softmax(), TABLE, True),
]


@pytest.mark.parametrize("index", range(len(SIMPLE)))
def test_a_simple_layer_gives_keras_numbers(index: int) -> None:
    build, shape, is_open = SIMPLE[index]
    values = random.normal(size=(5, *shape)).astype(np.float32)
    compare(make(build(), shape=shape), values, is_open=is_open)


def test_every_activation_gives_keras_numbers() -> None:
    names = "linear relu relu6 leaky_relu tanh hard_tanh sigmoid hard_sigmoid softmax log_softmax softplus softsign elu selu celu"
    names += " exponential gelu silu swish hard_silu hard_swish mish log_sigmoid tanh_shrink squareplus"
    for name in names.split():
        compare(make(L.Activation(name)), 3 * rows())
    compare(make(L.Dense(3, activation=L.LeakyReLU(negative_slope=0.3))), rows())


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_convolutions_give_keras_numbers(padding: str) -> None:
    for options in ({}, {"strides": 2}, {"strides": 3}, {"dilation_rate": 2}, {"groups": 3}, {"use_bias": False}):
        for size in (1, 2, 3, 4):
            if padding == "valid" and (size - 1) * options.get("dilation_rate", 1) >= STEPS:
                continue
            layer = L.Conv1D(6, size, padding=padding, activation="tanh", **options)
            # An answer whose steps are not the input's needs a fixed time axis, or something behind it.
            compare(make(layer), rows(), is_open=False)
            layer = L.Conv1D(6, size, padding=padding, activation="tanh", **options)
            compare(make(layer, L.LSTM(3)), rows())


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_max_pooling_gives_keras_numbers(padding: str) -> None:
    for size, strides in ((2, None), (3, None), (2, 1), (3, 2), (1, None)):
        compare(make(L.MaxPooling1D(size, strides, padding)), rows(), is_open=False)
        compare(make(L.MaxPooling1D(size, strides, padding), L.GRU(3)), rows())


RAGGED: dict[str, Callable[[], list[Any]]] = {
    "conv same": lambda: [L.Conv1D(4, 3, padding="same", strides=2), L.MaxPooling1D(2, padding="same"), L.LSTM(3)],
    "conv same, kept": lambda: [L.Conv1D(4, 4, padding="same"), L.LSTM(3, return_sequences=True)],
    "conv valid": lambda: [L.Conv1D(4, 2), L.Conv1D(4, 2, strides=2), L.GlobalMaxPooling1D()],
    "conv causal": lambda: [L.Conv1D(4, 3, padding="causal", dilation_rate=2), L.GlobalAveragePooling1D()],
    "backwards": lambda: [L.GRU(4, go_backwards=True, return_sequences=True), L.LSTM(3, go_backwards=True)],
    "masked": lambda: [L.Masking(), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3, return_sequences=True)],
    "masked, backwards": lambda: [L.Masking(), L.GRU(4, go_backwards=True, return_sequences=True, zero_output_for_mask=True)],
    "masked, zeros": lambda: [L.Masking(), L.LSTM(4, zero_output_for_mask=True, return_state=True)],
    "per step": lambda: [L.TimeDistributed(L.Dense(4, "relu")), L.LayerNormalization(), L.SimpleRNN(3, return_sequences=True)],
    "selu": lambda: [L.Masking(), L.LSTM(4, activation="selu", return_sequences=True, return_state=True)],
    "two nodes": lambda: [
        L.Masking(),
        L.Bidirectional(
            L.LSTM(4, return_state=True), backward_layer=L.LSTM(4, go_backwards=True, activation="selu", return_state=True)
        ),
    ],
}


@pytest.mark.parametrize("name", RAGGED)
def test_a_row_among_rows_of_other_lengths_gives_what_keras_gives_it_alone(name: str) -> None:
    model = make(*RAGGED[name](), shape=(None, FEATURES))
    network = convert(model, ("time", FEATURES))
    graph = Graph(network)
    shortest = network.min_length
    assert shortest == (3 if name == "conv valid" else 1)
    lengths = np.array([shortest, 7, shortest + 1, 5, 6])
    values = rows(5, 9)
    values[1, [2, 6]] = values[3, :2] = 0
    for row, length in enumerate(lengths):
        values[row, length:] = 1e3
    inputs = inputs_of(network, values, lengths)
    state = {part.input: np.zeros((5, part.units), np.float32) for part in network.state}
    in_torch, in_graph = answer_of_torch(network, inputs), graph({**inputs, **state})
    for row, length in enumerate(lengths):
        expected = answer_of_keras(model, values[row : row + 1, :length])
        for where, answers in (("torch", in_torch), ("graph", in_graph)):
            for found, wanted in zip(answers, expected, strict=False):
                found = found[row : row + 1, : wanted.shape[1]] if wanted.ndim == 3 else found[row : row + 1]
                np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"{where}, length {length}")


@pytest.mark.parametrize("name", [*RAGGED, *SHAPES_OF_USE])
def test_the_checks_pass_for_networks_of_task_tensor(name: str) -> None:
    model = make(*{**RAGGED, **SHAPES_OF_USE}[name](), shape=(STEPS, FEATURES))
    for shape in (("time", FEATURES), (STEPS, FEATURES)):
        network = convert(model, shape)
        verification = verify(network, write_graph(network).SerializeToString(), 1, tolerance=TOLERANCE)
        assert (verification.streamed_vs_whole is not None) == network.can_stream


@pytest.mark.parametrize("kind", [*CELLS, "bidirectional", "masked"])
def test_a_stateful_layer_carries_on_like_keras(kind: str) -> None:
    if kind == "bidirectional":
        layers = [L.Bidirectional(L.LSTM(4, stateful=True)), L.Dense(2)]
    elif kind == "masked":
        layers = [L.Masking(), L.LSTM(4, stateful=True, return_sequences=True), L.GRU(3, stateful=True)]
    else:
        layers = [CELLS[kind](4, stateful=True, return_sequences=True), CELLS[kind](3, stateful=True), L.Dense(2)]
    value = given = keras.Input(batch_shape=(5, STEPS, FEATURES))
    for layer in layers:
        value = layer(value)
    model = keras.Model(given, value)
    network = convert(model, (STEPS, FEATURES))
    assert network.is_stateful
    graph = Graph(network)
    batches = [rows_with_holes() if kind == "masked" else rows() for _ in range(3)]
    expected = [answer_of_keras(model, batch)[0] for batch in batches]
    state = {part.input: np.zeros((5, part.units), np.float32) for part in network.state}
    assert state
    for batch, wanted in zip(batches, expected, strict=True):
        found = answer_of_torch(network, {"input": batch, **state})
        in_graph = graph({"input": batch, **state})
        assert_same(found[:1], [wanted], "torch")
        assert_same(in_graph, found, "graph")
        state = dict(zip(state, in_graph[1:], strict=True))
    # while training, too, each batch goes on from the state that it is given
    network.train()
    carried = network.initial_state(5)
    for batch, wanted in zip(batches, expected, strict=True):
        prediction = network.predict({"input": torch.from_numpy(batch), **carried})
        assert_same([prediction.values.detach().numpy()], [wanted], "training")
        carried = {name: tensor.detach() for name, tensor in prediction.state.items()}


def test_a_stateful_layer_refuses_batches_that_do_not_divide() -> None:
    table = {"type": "lstm", "units": 3, "stateful": True}
    network = Network(TensorSpec(layers=[table], input={"shape": (STEPS, 1)}))  # type: ignore[arg-type]
    network.check_batches(12, 4)
    with pytest.raises(LayerError, match=r'layers\[0\] \(lstm\): option "stateful": 13 rows do not divide by batch_size 4'):
        network.check_batches(13, 4)
    with pytest.raises(LayerError, match=r'option "stateful": a batch of 1 rows follows one of 4'):
        network({"input": torch.zeros(1, STEPS, 1), **network.initial_state(4)})


RULES: dict[str, Any] = {
    "kernel_regularizer": keras.regularizers.L1L2(0.01, 0.02),
    "recurrent_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
}


def penalty_of(network: Network, values: Array) -> float:
    penalty = network.penalty(network.predict({"input": torch.from_numpy(values)}))
    assert isinstance(penalty, torch.Tensor)
    return float(penalty.detach())


def test_the_penalty_is_the_sum_of_keras_losses() -> None:
    plain = {key: value for key, value in RULES.items() if key != "recurrent_regularizer"}
    layers: list[Callable[[], Any]] = [
        lambda: L.LSTM(4, return_sequences=True, **RULES),
        lambda: L.GRU(4, return_sequences=True, return_state=True, **RULES),
        lambda: L.GRU(4, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.3, "columns")),
        lambda: L.SimpleRNN(4, recurrent_regularizer=keras.regularizers.OrthogonalRegularizer(0.3)),
        lambda: L.Bidirectional(L.LSTM(4, return_sequences=True, **RULES)),
        lambda: L.Dense(4, **plain),
        lambda: L.Conv1D(4, 2, **plain),
        lambda: L.TimeDistributed(L.Dense(4, **plain)),
        lambda: L.BatchNormalization(beta_regularizer="l1", gamma_regularizer="l2"),
    ]
    for layer in layers:
        model = make(layer())
        values = rows()
        network = convert(model, (STEPS, FEATURES)).train()
        model(torch.from_numpy(values), training=True)
        expected = sum(float(loss.detach()) for loss in model.losses)
        assert expected > 0
        assert penalty_of(network, values) == pytest.approx(expected, rel=1e-5)
    tokens = make(L.Embedding(9, 3, embeddings_regularizer="l2"), L.GlobalMaxPooling1D(), shape=(STEPS,), dtype="int64")
    network = convert(tokens, (STEPS,), "tokens")
    found = penalty_of(network, random.integers(0, 9, (2, STEPS)))
    assert found == pytest.approx(sum(float(loss.detach()) for loss in tokens.losses), rel=1e-5)


def test_no_regularizers_are_no_penalty_and_gradients_flow_through_those_there_are() -> None:
    layers: list[dict[str, Any]] = [{"type": "lstm", "units": 3}, {"type": "dense", "units": 1}]
    values = {"input": torch.randn(3, 5, 2)}
    network = Network(TensorSpec(layers=layers, input={"shape": (5, 2)})).train()  # type: ignore[arg-type]
    assert network.penalty(network.predict(values)) == 0.0
    layers[0] |= {"kernel_regularizer": "l2", "activity_regularizer": "l1"}
    network = Network(TensorSpec(layers=layers, input={"shape": (5, 2)})).train()  # type: ignore[arg-type]
    penalty = network.penalty(network.predict(values))
    assert isinstance(penalty, torch.Tensor)
    penalty.backward()  # type: ignore[no-untyped-call]
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == {
        "layers.0.rnn.weight_ih_l0",
        "layers.0.rnn.weight_hh_l0",
        "layers.0.rnn.bias_ih_l0",
    }


def test_activity_counts_while_training_alone_and_is_of_its_own_batch() -> None:
    layers: list[dict[str, Any]] = [
        {"type": "dense", "units": 2, "activity_regularizer": "l2"},
        {"type": "dropout", "rate": 0.0},
        {"type": "activation", "activation": "relu"},
    ]
    network = Network(TensorSpec(layers=layers, input={"shape": (3,)})).train()  # type: ignore[arg-type]
    first, second = (network.predict({"input": torch.full((4, 3), value)}) for value in (1.0, 2.0))
    (kernel, _) = network.stack[0].keras_weights()
    expected = [0.01 * float(np.square(value * kernel.sum(0)).sum()) for value in (1.0, 2.0)]  # a row's, as all rows are equal
    for prediction, wanted in zip((first, second), expected, strict=True):
        assert [len(activity) for activity in prediction.activity] == [1, 0, 0]
        penalty = network.penalty(prediction)
        assert isinstance(penalty, torch.Tensor)
        assert penalty.item() == pytest.approx(wanted, rel=1e-5)
    network.eval()
    assert network.penalty(network.predict({"input": torch.ones(4, 3)})) == 0.0


def test_constraints_hold_weights_as_keras_does() -> None:
    for constraint in (
        keras.constraints.MaxNorm(0.5),
        keras.constraints.MaxNorm(0.5, axis=1),
        keras.constraints.NonNeg(),
        keras.constraints.UnitNorm(),
        keras.constraints.MinMaxNorm(0.2, 0.4, rate=0.5),
    ):
        for kind, cell in CELLS.items():
            layer = cell(4, kernel_constraint=constraint, recurrent_constraint=constraint)
            model = make(L.Bidirectional(layer))
            network = convert(model, (STEPS, FEATURES))
            network.constrain()
            for weight, found in zip(model.layers[1].weights, network.layers[0].keras_weights(), strict=True):  # type: ignore[operator]
                expected = weight.constraint(weight.value) if weight.constraint else weight.value
                np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6, err_msg=f"{kind} {constraint}")
    model = make(L.Dense(3, bias_constraint="non_neg"), L.Conv1D(3, 2, kernel_constraint="unit_norm"))
    network = convert(model, (STEPS, FEATURES))
    network.constrain()
    for layer, ours in zip(model.layers[1:], network.layers, strict=True):
        for weight, found in zip(layer.weights, ours.keras_weights(), strict=True):  # type: ignore[operator]
            expected = weight.constraint(weight.value) if weight.constraint else weight.value
            np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)


def test_batch_normalization_learns_the_statistics_that_keras_learns() -> None:
    for layers, values in (
        ([L.BatchNormalization(momentum=0.7)], rows()),
        ([L.Masking(), L.BatchNormalization()], rows_with_holes()),
        ([L.TimeDistributed(L.BatchNormalization())], rows()),
    ):
        model = make(*layers)
        network = convert(model, ("time", FEATURES)).train()
        expected = model(torch.from_numpy(values), training=True).detach().numpy()
        inputs = {name: torch.from_numpy(array) for name, array in inputs_of(network, values).items()}
        np.testing.assert_allclose(network(inputs)["output"].detach().numpy(), expected, atol=1e-5)
        for weight, found in zip(model.layers[-1].get_weights(), network.layers[-1].keras_weights(), strict=True):  # type: ignore[operator]
            np.testing.assert_allclose(found, weight, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("options", [{"dropout": 1e-9}, {"recurrent_dropout": 1e-9}, {"dropout": 1e-9, "implementation": 1}])
def test_the_loop_that_drops_gives_the_numbers_of_the_kernel_where_nothing_falls(kind: str, options: dict[str, Any]) -> None:
    if kind == "simple_rnn":
        options = {key: value for key, value in options.items() if key != "implementation"}
    model = make(CELLS[kind](4, return_sequences=True))
    network = convert(model, (STEPS, FEATURES))
    table = {**network.spec.layers[0], **options}
    dropping = Network(TensorSpec(layers=[table], input={"shape": (STEPS, FEATURES)}))  # type: ignore[arg-type]
    dropping.load_state_dict(network.state_dict())
    values = {"input": torch.from_numpy(rows())}
    torch.testing.assert_close(dropping.train()(values)["output"], network(values)["output"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [
    "zeros", "ones", "random_normal", "random_uniform", "truncated_normal", "glorot_uniform", "glorot_normal", "he_uniform",
    "he_normal", "lecun_uniform", "lecun_normal", "orthogonal", "identity", "uniform", "normal",
])  # fmt: skip
def test_weights_start_with_the_spread_of_keras(name: str) -> None:
    torch.manual_seed(0)
    theirs = np.asarray(keras.initializers.get(name)((60, 60)).cpu())
    table = {"type": "dense", "units": 60, "kernel_initializer": name}
    network = Network(TensorSpec(layers=[table], input={"shape": (60,)}))  # type: ignore[arg-type]
    ours = network.layers[0].keras_weights()[0]  # type: ignore[operator]
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1, abs=1e-6)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.4)


def test_weights_may_be_given() -> None:
    model = make(L.Bidirectional(L.GRU(2)))
    given = [weight.tolist() for weight in model.layers[1].get_weights()]
    table = {"type": "bidirectional", "layer": {"type": "gru", "units": 2}, "weights": given}
    network = Network(TensorSpec(layers=[table], input={"shape": (STEPS, FEATURES)}))  # type: ignore[arg-type]
    values = rows()
    assert_same(answer_of_torch(network, {"input": values}), answer_of_keras(model, values), "given")
    table["weights"] = given[:-1]
    with pytest.raises(LayerError, match=r'option "weights": expected kernel \[3, 6\], recurrent_kernel \[2, 6\], bias \[2, 6\]'):
        Network(TensorSpec(layers=[table], input={"shape": (STEPS, FEATURES)}))  # type: ignore[arg-type]


def test_weights_that_are_not_trained_are_counted_apart() -> None:
    model = make(L.Dense(4, trainable=False), L.BatchNormalization(), L.LSTM(2), shape=(STEPS, FEATURES))
    network = convert(model, (STEPS, FEATURES))
    assert network.num_parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert network.num_fixed_parameters == sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    assert not any(parameter.requires_grad for parameter in network.layers[0].parameters())


def test_every_layer_survives_the_way_through_kerass_config() -> None:
    examples = [
        L.LSTM(
            3, activation="relu", recurrent_initializer="he_normal", stateful=False, dropout=0.1, kernel_constraint="max_norm"
        ),
        L.Bidirectional(L.LSTM(3)),
        L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True)),
        L.Dense(3, kernel_initializer=keras.initializers.Constant(0.5)),
        L.Conv1D(3, 2, strides=2),
        L.TimeDistributed(L.Dense(3)),
    ]
    tables = [from_keras_config(keras.saving.serialize_keras_object(layer)) for layer in examples]
    for table in tables:
        del table["name"]
    assert tables == [
        {
            "type": "lstm",
            "units": 3,
            "activation": "relu",
            "recurrent_initializer": "he_normal",
            "kernel_constraint": {"name": "max_norm", "max_value": 2, "axis": 0},
            "dropout": 0.1,
        },
        {"type": "bidirectional", "layer": {"type": "lstm", "units": 3}},
        {
            "type": "bidirectional",
            "layer": {"type": "lstm", "units": 3},
            "backward_layer": {"type": "gru", "units": 3, "go_backwards": True},
        },
        {"type": "dense", "units": 3, "kernel_initializer": {"name": "constant", "value": 0.5}},
        {"type": "conv1d", "filters": 3, "kernel_size": 2, "strides": 2},
        {"type": "time_distributed", "layer": {"type": "dense", "units": 3, "name": "dense"}},
    ] or tables[-1]["layer"]["name"].startswith("dense")


def test_every_layer_of_the_list_is_known_by_kerass_own_name() -> None:
    for name in keras_classes():
        assert hasattr(L, name), name
    wanted = (
        "SimpleRNN LSTM GRU Bidirectional Embedding Masking Dense Dropout SpatialDropout1D TimeDistributed RepeatVector Flatten "
        "Reshape Activation LayerNormalization BatchNormalization GlobalMaxPooling1D GlobalAveragePooling1D Conv1D MaxPooling1D "
        "GaussianNoise Normalization"
    )
    assert set(wanted.split()) == set(keras_classes())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (lambda: L.Conv2D(3, 3, name="c"), r'layer "c" \(Conv2D\): there is no such layer; there are Embedding, LSTM, GRU'),
        (lambda: L.Conv1D(3, 3, data_format="channels_first", name="c"), r'layer "c" \(Conv1D\): option "data_format": is not'),
        (lambda: L.LSTM(3, activation="sparse_plus", name="l"), r'layer "l" \(LSTM\): option "activation": unknown'),
        (lambda: L.LSTM(3, dtype="float16", name="l"), r'layer "l" \(LSTM\): option "dtype": only "float32"'),
        (lambda: L.Dense(3, lora_rank=2, name="d"), r'layer "d" \(Dense\): option "lora_rank": is not supported, got 2'),
        (lambda: L.BatchNormalization(renorm=True, name="b"), r'layer "b" \(BatchNormalization\): option "renorm": is not'),
        (lambda: L.ReLU(max_value=3, name="r"), r'layer "r" \(ReLU\): option "max_value": only 6'),
        (lambda: L.TimeDistributed(L.Conv2D(3, 3, name="c")), r'layer "c" \(Conv2D\): there is no such layer'),
        (
            lambda: {"class_name": "LSTM", "config": {"name": "l", "units": 3, "peephole": True}},
            r'layer "l" \(LSTM\): option "peephole": unknown; there are units, ',
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_layer_and_option(entry: Any, message: str) -> None:
    made = entry()
    with pytest.raises(LayerError, match=message):
        from_keras_config(made if isinstance(made, dict) else keras.saving.serialize_keras_object(made))


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([L.Flatten()], ("time", 3), r"layers\[0\] \(flatten\): needs the same number of steps in every row"),
        ([L.Reshape((4, 5))], (7, 3), r'\(reshape\): option "target_shape": \[4, 5\] does not hold 21 values'),
        ([L.Conv1D(2, 9)], (7, 3), r"\(conv1d\): its window of 9 steps does not fit into the 7"),
        ([L.Conv1D(4, 2, groups=2)], (7, 3), r'\(conv1d\): option "groups": 2 groups do not divide 3 features'),
        ([L.Conv1D(2, 2)], ("time", 3), r"\(conv1d\): the answer \(batch, steps, 2\) has another number of steps"),
        ([L.RepeatVector(2)], (7, 3), r"\(repeat_vector\): needs one vector per row"),
        ([L.LayerNormalization(axis=1)], ("time", 3), r'\(layer_normalization\): option "axis": 1 holds the open time axis'),
        ([L.BatchNormalization(axis=1)], (7, 3), r'\(batch_normalization\): option "axis": only the last axis'),
        ([L.TimeDistributed(L.Dense(2))], (7,), r"\(time_distributed\): needs a sequence"),
        ([L.Bidirectional(L.LSTM(2), merge_mode=None), L.Dense(2)], (7, 3), r'option "merge_mode": none gives two answers'),
        ([L.LSTM(2, name="a"), L.Dense(2, name="a")], (7, 3), r'layers\[1\] \(dense\): option "name": \'a\' is layers\[0\]\'s'),
    ],
)
def test_a_stack_that_does_not_fit_is_refused_by_layer(layers: list[Any], shape: Any, message: str) -> None:
    tables = [from_keras_config(keras.saving.serialize_keras_object(layer)) for layer in layers]
    with pytest.raises(LayerError, match=message):
        Network(TensorSpec(layers=tables, input={"shape": shape}))  # type: ignore[arg-type]


def test_options_that_change_nothing_say_so() -> None:
    table = {"type": "lstm", "units": 2, "unroll": True, "implementation": 1, "seed": 3}
    network = Network(TensorSpec(layers=[table], input={"shape": (5, 2)}))  # type: ignore[arg-type]
    assert [note.split(": accepted")[0] for note in network.notes] == [
        'layers[0] (lstm): option "unroll"',
        'layers[0] (lstm): option "seed"',
        'layers[0] (lstm): option "implementation"',
    ]
