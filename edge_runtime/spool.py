"""A blob on its way in, as a file: after any crash it is known which of its chunks are here, and good.

    offset             size  content, little-endian
    0                  48    "ECS1", SHA-256 of the blob, u64 its size, u32 size of a chunk
    48                 4     u32 CRC-32 of these 48 bytes
    52 + i (c + 4)     4     u32 CRC-32 of chunk i as it is on the wire (`message.py`)
    56 + i (c + 4)     n     chunk i; c is the size of a chunk, n that of this one

Nothing is synced: a chunk that a crash tore, lost or never let come has a CRC that does not fit, and is asked for
again. In the end the SHA-256 decides. A file of another blob, or cut in other chunks, is dropped.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.message import Blob, Chunk, checksum

_HEAD = struct.Struct("<4s32sQI")
_CRC = struct.Struct("<I")
_START = _HEAD.size + _CRC.size


def keep(path: Path, blob: Blob, chunk: Chunk) -> None:
    """Write a chunk to its place.

    Raises:
        OSError: the disk is full or broken.
    """
    with path.open("r+b" if path.exists() else "w+b") as file:
        if file.read(_START) != _head(blob):
            file.seek(0)
            file.truncate()
            file.write(_head(blob))
        file.seek(_place(blob, chunk.index))
        file.write(_CRC.pack(checksum(chunk)) + chunk.data)


def kept(path: Path, blob: Blob) -> set[int]:
    """List the chunks that are here and good."""
    return {chunk.index for chunk in _chunks(path, blob)}


def join(path: Path, blob: Blob) -> bytes | None:
    """Give the whole blob; None if its bytes do not have its digest, and then `kept` no longer lists all its chunks.

    Where every chunk is as it was sent, whoever cut them is at fault: the file is dropped.
    """
    chunks = list(_chunks(path, blob))
    if len(chunks) < blob.chunks:
        return None
    data = b"".join(chunk.data for chunk in chunks)
    if hashlib.sha256(data).hexdigest() != blob.digest:
        path.unlink(missing_ok=True)
        return None
    return data


def _chunks(path: Path, blob: Blob) -> Iterator[Chunk]:
    if not path.exists():
        return
    with path.open("rb") as file:
        if file.read(_START) != _head(blob):
            return
        for index in range(blob.chunks):
            start, end = blob.span(index)
            file.seek(_place(blob, index))
            crc, data = file.read(_CRC.size), file.read(end - start)
            if not data:
                return  # the file ends here
            chunk = Chunk(blob.digest, index, data)
            if len(data) == end - start and crc == _CRC.pack(checksum(chunk)):
                yield chunk


def _head(blob: Blob) -> bytes:
    head = _HEAD.pack(b"ECS1", bytes.fromhex(blob.digest), blob.size, blob.chunk)
    return head + _CRC.pack(zlib.crc32(head))


def _place(blob: Blob, index: int) -> int:
    return _START + index * (blob.chunk + _CRC.size)
