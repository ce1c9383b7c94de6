"""A network as an ONNX graph: raw values (or token ids) and `lengths` in, answers and new state out.

What a layer looks like in ONNX stands beside its torch code in `layers/`. Does not run the graph: that is `verify.py`.
"""

from __future__ import annotations

from typing import Any

from training.graph.builder import GraphBuilder, ModelProto
from training.network.network import Network


def write_graph(network: Network) -> ModelProto:
    """The network as an ONNX model: what `network.forward` computes in eval mode, with the same names.

    Raises NetworkError when the scaling has no statistics yet. Serialise with `model.SerializeToString()`.
    """
    graph = GraphBuilder(network.spec.task)
    tensors = describe_tensors(network)
    for tensor in tensors["inputs"]:
        graph.input(tensor["name"], tensor["datatype"], tensor["shape"])
    # A layer may well be called "output".
    graph.reserve(tensor["name"] for tensor in tensors["outputs"])
    values = network.write(graph)
    for tensor in tensors["outputs"]:
        graph.output(values[tensor["name"]], tensor["name"], tensor["datatype"], tensor["shape"])
    return graph.build()


def describe_tensors(network: Network) -> dict[str, Any]:
    """The graph's `inputs`, `outputs` and `state` pairs as the manifest lists them, and why it cannot stream, if so."""
    source = network.head.source
    inputs = [_tensor(network.head.input_name, "INT64" if source.is_tokens else "FP32", "batch", *source.axes)]
    if network.has_lengths:
        inputs.append(_tensor("lengths", "INT64", "batch"))
    inputs += [_tensor(name, "FP32", "batch", *shape.axes) for name, shape in network.head.further_inputs.items()]
    outputs = [_tensor(name, "FP32", "batch", *shape.axes) for name, shape in network.outputs.items()]
    state = []
    for part in network.state:
        inputs.append(_tensor(part.input, "FP32", "batch", part.units))
        outputs.append(_tensor(part.output, "FP32", "batch", part.units))
        state.append({"input": part.input, "output": part.output})
    reason = {"cannot_stream": network.why_not_streaming} if network.why_not_streaming else {}
    return {"inputs": inputs, "outputs": outputs, "state": state, **reason}


def _tensor(name: str, datatype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}
