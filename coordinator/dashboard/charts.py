"""Curves as inline SVG, drawn on the server: no library in the browser, the page's own colours, light or dark.

A chart is decoration to who cannot see it: its figures stand in a table beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 14, 12, 44
_MOST_POINTS = 240
_DOTS = 24
"""Up to so many points each is a dot too: a lone one would not be seen."""

Series = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """A curve: `kind` is its colour's name in the style sheet; a dashed one has `dashed`."""

    label: str
    points: Series
    kind: str = "own"
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two curves over the same places."""

    label: str
    low: Series
    high: Series
    kind: str = "own"


@dataclass(frozen=True)
class Chart:
    """What is drawn over what."""

    title: str
    across: str
    """What the horizontal axis is."""
    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    written: Callable[[float], str] = str
    """Writes a value of the vertical axis."""
    most: float = math.inf
    """The axis ends here at the latest."""
    from_zero: bool = False
    note: str = ""
    whole: bool = True
    """Whether the horizontal axis counts."""


@dataclass(frozen=True)
class Drawn:
    """A chart ready for the page."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]]
    """Class and words of every curve."""
    note: str = ""


def draw(chart: Chart) -> Drawn:
    """Draw a chart; one without a known value says so."""
    lines = [(line, _known(line.points)) for line in chart.lines]
    bands = [(band, _known(band.low), _known(band.high)) for band in chart.bands]
    shown = [points for _, points in lines] + [points for _, *both in bands for points in both]
    places = [point for points in shown for point in points]
    if not places:
        text = f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT / 2:g}" text-anchor="middle">nothing yet</text>'
        return Drawn(chart.title, _svg(chart.title, text), (), chart.note)
    axes = _axes(chart, places)
    body = [axes.grid(chart)]
    body += [f'<path class="band {band.kind}" d="{axes.area(low, high)}"/>' for band, low, high in bands if low]
    for line, points in lines:
        body += [_curve(axes, line, points)] if points else []
    legend = [(f"band {band.kind}", band.label) for band, low, _ in bands if low]
    legend += [(f"{line.kind}{' dashed' if line.dashed else ''}", line.label) for line, points in lines if points]
    return Drawn(chart.title, _svg(chart.title, "".join(body)), legend, chart.note)


def _svg(title: str, body: str) -> str:
    name = escape(f"{title}: the figures are in the table below")
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{body}</svg>'


def _known(points: Series) -> list[tuple[float, float]]:
    """Leave out what is not known, and of very many points all but some, the last one among these."""
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    step = -(-len(known) // _MOST_POINTS)
    return known if step <= 1 else [*known[:-1:step], known[-1]]


def _curve(axes: "_Axes", line: Line, points: list[tuple[float, float]]) -> str:
    style = f"curve {line.kind}{' dashed' if line.dashed else ''}"
    path = f'<path class="{style}" d="{axes.path(points)}"/>'
    if len(points) > _DOTS:
        return path
    return path + "".join(f'<circle class="{line.kind}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in map(axes.at, points))


@dataclass(frozen=True)
class _Axes:
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def at(self, point: tuple[float, float]) -> tuple[str, str]:
        """Say where a point lies in the picture."""
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return f"{_LEFT + wide * across:.1f}", f"{_TOP + high * (1 - min(1.0, max(0.0, up))):.1f}"

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Write a curve through points."""
        return "M" + "L".join(" ".join(self.at(point)) for point in points)

    def area(self, low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]]) -> str:
        """Write the area between two curves."""
        return self.path([*low, *reversed(high)]) + "Z"

    def grid(self, chart: Chart) -> str:
        """Draw lines and numbers of both axes."""
        parts = []
        for value in self.y_ticks:
            _, y = self.at((self.x[0], value))
            parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
            parts.append(
                f'<text x="{_LEFT - 8}" y="{y}" dy=".35em" text-anchor="end">{escape(chart.written(value))}</text>'
            )
        for value in self.x_ticks:
            x, _ = self.at((value, self.y[0]))
            parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(chart.across)}</text>')
        return "".join(parts)


def _axes(chart: Chart, places: Sequence[tuple[float, float]]) -> _Axes:
    xs, ys = [x for x, _ in places], [y for _, y in places]
    low, high = (0.0 if chart.from_zero else min(ys)), min(chart.most, max(ys))
    if high <= low:
        low, high = (low, low + 1) if chart.from_zero else (low - 0.05 * (abs(low) or 1), low + 0.05 * (abs(low) or 1))
    step = nice(high - low, 4)
    bottom = math.floor(low / step + 1e-9) * step
    top = min(chart.most, math.ceil(high / step - 1e-9) * step)
    first, last = min(xs), max(xs)
    across = (first, last) if last > first else (first - 0.5, first + 0.5)
    across_step = max(1.0, nice(last - first, 6, (1, 2, 5, 10))) if chart.whole else nice(last - first, 6)
    count = int((top - bottom) / step + 1e-9)
    return _Axes(
        across, (bottom, top), _steps(first, last, across_step), [bottom + step * place for place in range(count + 1)]
    )


def _steps(first: float, last: float, step: float) -> list[float]:
    start = math.ceil(first / step - 1e-9) * step
    ticks = [start + step * place for place in range(int((last - start) / step + 1e-9) + 1)]
    return ticks if len(ticks) > 1 or first == last else [first, last]


def nice(span: float, count: int, leads: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """Give a step of one of `leads` times a power of ten of which about `count` make up the span."""
    if span <= 0:
        return 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return float(next(power * lead for lead in leads if power * lead >= raw * 0.999))
