"""The graph that only infers, made of a bundle's forward graph: as small as it can be without another result.

`strip` leaves the input `x` and the output `outputs`; parameters are values without a source until `Graph.constants` or
nodes in front (`storage.py`) give them. `write` folds what depends on constants alone, and names everything as short as
can be: beside packed codes, names and attributes that say the default would be half of a file.
"""

import itertools
import string
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from google.protobuf.message import DecodeError as ProtobufError
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_runtime.bundle import FORWARD, Bundle
from edge_runtime.errors import ConfigError

INPUT, OUTPUT = "x", "outputs"
_OPSET = 18
_FOLDED = ("Transpose", "Unsqueeze", "Squeeze", "Reshape")
"""What is computed now if its inputs are constants: results that are no larger than the inputs."""
_IMPLIED = {"dilations": 1, "strides": 1, "pads": 0}
"""What an attribute that is missing stands for in every dimension, where an operator's schema says so only in words."""
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

Array = NDArray[Any]


class Graph:
    """A graph that is being put together: constants by name, and nodes in an order that computes."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.constants: dict[str, Array] = {}
        self.nodes: list[NodeProto] = []
        self.in_front: list[NodeProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = itertools.count()

    def constant(self, value: Array) -> str:
        """Give the name of a constant; the same value has it once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        name = self._known.setdefault(key, f"constant {len(self._known)}")
        self.constants[name] = value
        return name

    def put_in_front(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node before the model's, after those put there; gives the name of its output."""
        (name,) = self.split_in_front(operator, inputs, [output or f"value {next(self._count)}"], **attributes)
        return name

    def split_in_front(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Add a node of several outputs; see `put_in_front`."""
        self.in_front.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def fold(self) -> None:
        """Compute what depends on constants alone, and drop what nothing uses."""
        left = []
        for node in [*self.in_front, *self.nodes]:
            if node.op_type in _FOLDED and all(name in self.constants for name in node.input):
                given = {name: self.constants[name] for name in node.input}
                (folded,) = cast(list[Array], ReferenceEvaluator(node).run(None, given))
                self.constants[node.output[0]] = np.array(folded, order="C")
            else:
                left.append(node)
        self.in_front, self.nodes = [], left
        used = {name for node in left for name in node.input}
        self.constants = {name: value for name, value in self.constants.items() if name in used}


def strip(data: bytes, bundle: Bundle) -> Graph:
    """Take what `outputs` needs of an ONNX graph: a bundle's forward graph, or another one made of it.

    Raises:
        ConfigError: the graph is damaged, or holds what no bundle of ours has.
    """
    try:
        model = ModelProto.FromString(data)
    except ProtobufError as error:
        raise ConfigError(f"model {bundle.model!r}: {FORWARD} is not an ONNX graph; export the model again") from error
    if fault := _fault(model):
        raise ConfigError(f"model {bundle.model!r}: {FORWARD} {fault}; export the model again")
    graph = Graph(bundle)
    held = {one.name: one for one in model.graph.initializer}
    for node in _needed(model.graph.node):
        names = [graph.constant(numpy_helper.to_array(held[name])) if name in held else name for name in node.input]
        plain = helper.make_node(node.op_type, names, node.output)
        plain.attribute.extend(one for one in node.attribute if not _says_the_default(node.op_type, one))
        graph.nodes.append(plain)
    return graph


def _fault(model: ModelProto) -> str:
    """Say what a hostile graph holds that a bundle's does not: functions, graphs within nodes, bytes of other files."""
    if [one.version for one in model.opset_import if one.domain == ""] != [_OPSET]:
        return f"is not of opset {_OPSET}"
    for node in model.graph.node:
        inner = any(one.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for one in node.attribute)
        if node.domain or inner or not defs.has(node.op_type):
            return f"holds the operator {node.op_type[:50]!r}"
    tensors = [*model.graph.initializer, *(one.t for node in model.graph.node for one in node.attribute)]
    if model.functions or model.graph.sparse_initializer or any(one.external_data for one in tensors):
        return "holds functions, or data outside of it"
    return "" if any(OUTPUT in node.output for node in model.graph.node) else f"has no {OUTPUT!r}"


def _needed(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    needed, kept = {OUTPUT}, []
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _says_the_default(operator: str, attribute: AttributeProto) -> bool:
    value = helper.get_attribute_value(attribute)
    if attribute.name in _IMPLIED:
        return set(value) == {_IMPLIED[attribute.name]}
    if attribute.name == "kernel_shape" and operator == "Conv":
        return True  # the weight's shape says it
    known = defs.get_schema(operator, _OPSET).attributes.get(attribute.name)
    if known is None or not known.default_value.name:
        return False
    return bool(helper.get_attribute_value(known.default_value) == value)


def write(graph: Graph) -> bytes:
    """Write the graph as an ONNX file; the batch is free."""
    graph.fold()
    bundle, names = graph.bundle, _short_names(graph)
    takes = helper.make_tensor_value_info(INPUT, _TYPES[bundle.input_type], ["n", *bundle.input_shape])
    gives = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", bundle.outputs])
    tensors = [numpy_helper.from_array(value, names[name]) for name, value in graph.constants.items()]
    nodes = [_renamed(node, names) for node in graph.nodes]
    made = helper.make_graph(nodes, "g", [takes], [gives], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=bundle.ir_version)
    return bytes(model.SerializeToString(deterministic=True))


def _short_names(graph: Graph) -> dict[str, str]:
    """Give every value a name of as few letters as can be; the ends keep theirs, and so does what is left out."""
    words = (itertools.product(string.ascii_letters, repeat=size) for size in itertools.count(1))
    every = map("".join, itertools.chain.from_iterable(words))
    free = (name for name in every if name not in (INPUT, OUTPUT))
    names = {INPUT: INPUT, OUTPUT: OUTPUT, "": ""}
    for name in itertools.chain(graph.constants, *(node.output for node in graph.nodes)):
        if name not in names:
            names[name] = next(free)
    return names


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    made = helper.make_node(node.op_type, [names[one] for one in node.input], [names[one] for one in node.output])
    made.attribute.extend(node.attribute)
    return made
