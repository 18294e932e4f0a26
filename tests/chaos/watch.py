"""Watching a fleet from outside: its journal, what its devices noted, and what its processes have of the system."""

import contextlib
import os
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from edge_runtime.coordinator.journal import Journal
from edge_runtime.link import Link
from edge_runtime.message import Chunk, decode
from edge_runtime.mqtt import Mqtt

Fate = tuple[str, str, str, str, int]
"""Device, phase, digest, what became of it, and its round."""


class Rounds:
    """Reads from a journal, while its coordinator writes it, where the run stands."""

    def __init__(self, home: Path) -> None:
        self.samples: list[dict[str, object]] = []
        self.began: list[tuple[int, float]] = []
        """Rounds, and when each was first seen."""
        self.finished_s: float | None = None
        self._path = home / "journal.sqlite"
        self._database: sqlite3.Connection | None = None

    def look(self, now_s: float) -> None:
        """See which round is open."""
        facts = dict(self._ask("SELECT key, value FROM run WHERE key IN ('round', 'phase', 'finished')"))
        round_ = int(facts.get("round", 0))
        if not self.began or self.began[-1][0] < round_:
            self.began.append((round_, now_s))
        if self.finished_s is None and facts.get("finished") == "yes":
            self.finished_s = now_s

    @property
    def opened(self) -> bool:
        """Say whether the first round is open, or was."""
        return bool(self._ask("SELECT 1 FROM round LIMIT 1"))

    def filled(self, round_: int, number: float) -> bool:
        """Say whether so many updates of a round have come, and not all."""
        if not self.began or self.began[-1][0] != round_:
            return False
        ((count,),) = self._ask(f"SELECT COUNT(*) FROM upload WHERE round = {round_} AND phase = 'train'")  # type: ignore[misc]  # noqa: S608  # a number of our own
        return bool(count >= number)

    def sample(self, now_s: float, coordinator: int | None, agents: dict[str, int | None]) -> None:
        """Note memory and open files of the coordinator and some agents."""
        watched = {"": coordinator, **agents}
        taken = {name: (pid, *used(pid)) for name, pid in watched.items() if pid is not None}
        self.samples.append({"at_s": now_s, "round": self.began[-1][0] if self.began else 0, "used": taken})

    def _ask(self, query: str) -> list[tuple[object, ...]]:
        try:
            if self._database is None:
                self._database = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, isolation_level=None)
            return list(self._database.execute(query))
        except sqlite3.Error:  # not there yet
            self._database = None
            return []


def used(pid: int) -> tuple[int, int]:
    """Measure a process: bytes of memory of its own or shared, and open files; zeros if it has just ended."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # names are enough
    return 0, 0


def connected(pid: int, port: int) -> bool:
    """Say whether a process has a TCP connection to a port of this machine."""
    with contextlib.suppress(OSError):
        held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115  # "socket:[N]" is no path
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            _, _, remote, state, *rest = line.split()
            if remote.endswith(f":{port:04X}") and state == "01" and f"socket:[{rest[5]}]" in held:
                return True
    return False


def updates(home: Path) -> list[tuple[str, str, int]]:
    """List the updates that count, of a run that nobody coordinates: device, phase, round."""
    if not (home / "journal.sqlite").exists():
        return []
    with contextlib.closing(Journal(home)) as journal:
        return [(one.device, one.phase, one.round) for one in journal.accepted()]


class Spy:
    """Notes the chunks that devices send, as their broker carries them."""

    def __init__(self, port: int) -> None:
        self._seen: set[tuple[str, str, int]] = set()
        self._again: Counter[str] = Counter()
        self._transport = Mqtt(Link("127.0.0.1", port, "spy"))
        self._transport.start(["edge/default/up/+"], self._hear, lambda up: None)

    def close(self) -> dict[str, int]:
        """Go, and say how many chunks each device has sent again."""
        self._transport.close()
        return dict(self._again)

    def _hear(self, topic: str, payload: bytes) -> None:
        message = decode(payload) if payload[:1] != b"{" else None
        if isinstance(message, Chunk):
            device = topic.rsplit("/", 1)[1]
            chunk = device, message.digest, message.index
            self._again[device] += chunk in self._seen
            self._seen.add(chunk)


class Diary:
    """What light agents noted."""

    def __init__(self, path: Path) -> None:
        self.fates: set[Fate] = set()
        self.fate_s: list[tuple[float, str, int]] = []
        """When, who, of which round, as first heard by that device."""
        self.trained: Counter[tuple[str, str, str]] = Counter()
        """By device, round and phase."""
        self.connected: dict[str, float] = {}
        """When each device was connected last."""
        self.years: set[int] = set()
        """By the clocks of the devices."""
        made: set[tuple[str, str]] = set()
        for line in path.read_text().splitlines() if path.exists() else ():
            at, name, what, *rest = line.split()
            match what:
                case "connected":
                    self.connected[name] = float(at)
                    self.years.add(datetime.fromtimestamp(int(rest[0]), UTC).year)
                case "trained":
                    self.trained[name, rest[0], rest[1]] += 1
                    made.add((name, rest[2]))
                case "fate" if (name, rest[2]) in made:
                    fate = (name, rest[1], rest[2], rest[3], int(rest[0]))
                    if fate not in self.fates:
                        self.fate_s.append((float(at), name, int(rest[0])))
                    self.fates.add(fate)


def slope(points: list[tuple[float, float]]) -> float:
    """Fit a line, and give how much it rises with each step; 0 of fewer than three points."""
    if len(points) < 3:
        return 0.0
    mean_x, mean_y = (sum(point[i] for point in points) / len(points) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
