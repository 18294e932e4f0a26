"""A device's data by a class of its owner's own: `edge-agent start --data package.module:Class --source TEXT`.

The class is read where it runs, named by whoever starts the program there; no coordinator names one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import own
from edge_runtime.datasets import folder
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.message import check_name

Arrays = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64]]


class Adapter(Protocol):
    """What such a class has. It is made anew in each process that needs data: for every round, on a device."""

    class_names: Sequence[str]
    """What the model's outputs are called, in their order."""

    def __init__(self, source: str) -> None:
        """Take what `--source` says: a folder, an address; empty: nothing."""
        ...

    def devices(self) -> Sequence[str]:
        """Name the devices whose data is there: on a device one, in a simulation as many as are to take part."""
        ...

    def read(self, part: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Read x_train, y_train, x_test and y_test of the device at place `part` of `devices`.

        x: numbers [samples, ...], whole ones for a model with an embedding; y: class indices [samples]. The same each
        time it is asked, or a round that is done again after a crash is another round.
        """
        ...


def names(path: str, source: str) -> list[str]:
    """Name the devices that a class has data of.

    Raises:
        ConfigError: it cannot be made, or has none.
    """
    return _devices(path, _made(path, source))


def read(path: str, source: str, part: int) -> tuple[Arrays, tuple[str, ...]]:
    """Read one device's arrays by a class, checked as files are, and the names of the classes.

    Raises:
        ConfigError: it cannot be made, has no such part, or gives something else.
    """
    adapter, where = _made(path, source), f"data: {path}: read({part})"
    devices, called = _devices(path, adapter), _class_names(path, adapter)
    if part >= len(devices):
        raise ConfigError(f"data: {path}: has data of {len(devices)} device(s), so there is no part {part}")
    found = _call(where, lambda: adapter.read(part))
    if not isinstance(found, tuple | list) or len(found) != 4:
        raise ConfigError(f"{where} must give x_train, y_train, x_test, y_test; return four arrays")
    x_train, y_train, x_test, y_test = map(np.asarray, found)
    x_train, y_train = _checked(f"{where}, train", x_train, y_train, len(called))
    x_test, y_test = _checked(f"{where}, test", x_test, y_test, len(called))
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"{x_train.shape[1:]} to train and {x_test.shape[1:]} to test"
        raise ConfigError(f"{where}: samples have shapes {shapes}; make them alike")
    return (x_train, y_train, x_test, y_test), called


def _made(path: str, source: str) -> Adapter:
    kind = own.find(path, "data")
    for name in ("devices", "read"):
        if not callable(getattr(kind, name, None)):
            raise ConfigError(f"data: {path} lacks the method {name} (see edge_runtime/datasets/adapter.py)")
    made: Adapter = _call(f"data: {path}({source!r})", lambda: kind(source))
    return made


def _devices(path: str, adapter: Adapter) -> list[str]:
    found = list(_call(f"data: {path}: devices()", adapter.devices))
    if not found or not all(isinstance(name, str) for name in found) or len(set(found)) != len(found):
        raise ConfigError(f"data: {path}: devices() must give one or more different texts, not {found!r:.100}")
    return [check_name(name, f"data: {path}: devices()") for name in found]


def _class_names(path: str, adapter: Adapter) -> tuple[str, ...]:
    found = getattr(adapter, "class_names", None)
    texts = tuple(found) if isinstance(found, list | tuple) else ()
    if not texts or not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
        raise ConfigError(f"data: {path}: class_names must be different texts, one for each class, not {found!r:.100}")
    return texts


def _checked(where: str, x: NDArray[Any], y: NDArray[Any], classes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    x = folder.inputs(where, x)
    y = folder.labels(where, y, len(x))
    if y.min() < 0 or y.max() >= classes:
        wrong = int(y.min() if y.min() < 0 else y.max())
        raise ConfigError(f"{where}: y holds the label {wrong}, and class_names name 0 to {classes - 1}; mend one")
    return x, y


def _call(where: str, function: Callable[[], Any]) -> Any:
    """Call the user's code, which may raise anything."""
    try:
        return function()
    except EdgeError:
        raise
    except Exception as error:
        raise ConfigError(f"{where} failed: {own.said(error)}; mend that class") from error
