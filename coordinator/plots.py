"""The four plots of a report: inline SVG for the page, one PNG for a README.

A plot is drawn once, in the colours of a light page. In an SVG these stand for CSS variables, so that the page can
repaint it for a dark one. matplotlib is loaded when the first plot is drawn, without pyplot: nothing global is left.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import config
from edge_runtime.coordinator import units
from edge_runtime.coordinator.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2a37", "#64707d", "#dde2e8"
OWN, BEFORE, OTHER = "#0f766e", "#c2640c", "#6455c9"
IDLE, AGENT, TRAINER = "#94a3b8", "#3d8bc4", "#0e7a70"
COLOURS = {
    "ink": INK, "muted": MUTED, "grid": GRID, "own": OWN, "before": BEFORE, "other": OTHER,
    "idle": IDLE, "agent": AGENT, "trainer": TRAINER,
}  # fmt: skip
"""Name of the CSS variable -> its colour on a light page."""

_STYLE = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same metrics everywhere
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "edge-runtime",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}
_MAX_NAMED = 24
"""Devices up to which every bar carries a device's name."""


def svgs(report: Report) -> dict[str, str]:
    """Draw every plot as an `<svg>` element, by its title; the same report gives the same text."""
    drawn = {}
    for title, draw in _PLOTS.items():
        with style():
            from matplotlib.figure import Figure

            figure = Figure(figsize=(5.4, 3.6), layout="constrained")
            draw(figure.add_subplot(), report)
            drawn[title] = _svg(figure)
    return drawn


def picture(report: Report, path: Path) -> None:
    """Draw all four plots as one PNG."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # type: ignore[union-attr, call-arg]
        for axes, (title, draw) in zip(figure.subplots(2, 2).flat, _PLOTS.items(), strict=True):
            draw(axes, report)
            axes.set_title(title, pad=10)
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of our reports, and leave matplotlib as it was."""
    config.place_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def _svg(figure: "Figure") -> str:
    """Cut the figure's file down to the element: no declaration, no metadata, colours as variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("'DejaVu Sans'", "var(--font)").strip()


def _accuracy_per_round(axes: "Axes", report: Report) -> None:
    """Draw the middle device's accuracy with the band that holds eight of ten, and the baselines' shared models."""
    series = report["rounds_detail"]
    rounds = [entry["round"] + 1 for entry in series]
    _fan(axes, rounds, series, "accuracy_personal", OWN)
    _line(axes, rounds, _quantile(series, "accuracy_personal"), OWN, f"{report['algorithm']}, after training")
    _line(axes, rounds, _quantile(series, "accuracy_personal_before"), BEFORE, "before training", "--")
    for name, other in report["baselines"].items():
        theirs = [entry["round"] + 1 for entry in other["rounds_detail"]]
        metric, model = _theirs(report)
        _line(axes, theirs, _quantile(other["rounds_detail"], metric), OTHER, f"{name}, {model} model")
    axes.set_xlabel("round")
    _whole_numbers(axes)
    _finish_accuracy(axes)


def _accuracy_against_bytes(axes: "Axes", report: Report) -> None:
    """Draw mean accuracies against what the average device has sent and received by then."""
    runs = [(report["algorithm"], report, "accuracy_personal", OWN, "personal")]
    metric, model = _theirs(report)
    runs += [(name, other, metric, OTHER, model) for name, other in report["baselines"].items()]
    _, kind = _traffic(report)
    for name, run, metric, colour, model in runs:
        series = run["rounds_detail"]
        spent = [_scaled(entry[f"cumulative_{kind}_bytes"], 1e6) for entry in series]
        _line(axes, spent, [_scaled(entry[metric]["mean"], 0.01) for entry in series], colour, f"{name}, {model} model")
    axes.set_xlabel(f"{'payload' if kind == 'payload' else 'bytes on the socket'} per device so far, up + down (MB)")
    axes.set_xlim(left=0)
    _finish_accuracy(axes)


def _theirs(report: Report) -> tuple[str, str]:
    """Say which accuracy of the others is drawn: of a baseline the shared model's, of a run beside it the same."""
    return ("accuracy_personal", "personal") if "compared" in report else ("accuracy_shared", "shared")


def _bytes_per_device(axes: "Axes", report: Report) -> None:
    """Draw what a device sends and receives per round, beside the baselines; the line at each bar spans p10 to p90."""
    names, kind = _traffic(report)
    runs = [(report["algorithm"], report["summary"], OWN)]
    runs += [(name, other["summary"], OTHER) for name, other in report["baselines"].items()]
    bars = [(name, summary[metric], colour) for metric in names for name, summary, colour in runs]
    if all(stats["mean"] is None for _, stats, _ in bars):
        _nothing(axes, "no bytes were counted")
        return
    places = [index + 0.7 * (index // len(runs)) for index in range(len(bars))]
    for place, (_, stats, colour) in zip(places, bars, strict=True):
        if stats["mean"] is not None:
            _bar_with_spread(axes, place, stats, colour)
    axes.set_yticks(places, [name for name, _, _ in bars])
    for direction, place in zip(("up", "down"), (places[0], places[len(runs)]), strict=True):
        axes.text(0, place - 0.55, direction, color=MUTED, fontsize=8.5, va="bottom")
    axes.invert_yaxis()
    axes.set_ylim(places[-1] + 0.6, -0.95)
    axes.set_xlim(0, 1.28 * max(stats["p90"] or 0 for _, stats, _ in bars) / 1000 or 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{'payload' if kind == 'payload' else 'on the socket'} per device and round (kB)")


def _bar_with_spread(axes: "Axes", place: float, stats: dict[str, float], colour: str) -> None:
    axes.barh(place, stats["mean"] / 1000, 0.72, color=colour)
    axes.plot([stats["p10"] / 1000, stats["p90"] / 1000], [place, place], color=INK, linewidth=1.1)
    end = max(stats["mean"], stats["p90"]) / 1000
    axes.annotate(
        units.size(stats["mean"]), (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5
    )


def _memory_per_device(axes: "Axes", report: Report) -> None:
    """Stack what every device's agent and trainer took at their peaks; the agent's idle part stands at the bottom."""
    layers = (("idle_rss_bytes", IDLE, "agent, idle"), ("agent_peak_rss_bytes", AGENT, "agent, peak"))
    layers += (("trainer_peak_rss_bytes", TRAINER, "trainer, peak"),)  # type: ignore[assignment]
    known = [device for device in report["devices"] if any(device[name] is not None for name, _, _ in layers)]
    if not known:
        _nothing(axes, "memory was not metered")
        return
    floors = [0.0] * len(known)
    width = 0.8 if len(known) <= _MAX_NAMED else 1.0
    for name, colour, label in layers:
        inside = floors if name == "agent_peak_rss_bytes" else [0.0] * len(known)  # the peak holds what was idle
        heights = [max(0.0, (device[name] or 0) / 1e6 - idle) for device, idle in zip(known, inside, strict=True)]
        axes.bar(range(len(known)), heights, width, bottom=floors, color=colour, label=label)
        floors = [floor + height for floor, height in zip(floors, heights, strict=True)]
    _name_devices(axes, [device["id"] for device in known])
    axes.set_ylim(0, 1.22 * max(floors))
    axes.set_ylabel("resident memory (MB)")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper center", ncols=3, handlelength=1, columnspacing=1.2, borderaxespad=0.1)


def _name_devices(axes: "Axes", ids: list[str]) -> None:
    if len(ids) > _MAX_NAMED:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(ids)} devices")
        return
    axes.set_xticks(range(len(ids)), ids, rotation=90, fontsize=7)


def _traffic(report: Report) -> tuple[tuple[str, str], str]:
    """Choose the bytes to draw: those on the socket where there was one."""
    kind = "payload" if report["summary"]["socket_bytes_up"]["mean"] is None else "socket"
    return (f"{kind}_bytes_up", f"{kind}_bytes_down"), kind


def _fan(axes: "Axes", rounds: list[int], series: list[dict[str, Any]], name: str, colour: str) -> None:
    bounds = zip(rounds, _quantile(series, name, "p10"), _quantile(series, name, "p90"), strict=True)
    known = [(at, low, high) for at, low, high in bounds if low is not None and high is not None]
    if known:
        at, low, high = zip(*known, strict=True)
        axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0, label="p10 to p90")


def _line(
    axes: "Axes",
    xs: Sequence[float | None],
    ys: Sequence[float | None],
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Draw what is known of a series; a lone point is shown as a dot."""
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    if known:
        marker = "o" if len(known) <= 30 else ""
        axes.plot(*zip(*known, strict=True), color=colour, label=label, linestyle=style, marker=marker, markersize=3.2)


def _quantile(series: list[dict[str, Any]], name: str, which: str = "p50") -> list[float | None]:
    return [_scaled(entry[name][which], 0.01) for entry in series]


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _finish_accuracy(axes: "Axes") -> None:
    axes.set_ylabel("accuracy (%)")
    if axes.lines:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # below, where it covers no curve
        axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))
    else:
        _nothing(axes, "no accuracies were reported")


def _nothing(axes: "Axes", why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.set_axis_off()


_PLOTS: dict[str, Callable[["Axes", Report], None]] = {
    "Accuracy per round": _accuracy_per_round,
    "Accuracy against bytes": _accuracy_against_bytes,
    "Bytes per device": _bytes_per_device,
    "Memory per device": _memory_per_device,
}
