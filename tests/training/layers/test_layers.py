"""Each layer alone: its numbers against torch's packed sequences or plain numpy, its graph against itself, its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.graph.builder import GraphBuilder
from training.layers.bidirectional import Bidirectional
from training.layers.gru import GRU
from training.layers.lstm import LSTM
from training.layers.recurrent import Recurrent
from training.layers.registry import LayerError, Shape, Signal, Symbol, build_layer, build_layers

SEQUENCE = Shape(("time", 3))
VECTOR = Shape((4,))
TOKENS = Shape(("time",), vocabulary=11)
WIDE = Shape(("time",), vocabulary=500)
LENGTHS = [[5], [1], [1, 1], [7, 2, 5], [1, 9, 3, 9]]
GARBAGE = 1e3


def build(table: dict[str, Any], shape: Shape = SEQUENCE, source: Shape = SEQUENCE) -> Any:
    torch.manual_seed(7)
    layer = build_layer(table, shape, source, "layers[0]").eval()
    for parameter in layer.parameters():  # biases that start at zero would hide their order
        nn.init.uniform_(parameter, -0.6, 0.6)
    return layer


def draw(lengths: list[int], shape: Shape = SEQUENCE, num_padding: int = 3) -> Signal:
    """Rows with garbage in the padding."""
    generator = torch.Generator().manual_seed(sum(lengths))
    num_steps = max(lengths) + num_padding
    if shape.is_tokens:
        assert shape.vocabulary is not None
        values = torch.randint(0, shape.vocabulary, (len(lengths), num_steps), generator=generator)
    elif shape.is_sequence:
        values = torch.randn(len(lengths), num_steps, shape.features, generator=generator)
        for row, length in enumerate(lengths):
            values[row, length:] = GARBAGE
    else:
        values = torch.randn(len(lengths), shape.features, generator=generator)
    return Signal(values, torch.tensor(lengths))


def run(layer: Any, signal: Signal, source: Signal | None = None) -> Tensor:
    with torch.no_grad():
        return cut(layer, layer(signal, source or signal)[0])


def cut(layer: Any, signal: Signal) -> Tensor:
    """The output with its padding set to zero."""
    if not layer.output.is_sequence:
        return signal.values
    steps = torch.arange(signal.values.shape[1])
    return signal.values.masked_fill((steps >= signal.lengths.unsqueeze(1)).unsqueeze(2), 0.0)


class Graph:
    """The nodes of one layer in onnxruntime; called, it gives the values, then the new state."""

    def __init__(self, layer: Any, num_source_features: int | None = None, has_state: bool = False) -> None:
        self.layer = layer
        graph = GraphBuilder("layer")
        datatype = "INT64" if layer.input.is_tokens else "FP32"
        lengths = graph.input("lengths", "INT64", ["batch"])
        symbol = source = Symbol(graph.input("values", datatype, ["batch", *layer.input.axes]), lengths)
        if num_source_features is not None:
            source = Symbol(graph.input("source", "FP32", ["batch", "time", num_source_features]), lengths)
        parts = layer.state if has_state else ()
        initial = tuple(graph.input(part.name, "FP32", ["batch", part.units]) for part in parts)
        with graph.scope("layer_0"):
            result, final = layer.write(graph, symbol, source, initial)
        graph.output(result.values, "out", "FP32", ["batch", *layer.output.axes])
        graph.output(result.lengths, "out_lengths", "INT64", ["batch"])
        for part, value in zip(parts, final, strict=True):
            graph.output(value, f"{part.name}_next", "FP32", ["batch", part.units])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = graph.build().SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, signal: Signal, source: Signal | None = None, state: tuple[Tensor, ...] = ()) -> list[Tensor]:
        inputs = {"values": signal.values, "lengths": signal.lengths}
        if source is not None:
            inputs["source"] = source.values
        inputs |= {part.name: tensor for part, tensor in zip(self.layer.state, state, strict=False)}
        outputs = self.session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        values, lengths, *finals = (torch.from_numpy(array) for array in outputs)
        return [cut(self.layer, Signal(values, lengths)), *finals]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {}),
    ("lstm", {"unit_forget_bias": False}),
    ("gru", {}),
    ("gru", {"reset_after": False}),
    ("simple_rnn", {}),
    ("simple_rnn", {"activation": "relu"}),
]
RECURRENT: list[dict[str, Any]] = [
    {"type": kind, "units": 4, **options}
    for kind, extra in VARIANTS
    for options in (
        extra,
        {**extra, "return_sequences": True},
        {**extra, "go_backwards": True},
        {**extra, "go_backwards": True, "return_sequences": True},
        {**extra, "use_bias": False},
    )
]
BIDIRECTIONAL: list[dict[str, Any]] = [
    {"type": "bidirectional", "merge_mode": mode, "layer": {"type": kind, "units": 4, "return_sequences": sequences}}
    for mode in ("concat", "sum", "mul", "ave")
    for kind in ("lstm", "gru", "simple_rnn")
    for sequences in (False, True)
]
OTHERS: list[tuple[dict[str, Any], Shape]] = [
    ({"type": "embedding", "output_dim": 5}, TOKENS),
    ({"type": "embedding", "output_dim": 5, "mask_zero": True}, Shape(("time",), vocabulary=2)),
    ({"type": "embedding", "output_dim": 5, "storage": "int8"}, TOKENS),
    ({"type": "dense", "units": 6}, VECTOR),
    ({"type": "dense", "units": 6, "use_bias": False}, VECTOR),
    *(
        ({"type": "dense", "units": 6, "activation": activation}, shape)
        for activation in ("linear", "relu", "tanh", "sigmoid", "softmax", "softplus", "elu", "selu")
        for shape in (VECTOR, SEQUENCE)
    ),
    ({"type": "dropout", "rate": 0.5}, VECTOR),
    ({"type": "dropout", "rate": 0.5}, SEQUENCE),
    ({"type": "spatial_dropout", "rate": 0.5}, SEQUENCE),
    ({"type": "global_max_pooling"}, SEQUENCE),
    ({"type": "global_average_pooling"}, SEQUENCE),
    ({"type": "concat_pooling"}, SEQUENCE),
]
ALL = [(table, SEQUENCE) for table in RECURRENT + BIDIRECTIONAL] + OTHERS


def named(table: Any) -> str:
    if isinstance(table, dict):
        inner = table.get("layer", {})
        return "-".join(f"{key}={value}" for key, value in {**table, "layer": inner.get("type", "")}.items() if value)
    return str(table)


@pytest.mark.parametrize(("table", "shape"), ALL, ids=named)
def test_the_graph_of_a_layer_computes_what_the_layer_does(table: dict[str, Any], shape: Shape) -> None:
    layer = build(table, shape)
    graph = Graph(layer)
    for lengths in LENGTHS:
        signal = draw(lengths, shape)
        torch.testing.assert_close(graph(signal)[0], run(layer, signal), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("table", "shape"), ALL, ids=named)
def test_a_row_in_a_padded_batch_gives_what_it_gives_alone(table: dict[str, Any], shape: Shape) -> None:
    layer = build(table, shape)
    for lengths in LENGTHS:
        signal = draw(lengths, shape)
        outputs = run(layer, signal)
        for row, length in enumerate(lengths):
            values = signal.values[row : row + 1]
            alone = run(layer, Signal(values[:, :length] if shape.is_sequence else values, signal.lengths[row : row + 1]))
            within = outputs[row : row + 1, :length] if layer.output.is_sequence else outputs[row : row + 1]
            torch.testing.assert_close(within, alone, atol=2e-6, rtol=1e-5)


def packed_reference(layers: list[Recurrent], signal: Signal) -> tuple[Tensor, Tensor]:
    """The same weights in torch's own module on a packed sequence: outputs (B, T, D · H), final hidden (B, D, H)."""
    first = layers[0]
    kind = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[first.operator]
    options = {"nonlinearity": first.config.activation.name} if first.operator == "RNN" else {}
    reference = kind(
        first.input.features,
        first.config.units,
        bias=first.config.use_bias,
        batch_first=True,
        bidirectional=len(layers) == 2,
        **options,
    )
    for layer, suffix in zip(layers, ("", "_reverse"), strict=False):
        for name in ("weight_ih_l0", "weight_hh_l0", *(("bias_ih_l0", "bias_hh_l0") if first.config.use_bias else ())):
            getattr(reference, name + suffix).data.copy_(getattr(layer.rnn, name))
    packed = pack_padded_sequence(signal.values, signal.lengths, batch_first=True, enforce_sorted=False)
    outputs, final = reference(packed)
    hidden = final[0] if isinstance(final, tuple) else final
    padded = pad_packed_sequence(outputs, batch_first=True, total_length=signal.values.shape[1])[0]
    return padded.detach(), hidden.transpose(0, 1).detach()


@pytest.mark.parametrize("table", [t for t in RECURRENT if not t.get("go_backwards") and t.get("reset_after") is None], ids=named)
def test_padded_rows_give_the_numbers_of_packed_sequences(table: dict[str, Any]) -> None:
    layer = build(table)
    for lengths in LENGTHS:
        signal = draw(lengths)
        outputs, hidden = packed_reference([layer], signal)
        expected = outputs if layer.config.return_sequences else hidden[:, 0]
        torch.testing.assert_close(run(layer, signal), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "simple_rnn"])
@pytest.mark.parametrize("sequences", [False, True])
def test_two_directions_give_the_numbers_of_packed_sequences(kind: str, sequences: bool) -> None:
    layer: Bidirectional = build({"type": "bidirectional", "layer": {"type": kind, "units": 4, "return_sequences": sequences}})
    for lengths in LENGTHS:
        signal = draw(lengths)
        outputs, hidden = packed_reference([layer.forward_layer, layer.backward_layer], signal)
        expected = outputs if sequences else hidden.flatten(1)
        torch.testing.assert_close(run(layer, signal), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru", "simple_rnn"])
def test_gradients_are_those_of_packed_sequences_and_none_reaches_the_padding(kind: str) -> None:
    layer: Bidirectional = build({"type": "bidirectional", "layer": {"type": kind, "units": 4}})
    signal = draw([4, 2, 6])
    padded = signal.values.clone().requires_grad_()
    layer(Signal(padded, signal.lengths), signal)[0].values.square().sum().backward()

    rows = [signal.values[row, :length].clone().requires_grad_() for row, length in enumerate([4, 2, 6])]
    for row in rows:
        alone = Signal(row.unsqueeze(0), torch.tensor([len(row)]))
        layer(alone, alone)[0].values.square().sum().backward()
    assert padded.grad is not None
    for index, row in enumerate(rows):
        assert row.grad is not None
        torch.testing.assert_close(padded.grad[index, : len(row)], row.grad)
        assert not padded.grad[index, len(row) :].any()


@pytest.mark.parametrize("kind", ["lstm", "gru", "simple_rnn"])
def test_go_backwards_reads_from_the_end_and_gives_steps_in_the_order_read(kind: str) -> None:
    backwards = build({"type": kind, "units": 4, "go_backwards": True, "return_sequences": True})
    forwards = build({"type": kind, "units": 4, "return_sequences": True})
    values = torch.randn(1, 6, 3)
    expected = run(forwards, Signal(values.flip(1), torch.tensor([6])))
    torch.testing.assert_close(run(backwards, Signal(values, torch.tensor([6]))), expected)


@pytest.mark.parametrize("table", [t for t in RECURRENT if not t.get("go_backwards")], ids=named)
def test_the_state_at_each_rows_own_end_starts_its_next_piece(table: dict[str, Any]) -> None:
    layer = build(table)
    whole = draw([7, 4, 5])
    cuts, rests = torch.tensor([2, 3, 1]), torch.tensor([5, 1, 4])
    rest = torch.full((3, 6, 3), GARBAGE)
    for row, (start, count) in enumerate(zip(cuts.tolist(), rests.tolist(), strict=True)):
        rest[row, :count] = whole.values[row, start : start + count]
    zeros = tuple(torch.zeros(3, part.units) for part in layer.state)
    with torch.no_grad():
        _, middle = layer(Signal(whole.values, cuts), whole, zeros)
        streamed, final = layer(Signal(rest, rests), whole, middle)
        expected, expected_final = layer(whole, whole, zeros)
    graph_values, *graph_final = Graph(layer, has_state=True)(Signal(rest, rests), state=middle)
    torch.testing.assert_close(graph_values, cut(layer, streamed), atol=2e-6, rtol=1e-5)
    for found, in_graph, wanted in zip(final, graph_final, expected_final, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(in_graph, wanted, atol=2e-6, rtol=1e-5)
    if not layer.config.return_sequences:
        torch.testing.assert_close(streamed.values, expected.values, atol=1e-6, rtol=1e-5)


def test_pooling_reads_each_row_within_its_length() -> None:
    signal = draw([5, 1, 3])
    rows = [signal.values[row, :length] for row, length in enumerate([5, 1, 3])]
    largest, mean = torch.stack([row.amax(0) for row in rows]), torch.stack([row.mean(0) for row in rows])
    torch.testing.assert_close(run(build({"type": "global_max_pooling"}), signal), largest)
    torch.testing.assert_close(run(build({"type": "global_average_pooling"}), signal), mean)
    torch.testing.assert_close(run(build({"type": "concat_pooling"}), signal), torch.cat([largest, mean], 1))


def test_recent_appends_the_last_steps_of_each_row() -> None:
    layer = build({"type": "recent", "n": 2}, VECTOR)
    signal, source = draw([5, 2, 3], VECTOR), draw([5, 2, 3])
    last = [source.values[row, length - 2 : length].flatten() for row, length in enumerate([5, 2, 3])]
    expected = torch.cat([signal.values, torch.stack(last)], 1)
    assert layer.output == Shape((10,))
    torch.testing.assert_close(run(layer, signal, source), expected)
    torch.testing.assert_close(Graph(layer, num_source_features=3)(signal, source)[0], expected)


def test_recent_appends_to_each_step_of_a_sequence_what_the_input_was_there() -> None:
    layer = build({"type": "recent", "n": 1})
    signal, source = draw([5, 2, 3]), draw([5, 2, 3])
    assert layer.output == Shape(("time", 6))
    torch.testing.assert_close(
        run(layer, signal, source), cut(layer, Signal(torch.cat([signal.values, source.values], 2), signal.lengths))
    )
    assert layer.can_stream
    assert not build({"type": "recent", "n": 1}, VECTOR).can_stream


def test_concat_pooling_of_pieces_is_that_of_all_steps_so_far() -> None:
    layer = build({"type": "concat_pooling"})
    signal = draw([6, 6], num_padding=0)
    negative = Signal(-signal.values.abs() - 1, signal.lengths)  # of which zero is no maximum
    state = tuple(torch.zeros(2, part.units) for part in layer.state)
    for start, end in ((0, 1), (1, 4), (4, 6)):
        piece = Signal(negative.values[:, start:end], torch.tensor([end - start] * 2))
        output, state = layer(piece, piece, state)
        whole = layer(Signal(negative.values[:, :end], torch.tensor([end, end])), negative)[0]
        torch.testing.assert_close(output.values, whole.values)


def test_mask_zero_masks_every_zero_and_leaves_the_lengths() -> None:
    layer = build({"type": "embedding", "output_dim": 2, "mask_zero": True}, TOKENS)
    tokens = torch.tensor([[3, 0, 4, 0, 0], [0, 0, 0, 9, 9], [1, 2, 3, 4, 5]])
    output, _ = layer(Signal(tokens, torch.tensor([5, 3, 4])), None)
    assert output.lengths.tolist() == [5, 3, 4]
    assert output.mask.int().tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


def test_dropout_inside_a_recurrent_layer_drops_the_same_features_in_all_steps() -> None:
    layer = build({"type": "simple_rnn", "units": 3, "dropout": 0.5, "return_sequences": True}).train()
    with torch.no_grad():
        layer.rnn.weight_ih_l0.copy_(torch.eye(3))
        layer.rnn.weight_hh_l0.zero_()
        layer.rnn.bias_ih_l0.zero_()
    dropped = layer(Signal(torch.ones(20, 4, 3), torch.full((20,), 4)), None)[0].values == 0
    assert (dropped == dropped[:, :1]).all()
    assert 0 < dropped.sum() < dropped.numel()


def test_dropout_keeps_the_sum_on_average_and_does_nothing_outside_training() -> None:
    layer = build({"type": "dropout", "rate": 0.25}, VECTOR).train()
    ones = Signal(torch.ones(4000, 4), torch.ones(4000, dtype=torch.long))
    values = layer(ones, ones)[0].values
    assert sorted(values.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert values.mean().item() == pytest.approx(1.0, abs=0.03)
    assert layer.eval()(ones, ones)[0].values.eq(1).all()


@pytest.mark.parametrize(
    ("table", "shared_axis"),
    [
        ({"type": "spatial_dropout", "rate": 0.5}, 1),
        ({"type": "dropout", "rate": 0.5, "noise_shape": ["batch", 1, 3]}, 1),
        ({"type": "dropout", "rate": 0.5, "noise_shape": [None, None, 1]}, 2),
    ],
    ids=named,
)
def test_noise_is_shared_along_its_axis(table: dict[str, Any], shared_axis: int) -> None:
    if table.get("noise_shape") == ["batch", 1, 3]:
        table = {**table, "noise_shape": ["batch", 1, "features"]}
    layer = build(table).train()
    values = layer(Signal(torch.ones(20, 6, 3), torch.full((20,), 6)), None)[0].values
    assert (values == values.narrow(shared_axis, 0, 1)).all()
    assert set(values.unique().tolist()) == {0.0, 2.0}


# Keras's own formulas, for 3 features (embedding: 11 ids): gates · units · (features + units + biases).
@pytest.mark.parametrize(
    ("table", "shape", "expected"),
    [
        ({"type": "lstm", "units": 4}, SEQUENCE, 4 * 4 * (3 + 4 + 1)),
        ({"type": "lstm", "units": 4, "use_bias": False}, SEQUENCE, 4 * 4 * (3 + 4)),
        ({"type": "gru", "units": 4}, SEQUENCE, 3 * 4 * (3 + 4 + 2)),
        ({"type": "gru", "units": 4, "reset_after": False}, SEQUENCE, 3 * 4 * (3 + 4 + 1)),
        ({"type": "simple_rnn", "units": 4}, SEQUENCE, 4 * (3 + 4 + 1)),
        ({"type": "bidirectional", "layer": {"type": "lstm", "units": 4}}, SEQUENCE, 2 * 128),
        ({"type": "embedding", "output_dim": 5}, TOKENS, 55),
        ({"type": "dense", "units": 6}, VECTOR, 30),
        ({"type": "dropout", "rate": 0.2}, VECTOR, 0),
    ],
    ids=named,
)
def test_parameters_are_counted_as_keras_counts_them(table: dict[str, Any], shape: Shape, expected: int) -> None:
    assert build(table, shape).num_parameters == expected


def test_a_well_known_stack_has_the_parameters_of_its_summary() -> None:
    tables: list[dict[str, Any]] = [
        {"type": "embedding", "output_dim": 512},
        {"type": "lstm", "units": 1024},
        {"type": "dense", "units": 1},
    ]
    shape = Shape(("time",), vocabulary=10_000)
    assert [layer.num_parameters for layer in build_layers(tables, shape, shape)] == [5_120_000, 6_295_552, 1_025]


def test_weights_start_as_keras_starts_them() -> None:
    layer = build_layer({"type": "lstm", "units": 8}, SEQUENCE, SEQUENCE, "layers[0]")
    assert isinstance(layer, LSTM)
    bias, recurrent = layer.rnn.bias_ih_l0.detach(), layer.rnn.weight_hh_l0.detach()
    assert bias.view(4, 8).tolist() == [[0.0] * 8, [1.0] * 8, [0.0] * 8, [0.0] * 8]
    torch.testing.assert_close(recurrent.t() @ recurrent, torch.eye(8))
    limit = (6 / (3 + 4 * 8)) ** 0.5
    assert 0.9 * limit < layer.rnn.weight_ih_l0.abs().max().item() <= limit
    closed = build_layer({"type": "lstm", "units": 8, "unit_forget_bias": False}, SEQUENCE, SEQUENCE, "layers[0]")
    assert isinstance(closed, LSTM)
    assert not closed.rnn.bias_ih_l0.any()
    embedding = build_layer({"type": "embedding", "output_dim": 50}, TOKENS, TOKENS, "layers[0]")
    assert 0.045 < next(embedding.parameters()).abs().max().item() <= 0.05


def test_a_vector_in_eight_bits_is_within_half_a_step_of_its_largest_number_and_learns_unrounded() -> None:
    rounded, plain = (
        build({"type": "embedding", "output_dim": 5, "storage": storage}, TOKENS) for storage in ("int8", "float32")
    )
    with torch.no_grad():
        rounded.embeddings[3] = 0.0
    signal = draw([7, 2, 5], TOKENS)
    vectors = rounded.embeddings.detach()[signal.values]
    error = (rounded(signal, signal)[0].values.detach() - vectors).abs()
    assert (error <= vectors.abs().amax(-1, keepdim=True) / 127 * 0.501).all()
    assert error.any()
    rounded.train()
    torch.testing.assert_close(rounded(signal, signal)[0].values.detach(), vectors, rtol=0, atol=0)
    sizes = [
        len(graph_bytes(layer))
        for layer in (build({"type": "embedding", "output_dim": 64, "storage": kind}, WIDE) for kind in ("int8", "float32"))
    ]
    assert sizes[0] < 0.3 * sizes[1]
    assert plain.weights[0].shape == rounded.weights[0].shape


def graph_bytes(layer: Any) -> bytes:
    graph = GraphBuilder("layer")
    symbol = Symbol(graph.input("values", "INT64", ["batch", "time"]), None)
    with graph.scope("layer_0"):
        values = layer.write(graph, symbol, symbol)[0].values
    graph.output(values, "out", "FP32", ["batch", *layer.output.axes])
    return bytes(graph.build().SerializeToString())


def test_the_second_bias_stays_zero_except_where_keras_has_two() -> None:
    lstm, gru = build({"type": "lstm", "units": 4}), build({"type": "gru", "units": 4})
    assert isinstance(gru, GRU)
    assert "rnn.bias_hh_l0" not in dict(lstm.named_parameters())
    assert "rnn.bias_hh_l0" in dict(gru.named_parameters())
    signal = draw([3])
    lstm(signal, signal)[0].values.sum().backward()
    torch.optim.SGD(lstm.parameters(), lr=1.0, weight_decay=0.1).step()
    assert not lstm.rnn.bias_hh_l0.any()


@pytest.mark.parametrize(
    ("table", "shape", "message"),
    [
        ({"units": 3}, SEQUENCE, r'layers\[0\]: option "type": is missing; there are embedding, lstm, '),
        ({"type": "lstn"}, SEQUENCE, r"layers\[0\]: option \"type\": unknown layer 'lstn'; there are embedding, "),
        ({"type": "lstm"}, SEQUENCE, r'layers\[0\] \(lstm\): option "units": is missing'),
        ({"type": "lstm", "unit": 3}, SEQUENCE, r'layers\[0\] \(lstm\): option "unit": unknown; there are units, '),
        ({"type": "lstm", "units": 3, "rate": 1}, SEQUENCE, r'layers\[0\] \(lstm\): option "rate": unknown; there are '),
        ({"type": "lstm", "units": 0}, SEQUENCE, r'\(lstm\): option "units": Input should be greater than 0, got 0'),
        ({"type": "lstm", "units": 3, "activation": "swosh"}, SEQUENCE, r'\(lstm\): option "activation": .* got \'swosh\''),
        ({"type": "gru", "units": 3, "dropout": 1.0}, SEQUENCE, r'\(gru\): option "dropout": Input should be less than 1'),
        ({"type": "lstm", "units": 3}, VECTOR, r"\(lstm\): needs a sequence \(batch, time, features\), got \(batch, 4\)"),
        ({"type": "lstm", "units": 3}, TOKENS, r"\(lstm\): needs a sequence .* got token ids \(batch, time\)"),
        ({"type": "dense", "units": 3}, TOKENS, r"\(dense\): needs numbers, got token ids .*: put an embedding before it"),
        ({"type": "embedding", "output_dim": 3}, SEQUENCE, r"\(embedding\): needs token ids, got \(batch, time, 3\)"),
        (
            {"type": "embedding", "output_dim": 3, "input_dim": 10},
            TOKENS,
            r'\(embedding\): option "input_dim": 10 is below the vocabulary\'s 11 ids',
        ),
        ({"type": "global_max_pooling"}, VECTOR, r"\(global_max_pooling\): needs a sequence"),
        ({"type": "global_max_pooling", "n": 1}, SEQUENCE, r'option "n": unknown; there are data_format, keepdims, name'),
        ({"type": "recent", "n": 2}, SEQUENCE, r"\(recent\): needs one vector per row"),
        ({"type": "spatial_dropout", "rate": 0.1}, VECTOR, r"\(spatial_dropout\): needs a sequence"),
        (
            {"type": "dropout", "rate": 0.1, "noise_shape": [None, 1]},
            SEQUENCE,
            r'\(dropout\): option "noise_shape": needs 3 axes for \(batch, time, 3\), got 2',
        ),
        ({"type": "dropout", "rate": 0.1, "noise_shape": [None, 1, 4]}, SEQUENCE, r'"noise_shape": an axis is 1, or the'),
        (
            {"type": "bidirectional", "layer": {"type": "dense", "units": 2}},
            SEQUENCE,
            r"\(bidirectional\): option \"layer\": its type must be one of lstm, gru, simple_rnn, got 'dense'",
        ),
        (
            {"type": "bidirectional", "layer": {"type": "lstm", "size": 2}},
            SEQUENCE,
            r'layers\[0\]\.layer \(lstm\): option "size": unknown',
        ),
        (
            {"type": "bidirectional", "layer": {"type": "lstm", "units": 2, "go_backwards": True}},
            SEQUENCE,
            r'\(bidirectional\): option "layer": the two layers must differ in go_backwards, both have true',
        ),
        ({"type": "bidirectional", "layer": {"type": "lstm", "units": 2}, "merge_mode": "max"}, SEQUENCE, r'"merge_mode": '),
    ],
)
def test_a_layer_that_cannot_be_built_names_its_place_and_option(table: dict[str, Any], shape: Shape, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        build_layer(table, shape, shape, "layers[0]")


def test_recent_needs_numbers_at_the_start_of_the_network() -> None:
    with pytest.raises(LayerError, match=r"layers\[2\] \(recent\): needs a numeric input, this network reads tokens"):
        build_layers(
            [{"type": "embedding", "output_dim": 2}, {"type": "lstm", "units": 2}, {"type": "recent", "n": 2}], TOKENS, TOKENS
        )


def test_what_is_in_the_padding_cannot_even_be_infinite_enough_to_matter() -> None:
    tables: list[dict[str, Any]] = [
        {"type": "bidirectional", "layer": {"type": "lstm", "units": 4, "return_sequences": True}},
        {"type": "concat_pooling"},
    ]
    torch.manual_seed(0)
    layers = build_layers(tables, SEQUENCE, SEQUENCE)
    clean = draw([4, 2, 6])
    results = []
    for garbage in (0.0, np.nan, np.inf):
        values = clean.values.clone()
        for row, length in enumerate([4, 2, 6]):
            values[row, length:] = garbage
        signal = Signal(values, clean.lengths)
        for layer in layers:
            signal = layer(signal, signal)[0]
        results.append(signal.values)
    assert results[0].isfinite().all()
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
