"""Small whole numbers to bytes near their entropy: interleaved rANS with static tables, in integers only.

Duda, "Asymmetric numeral systems" (arXiv 1311.2540), the range variant; many coders ("lanes") run side by side so that
numpy does a step of all at once. A symbol is one of `alphabet`, its context a number that both sides know beforehand;
each context has its own table of frequencies. Of no symbols, and of an alphabet of one, nothing is sent. Else one byte
names the form, then (little-endian; bit fields lowest bit first, each filled up with zeros to a whole byte):

    0   all symbols are the same one: u16
    1   each symbol in as many bits as the largest of the alphabet needs
    2   one byte R + 16 l: 10 <= R <= 14, and 2^l lanes, l <= 10; the tables (`tables.py`), rows of frequencies that add
        up to 2^R; for each narrow level, the widest first, two numbers (`bitfield.py`): its symbols, of which a lane
        has at most 512, and z as below; the lanes' states x: first floor(log2 x) - 16 of all, 4 bits each, then what
        x is above that power of two, in as many bits; the words, 16 bits each, in the order in which they are read

A lane with the state x takes the slot s = x mod 2^R, which lies with one symbol's f slots from c on, and goes on with
x = f (x // 2^R) + s - c; a state that falls below 2^16 becomes 2^16 x + the next word. Symbols are dealt to the lanes
in rows; each reads its words in the order of lanes. No row goes across a cut (where both sides want to know what came
before) or into another level: of those between two, one that is not full comes first.

Lanes narrow towards the end, since each that ends wastes 16 bits of its last state. When 4 n lanes are through, their
states must lie in [2^16, 2^17). The low 16 bits of lanes 2 i and 2 i + 1 are the high and low half of the state of
lane i of n lanes, which go on with the next symbols; those of the last 2 n lanes are words to be read before all that
are left (but the last z of these, which are 0, fill up and are none). So on down to 1 or 2 lanes, which must end as
2^16 (another end is damage), with no word left.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield, rans, tables
from edge_runtime.compression.errors import DecodeError

Symbols = NDArray[np.uint8] | NDArray[np.uint16]
Contexts = NDArray[np.uint8] | None
Ints = NDArray[np.int64]

_MIN_SCALE, _MAX_SCALE = 10, 14
_LOG_SLOTS = 15
_BLOCK = 1 << 15
_MAX_LOG_LANES = 10
_FEWEST_BYTES = 48
"""Of a lane; see `_log_lanes`."""
_ROW_US, _LANE_BYTES, _BYTE_US = 20, 0.75, 64
"""A row takes about so many microseconds to encode and to decode, however few lanes there are; a lane costs about 6
bits more than what it carries; and for a byte less so many microseconds more are accepted.
"""
_MOST_ROWS, _LOG_ENOUGH_LANES = 1 << 11, 7
"""But of fewer than 2^7 lanes only so many rows."""


def encode(
    symbols: Symbols, alphabet: int, contexts: Contexts = None, kinds: int = 0, cuts: Sequence[int] = ()
) -> bytes:
    """Encode symbols [n] below `alphabet` (at most 65,536), with contexts [n] or without; the inverse of `decode`.

    For `Decoder` there are also the number of kinds of contexts (0: as these say), and `cuts`, which rise: how many
    symbols come before each place where it will be asked for those that follow.
    """
    if not len(symbols) or alphabet == 1:
        return b""
    first = int(symbols[0])
    if (symbols == first).all():
        return b"\x00" + first.to_bytes(2, "little")
    width = (alphabet - 1).bit_length()
    raw_size = -(-width * len(symbols) // 8)
    coded = _encode(symbols, alphabet, contexts, kinds or _kinds(contexts), cuts, raw_size)
    if coded is not None and len(coded) < raw_size:
        return b"\x02" + coded
    return b"\x01" + bitfield.pack(symbols.astype(np.int64), np.broadcast_to(width, len(symbols)))


def decode(data: bytes, count: int, alphabet: int, contexts: Contexts = None) -> NDArray[np.uint16]:
    """Decode hostile bytes into `count` symbols below `alphabet`, with the same contexts [count].

    Raises:
        DecodeError: they are not what `encode` makes of so many.
    """
    decoder = Decoder(data, count, alphabet, _kinds(contexts))
    symbols = decoder.take(count, contexts)
    decoder.finish()
    return symbols


class Decoder:
    """Decodes hostile bytes step by step, for contexts that depend on the symbols before a cut.

    Every method raises DecodeError where the bytes are not what `encode` made with the same cuts and contexts.
    """

    def __init__(self, data: bytes, count: int, alphabet: int, kinds: int) -> None:
        self._known = np.zeros(0, np.uint16)
        self._coded: rans.Popper | None = None
        match data[:1]:
            case b"" if not count or alphabet == 1:
                self._known = np.zeros(count, np.uint16)
            case b"\x00" if count and len(data) == 3 and (first := int.from_bytes(data[1:], "little")) < alphabet:
                self._known = np.full(count, first, np.uint16)
            case b"\x01" if count:
                self._known = _decode_raw(data[1:], count, alphabet)
            case b"\x02" if count:
                self._coded = _open(bitfield.Reader(data[1:]), count, alphabet, kinds)
            case _:
                raise DecodeError(f"symbols: nothing is coded as {data[:3]!r}")

    def take(self, count: int, contexts: Contexts = None) -> NDArray[np.uint16]:
        """Take the next symbols [count], up to the next cut, with their contexts [count]; no more than there are."""
        if self._coded is not None:
            return self._coded.take(contexts, count)
        taken, self._known = self._known[:count], self._known[count:]
        return taken

    def finish(self) -> None:
        """Check that all symbols have been taken, and that they are what was sent."""
        if self._coded is not None:
            self._coded.finish()


def _decode_raw(data: bytes, count: int, alphabet: int) -> NDArray[np.uint16]:
    width = (alphabet - 1).bit_length()
    if len(data) != -(-width * count // 8):
        raise DecodeError(f"symbols: {len(data)} bytes where {-(-width * count // 8)} are expected")
    symbols = bitfield.Reader(data).take_fields(np.broadcast_to(width, count)).astype(np.uint16)
    if (symbols >= alphabet).any():
        raise DecodeError("symbols: one is not in the alphabet")
    return symbols


def _encode(
    symbols: Symbols, alphabet: int, contexts: Contexts, kinds: int, cuts: Sequence[int], limit: int
) -> bytes | None:
    """Encode with tables; None where that cannot be shorter than `limit` bytes."""
    columns = int(symbols.max()) + 1
    scale = largest_scale(kinds, alphabet)
    if (
        columns > 1 << (scale - 1) or kinds * (columns - 1) > 8 * limit
    ):  # a table takes a bit for each frequency at least
        return None
    table, size_bits = tables.fit(_count(symbols, contexts, (kinds, columns)), scale)
    if size_bits > 8 * limit:
        return None
    coder, log_lanes = rans.Tables(table.frequencies, scale), _log_lanes(size_bits / 8, len(symbols), cuts)
    words, states, levels = rans.push(coder, symbols, contexts, log_lanes, cuts)
    head = bytes([scale | (len(states).bit_length() - 1) << 4])
    narrow = b"".join(map(bitfield.pack_number, itertools.chain(*levels)))
    return head + tables.encode(table) + narrow + _pack_states(states) + words.tobytes()


def _open(reader: bitfield.Reader, count: int, alphabet: int, kinds: int) -> rans.Popper:
    head = reader.take(1)[0]
    scale, log_lanes = head & 15, head >> 4
    if not _MIN_SCALE <= scale <= largest_scale(kinds, alphabet) or log_lanes > _MAX_LOG_LANES:
        raise DecodeError(f"symbols: a scale of {scale} with 2^{log_lanes} lanes")
    if log_lanes < _LOG_ENOUGH_LANES and count >> log_lanes > _MOST_ROWS:
        raise DecodeError(f"symbols: 2^{log_lanes} lanes are too few for {count}")
    frequencies = tables.decode(reader, kinds, alphabet, scale)
    levels = [_take_level(reader, lanes) for lanes in _narrow_lanes(log_lanes)]
    states = _unpack_states(reader, 1 << log_lanes)
    words = reader.rest()
    if len(words) % 2:
        raise DecodeError("symbols: half a word is left")
    return rans.Popper(rans.Tables(frequencies, scale), (np.frombuffer(words, "<u2"), states, levels), count)


def _narrow_lanes(log_lanes: int) -> list[int]:
    return [1 << log for log in range(log_lanes - 2, -1, -2)]


def _take_level(reader: bitfield.Reader, lanes: int) -> rans.Level:
    size, filled = reader.take_number(), reader.take_number()
    if not 0 < size <= rans.MOST_NARROW_ROWS * lanes or filled > 2 * lanes:
        raise DecodeError(f"symbols: {size} on {lanes} lanes")
    return size, filled


def _kinds(contexts: Contexts) -> int:
    return 1 if contexts is None or not len(contexts) else int(contexts.max()) + 1


def _count(symbols: Symbols, contexts: Contexts, shape: tuple[int, int]) -> Ints:
    """Count how often each symbol occurs in each context [contexts, symbols]."""
    counts = np.zeros(shape[0] * shape[1], np.int64)
    for start in range(0, len(symbols), _BLOCK):
        cells = symbols[start : start + _BLOCK].astype(np.int64)
        if contexts is not None:
            cells += contexts[start : start + _BLOCK].astype(np.int64) * shape[1]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(shape)


def largest_scale(kinds: int, alphabet: int) -> int:
    """Give the finest scale at which a table of all slots stays small; of two symbols none is made."""
    if alphabet == 2:
        return _MAX_SCALE
    return max(_MIN_SCALE, min(_MAX_SCALE, _LOG_SLOTS - (kinds - 1).bit_length()))


def _log_lanes(size_bytes: float, count: int, cuts: Sequence[int]) -> int:
    """Choose how many lanes: few cost time, many cost bytes.

    None is to carry less than `_FEWEST_BYTES` (1.6 %), but where there would be more than `_MOST_ROWS` rows.
    """
    parts = np.diff([0, *cuts, count])
    rows = [int((-(-parts >> log)).sum()) for log in range(_MAX_LOG_LANES + 1)]
    costs = [_ROW_US * rows[log] + _BYTE_US * _LANE_BYTES * (1 << log) for log in range(_MAX_LOG_LANES + 1)]
    wanted = min(int(np.argmin(costs)), max(int(size_bytes / _FEWEST_BYTES).bit_length() - 1, 0))
    needed = min((count // (_MOST_ROWS + 1)).bit_length(), _LOG_ENOUGH_LANES)
    return max(wanted, needed)


def _pack_states(states: Ints) -> bytes:
    lengths = np.frexp(states)[1].astype(np.int64) - 1  # exact below 2^53
    fours = np.broadcast_to(4, len(states))
    return bitfield.pack(lengths - 16, fours) + bitfield.pack(states - (1 << lengths), lengths)


def _unpack_states(reader: bitfield.Reader, lanes: int) -> Ints:
    lengths = reader.take_fields(np.broadcast_to(4, lanes)) + 16
    return reader.take_fields(lengths) | 1 << lengths
