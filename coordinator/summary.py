"""The end of a run in the terminal: what `report.json` says, as one table."""

from rich.table import Table

from edge_runtime.coordinator import units
from edge_runtime.coordinator.report import ACCURACIES, Report
from edge_runtime.seal import ORDINARY

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
)
"""What is shown, in order: words and key of `summary`."""
_SECTION_ENDS = {"accuracy_personal", "socket_bytes_down"}


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


def _rejections(report: Report) -> list[str]:
    """Say whose updates were thrown out, and why the first was."""
    if not report["rejected"]:
        return []
    first, devices = report["rejected"][0], {entry["device"] for entry in report["rejected"]}
    count = units.counted(len(report["rejected"]), "update")
    return [f"{count} of {units.counted(len(devices), 'device')} rejected ({first['device']}: {first['reason']})"]


def _refusals(report: Report) -> list[str]:
    """Say how many messages were refused, and of whom the most."""
    counts = {
        (device, reason): count
        for device, reasons in report["dropped"].items()
        for reason, count in reasons.items()
        if reason not in ORDINARY
    }
    if not counts:
        return []
    most = max(counts, key=lambda one: counts[one])
    return [f"{units.counted(sum(counts.values()), 'message')} refused ({most[0]}: {most[1]})"]


def lines(report: Report) -> list[tuple[str, str]]:
    """List what is shown of a run: all but the stored model, if it is just its values."""
    stored = report["summary"]["deployed_bytes"]["mean"] is not None
    return [(label, name) for label, name in LINES if stored or name != "deployed_bytes"]


def _title(report: Report) -> str:
    devices, rounds = units.counted(len(report["devices"]), "device"), units.counted(report["rounds"], "round")
    return f"{report['algorithm']}: {devices}, {rounds}"


def cells(report: Report, name: str) -> list[str]:
    """Write one figure: mean and spread of the run and of every baseline, then how it compares with each."""
    is_accuracy = name in ACCURACIES
    spoken = units.percent if is_accuracy else units.size
    others = report["baselines"].values()
    written = []
    for summary in (report["summary"], *(other["summary"] for other in others)):
        stats = summary[name]
        spread = "" if stats["mean"] is None else f"{spoken(stats['p10'])} – {spoken(stats['p90'])}"
        written += [spoken(stats["mean"]), spread]
    for other in others:
        key, say = ("_points", units.points) if is_accuracy else ("_ratio", units.times_less)
        written.append(say(other["comparison"][name + key]))
    return written
