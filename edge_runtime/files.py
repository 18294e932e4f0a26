"""Writing a file so that a power cut leaves the old one or the new one, never a mixture."""

import os
from pathlib import Path

from edge_runtime.errors import DeviceError


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
        temporary.unlink(missing_ok=True)
        raise DeviceError(f"{path}: cannot be written: {error.strerror}; free some space or mend the disk") from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
