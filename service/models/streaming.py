"""Whether the sequences of a model can come in pieces, and why not. Looks at bytes and manifests: runs nothing."""

from __future__ import annotations

from collections.abc import Set

from service.manifest import Manifest
from service.models.protobuf import read_fields

RECURRENT = frozenset((b"LSTM", b"GRU", b"RNN", b"DynamicQuantizeLSTM"))
REVERSE = b"ReverseSequence"
# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_NODE, _NODE_OPERATOR, _NODE_ATTRIBUTE, _ATTRIBUTE_NAME, _ATTRIBUTE_STRING = 7, 1, 4, 5, 1, 4

NO_STATE = "its manifest declares no recurrent state"
BOTH_WAYS = "it is bidirectional: what it answers depends on the end of a sequence, from which its backward half begins"
BACKWARDS = "it reads sequences backwards, from their end, which is not known while they last"


def why_not_streaming(manifest: Manifest, directions: Set[bytes]) -> str:
    """Why no sequence can come in pieces, in words that follow "the model cannot stream"; empty where it can.

    By the manifest and the directions that its graph names; a task may have reasons of its own.
    """
    if b"bidirectional" in directions:
        return BOTH_WAYS
    if b"reverse" in directions:
        return BACKWARDS
    if manifest.cannot_stream:
        return manifest.cannot_stream
    if not manifest.state:
        return NO_STATE
    if manifest.min_length > 1:
        return f"it reads at least {manifest.min_length} steps at a time"
    return ""


def reads_one_way(graph: bytes, directions: Set[bytes]) -> bool:
    """Whether no node of an ONNX file reads or turns a sequence from its end: what was read so far depends on nothing later.

    `directions` are what `find_directions` gives of it.
    """
    if not directions.isdisjoint((b"bidirectional", b"reverse")):
        return False
    try:
        for body in read_fields(memoryview(graph), _MODEL_GRAPH):
            for node in read_fields(body, _GRAPH_NODE):
                if any(bytes(operator) == REVERSE for operator in read_fields(node, _NODE_OPERATOR)):
                    return False
    except (ValueError, IndexError):
        return False
    return True


def find_directions(graph: bytes) -> frozenset[bytes]:
    """The directions that the recurrent nodes of an ONNX file name; empty for what is no ONNX file."""
    found = set()
    try:
        for body in read_fields(memoryview(graph), _MODEL_GRAPH):
            for node in read_fields(body, _GRAPH_NODE):
                if RECURRENT.isdisjoint(bytes(operator) for operator in read_fields(node, _NODE_OPERATOR)):
                    continue
                for attribute in read_fields(node, _NODE_ATTRIBUTE):
                    if any(bytes(name) == b"direction" for name in read_fields(attribute, _ATTRIBUTE_NAME)):
                        found |= {bytes(value) for value in read_fields(attribute, _ATTRIBUTE_STRING)}
    except (ValueError, IndexError):
        return frozenset()
    return frozenset(found)
