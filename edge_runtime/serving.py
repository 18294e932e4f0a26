"""The personal model of this device at work: samples in, classes out, from files or over topics.

`edge-agent infer` is this, in a process of its own beside the agent. It reads the store's `served` file, which the
agent replaces in one piece when a round has made the model better on the device's own data, and looks before every
answer whether it has. A request on a topic is one of

    {"x": one sample or a list of them, "id": anything}     JSON; `id` is optional and comes back
    an NPY array of them                                    as `numpy.save` writes it

and is answered with {"id", "classes": [{"class", "name", "probability"}, ...], "run", "round"} or {"id", "error"}.
"""

import csv
import io
import json
import logging
import math
import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import backends, bundle, config, inference, losses, models, personal
from edge_runtime.algorithm import Fitted
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DecodeError, EdgeError
from edge_runtime.mqtt import Mqtt
from edge_runtime.personal import Origin
from edge_runtime.setup import ModelCard

log = logging.getLogger(__name__)

Samples = NDArray[Any]

_MAX_REQUEST_BYTES = 1 << 20
_MAX_WAITING = 16
"""Requests that wait; more are dropped."""
_MAX_HEAD_BYTES = 1000
"""Of an NPY array's header, which numpy parses as Python; its own are shorter."""
_MAX_ID_BYTES = 1000
_NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Answer:
    """What a model says of one sample."""

    index: int
    name: str
    """Of the class; its number, where the device's data do not name it."""
    probability: float

    def record(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {"class": self.index, "name": self.name, "probability": round(self.probability, 6)}


@dataclass(frozen=True)
class Loaded:
    """A personal model, ready."""

    origin: Origin
    fitted: Fitted
    input_shape: tuple[int, ...]

    def answer(self, x: Samples) -> list[Answer]:
        """Name the class of every sample [samples, ...]; rows of as many numbers are samples too.

        Raises:
            DecodeError: they are not samples of this model.
        """
        samples = _shaped(x, self.input_shape)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                found = losses.softmax(inference.outputs(self.fitted, samples))
        except Exception as error:  # of a framework: whatever it makes of a number that an embedding has no row for
            reason = " ".join(str(error).split())[:200]
            raise DecodeError(f"the model does not take these samples: {reason}") from error
        if not np.isfinite(found).all():
            raise DecodeError("the model gives no finite numbers for these samples")
        best = found.argmax(axis=1)
        names = self.origin.class_names
        return [
            Answer(int(i), names[i] if i < len(names) else str(i), float(row[i]))
            for i, row in zip(best, found, strict=True)
        ]


class Served:
    """The model that a store serves, loaded anew once it is another."""

    def __init__(self, path: Path, compute: Compute) -> None:
        """Load the model that the file `path` holds.

        Raises:
            ConfigError: there is none yet, or it is damaged.
            DeviceError: this device cannot compute it.
        """
        self._path, self._compute = path, compute
        self._seen = self._stamp()
        self._loaded = _load(path, compute)

    def current(self) -> Loaded:
        """Give the newest model that can be loaded; one that cannot is reported once."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._loaded = _load(self._path, self._compute)
            except EdgeError as error:
                log.warning("going on with the model of round %d: %s", self._loaded.origin.round, error)
            else:
                log.info("serving the model of round %d", self._loaded.origin.round)
        return self._loaded

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


def _load(path: Path, compute: Compute) -> Loaded:
    try:
        made = personal.decode(path.read_bytes())
        card = made.card
        if ":" in card.name and not card.bundle:
            raise ConfigError(
                f"{path}: model {card.name!r} is code; export it with `edge-coordinator export`, and start runs with "
                "--model BUNDLE, for a model that can be served"
            )
        graphs = bundle.unpack(card.bundle) if card.bundle else None
        model = backends.load(compute, card.name, graphs, card.cut)
    except FileNotFoundError as error:
        near = config.nearest_path(path) or "; it comes with this device's first round"
        raise ConfigError(f"{path}: no personal model yet{near}") from error
    except (DecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be served: {error}") from error
    if model.layout != card.layout:
        raise ConfigError(f"{path}: model {card.name!r} has other tensors here; install the version that trained it")
    return Loaded(made.origin, Fitted(model, made.values), _input_shape(card))


def _input_shape(card: ModelCard) -> tuple[int, ...]:
    return bundle.unpack(card.bundle).input_shape if card.bundle else models.find(card.name).input_shape


def _shaped(x: Samples, shape: tuple[int, ...]) -> Samples:
    size = math.prod(shape)
    if x.dtype.kind not in "biuf":
        raise DecodeError(f"samples of numbers are expected, not of {x.dtype}")
    if x.shape == shape or (x.ndim == 1 and x.size == size):
        x = x[None]
    if x.ndim < 2 or not len(x) or math.prod(x.shape[1:]) != size or x.shape[1:] not in (shape, (size,)):
        expected = "x".join(map(str, shape))
        raise DecodeError(f"samples of shape {expected} are expected (or rows of {size} numbers), not {x.shape}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32) if x.dtype.kind == "f" else x
    if not np.isfinite(x).all():
        raise DecodeError("samples hold a number that is not finite")
    return x.reshape(len(x), *shape)


def read(path: Path) -> tuple[Samples, NDArray[np.int64] | None]:
    """Read samples from a file: NPZ with `x` (and `y`, what they are), NPY, or CSV with a sample in each row.

    Raises:
        ConfigError: it is none of them.
    """
    try:
        return _read(path)
    except Exception as error:  # of numpy, zipfile, zlib, csv: whatever they make of a file that is something else
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: holds no samples ({reason}); write NPZ with x, NPY, or CSV of numbers") from error


def _read(path: Path) -> tuple[Samples, NDArray[np.int64] | None]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            y = np.asarray(arrays["y"], np.int64).reshape(-1) if "y" in arrays else None
            return arrays["x"], y
    if path.suffix == ".npy":
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive of arrays")  # it is the file that is wrong
        return found, None
    with path.open(newline="") as file:
        return np.array([[float(cell) for cell in row] for row in csv.reader(file) if row], np.float32), None


def reply(data: bytes, model: Loaded) -> bytes:
    """Answer a request, hostile bytes, in JSON."""
    named: dict[str, Any] = {}
    try:
        x = request(data, named)
        said: dict[str, Any] = {"classes": [answer.record() for answer in model.answer(x)]}
        said |= {"run": model.origin.run, "round": model.origin.round}
    except DecodeError as error:
        said = {"error": str(error)}
    return json.dumps({**named, **said}).encode()


def request(data: bytes, named: dict[str, Any]) -> Samples:
    """Read the samples of a request, hostile bytes; its id, if it has one, is put into `named`.

    Raises:
        DecodeError: it is none.
    """
    if len(data) > _MAX_REQUEST_BYTES:
        raise DecodeError(f"a request of {len(data)} bytes, at most {_MAX_REQUEST_BYTES} are allowed")
    if data.startswith(_NPY):
        return _npy(data)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"neither JSON nor NPY: {error}") from error
    if not isinstance(record, dict) or "x" not in record or not set(record) <= {"x", "id"}:
        raise DecodeError('a request is {"x": samples} and, if you like, an "id"')
    named |= {"id": record["id"]} if "id" in record else {}
    try:
        return np.array(record["x"], np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise DecodeError("x is not one sample, or a list of samples of one shape, of numbers") from error


def _npy(data: bytes) -> Samples:
    """Read an NPY array; numpy's own reader allocates what the header claims before it looks what there is."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0) or int.from_bytes(data[8:10], "little") > _MAX_HEAD_BYTES:
            raise ValueError("an array with a header as numpy.save writes it")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
        if fortran or kind.hasobject or math.prod(shape) * kind.itemsize != len(data) - file.tell():
            raise ValueError("an array in C order, of numbers, and nothing else")
        return np.frombuffer(data, kind, offset=file.tell()).reshape(shape)
    except (ValueError, TypeError, OverflowError, EOFError, SyntaxError, TokenError, RecursionError) as error:
        raise DecodeError(f"NPY: {error}") from error


def _answer(transport: Mqtt, topic: str, said: bytes) -> None:
    try:
        transport.send(topic, said)
    except ValueError as error:  # larger than a packet may be
        log.warning("an answer was not sent: %s", error)
        asked = json.loads(said).get("id")
        named = {"id": asked} if len(json.dumps(asked)) <= _MAX_ID_BYTES else {}
        transport.send(topic, json.dumps({**named, "error": "the answer is too large; ask for fewer samples"}).encode())


def listen(served: Served, transport: Mqtt, asked: str, answered: str, stop: Callable[[], bool]) -> None:
    """Answer on the topic `answered` what comes on the topic `asked`, until `stop()`.

    Raises:
        LinkError: the broker cannot be reached, or refuses us.
    """
    waiting: queue.Queue[bytes] = queue.Queue(_MAX_WAITING)

    def receive(_topic: str, payload: bytes) -> None:
        try:
            waiting.put_nowait(payload if len(payload) <= _MAX_REQUEST_BYTES else b"")
        except queue.Full:
            log.warning("%d requests wait for an answer: another one is dropped", _MAX_WAITING)

    transport.start([asked], receive, lambda up: log.info("broker %s", "reached" if up else "lost"))
    try:
        while not stop():
            if transport.error is not None:
                raise transport.error
            try:
                data = waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            _answer(transport, answered, reply(data, served.current()))
    finally:
        transport.close()
