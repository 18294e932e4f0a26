"""What a deployable file does on inputs, beside what the model that it was made of says where it is trained."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import backends, config, data, flags
from edge_runtime.bundle import Bundle
from edge_runtime.compute import Compute
from edge_runtime.datasets import folder
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.export import try_out
from edge_runtime.personal import Personal

_BATCH = 64
_TIMEOUT_S = 600

Array = NDArray[Any]
Outputs = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Samples:
    """Data to try a file on."""

    calibration: Array
    """What ranges of activations are taken from [samples, ...]; none: weights alone become whole numbers."""
    x: Array
    """What it is judged on."""
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trial:
    """What several files did in one fresh process, in their order."""

    outputs: list[Outputs]
    load_ms: list[float]
    latency_ms: list[float]
    """Medians of single samples on one thread."""
    onnxruntime: str
    """Its version."""


def read_samples(options: argparse.Namespace, graphs: Bundle) -> Samples | None:
    """Read the data that the flags name; None: none.

    Raises:
        ConfigError: no such data, or it is not what the model takes.
    """
    if options.data is None:
        if options.calibrate:
            raise ConfigError("--calibrate needs samples: say where they are with --data")
        return None
    if options.data.endswith(".npz"):
        found = folder.seed_set(Path(options.data))
        samples = Samples(found.x[: options.calibrate], found.x, found.y)
    else:
        settings = config.build(data.DataConfig, flags.data_table(options), "data")
        split = data.load(settings, config.cache_folder())
        samples = Samples(split.x_train[: options.calibrate], split.x_test, split.y_test)
    if samples.x.shape[1:] != graphs.input_shape or str(samples.x.dtype) != graphs.input_type:
        raise ConfigError(
            f"--data {options.data}: samples are {samples.x.dtype} {list(samples.x.shape[1:])}, and model "
            f"{graphs.model!r} takes {graphs.input_type} {list(graphs.input_shape)}"
        )
    if samples.y.max() >= graphs.outputs:
        raise ConfigError(f"--data {options.data}: has more classes than the {graphs.outputs} outputs of the model")
    return samples


def random_inputs(graphs: Bundle, number: int) -> Array:
    """Draw inputs [number, ...], the same ones every time."""
    rng, shape = np.random.default_rng(0), (number, *graphs.input_shape)
    if graphs.input_type == "int64":
        return rng.integers(0, 2, shape)  # every embedding has entries 0 and 1
    return rng.normal(size=shape).astype(np.float32)


def trained(model: Personal, graphs: Bundle, x: Array) -> Outputs:
    """Compute what a model says where it is trained."""
    vjp = backends.load(Compute(backend="onnx"), model.card.name, graphs).oracle.vjp
    views = model.card.layout.views(model.values)
    return np.concatenate([vjp(views, x[start : start + _BATCH])[0] for start in range(0, len(x), _BATCH)])


def run(contents: Sequence[bytes], x: Array) -> Trial:
    """Run files in a process that has only numpy and stock onnxruntime.

    Raises:
        DeviceError: onnxruntime does not run them.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        files = [home / f"{number}.onnx" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        np.save(home / "x.npy", x)
        program = [sys.executable, "-P", try_out.__file__, name, *map(str, files)]
        try:
            done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
            raise DeviceError(f"onnxruntime does not run the file: {said[:300]}") from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"onnxruntime takes more than {_TIMEOUT_S} s for the file") from error
        return Trial(
            [np.load(file.with_suffix(".npy"), allow_pickle=False) for file in files], **json.loads(done.stdout)
        )


def difference(found: Outputs, expected: Outputs) -> float:
    """Give the largest difference, relative to the largest output."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
