"""A device's own data: a folder with `train.npz` and `test.npz`.

Each file holds `x` [samples, ...] (floats, or whole numbers that are kept whole, for models with embeddings) and `y`
[samples], class indices from 0. `train.npz` may hold `classes`, how many there are, for a device that has not seen the
last of them, and `class_names`, a text for each (else they are called 0, 1, 2, ...). A folder for several devices (a
simulation, say) holds a sub-folder of that kind for each; its name is the device's.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.seed_set import SeedSet


def names(folder: Path) -> list[str]:
    """Name the devices: one, "device-000", or the sub-folders in alphabetical order.

    Raises:
        ConfigError: there is no data in the folder.
    """
    if (folder / "train.npz").exists() or (folder / "test.npz").exists():
        return ["device-000"]
    found = sorted(path.parent.name for path in folder.glob("*/train.npz"))
    if not found:
        raise ConfigError(f"{folder}: holds no data; put train.npz and test.npz there, each with arrays x and y")
    return found


def read(folder: Path, part: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[np.int64], int]:
    """Read one device's x_train, y_train, x_test, y_test and the number of classes.

    Raises:
        ConfigError: no such part, or a file that is missing, damaged or wrong, with its name and key.
    """
    folder = _home(folder, part)
    train, test = _open(folder / "train.npz"), _open(folder / "test.npz")
    classes = _classes(folder / "train.npz", train)
    if train["x"].shape[1:] != test["x"].shape[1:]:
        shapes = f"{test['x'].shape[1:]}, but {train['x'].shape[1:]} in train.npz"
        raise ConfigError(f"{folder / 'test.npz'}: x has samples of shape {shapes}; make them alike")
    for name, arrays in (("train.npz", train), ("test.npz", test)):
        y = arrays["y"]
        if y.min() < 0 or y.max() >= classes:
            wrong = int(y.min() if y.min() < 0 else y.max())
            hint = f"labels go from 0 to {classes - 1}; mend it, or say in train.npz how many `classes` there are"
            raise ConfigError(f"{folder / name}: y holds the label {wrong}, but {hint}")
    return train["x"], train["y"], test["x"], test["y"], classes


def class_names(folder: Path, part: int) -> tuple[str, ...]:
    """Read how a device calls its classes.

    Raises:
        ConfigError: as `read`, or they are not different texts, one for each class.
    """
    path = _home(folder, part) / "train.npz"
    train = _open(path)
    return _class_names(path, train, _classes(path, train))


def seed_set(path: Path) -> SeedSet:
    """Read a seed set: an NPZ file with `x`, `y` and, if you like, `classes` and `class_names`, as `train.npz`.

    Raises:
        ConfigError: missing, damaged or wrong.
    """
    arrays = _open(path)
    classes = _classes(path, arrays)
    if arrays["y"].min() < 0 or arrays["y"].max() >= classes:
        raise ConfigError(f"{path}: y holds a label that is not from 0 to {classes - 1}; mend it")
    return SeedSet(arrays["x"], arrays["y"], _class_names(path, arrays, classes))


def _home(folder: Path, part: int) -> Path:
    devices = names(folder)
    if part >= len(devices):
        raise ConfigError(f"{folder}: holds data of {len(devices)} device(s), so there is no part {part}")
    own = (folder / "train.npz").exists() or (folder / "test.npz").exists()
    return folder if own else folder / devices[part]


def _open(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y", "classes", "class_names") if key in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); write it with numpy.savez, x and y as numbers") from error
    for key in ("x", "y"):
        if key not in arrays:
            raise ConfigError(f"{path}: lacks the key {key!r}; write it with numpy.savez(path, x=..., y=...)")
    return {**arrays, "x": inputs(path, arrays["x"]), "y": labels(path, arrays["y"], len(arrays["x"]))}


def inputs(where: object, x: NDArray[Any]) -> NDArray[Any]:
    """Check samples [samples, ...]; gives them as float32, or whole numbers as int64. `where` begins the errors.

    Raises:
        ConfigError: they are not finite numbers of that form.
    """
    if x.ndim < 2 or not len(x) or x.dtype.kind not in "fiub":
        raise ConfigError(f"{where}: x must be numbers [samples, ...], found {x.dtype} {list(x.shape)}; reshape it")
    if x.dtype.kind != "f":
        return x.astype(np.int64)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise ConfigError(f"{where}: x holds a NaN or infinity in sample {row}; mend or drop it")
    return x


def labels(where: object, y: NDArray[Any], samples: int) -> NDArray[np.int64]:
    """Check the labels [samples] of so many samples; gives them as int64.

    Raises:
        ConfigError: they are not whole numbers, one for each.
    """
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(f"{where}: y must be whole numbers [samples], found {y.dtype} {list(y.shape)}; convert it")
    if len(y) != samples:
        raise ConfigError(f"{where}: y has {len(y)} labels for the {samples} samples in x; make them as many")
    return y.astype(np.int64)


def _classes(path: Path, train: dict[str, NDArray[Any]]) -> int:
    if "classes" not in train:
        return int(train["y"].max()) + 1
    classes = train["classes"]
    if classes.ndim or classes.dtype.kind not in "iu" or not 0 < classes < 1 << 31:
        raise ConfigError(f"{path}: classes must be one whole number above 0; write numpy.savez(..., classes=10)")
    return int(classes)


def _class_names(path: Path, arrays: dict[str, NDArray[Any]], classes: int) -> tuple[str, ...]:
    found = arrays.get("class_names", np.arange(classes).astype(str))
    texts = tuple(str(name) for name in found.tolist()) if found.ndim == 1 and found.dtype.kind == "U" else ()
    if len(set(texts)) != classes:
        raise ConfigError(f"{path}: class_names must be {classes} different texts, one for each class")
    return texts
