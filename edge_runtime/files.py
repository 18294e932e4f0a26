"""Writing a file so that a power cut leaves the old one or the new one, never a mixture."""

import contextlib
import fcntl
import os
from pathlib import Path

from edge_runtime.errors import DeviceError

_KEPT_CORRUPT = 3


def write_atomic(path: Path, data: bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write `data` to `path` through a temporary file: fsync, rename, fsync of the folder (durable only).

    Nobody whom `mode` (less the umask) does not allow to read it can do so at any moment.

    Raises:
        DeviceError: the disk is full, read-only or broken; `path` then holds what it held before.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"
        ) as file:  # a buffered writer: a bare write may stop half-way without an error
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # a folder that lets nobody look into it
            temporary.unlink(missing_ok=True)
        raise DeviceError(f"{path}: cannot be written: {error.strerror}; free some space or mend the disk") from error


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file to `PATH.corrupt-N` for somebody to look at, of which the newest few are kept.

    Returns:
        What it is called now; None: it was not there, or has to go because it cannot be renamed.
    """
    earlier = sorted(int(text) for other in path.parent.glob(f"{path.name}.corrupt-*") if (text := _number(other)))
    for number in earlier[: max(0, len(earlier) - _KEPT_CORRUPT + 1)]:
        path.with_name(f"{path.name}.corrupt-{number}").unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.corrupt-{earlier[-1] + 1 if earlier else 1}")
    try:
        return path.replace(aside)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None


def _number(path: Path) -> str:
    text = path.name.rpartition("-")[2]
    return text if text.isdecimal() else ""


def locked(path: Path) -> bytes | None:
    """Read what who holds a lock (flock) wrote into its file; None: nobody holds it."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read(4096)
    except OSError:
        return None
    return None


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
