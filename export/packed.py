"""The graphs of a bundle that compute with active values: made of the dense ones, by rewriting their ends.

Every parameter NAME with two or more dimensions becomes two inputs, its active values `NAME` [k] and their flat indices
`at.NAME` [k] (int32), from which the graph puts the dense tensor together where it is used; so does a gradient's way
back, from `d.NAME` [shape] to [k]. The runtime holds a dense tensor only between its first and its last use.

A matrix of more than `_TILE` values that is only ever multiplied (a dense layer's) never exists whole, nor does its
gradient: runs of its rows follow each other. Where the rows' values begin is the input `cuts.NAME` [tiles + 1].

The graph for growing gives instead of gradients, for each such parameter, `top.NAME` [n]: the flat indices of the
`number.NAME` [1] largest absolute values of the dense gradient, without those listed in `barred.NAME` [b] (int32, cut
by `barred-cuts.NAME`).
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edge_runtime.bundle import row_bounds
from edge_runtime.tree import Layout

_TILE = 1 << 20
"""Values: 4 MiB of a matrix exist at a time."""
_INT, _FLOAT = TensorProto.INT32, TensorProto.FLOAT


def forward(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a forward graph."""
    return _rewrite(dense, layout, lambda graph, name, shape: None)


def backward(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a backward graph to give gradients of active values."""
    return _rewrite(dense, layout, _gather_gradient)


def growth(dense: bytes, layout: Layout) -> bytes:
    """Rewrite a backward graph to give the places of the largest gradients, and no gradient."""
    return _rewrite(dense, layout, _find_largest, drop_others=True)


def masked(layout: Layout) -> dict[str, tuple[int, ...]]:
    """List the parameters that are packed."""
    return {name: shape for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) >= 2}


def _rewrite(
    dense: bytes, layout: Layout, back: Callable[["_Graph", str, tuple[int, ...]], None], drop_others: bool = False
) -> bytes:
    model = ModelProto.FromString(dense)
    graph = _Graph(model.graph)
    for name, shape in masked(layout).items():
        if graph.takes(name):
            tiles = _tiles(shape)
            uses = _matrix_uses(graph, name) if len(tiles) > 1 else None
            if uses is None:
                _put_whole(graph, name, shape)
            else:
                _put_tiles(graph, name, shape, uses)
        if graph.gives(f"d.{name}"):
            back(graph, name, shape)
    if drop_others:
        graph.keep_outputs("top.")
    graph.write()
    return bytes(model.SerializeToString(deterministic=True))


def _tiles(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut a matrix into runs of rows of at most `_TILE` values, as (first row, row after the last)."""
    if len(shape) != 2:
        return [(0, shape[0])]
    bounds = row_bounds(shape[0], -(-math.prod(shape) // _TILE))
    return list(itertools.pairwise(bounds))


def _matrix_uses(graph: "_Graph", name: str) -> list[NodeProto] | None:
    """List the products that a matrix is a factor of: x W^T (through a Transpose) or g W. None: it has other uses."""
    uses: list[NodeProto] = []
    for node in graph.users(name):
        if node.op_type == "Transpose":
            uses += graph.users(node.output[0])
            if any(use.op_type not in ("Gemm", "MatMul") or use.input[1] != node.output[0] for use in uses):
                return None
        elif node.op_type == "MatMul" and node.input[1] == name:
            uses.append(node)
        else:
            return None
    return uses


def _put_whole(graph: "_Graph", name: str, shape: tuple[int, ...]) -> None:
    """Put the dense tensor together before its first use."""
    users = graph.users(name)
    graph.retype(name, _FLOAT, [f"k.{name}"])
    graph.take(f"at.{name}", _INT, [f"k.{name}"])
    with graph.before(users[0]):
        dense = _scatter(graph, name, f"at.{name}", shape)
    for node in users:
        _replace(node.input, name, dense)


def _put_tiles(graph: "_Graph", name: str, shape: tuple[int, ...], uses: list[NodeProto]) -> None:
    """Multiply by one tile of rows after the other; each is put together where it is used."""
    graph.retype(name, _FLOAT, [f"k.{name}"])
    graph.take(f"at.{name}", _INT, [f"k.{name}"])
    graph.take(f"cuts.{name}", TensorProto.INT64, [len(_tiles(shape)) + 1])
    for node in uses:
        transposed = node.op_type == "Gemm" or node.input[1] != name
        with graph.before(node):
            parts = []
            for index, (first, last) in enumerate(_tiles(shape)):
                values = _cut(graph, name, f"cuts.{name}", index)
                at = _shifted(graph, f"at.{name}", f"cuts.{name}", index, first * shape[1])
                tile = _scatter(graph, values, at, (last - first, shape[1]))
                if transposed:
                    parts.append(graph.add("Gemm", [node.input[0], tile], transB=1))
                    continue
                columns = _slice(graph, node.input[0], first, last, axis=1)
                product = graph.add("MatMul", [columns, tile])
                parts = [graph.add("Add", [parts[0], product]) if parts else product]
            whole = graph.add("Concat", parts, axis=1) if transposed else parts[0]
            if node.op_type == "Gemm" and len(node.input) > 2:
                whole = graph.add("Add", [whole, node.input[2]])
        graph.replace(node, whole)
    graph.remove_unused()


def _gather_gradient(graph: "_Graph", name: str, shape: tuple[int, ...]) -> None:
    """Pick the active values out of a dense gradient, or of one tile of it after the other."""
    if not graph.takes(f"at.{name}"):  # a first layer's, which the way back does not need
        graph.take(f"at.{name}", _INT, [f"k.{name}"])
    source = graph.source(f"d.{name}")
    tiles = _tiles(shape)
    with graph.after(source):
        if len(tiles) == 1 or source.op_type != "MatMul":
            row = graph.add("Reshape", [graph.rename_output(f"d.{name}"), graph.constant("row", [-1])])
            picked = graph.add("Gather", [row, f"at.{name}"])
        else:
            if not graph.takes(f"cuts.{name}"):
                graph.take(f"cuts.{name}", TensorProto.INT64, [len(tiles) + 1])
            parts = []
            for index, (first, last) in enumerate(tiles):
                at = _shifted(graph, f"at.{name}", f"cuts.{name}", index, first * shape[1])
                parts.append(graph.add("Gather", [_gradient_tile(graph, source, first, last), at]))
            picked = graph.add("Concat", parts, axis=0)
    graph.give(f"d.{name}", picked, _FLOAT, [f"k.{name}"])


def _find_largest(graph: "_Graph", name: str, shape: tuple[int, ...]) -> None:
    """Find the places of the largest gradients; of tiles first in each, and then among those."""
    source = graph.source(f"d.{name}")
    tiles = _tiles(shape)
    graph.take(f"barred.{name}", _INT, [f"b.{name}"])
    graph.take(f"number.{name}", TensorProto.INT64, [1])
    with graph.after(source):
        if len(tiles) == 1 or source.op_type != "MatMul":
            row = graph.add("Reshape", [graph.rename_output(f"d.{name}"), graph.constant("row", [-1])])
            _, top = _top(graph, row, f"barred.{name}", f"number.{name}")
        else:
            graph.take(f"barred-cuts.{name}", TensorProto.INT64, [len(tiles) + 1])
            sizes, places = [], []
            for index, (first, last) in enumerate(tiles):
                barred = _shifted(graph, f"barred.{name}", f"barred-cuts.{name}", index, first * shape[1])
                most = graph.constant(f"{(last - first) * shape[1]}", [(last - first) * shape[1]])
                number = graph.add("Min", [f"number.{name}", most])
                size, place = _top(graph, _gradient_tile(graph, source, first, last), barred, number)
                offset = graph.constant(f"{first * shape[1]}", [first * shape[1]])
                sizes.append(size)
                places.append(graph.add("Add", [place, offset]))
            joined = graph.add("Concat", sizes, axis=0)
            _, best = graph.add_two("TopK", [joined, f"number.{name}"])
            top = graph.add("Gather", [graph.add("Concat", places, axis=0), best])
    graph.give(f"top.{name}", top, TensorProto.INT64, [f"n.{name}"])


def _gradient_tile(graph: "_Graph", source: NodeProto, first: int, last: int) -> str:
    """Compute some rows of a product g^T x, laid out in one row."""
    rows = _slice(graph, source.input[0], first, last, axis=0)
    return graph.add("Reshape", [graph.add("MatMul", [rows, source.input[1]]), graph.constant("row", [-1])])


def _top(graph: "_Graph", gradient: str, barred: str, number: str) -> tuple[str, str]:
    """Find the largest absolute values and their places, none of them barred."""
    size = graph.add("Abs", [gradient])
    minus = graph.add("Expand", [graph.constant("minus", [-1], np.float32), graph.add("Shape", [barred])])
    return graph.add_two("TopK", [graph.add("ScatterElements", [size, barred, minus]), number])


def _scatter(graph: "_Graph", values: str, at: str, shape: tuple[int, ...]) -> str:
    size = math.prod(shape)
    zeros = graph.add("ConstantOfShape", [graph.constant(f"{size}", [size])])
    flat = graph.add("ScatterElements", [zeros, at, values])
    return graph.add("Reshape", [flat, graph.constant("x".join(map(str, shape)), list(shape))])


def _cut(graph: "_Graph", values: str, cuts: str, index: int) -> str:
    """Take the part of a vector that lies between two cuts, which are an input."""
    first, last = (_slice(graph, cuts, index + i, index + i + 1) for i in (0, 1))
    return graph.add("Slice", [values, first, last])


def _shifted(graph: "_Graph", at: str, cuts: str, index: int, offset: int) -> str:
    """Take a tile's part of flat indices, counted from the tile's first value."""
    return graph.add("Sub", [_cut(graph, at, cuts, index), graph.constant(f"int32-{offset}", [offset], np.int32)])


def _slice(graph: "_Graph", value: str, first: int, last: int, axis: int = 0) -> str:
    return graph.add("Slice", [value, *(graph.constant(f"{n}", [n]) for n in (first, last, axis))])


def _replace(ends: Any, old: str, new: str) -> None:
    for index, one in enumerate(ends):
        if one == old:
            ends[index] = new


class _Graph:
    """An ONNX graph that is being rewritten; new nodes go where `before` or `after` says."""

    def __init__(self, proto: Any) -> None:
        self._proto = proto
        self._nodes: list[NodeProto] = [NodeProto.FromString(node.SerializeToString()) for node in proto.node]
        self._place = 0
        self._count = 0

    def takes(self, name: str) -> bool:
        return any(one.name == name for one in self._proto.input)

    def gives(self, name: str) -> bool:
        return any(one.name == name for one in self._proto.output)

    def users(self, name: str) -> list[NodeProto]:
        return [node for node in self._nodes if name in node.input]

    def source(self, name: str) -> NodeProto:
        return next(node for node in self._nodes if name in node.output)

    @contextlib.contextmanager
    def before(self, node: NodeProto) -> Iterator[None]:
        self._place = next(i for i, one in enumerate(self._nodes) if one is node)
        yield

    @contextlib.contextmanager
    def after(self, node: NodeProto) -> Iterator[None]:
        self._place = next(i for i, one in enumerate(self._nodes) if one is node) + 1
        yield

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self._add(operator, inputs, 1, attributes)[0]

    def add_two(self, operator: str, inputs: Sequence[str]) -> tuple[str, str]:
        first, second = self._add(operator, inputs, 2, {})
        return first, second

    def _add(self, operator: str, inputs: Sequence[str], outputs: int, attributes: dict[str, Any]) -> list[str]:
        self._count += 1
        names = [f"packed.{self._count}.{index}" for index in range(outputs)]
        node = helper.make_node(operator, list(inputs), names, name=f"packed.{self._count}", **attributes)
        self._nodes.insert(self._place, node)
        self._place += 1
        return names

    def constant(self, name: str, values: Sequence[float], kind: Any = np.int64) -> str:
        name = f"packed.const.{name}"
        if all(one.name != name for one in self._proto.initializer):
            self._proto.initializer.append(numpy_helper.from_array(np.array(values, kind), name))
        return name

    def take(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self._proto.input.append(helper.make_tensor_value_info(name, kind, shape))

    def retype(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        next(one for one in self._proto.input if one.name == name).CopyFrom(
            helper.make_tensor_value_info(name, kind, shape)
        )

    def rename_output(self, name: str) -> str:
        """Give an output's value another name, so that the output can become another's."""
        new = f"full.{name}"
        for node in self._nodes:
            _replace(node.output, name, new)
            _replace(node.input, name, new)
        return new

    def give(self, name: str, value: str, kind: int, shape: Sequence[int | str]) -> None:
        """Let an output be this value."""
        node = self.source(value)
        if self.gives(name):
            if any(name in one.output for one in self._nodes):
                self.rename_output(name)
            next(one for one in self._proto.output if one.name == name).CopyFrom(
                helper.make_tensor_value_info(name, kind, shape)
            )
        else:
            self._proto.output.append(helper.make_tensor_value_info(name, kind, shape))
        _replace(node.output, value, name)
        self.remove_unused()

    def replace(self, node: NodeProto, value: str) -> None:
        """Let whoever uses a node's output use this value instead."""
        _replace(self.source(value).output, value, node.output[0])
        self._nodes = [one for one in self._nodes if one is not node]

    def keep_outputs(self, prefix: str) -> None:
        kept = [one for one in self._proto.output if one.name.startswith(prefix)]
        del self._proto.output[:]
        self._proto.output.extend(kept)
        self.remove_unused(inputs_too=True)

    def remove_unused(self, inputs_too: bool = False) -> None:
        """Remove nodes and constants (and inputs) on which no output depends."""
        wanted = {one.name for one in self._proto.output}
        kept = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        self._nodes = kept[::-1]
        for ends in (self._proto.initializer, *([self._proto.input] if inputs_too else [])):
            rest = [type(one).FromString(one.SerializeToString()) for one in ends if one.name in wanted]
            del ends[:]
            ends.extend(rest)

    def write(self) -> None:
        """Put the nodes as they stand now into the graph."""
        del self._proto.node[:]
        self._proto.node.extend(self._nodes)
