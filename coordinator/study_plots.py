"""Plots of a study: for every scenario accuracy against bytes and against virtual time, a curve for each line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.coordinator import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
_SMOOTHED = 10
"""A curve is drawn as the mean over a tenth of its points: each round asks a few devices only, others every time."""
_STYLES = ("-", "--", ":", "-.")
_COLOURS = ("#0f766e", "#c2640c", "#6455c9", "#3d8bc4", "#b3365b", "#5f7d1c", "#8a5a2b", "#64707d")
"""Distinct for most kinds of colour blindness at eight; further lines repeat them with another stroke."""


def write(study: Record, folder: Path) -> list[Path]:
    """Draw one PNG for every scenario, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with plots.style():
        from matplotlib.figure import Figure

        for scenario in study["scenarios"]:
            figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
            left, right = figure.subplots(1, 2, sharey=True)
            _draw(left, scenario, lambda point: (point["bytes_up"] + point["bytes_down"]) / 1e6)
            _draw(right, scenario, lambda point: point["virtual_s"])
            left.set(xlabel="payload per device so far, up + down (MB)", ylabel="accuracy (%)")
            right.set(xlabel="virtual time (s)")
            right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            figure.suptitle(scenario["about"], fontsize=11)
            made.append(folder / f"{scenario['name']}.png")
            figure.savefig(made[-1], format="png", dpi=120, metadata={"Software": None})
    return made


def _draw(axes: "Axes", scenario: Record, place: Any) -> None:
    for index, row in enumerate(scenario["rows"]):
        known = [point for point in row["curve"] if point["accuracy"] is not None]
        if known:
            width = max(1, len(known) // _SMOOTHED)
            xs = smooth([place(point) for point in known], width)
            ys = smooth([100 * point["accuracy"] for point in known], width)
            style = _STYLES[index // len(_COLOURS) % len(_STYLES)]
            axes.plot(xs, ys, style, color=_COLOURS[index % len(_COLOURS)], label=row["name"])


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Give the mean of every `width` values that follow each other."""
    return [float(value) for value in np.convolve(values, np.full(width, 1 / width), "valid")]
