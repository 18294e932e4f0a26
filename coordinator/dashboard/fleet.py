"""All devices that the runs of a folder know of, and those that are enrolled: where each was seen last."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.coordinator import presence, run_files
from edge_runtime.coordinator.presence import Present, Seen
from edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from edge_runtime.coordinator.pki import Fleet

_MOST_RUNS = 32
"""Of so many runs, the newest, the devices are looked up."""
_MEMBERS_S = 10.0


@dataclass(frozen=True)
class Device:
    """A device of the fleet."""

    id: str
    state: str
    """What it is at in a run that goes on; `–`: nobody knows, as none does."""
    seen: Seen
    run: Path | None
    """The run in which it was seen last."""
    enrolled: str
    """How it stands in the fleet, and until when; empty: it is not enrolled, or there is no fleet."""


@dataclass
class Roster:
    """Knows where each device was seen last."""

    fleet: "Fleet | None"
    _read: dict[Path, tuple[int, Present | None]] = field(default_factory=dict)
    _members: dict[str, str] = field(default_factory=dict)
    _due_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def devices(self, folders: Sequence[Path]) -> list[Device]:
        """List all devices of these runs, by their ids."""
        with self._lock:
            newest = sorted(folders, key=lambda folder: -_changed(folder))[:_MOST_RUNS]
            where: dict[str, tuple[Path, Seen]] = {}
            for folder in newest:
                present = self._presence(folder)
                for name, seen in present.devices.items() if present else ():
                    if name not in where or (seen.seen or 0) > (where[name][1].seen or 0):
                        where[name] = folder, seen
            going = {folder for folder in {folder for folder, _ in where.values()} if run_files.holder(folder)}
            members = self._enrolled()
        found = []
        for name in sorted(where.keys() | members.keys()):
            at = where.get(name)
            seen = at[1] if at else Seen()
            state = seen.state if at and at[0] in going else "–"
            found.append(Device(name, state, seen, at[0] if at else None, members.get(name, "")))
        return found

    def _presence(self, folder: Path) -> Present | None:
        """Read who was in a run, if that has changed."""
        at = _changed(folder)
        held = self._read.get(folder)
        if held is None or held[0] != at:
            held = self._read[folder] = at, presence.read(folder)
        return held[1]

    def _enrolled(self) -> dict[str, str]:
        if self.fleet is not None and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _MEMBERS_S
            try:
                self._members = {one.name: f"{one.state}, until {one.expires[:10]}" for one in self.fleet.members()}
            except EdgeError:
                self._members = {}  # being written, or not to be read by us: the devices of the runs are shown
        return self._members


def _changed(folder: Path) -> int:
    try:
        return (folder / presence.NAME).stat().st_mtime_ns
    except OSError:
        return 0
