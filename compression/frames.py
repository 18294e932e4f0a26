"""Zstandard frames whose size the reader knows: made small, and opened without trust."""

import zstandard

from edge_runtime.compression.errors import DecodeError

_LEVEL = 1
"""On the bytes of floats and on gaps the first level comes within 2 % of the nineteenth, at a hundredth of its time."""
_MAX_WINDOW_BYTES = 1 << 27


def pack(data: bytes) -> bytes:
    """Compress `data` to one frame that states its size."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(data)


def unpack(frame: bytes, size: int) -> bytes:
    """Open a hostile frame that must hold exactly `size` bytes, and be all of `frame`.

    Nothing is allocated before the frame's own claim is compared with `size`: the library trusts that claim, whatever
    limit it is given.

    Raises:
        DecodeError: it is not such a frame.
    """
    try:
        claim = zstandard.get_frame_parameters(frame)
        if claim.content_size != size or claim.window_size > _MAX_WINDOW_BYTES:
            raise DecodeError(f"frame: claims {claim.content_size} bytes where {size} are expected")
        opener = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
        data = opener.decompress(frame)
        if not opener.eof or opener.unused_data or len(data) != size:
            raise DecodeError("frame: it ends too early or too late")
    except zstandard.ZstdError as error:
        raise DecodeError(f"frame: {error}") from error
    return data
