"""A model as a device gets it: two ONNX graphs and a manifest, nothing that is executable.

    BUNDLE/manifest.json    what the model is, and the SHA-256 of every other file
    BUNDLE/forward.onnx     parameters, x -> outputs, saved activations
    BUNDLE/backward.onnx    parameters, x, saved activations, grad -> gradients of the parameters
    BUNDLE/packed-*.onnx    the same for sparse models, on active values (`packed.py`): forward, backward, and growth,
                            which gives the places of the largest gradients (`export/packed.py` has their ends)
    BUNDLE/initial.bin      initial parameters (`compression/codec.py`); built-in models draw theirs from the run's seed

In the graphs a parameter has its own name, the input is `x`, the output `outputs`, saved activations `saved.0`, ... ,
the gradient of the output `grad` and that of a parameter `d.NAME`. The backward graph names only what it uses. Both
hold standard operators only, and work for any batch size.

`export/` writes bundles (with torch); reading one takes neither torch nor onnx.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import models
from edge_runtime.compression import codec, frames, submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.tree import Flat, Layout

MANIFEST, INITIAL, CUT = "manifest.json", "initial.bin", "cut.json"
FORWARD, BACKWARD = "forward.onnx", "backward.onnx"
PACKED_FORWARD, PACKED_BACKWARD, GROWTH = "packed-forward.onnx", "packed-backward.onnx", "packed-growth.onnx"
GRAPHS = (FORWARD, BACKWARD, PACKED_FORWARD, PACKED_BACKWARD, GROWTH)
MAX_BYTES = 1 << 26
"""Largest bundle without initial parameters that is let in from the network."""
_MAX_MANIFEST_BYTES = 1 << 20
_FORMAT = 1
_TYPES = ("float32", "int64")
_KEYS = {
    "format",
    "model",
    "opset",
    "ir_version",
    "input",
    "outputs",
    "parameters",
    "private",
    "saved",
    "memory",
    "files",
}


@dataclass(frozen=True)
class Memory:
    """What a pass over one batch holds at its peak beside the parameters and their gradients, in bytes."""

    fixed: int
    per_sample: int
    saved_per_sample: int
    """Of that, what lies between the passes."""


@dataclass(frozen=True)
class Bundle:
    """A model that can be trained."""

    model: str
    layout: Layout
    input_shape: tuple[int, ...]
    """Without the batch, which comes first."""
    input_type: str
    """`float32`, or `int64` for models that begin with an embedding."""
    outputs: int
    """Values per sample."""
    private: tuple[str, ...]
    """Names of the parameters that by default stay on the device."""
    saved: tuple[str, ...]
    """Names of the activations that the forward graph hands to the backward graph."""
    memory: Memory
    opset: int
    ir_version: int
    graphs: Mapping[str, bytes]
    """The ONNX graphs by file name: those of `GRAPHS`."""
    initial: Flat | None
    """Initial parameters [size]; None: drawn from the run's seed."""


def files(bundle: Bundle) -> dict[str, bytes]:
    """Write a bundle as the content of its files by name; the inverse of `from_files`."""
    content = dict(bundle.graphs)
    if bundle.initial is not None:
        content[INITIAL] = codec.encode([bundle.initial])
    manifest = {
        "format": _FORMAT,
        "model": bundle.model,
        "opset": bundle.opset,
        "ir_version": bundle.ir_version,
        "input": {"shape": bundle.input_shape, "type": bundle.input_type},
        "outputs": bundle.outputs,
        "parameters": list(zip(bundle.layout.names, bundle.layout.shapes, strict=True)),
        "private": bundle.private,
        "saved": bundle.saved,
        "memory": dataclasses.asdict(bundle.memory),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }
    return {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n", **content}


def from_files(content: Mapping[str, bytes], where: str) -> Bundle:
    """Check the files of a bundle against each other; the inverse of `files`.

    Args:
        content: what they hold, by name.
        where: where they come from, for messages.

    Raises:
        ConfigError: a file is missing or damaged, or the manifest is not one.
    """
    if MANIFEST not in content:
        raise ConfigError(f"{where}: holds no {MANIFEST}; make a bundle with `edge-coordinator export`")
    try:
        record = json.loads(content[MANIFEST])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {MANIFEST} is not JSON: {error}; export the model again") from error
    try:
        return _parse(record, content, where)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {MANIFEST} is malformed ({error}); export the model again") from error


def _parse(record: Any, content: Mapping[str, bytes], where: str) -> Bundle:
    if record["format"] != _FORMAT:
        raise ConfigError(f"{where}: format {record['format']!r} of a bundle is not known here; this reads {_FORMAT}")
    if set(record) != _KEYS:
        raise ValueError(f"its keys are {', '.join(sorted(record))}")
    if not set(GRAPHS) <= set(record["files"]) <= {*GRAPHS, INITIAL}:
        raise ValueError(f"its files are {', '.join(sorted(record['files']))}")
    for name, digest in record["files"].items():
        if name not in content:
            raise ConfigError(f"{where}: {name} is missing; export the model again")
        if hashlib.sha256(content[name]).hexdigest() != digest:
            raise ConfigError(f"{where}: {name} is not the file that {MANIFEST} was written for (another SHA-256)")
    layout = Layout(
        tuple(_text(name) for name, _ in record["parameters"]),
        tuple(tuple(_count(size) for size in shape) for _, shape in record["parameters"]),
    )
    if len(set(layout.names)) != len(layout.names) or not layout.names:
        raise ValueError("parameters must have different names")
    if record["input"]["type"] not in _TYPES:
        raise ValueError(f"an input of type {record['input']['type']!r}")
    if not set(record["private"]) <= set(layout.names):
        raise ValueError("a private name is not a parameter")
    initial = _initial(content[INITIAL], layout, where) if INITIAL in record["files"] else None
    return Bundle(
        _text(record["model"]),
        layout,
        tuple(_count(size) for size in record["input"]["shape"]),
        record["input"]["type"],
        _count(record["outputs"]),
        tuple(record["private"]),
        tuple(_text(name) for name in record["saved"]),
        Memory(**{field.name: _count(record["memory"][field.name], 0) for field in dataclasses.fields(Memory)}),
        _count(record["opset"]),
        _count(record["ir_version"]),
        {name: content[name] for name in GRAPHS},
        initial,
    )


def _initial(data: bytes, layout: Layout, where: str) -> Flat:
    try:
        (values,) = codec.decode(data, layout.size, max_sections=1)
    except (DecodeError, ValueError) as error:
        raise ConfigError(f"{where}: {INITIAL} is damaged: {error}; export the model again") from error
    if not isinstance(values, np.ndarray) or len(values) != layout.size or not np.isfinite(values).all():
        raise ConfigError(f"{where}: {INITIAL} does not hold {layout.size} finite values; export the model again")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 500:
        raise ValueError(f"{value!r:.50} is not a name")
    return value


def _count(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value < 1 << 40:
        raise ValueError(f"{value!r:.50} is not a whole number from {least}")
    return value


def part_folder(folder: Path, width: float) -> Path:
    """Say where the part of a model lies that has `width` of its channels: a bundle, and its cut."""
    return folder / "parts" / f"{width:g}"


def read_cut(folder: Path, layout: Layout) -> Cut:
    """Read which part of a model with that layout the bundle in a folder is.

    Raises:
        ConfigError: nothing says that, or it is damaged.
    """
    try:
        return submodel.read(json.loads((folder / CUT).read_bytes()), layout.shapes)
    except (OSError, ValueError, RecursionError, DecodeError) as error:
        raise ConfigError(f"{folder / CUT}: says of no part of a model ({error}); export the model again") from error


def read(folder: Path) -> Bundle:
    """Read a bundle's folder.

    Raises:
        ConfigError: it is not one, or damaged.
    """
    content = {}
    for name in (MANIFEST, *GRAPHS, INITIAL):
        try:
            content[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{folder / name}: cannot be read: {error.strerror}") from error
    return from_files(content, str(folder))


def built_in_folder(name: str) -> Path:
    """Say where the bundle of a built-in model lies, which comes with the package.

    Raises:
        ConfigError: there is no model of that name.
    """
    models.find(name)
    return Path(__file__).with_name("bundles") / name


def built_in(name: str) -> Bundle:
    """Read the bundle of a built-in model; raises as `built_in_folder`."""
    return read(built_in_folder(name))


def pack(bundle: Bundle, initial: bool = False) -> bytes:
    """Write a bundle (with or without its initial parameters) as compressed bytes; the inverse of `unpack`."""
    parts: list[bytes | int] = []
    content = files(bundle if initial else dataclasses.replace(bundle, initial=None))
    for name in (MANIFEST, *GRAPHS, INITIAL):
        if name in content:
            parts += [len(content[name]), frames.pack(content[name])]
    return codec.encode(parts)


def unpack(data: bytes, most: int = MAX_BYTES) -> Bundle:
    """Read hostile bytes as a bundle, with graphs of at most `most` bytes each.

    Raises:
        DecodeError: they are not one.
    """
    names = (MANIFEST, *GRAPHS, INITIAL)
    parts = codec.decode(data, 0, max_sections=2 * len(names))
    content = {}
    if len(parts) not in (2 * len(names) - 2, 2 * len(names)):
        raise DecodeError(f"bundle: {len(parts)} parts")
    for name, size, frame in zip(names, parts[::2], parts[1::2], strict=False):
        limit = {MANIFEST: _MAX_MANIFEST_BYTES, INITIAL: MAX_BYTES}.get(name, most)
        if not isinstance(size, int) or not isinstance(frame, bytes) or not 0 <= size <= limit:
            raise DecodeError(f"bundle: {name} is malformed or too large")
        content[name] = frames.unpack(frame, size)
    try:
        return from_files(content, "bundle")
    except ConfigError as error:
        raise DecodeError(str(error)) from error


def bare(data: bytes) -> bytes:
    """Take the initial parameters out of packed bytes, if they are in; nothing stays nothing. Raises as `unpack`."""
    made = unpack(data) if data else None
    return data if made is None or made.initial is None else pack(made)


def row_bounds(rows: int, tiles: int) -> list[int]:
    """Cut a matrix's rows into runs that packed graphs work on one after the other; gives their ends, 0 first."""
    step = -(-rows // tiles)
    return [*range(0, rows, step), rows]
