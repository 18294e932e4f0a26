"""A study as it goes on, on standard error: a bar on a terminal, a plain line for each finished cell elsewhere."""

import sys
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edge_runtime.coordinator import units
from edge_runtime.coordinator.study import Cell


class Live:
    """Says which cells are finished."""

    def __init__(self, cells: int, finished: int, stream: TextIO | None = None) -> None:
        """Begin with so many of all cells finished by an earlier command."""
        stream = stream or sys.stderr
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=stream))
        self._task = self._bar.add_task("cells", total=cells, completed=finished)
        self._plain = None if stream.isatty() else stream
        self._cells, self._finished = cells, finished

    def __enter__(self) -> "Live":
        """Show the bar."""
        if self._plain is None:
            self._bar.start()
        elif self._finished:
            self._plain.write(f"{self._finished} of {self._cells} cells are there already\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._plain is None:
            self._bar.stop()

    def tell(self, cell: Cell, record: dict[str, Any]) -> None:
        """Count a cell that is finished."""
        self._finished += 1
        metric = cell.case.shows[-1][1]
        took, reached = units.duration(record["times"]["wall_s"]), units.percent(record["final"][metric]["mean"])
        said = f"{cell.scenario.name}, {cell.case.name}, seed {cell.seed}: {reached} in {took}"
        if self._plain is None:
            self._bar.console.print(said, highlight=False)
            self._bar.update(self._task, completed=self._finished)
        else:
            self._plain.write(f"{self._finished}/{self._cells} {said}\n")
            self._plain.flush()
