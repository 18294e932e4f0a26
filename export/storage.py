"""How a deployable file holds a model's parameters, and the standard operators that give them back.

    float32  all parameters, as they are
    sparse   a bit for each parameter, and the values of those that are active
    codes    b bits for each parameter that is quantised, and each layer's centres

Bits are planes of bytes: the first bit of every parameter, then the second ..., the lowest bit of a byte first. Those
of all tensors stand end to end, are unpacked at once, and then split:

    bits    = (planes [b, bytes, 1] >> [0 1 ... 7]) & 1         [b, bytes, 8], then [b, 8 bytes]
    numbers = [1 2 4 ...] bits                                  [1, 8 bytes]: each parameter's, and a few zeros

A code is such a number, and looked up among the centres. A mask's numbers are 0 and 1: where it is 1 their running sum
counts the active values so far, so that sum * number is a place in [0, first value, second value, ...].

All this depends on constants alone, so onnxruntime computes it once, when it loads the file.
"""

import numpy as np
from numpy.typing import NDArray

from edge_runtime import personal
from edge_runtime.errors import ConfigError
from edge_runtime.export.inference import Graph
from edge_runtime.personal import Personal
from edge_runtime.tree import Layout


def float32(graph: Graph, model: Personal) -> None:
    """Hold all parameters as they are."""
    graph.constants |= model.card.layout.views(model.values)


def sparse(graph: Graph, model: Personal) -> None:
    """Hold the tensors that are masked as bits and active values.

    Raises:
        ConfigError: there is no mask.
    """
    layout, mask = model.card.layout, model.active
    views = {} if mask is None else {name: mask[where] for name, where in _slices(layout).items()}
    masked = {name: bits for name, bits in views.items() if not bits.all()}
    if not masked:
        raise ConfigError("--format sparse: this model has no mask; take float32 or int8")
    float32(graph, model)
    parts = {name: graph.constants.pop(name).reshape(-1) for name in masked}
    values = np.concatenate([np.zeros(1, np.float32), *(part[masked[name]] for name, part in parts.items())])
    numbers = _numbers(graph, np.concatenate(list(masked.values())).astype(np.uint8), 1)
    running = graph.put_in_front("CumSum", [numbers, graph.constant(np.array(1))])
    places = graph.put_in_front("Mul", [running, numbers])
    joined = graph.put_in_front("Gather", [graph.constant(values), places])
    kept = layout.only(masked)
    for part, name, shape in zip(_split(graph, joined, kept), kept.names, kept.shapes, strict=True):
        graph.put_in_front("Reshape", [part, graph.constant(np.array(shape, np.int64))], name)


def codes(graph: Graph, model: Personal) -> None:
    """Hold what is quantised as codes and centres.

    Raises:
        ConfigError: nothing is quantised.
        DecodeError: the codes are not those of the model.
    """
    if model.quantised is None:
        raise ConfigError("--format codes: this model is not quantised; take float32 or int8")
    each, centres, _ = personal.codes(model.quantised, model.card.layout)
    float32(graph, model)
    kept = model.card.layout.only(model.quantised.names)
    joined = _numbers(graph, np.concatenate(each), model.quantised.bits)
    for part, row, name, shape in zip(_split(graph, joined, kept), centres, kept.names, kept.shapes, strict=True):
        del graph.constants[name]
        shaped = graph.put_in_front("Reshape", [part, graph.constant(np.array(shape, np.int64))])
        graph.put_in_front("Gather", [graph.constant(row), shaped], name)


def _slices(layout: Layout) -> dict[str, slice]:
    return dict(zip(layout.names, layout.slices, strict=True))


def _numbers(graph: Graph, numbers: NDArray[np.uint8], bits: int) -> str:
    """Hold numbers [n] below 2^bits as bits; gives the value that they are unpacked to, [1, n and up to 7 more]."""
    planes = numbers >> np.arange(bits, dtype=np.uint8)[:, None] & 1
    packed = graph.constant(np.packbits(planes, axis=1, bitorder="little")[:, :, None])
    moved = graph.put_in_front("BitShift", [packed, graph.constant(np.arange(8, dtype=np.uint8))], direction="RIGHT")
    each = graph.put_in_front("BitwiseAnd", [moved, graph.constant(np.array(1, np.uint8))])
    rows = graph.put_in_front("Reshape", [each, graph.constant(np.array([bits, -1]))])
    weights = (1 << np.arange(bits)).astype(np.uint8)[None]
    return graph.put_in_front("MatMulInteger", [graph.constant(weights), rows])


def _split(graph: Graph, joined: str, layout: Layout) -> list[str]:
    """Cut [1, n and up to 7 more] into the tensors of a layout, each [1, its size]."""
    sizes = [*layout.sizes, *([-layout.size % 8] if layout.size % 8 else [])]
    parts = [f"part {i}" for i in range(len(sizes))]
    graph.split_in_front("Split", [joined, graph.constant(np.array(sizes))], parts, axis=1)
    return parts[: len(layout.sizes)]
