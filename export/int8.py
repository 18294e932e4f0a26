"""Parameters, or all of inference, in whole numbers of 8 bits: operators between QuantizeLinear and DequantizeLinear.

    weights      a byte for each value of a filter or matrix, and a scale for each of its outputs: the largest
                 magnitude becomes 127. Activations stay float32.
    everything   onnxruntime's static quantisation, per channel: activations get the ranges seen on samples
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from edge_runtime.bundle import Bundle
from edge_runtime.export import inference
from edge_runtime.export.inference import Graph

_WEIGHTED = ("Conv", "Gemm", "MatMul")


def weights(graph: Graph) -> None:
    """Hold filters and matrices of a graph, which has its parameters, as whole numbers."""
    graph.fold()
    for node in graph.nodes:
        if node.op_type in _WEIGHTED and (value := graph.constants.get(node.input[1])) is not None and value.ndim > 1:
            turned = any(one.name == "transB" and one.i for one in node.attribute)
            axis = 0 if node.op_type == "Conv" or turned else value.ndim - 1
            _round(graph, node.input[1], value, axis)


def _round(graph: Graph, name: str, value: NDArray[Any], axis: int) -> None:
    others = tuple(i for i in range(value.ndim) if i != axis)
    largest = np.abs(value).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    held = graph.constant(np.rint(value / scale).astype(np.int8))
    del graph.constants[name]
    graph.put_in_front("DequantizeLinear", [held, graph.constant(scale.reshape(-1))], name, axis=axis)


def everything(data: bytes, bundle: Bundle, samples: NDArray[Any]) -> bytes:
    """Quantise an ONNX file that infers, with the ranges that `samples` [n, ...] show."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        form: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt8}
        logging.getLogger().addFilter(_silent)
        quantize_static(onnx.load_from_string(data), path, _Samples(samples), activation_type=QuantType.QInt8, **form)
        return inference.write(inference.strip(path.read_bytes(), bundle))
