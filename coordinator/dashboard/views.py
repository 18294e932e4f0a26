"""What the pages show large: headline figures and plots, from pictures of runs. No HTML here; that is in `pages/`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.coordinator import units
from edge_runtime.coordinator.dashboard.charts import Band, Chart, Drawn, Line, draw
from edge_runtime.coordinator.dashboard.picture import Picture
from edge_runtime.coordinator.dashboard.words import Figure, Say, figure, plain, traffic
from edge_runtime.coordinator.report import Report, Row


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    name: str
    figure: Figure
    notes: Sequence[Figure | str] = ()
    gain: str = ""


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
        _energy_chart(points),
    ]
    return [draw(chart) for chart in made]


def _energy_chart(points: Callable[[str], list[tuple[float, Any]]]) -> Chart:
    spent = points("energy_j")
    if any(joules is not None for _, joules in spent):
        return Chart("Energy per round", "round", [Line("energy", spent)], written=units.energy, from_zero=True)
    lines = [Line("processor", points("cpu_s")), Line("from task to result", points("wall_s"), "before", dashed=True)]
    note = "Energy is not metered on this device; this is the time that it works."
    return Chart("Time per round", "round", lines, written=units.duration, from_zero=True, note=note)


def _by_round(row: Row) -> int:
    return row.round
