"""A run as it goes on: a table that stays in place on a terminal, one plain line per round anywhere else.

Everything goes to standard error, so that what a program prints as JSON on standard output stays JSON. Where logs are
for a machine, a round is a record of the log.
"""

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edge_runtime import logs
from edge_runtime.coordinator import units

log = logging.getLogger(__name__)

_REFRESH_S = 0.25
_STYLES = {
    "offline": "red",
    "late": "red",
    "refused": "red",
    "fetching": "cyan",
    "training": "yellow",
    "sending": "cyan",
    "done": "green",
}
_TROUBLE = ("offline", "late", "refused")
_HEADINGS = ("device", "doing", "before", "after", "up", "down", "memory")
_WIDTHS = (0, 8, 6, 6, 7, 7, 7)
"""Of the columns, at least; the first is as wide as the ids."""
_MAX_ID = 20
_FIXED_LINES = 4
"""Title, states, headings and fleet."""


@dataclass(frozen=True)
class DeviceStatus:
    """A device as the coordinator sees it: what it is at, and the figures of the last round that it finished."""

    id: str
    state: str = "idle"
    """waiting, idle, fetching, training, sending, done, late, refused or offline."""
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None
    peak_rss_bytes: float | None = None


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    algorithm: str
    round: int
    """The open round, from 0; equal to `rounds` once all are over."""
    rounds: int
    phase: str
    """`train`, or `evaluate` after the last round."""
    accepted: int
    """Devices that have answered in this round."""
    cohort: int
    """Devices that were asked."""
    elapsed_s: float
    devices: tuple[DeviceStatus, ...]
    dropped: int = 0
    """Messages that were not taken, and that no honest device would have sent."""


def render(status: Status, width: int = 100, height: int = 40) -> RenderableType:
    """Draw a run in at most `height` lines of `width` characters: all devices if they fit, else those in trouble.

    A second or third column of devices is opened where one is not enough and the width allows it.
    """
    ids = min(_MAX_ID, max((len(device.id) for device in status.devices), default=6))
    per_column = max(1, height - _FIXED_LINES)
    fitting = max(1, width // (max(6, ids) + sum(_WIDTHS) + 2 * len(_WIDTHS)))
    columns = min(fitting, max(1, math.ceil(len(status.devices) / per_column)))
    shown, left_out = _choose(status.devices, columns * per_column)
    lines: list[RenderableType] = [_title(status), _states(status, left_out)]
    if shown:
        lines.append(_table(shown, columns, ids))
    fleet = Text("fleet  ", style="bold", no_wrap=True, overflow="ellipsis")
    return Group(*lines, fleet.append(_fleet(status.devices), style="not bold"))


def _choose(devices: tuple[DeviceStatus, ...], room: int) -> tuple[tuple[DeviceStatus, ...], int]:
    """Pick the devices that a person should look at: in trouble first, then those with the lowest accuracy."""
    if len(devices) <= room:
        return devices, 0

    def rank(device: DeviceStatus) -> tuple[bool, float, str]:
        accuracy = 2.0 if device.accuracy_after is None else device.accuracy_after
        return device.state not in _TROUBLE, accuracy, device.id

    return tuple(sorted(devices, key=rank)[:room]), len(devices) - room


def _title(status: Status) -> Table:
    part = status.accepted / max(1, status.cohort)
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    name = Text(_printable(status.algorithm), style="bold").append(
        f"  {_stage(status, status.round)}", style="not bold"
    )
    bar = ProgressBar(status.rounds, min(status.rounds, status.round + part))
    grid.add_row(name, bar, units.duration(status.elapsed_s))
    return grid


def _stage(status: Status, number: int) -> str:
    return f"round {number + 1}/{status.rounds}" if number < status.rounds else "final evaluation"


def _states(status: Status, left_out: int) -> Text:
    devices = status.devices
    text = Text(f"{len(devices)} devices", no_wrap=True, overflow="ellipsis")
    if left_out:
        text.append(f" (not shown: {left_out} without trouble, or with higher accuracies)")
    for state, count in sorted(Counter(device.state for device in devices).items()):
        text.append(f"  {count} {_printable(state)}", style=_STYLES.get(state, "dim"))
    if status.dropped:
        text.append(f"  {units.counted(status.dropped, 'message')} refused", style="red")
    return text


def _table(devices: tuple[DeviceStatus, ...], columns: int, ids: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for _ in range(columns):
        for heading, width in zip(_HEADINGS, (ids, *_WIDTHS[1:]), strict=True):
            justify = "left" if heading in _HEADINGS[:2] else "right"
            table.add_column(heading, justify=justify, min_width=width, no_wrap=True, max_width=max(width, 8))  # type: ignore[arg-type]
    rows = math.ceil(len(devices) / columns)
    for row in range(rows):
        cells: list[Text] = []
        for device in devices[row::rows]:
            cells += _cells(device, ids)
        table.add_row(*cells)
    return table


def _cells(device: DeviceStatus, ids: int) -> list[Text]:
    figures = (
        _percent(device.accuracy_before),
        _percent(device.accuracy_after),
        units.size(device.bytes_up),
        units.size(device.bytes_down),
        units.size(device.peak_rss_bytes),
    )
    state = Text(_printable(device.state)[:8], style=_STYLES.get(device.state, "dim"))
    return [Text(_printable(device.id)[:ids]), state, *map(Text, figures)]


def _fleet(devices: tuple[DeviceStatus, ...]) -> str:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

    before, after = (mean(getattr(device, f"accuracy_{when}") for device in devices) for when in ("before", "after"))
    up, down = mean(device.bytes_up for device in devices), mean(device.bytes_down for device in devices)
    peak = max((device.peak_rss_bytes for device in devices if device.peak_rss_bytes is not None), default=None)
    traffic = f"{units.size(up)} up, {units.size(down)} down per round"
    return f"accuracy {_percent(before)} -> {_percent(after)} %, {traffic}, peak {units.size(peak)}"


def line(status: Status, number: int) -> str:
    """Say in one plain line how round `number` (from 0) went, from a status taken when it was over."""
    trouble = Counter(device.state for device in status.devices if device.state in _TROUBLE)
    counted = "".join(f", {count} {state}" for state, count in sorted(trouble.items()))
    stage, spent = _stage(status, number), units.duration(status.elapsed_s)
    return f"{_printable(status.algorithm)} {stage}: {_fleet(status.devices)}{counted}, after {spent}"


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f}"


def _printable(text: str) -> str:
    """Keep what a device says from steering the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Live:
    """Shows a run while its `with` block lasts: call `show` as often as you like."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Show on `console` (None: standard error), at most four times a second of `clock`."""
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._next_s = -math.inf
        self._told: int | None = None
        self._evaluated = False
        self._last: Status | None = None
        self._screen: Screen | None = None
        self._moved: list[logging.StreamHandler[TextIO]] = []

    def __enter__(self) -> "Live":
        """Take the terminal over, if it is one; log lines then appear above the table."""
        if self._console.is_terminal and not logs.as_json():
            real = sys.stderr
            self._screen = Screen(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._screen.start()
            self._moved = _handlers_of(real)
            for handler in self._moved:
                handler.setStream(sys.stderr)
        return self

    def show(self, status: Status) -> None:
        """Show a run as it is now."""
        self._last = status
        if self._screen is None:
            self._tell(status)
        elif self._clock() >= self._next_s:
            self._next_s = self._clock() + _REFRESH_S
            self._draw(self._screen, status)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture on the terminal."""
        if self._screen is not None:
            if self._last is not None:
                self._draw(self._screen, self._last)
            self._screen.stop()
            for handler in self._moved:
                handler.setStream(sys.stderr)
        elif self._last is not None and self._evaluated and error is None:
            self._print(self._last, self._last.rounds)

    def _draw(self, screen: Screen, status: Status) -> None:
        screen.update(render(status, self._console.width, self._console.height), refresh=True)

    def _tell(self, status: Status) -> None:
        """Print a line for every round that was closed since the last call."""
        for number in range(status.round if self._told is None else self._told, status.round):
            self._print(status, number)
        self._told = status.round
        self._evaluated |= status.phase == "evaluate" and status.accepted > 0

    def _print(self, status: Status, number: int) -> None:
        if logs.as_json():
            log.info("%s", line(status, number), extra={"round": number})
        else:
            self._console.print(line(status, number), markup=False, highlight=False, soft_wrap=True)


def _handlers_of(stream: TextIO) -> list[logging.StreamHandler[TextIO]]:
    handlers = logging.getLogger().handlers
    return [item for item in handlers if isinstance(item, logging.StreamHandler) and item.stream is stream]
