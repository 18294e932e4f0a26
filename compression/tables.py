"""Tables of frequencies for `entropy.py`: fitted to counts, and written in a few bytes.

There is one row for each context and one column for each symbol; a row adds up to 2^R, and a symbol that occurs has at
least 1. One column, that of the usual symbol, is not written: it has what the others leave. The format (numbers, unary
and fields as in `bitfield.py`):

    number    the columns: those of higher symbols are 0 and not written
    number    the usual symbol
    1 byte    the digits d of a frequency that are written after its leading 1 (0 to 15), plus 16 if written by columns
    unary     the bit length of each frequency (0 for 0), less that of the one before it, which is 0 before the first:
              in its row, row after row; or if written by columns, in its column. As 0, -1, 1, -2, 2 ... are 0, 1, 2 ...
    fields    the highest d digits of each frequency after its leading 1, all if there are fewer; the lower ones are 0
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.compression import bitfield
from edge_runtime.compression.errors import DecodeError

Ints = NDArray[np.int64]

_USUAL_DIGITS = 3
_DIGITS_TRIED = ((2, 1), (4, 5, 7, 15))


@dataclass(frozen=True)
class Table:
    """Frequencies [contexts, symbols], the symbol that is not written, and the digits of the others."""

    frequencies: Ints
    usual: int
    digits: int


def fit(counts: Ints, scale: int) -> tuple[Table, float]:
    """Fit rows that add up to 2^scale to counts [contexts, symbols]; also give the bits of the table and the symbols.

    Fewer digits make a shorter table and longer symbols: from 3 on, fewer or more are tried while the sum falls.
    """
    usual = int(counts.sum(axis=0).argmax())
    used = counts > 0
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    exact = np.maximum((counts * (2 << scale) // total + 1) >> 1, used)

    def cut(digits: int) -> tuple[Table, float]:
        table = Table(_settle(_rounded(exact, digits), used, digits, usual, scale), usual, digits)
        return table, _Written(table).bits + float((counts[used] * (scale - np.log2(table.frequencies[used]))).sum())

    best = cut(_USUAL_DIGITS)
    for side in _DIGITS_TRIED:
        for digits in side:
            other = cut(digits)
            if other[1] >= best[1]:
                break
            best = other
    return best


def encode(table: Table) -> bytes:
    """Encode a table; the inverse of `decode`."""
    written = _Written(table)
    head = bitfield.pack_number(table.frequencies.shape[1]) + bitfield.pack_number(table.usual)
    lead = bytes([table.digits | written.by_columns << 4]) + bitfield.pack_unary(written.steps)
    fields = (written.values >> np.maximum(written.lengths - 1 - written.widths, 0)) & ((1 << written.widths) - 1)
    return head + lead + bitfield.pack(fields.ravel(), written.widths.ravel())


class _Written:
    """What of a table is written: frequencies, their bit lengths and steps of these, the widths of fields; how much."""

    def __init__(self, table: Table) -> None:
        self.values = np.delete(table.frequencies, table.usual, axis=1)
        self.lengths = _bit_lengths(self.values)
        by_row, by_column = (_fold(np.diff(self.lengths, axis=axis, prepend=0)).ravel() for axis in (1, 0))
        self.by_columns = int(by_column.sum()) < int(by_row.sum())
        self.steps = by_column if self.by_columns else by_row
        self.widths = np.clip(self.lengths - 1, 0, table.digits)
        self.bits = int(self.steps.sum()) + len(self.steps) + int(self.widths.sum())


def decode(reader: bitfield.Reader, contexts: int, alphabet: int, scale: int) -> Ints:
    """Decode hostile bytes into frequencies [contexts, symbols up to `alphabet`], whose rows add up to 2^scale.

    Raises:
        DecodeError: they are not such a table.
    """
    columns, usual, lead = reader.take_number(), reader.take_number(), reader.take(1)[0]
    if not usual < columns <= alphabet or lead > 31:
        raise DecodeError(f"table: {columns} columns without number {usual}, where {alphabet} are the most")
    digits, by_columns = lead & 15, lead >> 4
    steps = reader.take_unary(contexts * (columns - 1), 2 * scale + 2)
    lengths = np.cumsum(_unfold(steps).reshape(contexts, columns - 1), axis=1 - by_columns)
    if lengths.size and (lengths.min() < 0 or lengths.max() > scale + 1):
        raise DecodeError("table: a frequency is beyond what all add up to")
    widths = np.clip(lengths - 1, 0, digits)
    fields = reader.take_fields(widths.ravel()).reshape(lengths.shape) | 1 << widths
    written = np.where(lengths > 0, fields << np.maximum(lengths - 1 - widths, 0), 0)
    left = (1 << scale) - written.sum(axis=1)
    if (left < 0).any():
        raise DecodeError("table: the frequencies add up to more than they may")
    return np.insert(written, usual, left, axis=1)


def _settle(table: Ints, used: NDArray[np.bool_], digits: int, usual: int, scale: int) -> Ints:
    """Give the usual symbol what the others leave, and take from the largest where that is too little."""
    table[:, usual] = 0
    missing = table.sum(axis=1) + used[:, usual] - (1 << scale)
    for i in np.flatnonzero(missing > 0):
        row, less = table[i], int(missing[i])
        while less > 0:
            largest = int(row.argmax())
            unit = 1 << max(int(row[largest]).bit_length() - 1 - digits, 0)  # what is left keeps its digits
            cut = unit * min(-(-less // unit), int(row[largest]) // unit // 2)
            row[largest] -= cut
            less -= cut
    table[:, usual] = (1 << scale) - table.sum(axis=1)
    return table


def _rounded(values: Ints, digits: int) -> Ints:
    drop = np.maximum(_bit_lengths(values) - 1 - digits, 0)
    return (values + (1 << drop >> 1)) >> drop << drop


def _bit_lengths(values: Ints) -> Ints:
    return np.frexp(values)[1].astype(np.int64)  # exact below 2^53


def _fold(steps: Ints) -> Ints:
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def _unfold(folded: Ints) -> Ints:
    return np.where(folded & 1, -(folded + 1 >> 1), folded >> 1)
