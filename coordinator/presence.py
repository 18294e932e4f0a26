"""Who takes part in a run now, for whoever looks at it from another process: `RUN/presence.json`.

The coordinator writes it anew about once a second, without waiting for the disk: it is what is known at the moment, and
nothing hangs on it. What must last is in the journal. Times are seconds since 1970, of the coordinator's clock.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.coordinator.figures import hardware
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.tally import state_of
from edge_runtime.devices.budget import Limits
from edge_runtime.errors import DeviceError
from edge_runtime.files import write_atomic

log = logging.getLogger(__name__)

NAME = "presence.json"
_PERIOD_S = 1.0
_MOST_BYTES = 64 << 20
_FLEET_PER_S = 1000
"""Devices of a fleet that are written down in a second: a larger one less often."""


@dataclass(frozen=True)
class Seen:
    """A device as the coordinator saw it last."""

    state: str = "offline"
    """As `tally.state_of` says, or `unfit`: it gets no task."""
    seen: float | None = None
    """When it last said something; None: not since there is this file."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """What it said of itself: its `backend`, and its limits (`devices/budget.py`)."""
    power: Mapping[str, float] = field(default_factory=dict)
    """Its newest figures of energy, battery and temperature, where it has such (`figures.hardware`)."""


@dataclass(frozen=True)
class Present:
    """All devices of a run at one moment."""

    written: float
    devices: Mapping[str, Seen]
    dropped: Mapping[str, Mapping[str, int]]
    """Messages of every device that were not taken, by reason (`gate.py`)."""


class Presence:
    """Keeps the file of one run up to date."""

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, timer: Callable[[], float] = time.monotonic
    ) -> None:
        """Write in a run's folder, and go on from what is there."""
        self._path, self._clock, self._timer = folder / NAME, clock, timer
        self._due_s = -math.inf
        self._hellos: dict[str, tuple[str, Limits]] = {}
        before = read(folder)
        self._known = dict(before.devices) if before else {}
        self._failed = False

    def note(self, coordinator: Coordinator) -> None:
        """Write how things stand, if the last time was long enough ago; to be called as often as one likes."""
        if self._timer() >= self._due_s:
            self.write(coordinator)

    def write(self, coordinator: Coordinator) -> None:
        """Write how things stand. A disk that does not take it is no reason for the run to stop."""
        now = self._clock()
        known = sorted(coordinator.core.progress.known | coordinator.choices.heard.keys())
        for device in known:
            self._known[device] = self._look(coordinator, device, now)
        coordinator.heard.clear()
        self._due_s = self._timer() + max(_PERIOD_S, len(known) / _FLEET_PER_S)
        devices = {device: asdict(seen) for device, seen in self._known.items()}
        record = {"written": now, "devices": devices, "dropped": coordinator.dropped.counts}
        try:
            write_atomic(self._path, json.dumps(record, separators=(",", ":")).encode(), durable=False)
        except DeviceError as error:
            if not self._failed:
                log.warning("%s", error)
            self._failed = True
        else:
            self._failed = False

    def _look(self, coordinator: Coordinator, device: str, now: float) -> Seen:
        before, figures = self._known.get(device, Seen()), coordinator.latest.get(device, {})
        hello = coordinator.choices.heard.get(device)
        spoke = device in coordinator.heard or hello is not self._hellos.get(device)
        if hello:
            self._hellos[device] = hello
        profile = {"backend": hello[0], **asdict(hello[1])} if hello else before.profile
        power = hardware(figures)
        seen = now if spoke else before.seen
        state = "unfit" if device in coordinator.unfit else state_of(coordinator.core, device)
        return Seen(state, seen, profile, power or before.power)


def read(folder: Path) -> Present | None:
    """Read the file of a run; None: there is none, or it is not one."""
    path = folder / NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if path.stat().st_size <= _MOST_BYTES:
            record = json.loads(path.read_bytes())
            devices = {str(name): Seen(**seen) for name, seen in record["devices"].items()}
            return Present(float(record["written"]), devices, record["dropped"])
    return None
