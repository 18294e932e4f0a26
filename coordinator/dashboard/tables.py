"""The tables of the pages: from pictures of runs to rows of cells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.coordinator import units
from edge_runtime.coordinator.dashboard.density import Layer
from edge_runtime.coordinator.dashboard.picture import Picture
from edge_runtime.coordinator.dashboard.words import (
    PHASES,
    TROUBLED,
    Figure,
    Say,
    ago,
    figure,
    measured,
    plain,
    state,
    traffic,
)

_KNOWN_FIGURES = {
    "accuracy-shared", "accuracy-personal-before", "accuracy-personal", "accuracy-served", "payload-bytes-up",
    "payload-bytes-down", "socket-bytes-up", "socket-bytes-down", "agent-idle-rss-bytes", "agent-peak-rss-bytes",
    "trainer-peak-rss-bytes", "cpu-s", "wall-s", "loss", "staleness", "deployed-bytes", "train-samples",
    "test-samples", "virtual-s", "message-bytes-up", "message-bytes-down",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text, or a link."""

    text: str
    href: str = ""
    figure: Figure | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sorts: Sequence[str] = ()
    """By which word in the address each column is sorted; empty: not."""
    sorted: str = ""


def rounds_table(picture: Picture) -> Table:
    """List the rounds, the newest first: also the plots' figures as a table."""
    report = picture.report
    kind = traffic(report)
    stale = any(entry["staleness"]["p50"] is not None for entry in report["rounds_detail"])
    head = ["round", "devices", "late", "rejected", "shared, p50", "before, p50", "personal, p10", "p50", "p90"]
    head += [f"{kind} up", f"{kind} down", "time, p50", *(["staleness, p50"] if stale else []), "loss, p50"]
    rows = []
    places = {entry["round"]: place for place, entry in enumerate(report["rounds_detail"])}
    for number in sorted(places.keys() | picture.rounds.keys(), reverse=True):
        at = picture.rounds.get(number)
        if number not in places:
            cells = _counts(number, 0, at)
            rows.append([*cells, *[Cell("–")] * (len(head) - len(cells))])
            continue
        place = places[number]
        path = f"rounds_detail.{place}"
        cells = _counts(number, report["rounds_detail"][place]["devices"], at)
        names: list[tuple[str, Say]] = [
            ("accuracy_shared.p50", units.percent),
            ("accuracy_personal_before.p50", units.percent),
        ]
        names += [(f"accuracy_personal.{which}", units.percent) for which in ("p10", "p50", "p90")]
        names += [(f"{kind}_bytes_{direction}", units.size) for direction in ("up", "down")]
        names += [("times.wall_s.p50", units.duration), *([("staleness.p50", plain)] if stale else [])]
        names += [("loss.p50", plain)]
        rows.append(cells + [_cell(figure(report, f"{path}.{name}", say)) for name, say in names])
    return Table("Rounds, the newest first", head, rows)


def _counts(number: int, devices: int, at: Any) -> list[Cell]:
    late = "–" if at is None or at.asked is None else f"{len(at.late)}{'' if at.closed else ' open'}"
    rejected = str(at.rejected) if at else "0"
    asked = f" of {at.asked}" if at and at.asked is not None else ""
    trouble = "trouble" if at and at.closed and at.late else ""
    return [Cell(str(number + 1)), Cell(f"{devices}{asked}"), Cell(late, kind=trouble), Cell(rejected)]


def _cell(one: Figure) -> Cell:
    return Cell(one.text, figure=one)


_SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "device": lambda row: row["id"],
    "state": lambda row: (row["state"] not in TROUBLED, row["state"], row["id"]),
    "personal": lambda row: _first_known(row["report"], "accuracy_personal"),
    "up": lambda row: _first_known(row["report"], "bytes_up", -1),
    "memory": lambda row: _first_known(row["report"], "peak_rss_bytes", -1),
}


def _first_known(device: Mapping[str, Any] | None, name: str, sign: int = 1) -> tuple[bool, float]:
    """Order by a figure, those that have none last."""
    if device is None:
        return True, 0.0
    names = [f"socket_{name}", f"payload_{name}"] if name.startswith("bytes") else [name]
    value = next((device[one] for one in names if device[one] is not None), None)
    return value is None, sign * (value or 0.0)


def devices_table(picture: Picture, address: Callable[[str], str], sort: str, now: float) -> Table:
    """List the devices of a run."""
    report, kind = picture.report, traffic(picture.report)
    places = {device["id"]: place for place, device in enumerate(report["devices"])}
    seen = picture.present.devices if picture.present else {}
    found = [
        {
            "id": name,
            "report": report["devices"][places[name]] if name in places else None,
            "state": state(picture, name),
        }
        for name in sorted({*places, *picture.known, *seen})
    ]
    found.sort(key=_SORTS.get(sort, _SORTS["device"]))
    columns: list[tuple[str, str, Say]] = [
        ("rounds", "training_rounds", str),
        ("shared", "accuracy_shared", units.percent),
        ("before", "accuracy_personal_before", units.percent),
        ("personal", "accuracy_personal", units.percent),
        (f"{kind} up", f"{kind}_bytes_up", units.size),
        (f"{kind} down", f"{kind}_bytes_down", units.size),
        ("memory", "peak_rss_bytes", units.size),
    ]
    rows = []
    for one in found:
        name = one["id"]
        cells = [Cell(name, address(name)), Cell(one["state"], kind=f"word {_mood(one['state'])}".strip())]
        for _, key, say in columns:
            path = f"devices.{places[name]}.{key}" if name in places else ""
            cells.append(_cell(figure(report, path, say)) if path else Cell("–"))
        rows.append([*cells, Cell(ago(seen[name].seen, now) if name in seen else "–")])
    head = ["device", "doing", *(name for name, _, _ in columns), "last seen"]
    sorts = ["device", "state", "", "", "", "personal", "up", "", "memory", ""]
    return Table("Devices", head, rows, sorts, sort if sort in _SORTS else "device")


def _mood(word: str) -> str:
    return "trouble" if word in TROUBLED else "good" if word == "done" else ""


def history_table(picture: Picture, device: str) -> Table:
    """List what a device did in each round, the newest first, with all figures that we have no place for."""
    rows = sorted((row for row in picture.rows if row.device == device), key=lambda row: (row.round, row.phase))
    others = {(one.round, one.phase): one.metrics for one in picture.accepted if one.device == device}
    head = ["round", "what", "shared", "before", "personal", "payload up", "payload down", "socket up", "socket down"]
    head += ["trainer, peak", "processor", "time", "loss", "other figures"]
    listed = []
    for row in reversed(rows):
        figures = others.get((row.round, row.phase), {})
        rest = [(name, value) for name, value in sorted(figures.items()) if name not in _KNOWN_FIGURES]
        cells = [str(row.round + 1) if row.phase == "train" else "–", PHASES.get(row.phase, row.phase)]
        cells += [units.percent(row.accuracy_shared), units.percent(row.accuracy_personal_before)]
        cells += [units.percent(row.accuracy_personal), units.size(row.payload_bytes_up)]
        cells += [
            units.size(row.payload_bytes_down),
            units.size(row.socket_bytes_up),
            units.size(row.socket_bytes_down),
        ]
        cells += [units.size(row.trainer_peak_rss_bytes), units.duration(row.cpu_s), units.duration(row.wall_s)]
        cells += [plain(row.loss), ", ".join(f"{name} {measured(name, value)}" for name, value in rest) or "–"]
        listed.append([Cell(text, kind="word" if place == 1 else "") for place, text in enumerate(cells)])
    return Table("Its rounds, the newest first", head, listed)


def layer_rows(layers: Iterable[Layer]) -> list[tuple[str, int, int, float]]:
    """Give name, size, what is kept, and its part, of each layer."""
    return [(layer.name, layer.size, layer.kept, layer.kept / max(1, layer.size)) for layer in layers]
