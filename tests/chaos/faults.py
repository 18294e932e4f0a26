"""What happens when a process dies, or its disk fills up, at any of its writes and messages.

Every write to a disk (file, fsync, rename, unlink, SQLite's commit) and every message is a point. The product knows
nothing of that: the functions of the standard library that it writes with are replaced while a row runs.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.replay import replay
from tests.chaos.on_disk import Crash, Fleet, Plan, undisturbed
from tests.chaos.scorecard import Figure, Row, Scale

_DISK_BYTES = 12_000_000


class Points:
    """Counts the points of one role, and does something at one of them."""

    def __init__(self, role: Callable[[str], bool], at: int = -1, then: Callable[[], None] | None = None) -> None:
        """Watch processes whose name fits `role`; at point number `at`, call `then` (default: die)."""
        self.count, self.kinds = 0, dict[str, int]()
        self._role, self._at, self._then = role, at, then
        self._inside = False

    def acts(self, name: str) -> None:
        """Note which process does something now."""
        self._inside = name != "-" and self._role(name)

    def sends(self, name: str) -> None:
        """Count a message."""
        self.point("message")

    def point(self, kind: str) -> None:
        """Count a point."""
        if not self._inside:
            return
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.count += 1
        if self.count - 1 == self._at:
            if self._then is None:
                self._inside = False  # a dead process writes nothing
                raise Crash
            self._then()

    def torn(self, kind: str, write: Callable[[Any], Any], data: Any) -> Any:
        """Write, with points before, in the middle and after."""
        self.point(kind)
        if self._inside and self.count == self._at and self._then is None:
            write(bytes(data)[: len(data) // 2])
        self.point(f"{kind}, half")
        done = write(data)
        self.point(kind)
        return done

    def around(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function with points before and after it."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self.point(kind)
            done = call(*arguments, **options)
            self.point(kind)
            return done

        return watched


class _File:
    """A file that may be torn."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file, self._points = file, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        return self._points.torn("write", self._write, data)

    def _write(self, data: Any) -> Any:
        done = self._file.write(data)
        self._file.flush()  # what a kill leaves is what reached the system
        return done


@contextlib.contextmanager
def watching(points: Points) -> Iterator[None]:
    """Let every write to a disk be a point."""

    class Connection(sqlite3.Connection):
        def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
            points.point("commit")
            done = super().__exit__(kind, error, trace)
            points.point("commit")
            return done

    open_, connect, pwrite = Path.open, sqlite3.connect, os.pwrite

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = open_(path, mode, *arguments, **options)
        return _File(file, points) if set(mode) & set("wa+x") else file

    def placed(file: int, data: bytes, offset: int) -> Any:
        return points.torn("pwrite", lambda part: pwrite(file, part, offset), data)

    with contextlib.ExitStack() as patches:
        for owner, name in (
            (os, "fsync"),
            (os, "fdatasync"),
            (os, "posix_fallocate"),
            (Path, "replace"),
            (Path, "unlink"),
        ):
            patches.enter_context(mock.patch.object(owner, name, points.around(name, getattr(owner, name))))
        patches.enter_context(mock.patch.object(Path, "open", opened))
        patches.enter_context(mock.patch.object(os, "pwrite", placed))
        patches.enter_context(
            mock.patch.object(sqlite3, "connect", lambda *a, **k: connect(*a, **{"factory": Connection, **k}))
        )
        yield


_PLANS = {"synchronous": Plan(rounds=2), "asynchronous": Plan(rounds=1, buffer=2, keep_updates=True)}
ROLES: dict[str, Callable[[str], bool]] = {"coordinator": lambda name: not name, "agent": bool}


def count(folder: Path, plan: Plan, role: str) -> Points:
    """Count the points of one role in a whole undisturbed run."""
    points = Points(ROLES[role])
    with watching(points):
        fleet = Fleet(folder, plan, points.sends, points.acts)
        fleet.play()
        fleet.close()
    return points


def die(folder: Path, plan: Plan, role: str, at: int, expected: str) -> str:
    """Let a process die at a point, and the run go on; say what is wrong with the end."""
    points = Points(ROLES[role], at)
    with watching(points):
        fleet = Fleet(folder, plan, points.sends, points.acts)
        done = fleet.play()
    deaths, wrong = sum(fleet.seen.births.values()), verdict(fleet, expected) if done else "stuck"
    fleet.close()
    left = [str(path) for path in folder.rglob("*.tmp")]
    if done and deaths != 1:
        return f"{deaths} deaths"
    return wrong or (f"left {left[0]}" if left else "")


def verdict(fleet: Fleet, expected: str) -> str:
    """Say what is wrong with the end of a run.

    A synchronous run must end as the undisturbed one. Of an asynchronous one the order of arrival decides the end: it
    must be what its journal makes of its updates in their order, all of them there, each once.
    """
    if not fleet.plan.buffer:
        return "" if fleet.outcome() == expected else "another end"
    return _recount(fleet)


def _recount(fleet: Fleet) -> str:
    """Say what is wrong if the journal does not give the end again, from one update of each device for each round."""
    assert fleet.journal is not None
    found = replay(fleet.run_of(), fleet.journal)
    bases = {name: fleet.devices[name].core.memory.base for name in fleet.plan.devices}
    if not found.equal or found.updates != fleet.plan.rounds * len(fleet.plan.devices):
        return f"the journal makes another end of {found.updates} updates"
    if fleet.seen.disagreed or any(fleet.journal.devices.base(name) != base for name, base in bases.items()):
        return "devices and coordinator count differently"
    return ""


def crash_points(scale: Scale) -> Figure:
    """Measure R6."""
    wrong: dict[str, str] = {}
    details: dict[str, Any] = {}
    for role in ROLES:
        for name, plan in _PLANS.items():
            with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
                expected = undisturbed(Path(folder) / "calm", plan)
                points = count(Path(folder) / "count", plan, role)
                chosen = _spread(points.count, scale.of(points.count, 4))
                for at in chosen:
                    place = Path(folder) / "crash"
                    if found := die(place, plan, role, at, expected):
                        wrong[f"{role}, {name}, point {at}"] = found
                    shutil.rmtree(place)
            details[f"{role}, {name}"] = {"points": points.count, "tried": len(chosen), **points.kinds}
    tried = sum(one["tried"] for one in details.values())
    of = ", ".join(f"{name} {one['tried']} of {one['points']}" for name, one in details.items())
    text = f"{tried - len(wrong)} of {tried} resumed the same round to the same digest ({of})"
    enough = scale.part < 1 or all(
        sum(one["points"] for name, one in details.items() if name.startswith(role)) >= 200 for role in ROLES
    )
    return Figure(text, not wrong and enough, {**details, "wrong": dict(list(wrong.items())[:20])})


def _spread(number: int, wanted: int) -> list[int]:
    """Choose numbers evenly."""
    return sorted({round(place * (number - 1) / max(1, wanted - 1)) for place in range(min(wanted, number))})


def replays(scale: Scale) -> Figure:
    """Measure R5: synchronous with everybody, with a partial quorum, and asynchronous."""
    rounds = scale.of(50, 3)
    plans = {
        "all": Plan(rounds=rounds, keep_updates=True),
        "quorum": Plan(rounds=rounds, keep_updates=True, quorum=0.6),
        "asynchronous": Plan(rounds=rounds, keep_updates=True, buffer=2),
    }
    details: dict[str, Any] = {}
    for name, plan in plans.items():
        with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
            fleet = Fleet(Path(folder), plan)
            rng = random.Random(scale.seed)
            while not fleet.finished and fleet.bus.now_s < 20_000:
                fleet.bus.step()
                if name == "quorum":
                    _leave_one_out(fleet, rng)
            fleet.close()
            journal = Journal(Path(folder) / "run")
            found = replay(fleet.run_of(), journal)
            journal.close()
            details[name] = {"checkpoints": found.rounds, "updates": found.updates, "equal": found.equal}
    text = ", ".join(
        f"{name}: {one['checkpoints']} checkpoints of {one['updates']} updates {'equal' if one['equal'] else 'DIFFER'}"
        for name, one in details.items()
    )
    partial = details["quorum"]["updates"] < 3 * rounds
    complete = all(one["equal"] and one["checkpoints"] for one in details.values())
    return Figure(text, complete and partial, details)


def _leave_one_out(fleet: Fleet, rng: random.Random) -> None:
    """Once two devices have answered, sometimes do not wait for the third."""
    coordinator = fleet.coordinator
    if coordinator and len(coordinator.core.progress.accepted) == 2 and rng.random() < 0.5:
        fleet.guard("", coordinator.deadline)


def backups(scale: Scale) -> Figure:
    """Put the run's folder back as it was some rounds ago; the devices know more than the coordinator then."""
    wrong, tried, rounds = dict[str, str](), 0, 6
    for name, small in _PLANS.items():
        plan = dataclasses.replace(small, rounds=rounds, keep_updates=True)
        for taken, back, starts in _moments(rounds, scale):
            place = f"{name}: taken in round {taken}, put back in round {back}, after {starts} starts"
            with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
                if found := _put_back(Path(folder), plan, taken, back, starts):
                    wrong[place] = found
            tried += 1
    text = f"{tried - len(wrong)} of {tried} go on to the end, in a state that the journal gives again"
    return Figure(text, not wrong, {"wrong": wrong})


def _moments(rounds: int, scale: Scale) -> list[tuple[int, int, int]]:
    """Choose rounds of the backup and of its return, and the coordinator's starts between them."""
    every = [(taken, back, n) for taken in range(rounds) for back in range(taken, rounds) for n in (0, 1, 3)]
    return [every[place] for place in _spread(len(every), scale.of(len(every), 4))]


def _put_back(folder: Path, plan: Plan, taken: int, back: int, starts: int) -> str:
    fleet = Fleet(folder, plan)
    run, backup = folder / "run", folder / "backup"

    def play_to(number: int) -> None:
        """Play to the first update of a round."""
        while fleet.coordinator is None or fleet.coordinator.core.standing[:2] < (number, 1):
            fleet.bus.step()

    play_to(taken)
    fleet.kill("")
    shutil.copytree(run, backup)
    fleet.boot("")
    for _ in range(starts):
        fleet.kill("")
        fleet.boot("")
    play_to(back)
    fleet.kill("")
    shutil.rmtree(run)
    backup.rename(run)
    fleet.bus.later(60.0, lambda: fleet.boot(""))
    done = fleet.play()
    wrong = _recount(fleet) if done else "stuck"
    fleet.close()
    return wrong


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a file system of a few megabytes, in memory.

    Raises:
        PermissionError: only root may.
    """
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "edge-runtime-chaos", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("a small disk is a tmpfs, which only root may mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left_bytes: int) -> None:
    """Leave only so much of a disk."""
    found = os.statvfs(disk)
    size = found.f_bavail * found.f_frsize - left_bytes
    file = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        os.posix_fallocate(file, 0, max(1, size))
    finally:
        os.close(file)


def run_full(folder: Path, role: str, plan: Plan, at: int, rng: random.Random, expected: str) -> str:
    """Let the disk of one role be full from a point on, and later not; say what is wrong with the end."""
    with small_disk(folder) as disk:
        whose = ["run"] if role == "coordinator" else list(plan.devices)
        for name in whose:
            (disk / name).mkdir()
            (folder / name).symlink_to(disk / name)
        real = os.posix_fallocate

        def full() -> None:
            with mock.patch.object(os, "posix_fallocate", real):
                fill(disk, rng.choice((0, 4096, 40_000)))

        points = Points(ROLES[role], at, full)
        with watching(points):
            fleet = Fleet(folder, plan, points.sends, points.acts)
            while not (disk / "filler").exists() and fleet.bus.now_s < 300:
                fleet.bus.step()
            fleet.play(30.0)
            if rng.random() < 0.3:
                victim = "" if role == "coordinator" else "a"
                fleet.kill(victim)
                fleet.boot(victim)
                fleet.play(30.0)
            (disk / "filler").unlink()
            done = fleet.play()
        wrong = verdict(fleet, expected) if done else "stuck"
        fleet.close()
        return wrong


def full_disks(scale: Scale) -> Figure:
    """Measure R13."""
    rng, wrong, tried = random.Random(scale.seed), dict[str, str](), 0
    plan = Plan(rounds=2)
    for role in ROLES:
        with tempfile.TemporaryDirectory(dir=scale.folder) as folder:
            expected = undisturbed(Path(folder) / "calm", plan)
            points = count(Path(folder) / "count", plan, role).count
            for number in range(scale.of(20, 2)):
                at, place = rng.randrange(points // 20, points), Path(folder) / f"full{number}"
                place.mkdir()
                tried += 1
                if found := run_full(place, role, plan, at, rng, expected):
                    wrong[f"{role}, point {at}"] = found
    text = f"{tried - len(wrong)} of {tried} full disks: nothing lost, and the run went on once there was space"
    return Figure(text, not wrong, {"tried": tried, "wrong": wrong})


ROWS = [
    Row("R5", "the journal replayed offline", "bit-equal, also with a partial quorum", replays),
    Row("R6", "a crash at every write and message of a run", "all resume the same round", crash_points),
    Row("R13", "disk full at 20 random points of each side", "0 corrupt, goes on when space returns", full_disks),
    Row("backup", "a run's folder put back as it was rounds ago", "all go on to the end", backups),
]
