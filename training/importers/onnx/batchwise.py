"""Recurrent nodes with their rows first (`layout=1`) as ones with their steps first, the only ones that onnxruntime runs."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from training.importers.onnx.recurrent_nodes import INITIAL, RECURRENT

STEPS_FIRST = [1, 0, 2]  # of X, and of states; its own inverse
Y_ROWS_FIRST = [2, 0, 1, 3]  # (T, D, B, H) → (B, T, D, H)


def put_steps_first(graph: GraphProto) -> None:
    """Rewrite the nodes of a graph in their places; what they compute stays."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        is_batchwise = any(attribute.name == "layout" and attribute.i == 1 for attribute in node.attribute)
        nodes += _rewritten(node) if node.op_type in RECURRENT and is_batchwise else [node]
    if len(nodes) > len(graph.node):
        copies = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _rewritten(node: NodeProto) -> list[NodeProto]:
    before, after = [], []
    changed = _copy(node)
    del changed.attribute[:]
    changed.attribute.extend(attribute for attribute in node.attribute if attribute.name != "layout")
    # An output's name is the node's own in its graph, so that names made of it are, too.
    own = next(name for name in node.output if name)
    for place in (0, *INITIAL):
        if len(node.input) > place and node.input[place]:
            changed.input[place] = f"{own}/steps_first_{place}"
            before.append(helper.make_node("Transpose", [node.input[place]], [changed.input[place]], perm=STEPS_FIRST))
    for place, name in enumerate(node.output):
        if name:
            changed.output[place] = f"{name}/steps_first"
            order = STEPS_FIRST if place else Y_ROWS_FIRST
            after.append(helper.make_node("Transpose", [changed.output[place]], [name], perm=order))
    return [*before, changed, *after]
