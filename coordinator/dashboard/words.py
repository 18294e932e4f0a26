"""What the pages say in words: how a run and its devices stand, and numbers of the report as they are written."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_runtime.coordinator import units
from edge_runtime.coordinator.dashboard.picture import Picture
from edge_runtime.coordinator.presence import Seen
from edge_runtime.coordinator.report import Report

PHASES = {"score": "choosing channels", "train": "training", "peers": "among equals", "evaluate": "final evaluation"}
TROUBLED = ("late", "offline", "refused", "unfit")
"""States of a device that its owner should look at."""
_JUST_NOW_S = 15.0

Say = Callable[[float | None], str]


@dataclass(frozen=True)
class Figure:
    """A number of the report on a page: `path` says where it stands there, `value` is what stands there."""

    path: str
    value: float | None
    text: str


def figure(report: Report, path: str, say: Say) -> Figure:
    """Read a number out of a report, by keys and places with dots between."""
    value: Any = report
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return Figure(path, value, say(value))


def traffic(report: Report) -> str:
    """Choose the bytes to show: those on the socket where there was one."""
    return "payload" if report["summary"]["socket_bytes_up"]["mean"] is None else "socket"


def plain(value: float | None) -> str:
    """Write a number of no unit."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def state(picture: Picture, device: str) -> str:
    """Say what a device is at; where no coordinator is at the run, nobody knows."""
    if picture.standing.state != "running" or picture.present is None:
        return "–"
    return picture.present.devices.get(device, Seen()).state


def standing(picture: Picture) -> dict[str, Any]:
    """Say where a run stands, for the head of its page."""
    now = picture.standing
    asynchronous = picture.settings.habit == "asynchronous" and now.phase == "train"
    done = now.round / max(1, picture.settings.devices) if asynchronous else now.round
    over = now.state == "finished" or now.phase == "evaluate"
    states = Counter(state(picture, device) for device in picture.known)
    return {
        "done": picture.settings.rounds if over else round(min(done, picture.settings.rounds), 2),
        "phase": PHASES.get(now.phase, now.phase),
        "counting": f"{now.round} updates" if asynchronous else f"round {min(now.round + 1, now.rounds)}",
        "late": next((one.late for one in picture.rounds.values() if not one.closed), ()),
        "states": [(name, count) for name, count in sorted(states.items()) if name != "–"],
    }


def ago(then: float | None, now: float) -> str:
    """Say how long something was ago, so coarsely that it seldom changes."""
    if then is None:
        return "–"
    spent = now - then
    if spent < _JUST_NOW_S:
        return "just now"
    if spent < 60:
        return "under a minute ago"
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if spent >= unit:
            return f"{units.counted(int(spent // unit), name)} ago"
    return "just now"


def when(text: str) -> str:
    """Write a time of a journal, UTC, for people."""
    return text.replace("T", " ").replace("Z", " UTC")


def profile(seen: Seen) -> list[tuple[str, str]]:
    """Say what a device told of itself."""
    said = seen.profile
    known = [("backend", str(said.get("backend") or "–"))]
    known.append(("memory for tasks", units.size(said["room_bytes"]) if said.get("room_bytes") else "no limit known"))
    known += [("reference takes", f"{said['reference_ms']:.1f} ms")] if said.get("reference_ms") else []
    known += [("longest step", f"{said['step_ms']} ms")] if said.get("step_ms") else []
    known += [("bytes for a round", units.size(said["round_bytes"]))] if said.get("round_bytes") else []
    return known + power(seen)


def power(seen: Seen) -> list[tuple[str, str]]:
    """Say what a device's sensors told last."""
    return [(name, say(seen.power[key])) for name, key, say in units.HARDWARE if key in seen.power]


def measured(name: str, value: float) -> str:
    """Write a figure by the unit at the end of its name."""
    for end, say in (
        ("-bytes", units.size),
        ("-s", units.duration),
        ("-j", units.energy),
        ("-c", units.temperature),
        ("-ms", lambda v: f"{plain(v)} ms"),
    ):
        if name.endswith(end):
            return say(value)
    return plain(value)
