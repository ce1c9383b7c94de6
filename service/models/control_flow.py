"""Whether the time of a graph's run is bounded by the size of its inputs. Looks at bytes: opens nothing.

A loop may go on for as long as a value of the input says, so a graph that has one must not run where nothing can end it.
"""

from __future__ import annotations

from service.models.protobuf import read_fields

UNBOUNDED = frozenset((b"Loop", b"Scan", b"If"))
KNOWN_DOMAINS = frozenset((b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"))
# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS, _GRAPH_NODE, _NODE_OPERATOR, _NODE_DOMAIN = 7, 25, 1, 4, 7


def is_bounded(graph: bytes) -> bool:
    """Whether no operator of an ONNX file loops or branches, or is one that is not known. False for what is no ONNX file."""
    try:
        if any(True for _ in read_fields(memoryview(graph), _MODEL_FUNCTIONS)):
            return False
        return all(
            bytes(operator) not in UNBOUNDED and all(bytes(domain) in KNOWN_DOMAINS for domain in read_fields(node, _NODE_DOMAIN))
            for body in read_fields(memoryview(graph), _MODEL_GRAPH)
            for node in read_fields(body, _GRAPH_NODE)
            for operator in read_fields(node, _NODE_OPERATOR)
        )
    except (ValueError, IndexError):
        return False
