"""What the pages say: from pictures of runs to texts, rows and charts. No HTML here; that is in `pages/`."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.coordinator import units
from edge_runtime.coordinator.dashboard.charts import Band, Chart, Drawn, Line, draw
from edge_runtime.coordinator.dashboard.density import Layer
from edge_runtime.coordinator.dashboard.picture import Picture
from edge_runtime.coordinator.presence import Seen
from edge_runtime.coordinator.report import Report, Row

PHASES = {"score": "choosing channels", "train": "training", "peers": "among equals", "evaluate": "final evaluation"}
_JUST_NOW_S = 15.0
_KNOWN_FIGURES = {
    "accuracy-shared", "accuracy-personal-before", "accuracy-personal", "accuracy-served", "payload-bytes-up",
    "payload-bytes-down", "socket-bytes-up", "socket-bytes-down", "agent-idle-rss-bytes", "agent-peak-rss-bytes",
    "trainer-peak-rss-bytes", "cpu-s", "wall-s", "loss", "staleness", "deployed-bytes", "train-samples",
    "test-samples", "virtual-s", "message-bytes-up", "message-bytes-down",
}  # fmt: skip


Say = Callable[[float | None], str]


@dataclass(frozen=True)
class Figure:
    """A number of the report on a page: `path` says where it stands there, `value` is what stands there."""

    path: str
    value: float | None
    text: str


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    name: str
    figure: Figure
    notes: Sequence[Figure | str] = ()
    gain: str = ""


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


def figure(report: Report, path: str, say: Say) -> Figure:
    """Read a number out of a report, by keys and places with dots between."""
    value: Any = report
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return Figure(path, value, say(value))


def tiles(picture: Picture) -> list[Tile]:
    """Choose the headline figures of a run."""
    report = picture.report
    kind = traffic(report)
    made = [_accuracy_tile(report, "personal", "personal models"), _accuracy_tile(report, "shared", "shared model")]
    for direction in ("up", "down"):
        path = f"summary.{kind}_bytes_{direction}"
        mean = figure(report, f"{path}.mean", units.size)
        spread = _spread(report, path, units.size)
        note = "on the socket" if kind == "socket" else "payload"
        gain = _against_dense(mean.value, picture.dense_bytes)
        made.append(Tile(f"Bytes {direction} per device and round", mean, [f"{note}, ", *spread], gain))
    peak, idle = (figure(report, f"summary.{name}_rss_bytes.mean", units.size) for name in ("peak", "idle"))
    notes: list[Figure | str] = ["idle ", idle] if idle.value is not None else ["not metered"]
    made.append(Tile("Memory of a device at its peak", peak, notes))
    if report["summary"]["staleness"]["mean"] is not None:
        stale = figure(report, "summary.staleness.mean", plain)
        made.append(Tile("Staleness of an update", stale, _spread(report, "summary.staleness", plain)))
    return made


def _accuracy_tile(report: Report, which: str, of: str) -> Tile:
    path = f"summary.accuracy_{which}"
    mean = figure(report, f"{path}.mean", units.percent)
    name, other = next(iter(report["baselines"].items()), ("", None))
    points = other["comparison"]["accuracy_personal_over_shared_points"] if other and which == "personal" else None
    gain = f"{units.points(points)} over {name}'s shared model" if points is not None else ""
    missing = "none yet" if which == "personal" else "not known: no device has all of it"
    notes = [missing] if mean.value is None else _spread(report, path, units.percent)
    return Tile(f"Accuracy of the {of}", mean, notes, gain)


def _spread(report: Report, path: str, say: Say) -> list[Figure | str]:
    low, high = (figure(report, f"{path}.{which}", say) for which in ("p10", "p90"))
    return [low, " to ", high, " (p10 to p90)"]


def _against_dense(mean: float | None, dense: int | None) -> str:
    if mean is None or not dense:
        return ""
    return f"{units.times_less(mean / dense)} than dense ({units.size(dense)})"


def traffic(report: Report) -> str:
    """Choose the bytes to show: those on the socket where there was one."""
    return "payload" if report["summary"]["socket_bytes_up"]["mean"] is None else "socket"


def plain(value: float | None) -> str:
    """Write a number of no unit."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def whole(value: float | None) -> str:
    """Write a count."""
    return "–" if value is None else f"{value:,.0f}"


def charts(picture: Picture) -> list[Drawn]:
    """Draw a run round by round."""
    series = picture.report["rounds_detail"]
    made = [_accuracy_chart(picture.report), _bytes_chart(picture), _frontier_chart(picture.report)]
    made.append(_fan("Training time per round", series, ("times", "wall_s"), units.duration, "before"))
    for name, title in (("staleness", "Staleness"), ("loss", "Training loss")):
        if any(entry[name]["p50"] is not None for entry in series):
            made.append(_fan(title, series, (name,), plain, "other"))
    return [draw(chart) for chart in made]


def _frontier_chart(report: Report) -> Chart:
    """Draw what was reached against what a device has sent and received by then."""
    kind = traffic(report)
    lines = []
    runs = [(report["algorithm"], report, "personal", "own")]
    runs += [(name, other, "shared", "agent") for name, other in report["baselines"].items()]
    for name, run, model, colour in runs:
        places = [(one[f"cumulative_{kind}_bytes"], one[f"accuracy_{model}"]["mean"]) for one in run["rounds_detail"]]
        known = [(spent / 1e6, reached) for spent, reached in places if spent is not None]
        lines.append(Line(f"{name}, {model} (mean)", known, colour))
    title, across = "Accuracy against bytes", "MB of a device so far, up and down"
    return Chart(title, across, lines, written=_percents, most=1.0, whole=False)


def _percents(part: float) -> str:
    return f"{100 * part:.4g} %"


def _accuracy_chart(report: Report) -> Chart:
    series = report["rounds_detail"]

    def points(name: str, which: str = "p50", of: Sequence[Mapping[str, Any]] = series) -> list[tuple[float, Any]]:
        return [(entry["round"] + 1, entry[name][which]) for entry in of]

    lines = [
        Line("personal, after training (p50)", points("accuracy_personal")),
        Line("personal, before (p50)", points("accuracy_personal_before"), "before", dashed=True),
        Line("shared (p50)", points("accuracy_shared"), "other"),
    ]
    for name, other in report["baselines"].items():
        theirs = points("accuracy_shared", of=other["rounds_detail"])
        lines.append(Line(f"{name}, shared (p50)", theirs, "agent"))
    fans = [
        Band("personal, p10 to p90", points("accuracy_personal", "p10"), points("accuracy_personal", "p90")),
        Band("shared, p10 to p90", points("accuracy_shared", "p10"), points("accuracy_shared", "p90"), "other"),
    ]
    return Chart("Accuracy per round", "round", lines, fans, _percents, most=1.0)


def _bytes_chart(picture: Picture) -> Chart:
    report, series = picture.report, picture.report["rounds_detail"]
    kind = traffic(report)
    lines = [Line(report["algorithm"], [(one["round"] + 1, one[f"cumulative_{kind}_bytes"]) for one in series])]
    for name, other in report["baselines"].items():
        theirs = [(one["round"] + 1, one[f"cumulative_{kind}_bytes"]) for one in other["rounds_detail"]]
        lines.append(Line(name, theirs, "agent"))
    if picture.dense_bytes:
        spent, dense = 0.0, []
        for one in series:
            spent += 2 * picture.dense_bytes * one["devices"] / max(1, len(report["devices"]))
            dense.append((one["round"] + 1, spent))
        lines.append(Line("dense: all values as float32", dense, "idle", dashed=True))
    what = "payload" if kind == "payload" else "on its socket"
    title = f"Bytes of a device so far, {what}"
    return Chart(title, "round", lines, written=units.size, from_zero=True)


def _fan(
    title: str, series: Sequence[Mapping[str, Any]], keys: Sequence[str], say: Callable[[float], str], kind: str
) -> Chart:
    def points(which: str) -> list[tuple[float, Any]]:
        found = []
        for entry in series:
            value: Any = entry
            for key in (*keys, which):
                value = value[key]
            found.append((entry["round"] + 1, value))
        return found

    fan = Band("p10 to p90", points("p10"), points("p90"), kind)
    return Chart(title, "round", [Line("p50", points("p50"), kind)], [fan], say, from_zero=True)


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
    "state": lambda row: (row["state"] not in ("late", "offline", "refused", "unfit"), row["state"], row["id"]),
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


def state(picture: Picture, device: str) -> str:
    """Say what a device is at; where no coordinator is at the run, nobody knows."""
    if picture.standing.state != "running" or picture.present is None:
        return "–"
    return picture.present.devices.get(device, Seen()).state


def _mood(word: str) -> str:
    return {"offline": "trouble", "late": "trouble", "refused": "trouble", "unfit": "trouble", "done": "good"}.get(
        word, ""
    )


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


def dropped(report: Report) -> list[tuple[str, str, int]]:
    """List messages that were not taken: of whom, why, how many; the most first."""
    found = [(device, why, count) for device, reasons in report["dropped"].items() for why, count in reasons.items()]
    return sorted(found, key=lambda one: -one[2])[:20]


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
    known.append(("memory for tasks", units.size(said["room"]) if said.get("room") else "no limit known"))
    known += [("reference takes", f"{said['reference_us'] / 1000:.1f} ms")] if said.get("reference_us") else []
    known += [("longest step", f"{said['step_ms']} ms")] if said.get("step_ms") else []
    known += [("bytes for a round", units.size(said["round_bytes"]))] if said.get("round_bytes") else []
    return known + [(name.replace("-", " "), measured(name, value)) for name, value in sorted(seen.power.items())]


def measured(name: str, value: float) -> str:
    """Write a figure by the unit at the end of its name."""
    for end, say in (
        ("-bytes", units.size),
        ("-s", units.duration),
        ("-j", lambda v: f"{plain(v)} J"),
        ("-w", lambda v: f"{plain(v)} W"),
        ("-c", lambda v: f"{plain(v)} °C"),
        ("-percent", lambda v: f"{plain(v)} %"),
        ("-ms", lambda v: f"{plain(v)} ms"),
    ):
        if name.endswith(end):
            return say(value)
    return plain(value)


def device_tiles(picture: Picture, place: int) -> list[Tile]:
    """Choose the headline figures of a device."""
    report, kind = picture.report, traffic(picture.report)
    path = f"devices.{place}"
    personal = figure(report, f"{path}.accuracy_personal", units.percent)
    before = figure(report, f"{path}.accuracy_personal_before", units.percent)
    tiles_ = [Tile("Accuracy of its personal model", personal, ["before training ", before])]
    for direction in ("up", "down"):
        mean = figure(report, f"{path}.{kind}_bytes_{direction}", units.size)
        gain = _against_dense(mean.value, picture.dense_bytes)
        tiles_.append(Tile(f"Bytes {direction} per round", mean, ["on the socket" if kind == "socket" else kind], gain))
    peak, idle = (figure(report, f"{path}.{name}_rss_bytes", units.size) for name in ("peak", "idle"))
    notes: list[Figure | str] = ["idle ", idle] if idle.value is not None else ["not metered"]
    tiles_.append(Tile("Memory at its peak", peak, notes))
    return [*tiles_, Tile("Processor per round", figure(report, f"{path}.times.cpu_s", units.duration), [])]


def device_charts(picture: Picture, device: str) -> list[Drawn]:
    """Draw what a device reached and cost, round by round."""
    rows = sorted((row for row in picture.rows if row.device == device and row.phase == "train"), key=_by_round)

    def points(name: str) -> list[tuple[float, Any]]:
        return [(row.round + 1, getattr(row, name)) for row in rows]

    series = picture.report["rounds_detail"]
    fleet = [(entry["round"] + 1, entry["accuracy_personal"]["p50"]) for entry in series]
    accuracy = [
        Line("after training", points("accuracy_personal")),
        Line("before", points("accuracy_personal_before"), "before", dashed=True),
        Line("the fleet's middle", fleet, "idle"),
    ]
    kind = traffic(picture.report)
    sent = [Line("up", points(f"{kind}_bytes_up")), Line("down", points(f"{kind}_bytes_down"), "other")]
    memory = [
        Line("trainer, peak", points("trainer_peak_rss_bytes"), "trainer"),
        Line("agent, peak", points("agent_peak_rss_bytes"), "agent"),
        Line("agent, idle", points("idle_rss_bytes"), "idle"),
    ]
    made = [
        Chart("Its personal model", "round", accuracy, written=_percents, most=1.0),
        Chart(f"Bytes per round ({kind})", "round", sent, written=units.size, from_zero=True),
        Chart("Memory per round", "round", memory, written=units.size, from_zero=True),
        _energy_chart(picture, device, points),
    ]
    return [draw(chart) for chart in made]


def _energy_chart(picture: Picture, device: str, points: Callable[[str], list[tuple[float, Any]]]) -> Chart:
    spent = [
        (one.round + 1, one.metrics["energy-j"])
        for one in picture.accepted
        if one.device == device and "energy-j" in one.metrics and one.phase == "train"
    ]
    if spent:
        return Chart("Energy per round", "round", [Line("energy", sorted(spent))], written=_joules, from_zero=True)
    lines = [Line("processor", points("cpu_s")), Line("from task to result", points("wall_s"), "before", dashed=True)]
    note = "Energy is not metered on this device; this is the time that it works."
    return Chart("Time per round", "round", lines, written=units.duration, from_zero=True, note=note)


def _joules(value: float) -> str:
    return f"{plain(value)} J"


def _by_round(row: Row) -> int:
    return row.round


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
