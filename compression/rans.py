"""The coder under `entropy.py`, where its format is described: rANS in many lanes that numpy moves all at once."""

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression.errors import DecodeError

Ints = NDArray[np.int64]
Words = NDArray[np.uint16]
Symbols = NDArray[np.uint8] | NDArray[np.uint16]
Contexts = NDArray[np.uint8] | None
Level = tuple[int, int]
"""How many symbols it has, and how many words were missing to fill the wider one."""

MOST_NARROW_ROWS = 1 << 9
_LOW = 1 << 16
_BLOCK = 1 << 13
_LOG_FEW_SLOTS = 16

_FEW_LANES = 8
"""Up to here Python's own integers are faster than a row of numpy's."""

# Making an array of an int takes numpy as long as moving 256 lanes.
_LOWEST, _SIXTEEN = np.array(_LOW), np.array(16)


class Tables:
    """Frequencies [contexts, symbols], each row of which adds up to 2^scale, by cell: context * columns + symbol."""

    def __init__(self, frequencies: Ints, scale: int) -> None:
        self.scale, (self.contexts, self.columns) = scale, frequencies.shape
        self.frequencies = frequencies.ravel()
        self.starts = (np.cumsum(frequencies, axis=1) - frequencies).ravel()
        self.mask, self.shift = np.array((1 << scale) - 1), np.array(scale)

    @functools.cached_property
    def rows(self) -> list[tuple[list[int], list[int]]]:
        """Give frequencies and starts of each context as integers of Python's."""
        both = (column.reshape(self.contexts, -1).tolist() for column in (self.frequencies, self.starts))
        return list(zip(*both, strict=True))

    @functools.cached_property
    def slots(self) -> tuple[NDArray[np.uint16], Ints]:
        """Give of all slots [contexts * 2^scale] the symbol; and its frequency, and how far they are from its start."""
        symbols = np.tile(np.arange(self.columns, dtype=np.uint16), self.contexts)
        steps = np.repeat(np.stack([self.frequencies, -self.starts]), self.frequencies, axis=1)
        steps[1].reshape(self.contexts, -1)[:] += np.arange(1 << self.scale)
        return np.repeat(symbols, self.frequencies), steps


def push(
    tables: Tables, symbols: Symbols, contexts: Contexts, log_lanes: int, cuts: Sequence[int]
) -> tuple[Words, Ints, list[Level]]:
    """Push symbols [n > 0], last first; the inverse of `Popper`.

    No row goes across one of `cuts`, rising, which count the symbols before them.

    Gives the words in the order in which they are read, the states of at most 2^log_lanes lanes (fewer where they carry
    little), and the narrow levels, the widest first.
    """
    states, left = np.full(1 << log_lanes % 2, _LOW), len(symbols)
    levels: list[Level] = []
    words = _Words(np.empty(left, "<u2"), 0)
    while True:
        lanes, size = len(states), 0
        for row in _rows_backwards(tables, symbols, contexts, (0, *cuts, left), lanes):
            _push_row(states[: len(row[0])], row, words)
            size += len(row[0])
            if lanes < 1 << log_lanes and (words.size >= 2 * lanes or size > lanes * (MOST_NARROW_ROWS - 1)):
                break
        left -= size
        if not left:
            return words.take(words.size), states, levels[::-1]
        filled = max(2 * lanes - words.size, 0)
        levels.append((size, filled))
        states = _widen(states, words.take(2 * lanes - filled))
        cuts = cuts[: bisect.bisect_left(cuts, left)]


class Popper:
    """Pops what was pushed, as much at a time as between two cuts.

    Every method raises DecodeError where there is less, or more, or a lane does not end as it began.
    """

    def __init__(self, tables: Tables, coded: tuple[Words, Ints, list[Level]], count: int) -> None:
        read, self._states, self._levels = coded
        self._words = _Words(np.concatenate([np.zeros(len(self._states), np.int64), read]), len(read))
        self._left = count - sum(size for size, _ in self._levels)
        if self._left < 0:
            raise DecodeError("symbols: there are more in narrow levels than there are at all")
        of_two = tables.columns == 2 and tables.contexts << tables.scale > 1 << _LOG_FEW_SLOTS
        self._tables, self._pop_rows = tables, _pop_of_two if of_two else _pop_by_slot

    def take(self, contexts: Contexts, count: int) -> NDArray[np.uint16]:
        """Pop `count` symbols; no more in all than there are."""
        symbols = np.empty(count, np.uint16)
        start = 0
        while start < count:
            if not self._left:
                self._left, filled = self._levels.pop(0)
                self._states = _narrow(self._states, filled, self._words)
            end = start + min(self._left, count - start)
            if len(self._states) <= _FEW_LANES:
                some = slice(start, end)
                symbols[some] = _pop_one_by_one(self._tables, self._states, self._words, _of(contexts, some))
            else:
                for some, lanes in _blocks(start, end, len(self._states)):
                    symbols[some] = self._pop_rows(self._tables, self._states[:lanes], self._words, _of(contexts, some))
            self._left -= end - start
            start = end
        return symbols

    def finish(self) -> None:
        """Check that all was popped."""
        if self._left or self._levels or self._words.size or (self._states != _LOW).any():
            raise DecodeError("symbols: a lane does not end as it began, or something is left")


class _Words:
    """A stack of words, which lie at the end of an array; the first one is on top."""

    def __init__(self, room: NDArray[np.integer], size: int) -> None:
        self._room, self.size = room, size

    def put(self, words: NDArray[np.integer]) -> None:
        end = len(self._room) - self.size
        self.size += len(words)
        self._room[end - len(words) : end] = words  # of 64 bits: the lower 16 if there is room for no more

    def take(self, count: int) -> Any:
        if count > self.size:
            raise DecodeError("symbols: they end too early")
        start = len(self._room) - self.size
        self.size -= count
        return self._room[start : start + count]

    def one(self) -> int:
        if not self.size:
            raise DecodeError("symbols: they end too early")
        self.size -= 1
        return int(self._room[-1 - self.size])


def _of(contexts: Contexts, some: slice) -> Ints:
    """Give contexts as integers that can be computed with; 0 for none."""
    return np.zeros(some.stop - some.start, np.int64) if contexts is None else contexts[some].astype(np.int64)


def _blocks(start: int, end: int, lanes: int) -> Iterator[tuple[slice, int]]:
    """Cut a level into blocks of whole rows of so many lanes; a row that is not full comes first."""
    part = (end - start) % lanes
    if part:
        yield slice(start, start + part), part
    block = lanes * max(1, _BLOCK // lanes)
    for low in range(start + part, end, block):
        yield slice(low, min(low + block, end)), lanes


def _widen(states: Ints, words: Words) -> Ints:
    """Make four lanes of each, whose states hold those of before and the words."""
    half = 2 * len(states)
    wide = np.full(2 * half, _LOW)
    wide[:half:2] += states >> 16
    wide[1:half:2] += states & (_LOW - 1)
    wide[half : half + len(words)] += words
    return wide


def _narrow(states: Ints, filled: int, words: _Words) -> Ints:
    """Undo `_widen`, to which so many words were missing."""
    half = len(states) // 2
    end = len(states) - filled
    low = states - _LOW
    narrow = low[:half:2] << 16 | low[1:half:2]
    if (low >= _LOW).any() or (narrow < _LOW).any() or end < half or low[end:].any():
        raise DecodeError("symbols: a lane does not end as it may")
    words.put(low[half:end])
    return narrow


def _rows_backwards(
    tables: Tables, symbols: Symbols, contexts: Contexts, cuts: Sequence[int], lanes: int
) -> Iterator[tuple[Ints, ...]]:
    """Give the frequencies f of the symbols between the first and the last cut, backwards, a row each time.

    And with them 2^scale - f, their starts, and from which state on a word goes out; no row goes across a cut.
    """
    block = lanes * max(1, min(MOST_NARROW_ROWS, _BLOCK // lanes))
    for start, cut in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
        for end in range(cut, start, -block):
            some = slice(max(end - block, start), end)
            cells = _of(contexts, some) * tables.columns + symbols[some]
            frequencies, starts = tables.frequencies[cells], tables.starts[cells]
            columns = frequencies, (1 << tables.scale) - frequencies, starts, frequencies << 32 - tables.scale
            part = len(cells) % lanes
            yield from zip(*(column[part:].reshape(-1, lanes)[::-1] for column in columns), strict=True)
            if part:
                yield tuple(column[:part] for column in columns)


def _push_row(states: Ints, row: tuple[Ints, ...], words: _Words) -> None:
    frequencies, others, starts, full_from = row
    full = (states >= full_from).nonzero()[0]
    if len(full):
        spilt = states[full]
        words.put(spilt)
        spilt >>= _SIXTEEN
        states[full] = spilt
    # x becomes 2^scale (x // f) + x % f + c
    quotients = states // frequencies
    quotients *= others
    states += quotients
    states += starts


def _refill(states: Ints, words: _Words) -> None:
    low = (states < _LOWEST).nonzero()[0]
    if len(low):
        short = states[low]
        short <<= _SIXTEEN
        short |= words.take(len(low))
        states[low] = short


def _pop_by_slot(tables: Tables, states: Ints, words: _Words, contexts: Ints) -> NDArray[np.uint16]:
    """Pop rows of symbols, one for each len(states) contexts; what a lane's slot says is in tables of all slots."""
    symbols, steps = tables.slots
    slots = (contexts << tables.scale).reshape(-1, len(states))
    of_row = np.empty((2, len(states)), np.int64)
    frequencies, shifts = of_row
    for row in slots:
        np.bitwise_or(row, states & tables.mask, out=row)
        states >>= tables.shift
        steps.take(row, 1, of_row, "clip")  # as no slot is beyond the last; else numpy would copy once more
        states *= frequencies
        states += shifts
        _refill(states, words)
    popped: NDArray[np.uint16] = symbols[slots.ravel()]
    return popped


def _pop_of_two(tables: Tables, states: Ints, words: _Words, contexts: Ints) -> Ints:
    """Do the same of two symbols: compare a slot with the border between them, as a table of many contexts is slow."""
    cells = (2 * contexts).reshape(-1, len(states))
    borders = tables.frequencies[cells]
    for row, border in zip(cells, borders, strict=True):
        slots = states & tables.mask
        np.add(row, slots >= border, out=row)
        states >>= tables.shift
        states *= tables.frequencies[row]
        states += slots
        states -= tables.starts[row]
        _refill(states, words)
    return cells.ravel() & 1


def _pop_one_by_one(tables: Tables, states: Ints, words: _Words, contexts: Ints) -> list[int]:
    """Pop a level, or up to a cut, a symbol at a time, the lanes in turns; a row that is not full comes first."""
    scale, mask, rows = tables.scale, int(tables.mask), tables.rows
    lanes, symbols = states.tolist(), []
    turns = itertools.chain(range(len(contexts) % len(lanes)), itertools.cycle(range(len(lanes))))
    for context, lane in zip(contexts.tolist(), turns, strict=False):
        frequencies, starts = rows[context]
        state = lanes[lane]
        slot = state & mask
        symbol = bisect.bisect_right(starts, slot) - 1
        state = frequencies[symbol] * (state >> scale) + slot - starts[symbol]
        if state < _LOW:
            state = state << 16 | words.one()
        lanes[lane] = state
        symbols.append(symbol)
    states[:] = lanes
    return symbols
