"""ONNX's recurrent operators: their names, and where their inputs are."""

from __future__ import annotations

from onnx import NodeProto

RECURRENT = ("LSTM", "GRU", "RNN")
SEQUENCE_LENS = 4
INITIAL = (5, 6)  # h and c among a recurrent node's inputs; Y_h and Y_c are outputs 1 and 2


def input_of(node: NodeProto, place: int) -> str:
    """The name of a node's input, "" where it is left out."""
    return node.input[place] if len(node.input) > place else ""
