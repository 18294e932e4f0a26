"""The scorecard of reliability and security: what is promised, and how it is measured.

A row is a line of the scorecard. Its `measure` really does what it says, at a `Scale`, and gives a `Figure`. Rows lie
beside what they measure with, in the files that `FILES` names, each in a list `ROWS`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILES: tuple[str, ...] = ("seeds", "processes", "seals", "liars", "security", "faults", "damage", "live")
"""Modules of `tests.chaos` that have rows."""


@dataclass(frozen=True)
class Scale:
    """How much of a row is done."""

    part: float = 1.0
    """Of the seeds, rounds, devices and points that the target names; a tenth or less is for tests."""
    seed: int = 0
    folder: Path = Path("runs/chaos")
    """Where a row may write; it clears up what it need not leave."""

    def of(self, full: int, least: int = 1) -> int:
        """Give so much of a number."""
        return max(least, round(full * self.part))


@dataclass(frozen=True)
class Figure:
    """What came out."""

    text: str
    """As a person reads it: "200 of 200 resumed"."""
    met: bool
    """Whether the target is reached, at this scale."""
    details: Mapping[str, object] = field(default_factory=dict)
    """For scripts; plain JSON."""


@dataclass(frozen=True)
class Row:
    """A line of the scorecard."""

    name: str
    """`R1` to `R24`, or a word."""
    what: str
    target: str
    measure: Callable[[Scale], Figure]
    must: bool = True
    """Whether the project fails without it."""


def rows() -> list[Row]:
    """Give all rows: R1 to R24 first, in the order of their numbers."""
    found = [row for name in FILES for row in importlib.import_module(f"tests.chaos.{name}").ROWS]
    return sorted(found, key=lambda row: (not row.name[1:].isdigit(), row.name[1:].zfill(3)))
