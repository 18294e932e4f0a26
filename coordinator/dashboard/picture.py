"""A run at one moment, as the pages show it: the report that it would leave if it ended now, and who is there.

The figures are those of `report.json` by construction: the same rows (`figures.py`), summed up by the same function
(`report.build`).
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime import config
from edge_runtime.coordinator import figures, presence, report, run_files, runs
from edge_runtime.coordinator.dashboard.reading import Held, JournalReader
from edge_runtime.coordinator.journal import Accepted
from edge_runtime.coordinator.presence import Present
from edge_runtime.coordinator.report import Report, Row, RunInfo
from edge_runtime.coordinator.run import RunConfig
from edge_runtime.coordinator.runs import Standing
from edge_runtime.errors import EdgeError, RunError

_LEAST_S = 0.4
"""A run is read again after so long, if somebody looks."""
_SHARE = 4
"""... and after so many times of what reading it took: a large run leaves its machine most of its time."""
_BASELINE = "fedavg"
_FLOAT_BYTES = 4
_TOLD_AT_THE_END = ("broker", "configuration", "versions", "times", "privacy", "dropped")


@dataclass(frozen=True)
class Round:
    """How many devices a round was for, and what came of them."""

    number: int
    asked: int | None
    """None: the journal does not name them, or not any more."""
    answered: int
    rejected: int
    late: tuple[str, ...]
    """Who was asked and has not answered; of the open round: not yet."""
    closed: bool


@dataclass(frozen=True)
class Picture:
    """A run at one moment."""

    standing: Standing
    settings: RunConfig
    link: bool
    """Whether the run is over a broker, so that it can go on after a stop."""
    report: Report
    rows: Sequence[Row]
    accepted: Sequence[Accepted]
    rounds: Mapping[int, Round]
    present: Present | None
    unfit: Mapping[str, str]
    known: tuple[str, ...]
    dense_bytes: int | None
    """The model as float32 values: what dense training sends each way; None: its size is not known."""
    finished_report: bool
    """Whether report.json is there, and is this run's."""
    version: str
    """Another one where anything may be different."""


@dataclass
class RunReader:
    """Takes pictures of one run, no more often than need be; for any number of threads."""

    folder: Path
    _journal: JournalReader = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _picture: Picture | None = field(init=False, default=None)
    _due_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Begin with nothing read."""
        self._journal = JournalReader(self.folder)

    def picture(self) -> Picture:
        """Give the run as it is now, or was a moment ago.

        Raises:
            RunError: its journal cannot be read.
        """
        with self._lock:
            if self._picture is None or time.monotonic() >= self._due_s:
                started = time.monotonic()
                version = self._version()
                if self._picture is None or version != self._picture.version:
                    self._picture = _take(self.folder, self._journal, version)
                now = time.monotonic()
                self._due_s = now + max(_LEAST_S, _SHARE * (now - started))
            return self._picture

    def _version(self) -> str:
        who = run_files.holder(self.folder)
        other = _baseline_version(self.folder)
        times = [_changed(self.folder / presence.NAME), _changed(self.folder.parent / "report.json")]
        return "-".join(map(str, [self._journal.version(), other, who[0] if who else "", *times]))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _baseline_version(folder: Path) -> int | None:
    """Count what is new in the run that this one is compared with; None: there is none, or it is just being made."""
    beside = folder.parent / _BASELINE
    if folder.name == _BASELINE or not (beside / "journal.sqlite").exists():
        return None
    try:
        return JournalReader(beside).version()
    except RunError:
        return None


def _take(folder: Path, journal: JournalReader, version: str) -> Picture:
    held, standing = journal.read(), runs.standing(folder)
    settings = _settings(folder, held)
    made = accepted(held)
    rows = figures.rows(made, settings)
    left = _left(folder, held.facts.get("run", ""))
    now = report.build(_info(held, settings, left), rows, _baselines(folder, left))
    if left:
        now |= {key: left[key] for key in _TOLD_AT_THE_END}
    for name, other in now["baselines"].items():
        told = left.get("baselines", {}).get(name, {})
        other |= {key: told[key] for key in ("configuration", "times") if key in told}
    present = presence.read(folder)
    if present and not left:
        now["dropped"] = present.dropped
    size = now["model"]["parameters"]
    return Picture(
        standing,
        settings,
        held.facts.get("link", "null") != "null",
        now,
        rows,
        made,
        {} if settings.habit == "asynchronous" else _rounds(held, standing),
        present,
        held.unfit,
        held.known,
        _FLOAT_BYTES * size if size else None,
        bool(left),
        version,
    )


def accepted(held: Held) -> list[Accepted]:
    """List all updates that count, as `Journal.accepted` does."""
    return [Accepted(*one[:5]) for one in held.judged if not one.reason]


def _settings(folder: Path, held: Held) -> RunConfig:
    try:
        return config.build(RunConfig, json.loads(held.facts["asked"])["run"], "run")
    except (EdgeError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{folder}: does not say what the run is ({error})") from error


def _info(held: Held, settings: RunConfig, left: Report) -> RunInfo:
    """Say what there is to say of a run; who never answered is known from the report that it left only."""
    described = json.loads(held.facts.get("description", "{}"))
    size = int(held.facts.get("parameters", 0)) or left.get("model", {}).get("parameters", 0)
    return RunInfo(
        run=held.facts.get("run", ""),
        algorithm=settings.algorithm,
        rounds=settings.rounds,
        model=settings.model,
        parameters=size,
        seed=settings.seed,
        configuration=described,
        started=held.facts.get("started"),
        devices=tuple(device["id"] for device in left.get("devices", [])),
        choices=held.choices,
        rejected=tuple((one.round, one.device, one.reason) for one in held.judged if one.reason),
    )


def _left(folder: Path, run: str) -> Report:
    """Read the report that a run left, if it is of this run."""
    try:
        found: Report = json.loads((folder.parent / "report.json").read_bytes())
        if found["run"] == run:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not finished: there is none, or it is of an earlier run in this folder
    return {}


def _baselines(folder: Path, left: Report) -> list[Report]:
    """Report the run on the same work that lies beside this one, as far as it is."""
    if _baseline_version(folder) is None:
        return []
    held = JournalReader(folder.parent / _BASELINE).read()
    if "description" not in held.facts:
        return []
    settings = _settings(folder, held)
    return [report.build(_info(held, settings, left), figures.rows(accepted(held), settings))]


def _rounds(held: Held, standing: Standing) -> dict[int, Round]:
    answered = Counter(one.round for one in held.judged if one.phase == "train" and not one.reason)
    rejected = Counter(one.round for one in held.judged if one.phase == "train" and one.reason)
    judged: dict[int, set[str]] = {}
    for one in held.judged:
        if one.phase == "train":
            judged.setdefault(one.round, set()).add(one.device)
    found = {}
    for cohort in held.cohorts:
        if cohort.phase == "train" and cohort.devices:
            number, asked = cohort.round, cohort.devices
            late = tuple(device for device in asked if device not in judged.get(number, ()))
            closed = cohort.closed or standing.state == "finished"
            found[number] = Round(number, len(asked), answered[number], rejected[number], late, closed)
    for number in judged.keys() - found.keys():
        found[number] = Round(number, None, answered[number], rejected[number], (), True)
    return found
