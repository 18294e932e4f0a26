"""The end of a run in the terminal: what `report.json` says, as one table."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from edge_runtime.coordinator import units
from edge_runtime.coordinator.report import ACCURACIES, Report, refused

LINES = (
    ("accuracy, shared model", "accuracy_shared"),
    ("accuracy, personal, before training", "accuracy_personal_before"),
    ("accuracy, personal", "accuracy_personal"),
    ("payload up per round", "payload_bytes_up"),
    ("payload down per round", "payload_bytes_down"),
    ("socket up per round", "socket_bytes_up"),
    ("socket down per round", "socket_bytes_down"),
    ("model as stored", "deployed_bytes"),
    ("memory, idle", "idle_rss_bytes"),
    ("memory, peak", "peak_rss_bytes"),
    ("energy per round", "energy_j"),
    ("temperature, highest", "temperature_c"),
    ("rounds throttled", "throttled"),
)
"""What is shown, in order: words and key of `summary`."""
_SECTION_ENDS = {"accuracy_personal", "socket_bytes_down"}
_IF_KNOWN = {"deployed_bytes", "energy_j", "temperature_c", "throttled"}
_SPOKEN = {
    **dict.fromkeys((*ACCURACIES, "throttled"), units.percent),
    "energy_j": units.energy,
    "temperature_c": units.temperature,
}
"""How a figure is written, if not as bytes."""


def summary_table(report: Report) -> Table:
    """Lay out the end of a run for the terminal: means and spread, beside the baselines."""
    table = Table(title=_title(report))
    table.add_column("per device")
    for name in (report["algorithm"], *report["baselines"]):
        table.add_column(name, justify="right")
        table.add_column("p10 – p90", justify="right", style="dim")
    for name in report["baselines"]:
        table.add_column(f"against {name}", justify="right")
    for label, name in lines(report):
        table.add_row(label, *cells(report, name), end_section=name in _SECTION_ENDS)
    gains = (
        f"{units.points(other['comparison']['accuracy_personal_over_shared_points'])} over the shared model of {name}"
        for name, other in report["baselines"].items()
        if other["comparison"]["accuracy_personal_over_shared_points"] is not None
    )
    notes = [f"accuracy of the personal models: {gain}" for gain in gains]
    promised = [report["privacy"]] if report["privacy"] else []
    table.caption = "; ".join([*notes, *_rejections(report), *_refusals(report), *promised]) or None
    return table


def comparison_table(report: Report) -> Table:
    """Lay out two runs beside each other, with the time that they took."""
    table = summary_table(report)
    (name, other), own = next(iter(report["baselines"].items())), report["summary"]["times"]
    table.title = f"{report['algorithm']} and {name}"
    table.rows[-1].end_section = True
    for label, key in (("training per round", "wall_s"), ("CPU per round", "cpu_s")):
        table.add_row(label, *_spans(own[key], other["summary"]["times"][key]))
    ours, theirs = report["times"]["wall_s"], other["times"]["wall_s"]
    table.add_row("the whole run", units.duration(ours), "", units.duration(theirs), "", _times_less(ours, theirs))
    return table


def _spans(ours: dict[str, float | None], theirs: dict[str, float | None]) -> Iterator[str]:
    for stats in (ours, theirs):
        yield units.duration(stats["mean"])
        known = stats["mean"] is not None
        yield f"{units.duration(stats['p10'])} – {units.duration(stats['p90'])}" if known else ""
    yield _times_less(ours["mean"], theirs["mean"])


def _times_less(ours: float | None, theirs: float | None) -> str:
    return units.times_less(ours / theirs if ours is not None and theirs else None)


def difference_table(differences: Sequence[tuple[str, Any, Any]], names: tuple[str, str]) -> Table:
    """List settings that differ between two runs."""
    table = Table("setting", *names, title="settings that differ")
    for key, ours, theirs in differences:
        table.add_row(key, *("–" if value is None else str(value) for value in (ours, theirs)))
    return table


def _rejections(report: Report) -> list[str]:
    """Say whose updates were thrown out, and why the first was."""
    if not report["rejected"]:
        return []
    first, devices = report["rejected"][0], {entry["device"] for entry in report["rejected"]}
    count = units.counted(len(report["rejected"]), "update")
    return [f"{count} of {units.counted(len(devices), 'device')} rejected ({first['device']}: {first['reason']})"]


def _refusals(report: Report) -> list[str]:
    """Say how many messages were refused, and of whom the most."""
    found = refused(report)
    if not found:
        return []
    device, reason, _ = found[0]
    return [f"{units.counted(sum(count for *_, count in found), 'message')} refused ({device}: {reason})"]


def lines(report: Report) -> list[tuple[str, str]]:
    """List what is shown of a run: all but the stored model, if it is just its values, and what no device says."""
    known = {name for name in _IF_KNOWN if report["summary"].get(name, {}).get("mean") is not None}
    return [(label, name) for label, name in LINES if name in known or name not in _IF_KNOWN]


def _title(report: Report) -> str:
    devices, rounds = units.counted(len(report["devices"]), "device"), units.counted(report["rounds"], "round")
    return f"{report['algorithm']}: {devices}, {rounds}"


def cells(report: Report, name: str) -> list[str]:
    """Write one figure: mean and spread of the run and of every baseline, then how it compares with each."""
    spoken = _SPOKEN.get(name, units.size)
    others = report["baselines"].values()
    written = []
    for summary in (report["summary"], *(other["summary"] for other in others)):
        stats = summary[name]
        spread = "" if stats["mean"] is None else f"{spoken(stats['p10'])} – {spoken(stats['p90'])}"
        written += [spoken(stats["mean"]), spread]
    for other in others:
        key, say = ("_points", units.points) if name in ACCURACIES else ("_ratio", units.times_less)
        written.append(say(other["comparison"].get(name + key)))
    return written
