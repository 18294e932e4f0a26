"""`bench wire` as tables: for the terminal, and as Markdown for the documentation."""

import itertools
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from edge_runtime.coordinator import units

Record = dict[str, Any]
_LEAST_MS = 0.001

CAPTION = (
    "sent: what goes on the wire, and the coding that was taken; x entropy: bytes over the order-0 entropy; x less: "
    "than dense float32; encode, decode: MB/s of the numbers in plain form; memory: peak of Python and numpy (a C "
    "library's own is not seen); ok: no more bytes than the bar, where there is one, and than any general compressor"
)


def _number(row: Record, name: str, digits: int) -> str:
    value = row.get(name)
    return "" if value is None else f"{value:,.{digits}f}"


def _speed(row: Record, way: str) -> str:
    """Write MB/s; nothing where nothing is computed, such as for a seed that is at hand."""
    return _number(row, f"{way}_mb_s", 1) if row.get(f"{way}_ms", 0) > _LEAST_MS else ""


def _coding(row: Record) -> str:
    return f"sent: {row['took'] or row['coding']}" if row["role"] == "sent" else str(row["coding"])


def _ok(row: Record) -> str:
    known = [row[name] for name in ("within_bar", "within_general") if row.get(name) is not None]
    return "" if not known else "yes" if all(known) else "NO"


_COLUMNS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("", _coding),
    ("bytes", lambda row: _number(row, "bytes", 0)),
    ("x entropy", lambda row: _number(row, "bytes_over_entropy", 3)),
    ("x less", lambda row: _number(row, "dense_over_bytes", 1)),
    ("encode", lambda row: _speed(row, "encode")),
    ("decode", lambda row: _speed(row, "decode")),
    ("memory", lambda row: units.size(row["peak_bytes"]) if row.get("peak_bytes") else ""),
    ("ok", _ok),
)


def _groups(record: Record) -> list[tuple[str, list[Record]]]:
    """Give the rows of each subject, under a title."""
    groups = itertools.groupby(record["rows"], lambda row: (row["model"], row["what"], row["setting"]))
    found = [list(rows) for _, rows in groups]
    return [(_title(rows), rows) for rows in found]


def _title(rows: list[Record]) -> str:
    (sent,) = (row for row in rows if row["role"] == "sent")
    title = f"{sent['model']}, {sent['what']}, {sent['setting']}: {sent['count']:,} numbers"
    if "relative_error" in sent:
        title += f", relative error {sent['relative_error']:.3f}"
    if "kl" in sent:
        title += f", KL {sent['kl']:.4f}, same winner {units.percent(sent['agreement'])}"
    return title if sent["bar_bytes"] is None else f"{title}; bar {sent['bar_bytes']:,} bytes"


def tables(record: Record) -> list[Table]:
    """Lay a record out for the terminal, a table for each subject."""
    made = []
    for title, rows in _groups(record):
        laid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for name, _ in _COLUMNS:
            laid.add_column(name, justify="right" if name else "left")
        for row in rows:
            laid.add_row(*(say(row) for _, say in _COLUMNS))
        made.append(laid)
    made[-1].caption = CAPTION
    return made


def to_markdown(record: Record, command: str) -> str:
    """Write the tables for the documentation, with the command that made them."""
    lines = [f"Made by `{command}` with edge-runtime {record['version']} on {record['profile']['cpu']}.", ""]
    lines += [f"{CAPTION[:1].upper()}{CAPTION[1:]}."]
    for title, rows in _groups(record):
        lines += ["", f"### {title}", ""]
        lines += ["| " + " | ".join(name for name, _ in _COLUMNS) + " |", "|---|" + "---:|" * (len(_COLUMNS) - 1)]
        lines += ["| " + " | ".join(say(row) for _, say in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"
