"""A check-up: small checks over a frozen context, each of which says what it saw and what to do about it.

A check is a function of the context and gives a `Finding`; what it raises on purpose (`errors.py`) is a failure, and
any other exception is one too, of the check itself: a check-up always comes to its end. `edge_runtime/doctor.py` and
`coordinator/doctor.py` are lists of checks; a new one is a function and a line there.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge_runtime.config import nearest
from edge_runtime.devices.profile import profile
from edge_runtime.errors import ConfigError, DeviceError, EdgeError
from edge_runtime.files import write_atomic

C = TypeVar("C")
PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
LOW_DISK_BYTES, NO_DISK_BYTES = 200_000_000, 16_000_000
_DAY_S = 86_400
_SOON_DAYS = 30
_WIDTH = 80
_PROBE_BYTES = 65_536


@dataclass(frozen=True)
class Finding:
    """What a check came to."""

    verdict: str
    seen: str
    todo: str = ""
    """What to do about it; empty where all is well."""
    blocks: bool = False
    """Whether checks that need this one make no sense now; of a failure they never do."""
    figures: Mapping[str, float | int | str | None] = field(default_factory=dict)


def good(seen: str, **figures: float | str | None) -> Finding:
    """Say that all is well."""
    return Finding(PASS, seen, figures=figures)


def warn(seen: str, todo: str, **figures: float | str | None) -> Finding:
    """Say that something should be looked at."""
    return Finding(WARN, seen, todo, figures=figures)


def hold(seen: str, todo: str) -> Finding:
    """Say why checks that need this one should not be tried now, though nothing is wrong."""
    return Finding(WARN, seen, todo, blocks=True)


def bad(seen: str, todo: str, **figures: float | str | None) -> Finding:
    """Say that something does not work."""
    return Finding(FAIL, seen, todo, True, figures)


def skipped(why: str) -> Finding:
    """Say why nothing was tried."""
    return Finding(SKIP, why, blocks=True)


@dataclass(frozen=True)
class Check(Generic[C]):
    """A check, and what must be well for it to be tried."""

    name: str
    look: Callable[[C], Finding]
    exit_code: int = DeviceError.exit_code
    """Of the program where this is the first that fails: by whose fault it is (`errors.py`)."""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A check that was made."""

    name: str
    finding: Finding
    exit_code: int
    took_s: float

    def record(self) -> dict[str, Any]:
        """Give plain values."""
        found = self.finding
        told = {"check": self.name, "verdict": found.verdict, "seen": found.seen, "todo": found.todo}
        return {**told, "figures": dict(found.figures), "took_s": round(self.took_s, 3)}


def run(checks: Sequence[Check[C]], context: C, tell: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Make all checks, one after the other; `tell` hears of each when it is done."""
    results: list[Result] = []
    blocked: set[str] = set()
    for check in checks:
        started_s = time.monotonic()
        missing = [name for name in check.needs if name in blocked]
        finding = skipped(f"not tried: see {missing[0]}") if missing else _guarded(check, context)
        if finding.blocks:
            blocked.add(check.name)
        results.append(Result(check.name, finding, check.exit_code, time.monotonic() - started_s))
        tell(results[-1])
    return results


def _guarded(check: Check[C], context: C) -> Finding:
    try:
        return check.look(context)
    except EdgeError as error:
        return bad(str(error), "")
    except Exception as error:  # noqa: BLE001  # of whatever is broken here: that is what a check-up is for
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return bad(f"this check itself broke off ({said})", "if nothing else explains it, please report it")


def exit_code(results: Sequence[Result]) -> int:
    """Give 0 if nothing failed, else the code of the first that did."""
    return next((result.exit_code for result in results if result.finding.verdict == FAIL), 0)


def to_json(results: Sequence[Result]) -> str:
    """Write what a check-up found for scripts."""
    counts = {verdict: sum(one.finding.verdict == verdict for one in results) for verdict in (PASS, WARN, FAIL, SKIP)}
    record = {"schema": "edge-runtime/doctor/1", "exit_code": exit_code(results), "counts": counts}
    return json.dumps({**record, "checks": [result.record() for result in results]}, indent=1)


def lines(result: Result, width: int = _WIDTH) -> str:
    """Write a check for people."""
    found = result.finding
    head = f"{found.verdict}  {result.name:<12} "
    text = textwrap.fill(
        found.seen, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    if found.todo:
        text += "\n" + textwrap.fill(
            found.todo, width, initial_indent=" " * (len(head) - 3) + "-> ", subsequent_indent=" " * len(head),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return text + "\n"


def only(checks: Sequence[Check[C]], names: Sequence[str]) -> list[Check[C]]:
    """Choose checks by their names, with those that they need; no names: all.

    Raises:
        ConfigError: there is no such check.
    """
    by_name = {check.name: check for check in checks}
    wanted: set[str] = set()
    waiting = list(names or by_name)
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise ConfigError(f"--only: there is no check {name!r}{nearest(name, by_name)}")
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].needs
    return [check for check in checks if check.name in wanted]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that both programs' `doctor` has."""
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CHECK", help="this check, and those it needs; repeatable"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="end the connection of the program that runs here; it comes back"
    )


def examine(checks: Sequence[Check[C]], context: C, options: argparse.Namespace) -> int:
    """Make the checks that flags choose, print what they find, and give the program's exit code."""
    checks, as_json = only(checks, options.only), options.json

    def tell(result: Result) -> None:
        sys.stdout.write("" if as_json else lines(result))
        sys.stdout.flush()

    results = run(checks, context, tell)
    if as_json:
        sys.stdout.write(to_json(results) + "\n")
        return exit_code(results)
    verdicts = [result.finding.verdict for result in results]
    said = ", ".join(f"{verdicts.count(one)} {one}" for one in (PASS, WARN, FAIL, SKIP) if one in verdicts)
    sys.stdout.write(f"\n{said}\n")
    return exit_code(results)


def ending(what: str, ends_s: float, todo: str, now_s: float) -> Finding:
    """Judge until when something is good."""
    on = time.strftime("%Y-%m-%d", time.gmtime(ends_s))
    days = int((ends_s - now_s) // _DAY_S)
    if days < 0:
        return bad(f"{what} ended on {on}", todo, days_left=days)
    if days < _SOON_DAYS:
        return warn(f"{what} ends on {on}, in {days} days", todo, days_left=days)
    return good(f"{what} is good until {on}", days_left=days)


def worst(findings: Sequence[Finding]) -> Finding:
    """Put several findings together: the worst verdict, all that was seen, and what to do about all of it."""
    order = (PASS, SKIP, WARN, FAIL)
    verdict = max((found.verdict for found in findings), key=order.index)
    figures = {name: value for found in findings for name, value in found.figures.items()}
    seen = "; ".join(found.seen for found in findings)
    todo = "; ".join(dict.fromkeys(found.todo for found in findings if found.todo))
    return Finding(verdict, seen, todo, any(found.blocks for found in findings), figures)


def memory(small_bytes: int, tiny_bytes: int) -> Finding:
    """See how much memory there is for new programs."""
    found = profile()
    limits = [value for value in (found.free_ram_bytes, found.ram_limit_bytes) if value is not None]
    if not limits:
        return skipped("the system does not tell")
    least = min(limits)
    seen = f"{least / 1e6:,.0f} MB" + (f" of {found.ram_bytes / 1e6:,.0f}" if found.ram_bytes else "") + " are free"
    todo = "end other programs, or raise the memory limit of this container or service"
    if least < tiny_bytes:
        return bad(f"{seen}: too little", todo, free_bytes=least)
    return warn(seen, todo, free_bytes=least) if least < small_bytes else good(seen, free_bytes=least)


def disk(folders: Mapping[str, Path]) -> Finding:
    """See whether something can be written where it must be, and how much; nothing is left behind."""
    found: list[Finding] = []
    for what, folder in folders.items():
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        found.append(_writable(f"{what} {folder}", place))
    return worst(found)


def _writable(what: str, place: Path) -> Finding:
    free_bytes = shutil.disk_usage(place).free
    space = f"{what}: {free_bytes / 1e6:,.0f} MB free"
    probe = place / f".doctor-{os.getpid()}"
    try:
        write_atomic(probe, bytes(_PROBE_BYTES))
    except DeviceError as error:
        reason = str(error.__cause__.strerror if isinstance(error.__cause__, OSError) else error)
        return bad(f"{what}: nothing can be written ({reason}), {free_bytes / 1e6:,.0f} MB free",
                   "free some space, or let this user write there", free_bytes=free_bytes)  # fmt: skip
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    if free_bytes < NO_DISK_BYTES:
        return bad(space, "free some space: nothing goes on when the disk is full", free_bytes=free_bytes)
    if free_bytes < LOW_DISK_BYTES:
        return warn(space, "free some space", free_bytes=free_bytes)
    return good(space, free_bytes=free_bytes)
