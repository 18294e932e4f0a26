"""The graphs of a bundle that compute with active values: made of the dense ones, by rewriting their ends.

Every parameter NAME with two or more dimensions becomes two inputs, its active values `NAME` [k] and their flat indices
`at.NAME` [k] (int32), from which the graph puts the dense tensor together where it is used; so does a gradient's way
back, from `d.NAME` [shape] to [k]. The runtime holds a dense tensor only between its first and its last use.

The graph for growing gives instead of gradients, for each such parameter, `top.NAME` [n]: the flat indices of the
`number.NAME` [1] largest absolute values of the dense gradient, without those listed in `barred.NAME` [b] (int32).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_runtime.tree import Layout

_INT, _FLOAT = TensorProto.INT32, TensorProto.FLOAT


def forward(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a forward graph."""
    return _rewrite(dense, layout, lambda graph, name: None)


def backward(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a backward graph to give gradients of active values."""
    return _rewrite(dense, layout, _gather_gradient)


def growth(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a backward graph to give the places of the largest gradients, and no gradient."""
    return _rewrite(dense, layout, _find_largest, drop_others=True)


def masked(layout: Layout) -> dict[str, tuple[int, ...]]:
    """List the parameters that are packed."""
    return {name: shape for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) >= 2}


def _rewrite(dense: bytes, layout: Layout, back: Callable[[Any, str], None], drop_others: bool = False) -> bytes:
    model = ModelProto.FromString(dense)
    graph = model.graph
    used = {one.name for one in graph.input}
    given = {one.name for one in graph.output}
    for name, shape in masked(layout).items():
        if name in used:
            _scatter_values(graph, name, shape)
        if f"d.{name}" in given:
            back(graph, name)
            if name not in used and not drop_others:
                graph.input.append(helper.make_tensor_value_info(f"at.{name}", _INT, [f"k.{name}"]))
    if drop_others:
        kept = [one for one in graph.output if one.name.startswith("top.")]
        del graph.output[:]
        graph.output.extend(kept)
        _remove_unused(graph)
    return bytes(model.SerializeToString(deterministic=True))


def _scatter_values(graph: Any, name: str, shape: tuple[int, ...]) -> None:
    """Let `name` be active values, and put the dense tensor together under another name before its first use."""
    dense = f"dense.{name}"
    for node in graph.node:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = dense
    old = next(one for one in graph.input if one.name == name)
    old.CopyFrom(helper.make_tensor_value_info(name, _FLOAT, [f"k.{name}"]))
    graph.input.append(helper.make_tensor_value_info(f"at.{name}", _INT, [f"k.{name}"]))
    length = _constant(graph, f"n.{name}", np.array([math.prod(shape)], np.int64))
    target = _constant(graph, f"shape.{name}", np.array(shape, np.int64))
    nodes = [
        helper.make_node("ConstantOfShape", [length], [f"zeros.{name}"], name=f"zeros.{name}"),
        helper.make_node(
            "ScatterElements", [f"zeros.{name}", f"at.{name}", name], [f"flat.{name}"], name=f"put.{name}"
        ),
        helper.make_node("Reshape", [f"flat.{name}", target], [dense], name=dense),
    ]
    first = next((i for i, node in enumerate(graph.node) if dense in node.input), len(graph.node))
    _insert(graph, first, nodes)


def _gather_gradient(graph: Any, name: str) -> None:
    _free(graph, f"d.{name}", f"full.{name}")
    nodes = [
        helper.make_node("Reshape", [f"full.{name}", _row(graph)], [f"row.{name}"], name=f"row.{name}"),
        helper.make_node("Gather", [f"row.{name}", f"at.{name}"], [f"d.{name}"], name=f"pick.{name}"),
    ]
    _append_after_source(graph, f"full.{name}", nodes)
    end = next(one for one in graph.output if one.name == f"d.{name}")
    end.CopyFrom(helper.make_tensor_value_info(f"d.{name}", _FLOAT, [f"k.{name}"]))


def _find_largest(graph: Any, name: str) -> None:
    _free(graph, f"d.{name}", f"full.{name}")
    barred, number = f"barred.{name}", f"number.{name}"
    graph.input.append(helper.make_tensor_value_info(barred, _INT, [f"b.{name}"]))
    graph.input.append(helper.make_tensor_value_info(number, TensorProto.INT64, [1]))
    minus = _constant(graph, "minus_one", np.array([-1], np.float32))
    nodes = [
        helper.make_node("Reshape", [f"full.{name}", _row(graph)], [f"row.{name}"], name=f"row.{name}"),
        helper.make_node("Abs", [f"row.{name}"], [f"size.{name}"], name=f"size.{name}"),
        helper.make_node("Shape", [barred], [f"count.{name}"], name=f"count.{name}"),
        helper.make_node("Expand", [minus, f"count.{name}"], [f"bars.{name}"], name=f"bars.{name}"),
        helper.make_node(
            "ScatterElements", [f"size.{name}", barred, f"bars.{name}"], [f"open.{name}"], name=f"open.{name}"
        ),
        helper.make_node("TopK", [f"open.{name}", number], [f"steep.{name}", f"top.{name}"], name=f"top.{name}"),
    ]
    _append_after_source(graph, f"full.{name}", nodes)
    graph.output.append(helper.make_tensor_value_info(f"top.{name}", TensorProto.INT64, [f"n.{name}"]))


def _free(graph: Any, name: str, new: str) -> None:
    """Give an output's value another name inside the graph."""
    for node in graph.node:
        for ends in (node.input, node.output):
            for index, one in enumerate(ends):
                if one == name:
                    ends[index] = new


def _append_after_source(graph: Any, source: str, nodes: list[NodeProto]) -> None:
    place = next(i for i, node in enumerate(graph.node) if source in node.output)
    _insert(graph, place + 1, nodes)


def _insert(graph: Any, place: int, nodes: list[NodeProto]) -> None:
    every = [*graph.node[:place], *nodes, *graph.node[place:]]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in every]
    del graph.node[:]
    graph.node.extend(copies)


def _constant(graph: Any, name: str, value: Any) -> str:
    name = f"const.{name}"
    if all(one.name != name for one in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _row(graph: Any) -> str:
    return _constant(graph, "row", np.array([-1], np.int64))


def _remove_unused(graph: Any) -> None:
    """Remove nodes, inputs and constants on which no output depends."""
    wanted = {one.name for one in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for ends in (graph.input, graph.initializer):
        rest = [type(one).FromString(one.SerializeToString()) for one in ends if one.name in wanted]
        del ends[:]
        ends.extend(rest)
