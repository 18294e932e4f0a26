"""The report as one page: no script, no font, nothing fetched from anywhere; light or dark as the reader likes it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from edge_runtime.coordinator import plots, profiles, summary, units
from edge_runtime.coordinator.report import Report, refused

_MOST_ROWS = 100
"""Of a table of what went wrong; report.json has all."""


def page(report: Report) -> str:
    """Write the whole page."""
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    title = _title(report)
    figures = "".join(_figure(name, svg) for name, svg in plots.svgs(report).items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(_lead(report))}</p>\n'
        f'<div class="tiles">\n{"".join(_tiles(report))}</div>\n<div class="plots">\n{figures}</div>\n'
        f"{_section('Summary', _summary(report))}{_differences(report)}{_trouble(report)}"
        f"{_section('Devices', _devices(report))}"
        f"{_folded('Configuration', _settings(report))}"
        f"<footer>{escape(_footer(report))}</footer>\n</main>\n</body>\n</html>\n"
    )


def _title(report: Report) -> str:
    if "compared" in report:
        return " and ".join([report["algorithm"], *report["baselines"]])
    return f"{report['algorithm']} on {units.counted(len(report['devices']), 'device')}"


def _lead(report: Report) -> str:
    model, times = report["model"], report["times"]
    parts = [units.counted(report["rounds"], "round"), f"{model['name']}, {model['parameters']:,} parameters"]
    parts += [f"broker: {report['broker']}"] if report["broker"] else []
    parts += [f"took {units.duration(times['wall_s'])}"] if times["wall_s"] else []
    return " · ".join(parts)


def _tiles(report: Report) -> Iterator[str]:
    """Write the headline figures, each with what it gains over the first baseline."""
    figures = report["summary"]
    name, other = next(iter(report["baselines"].items()), ("", None))
    compared: dict[str, Any] = other["comparison"] if other else {}
    points = compared.get("accuracy_personal_over_shared_points")
    gain = f"{units.points(points)} over {name}'s shared model" if points is not None else ""
    accuracy = figures["accuracy_personal"]
    spread = f"{units.percent(accuracy['p10'])} – {units.percent(accuracy['p90'])} (p10 – p90)"
    yield _tile("Accuracy of the personal models", units.percent(accuracy["mean"]), spread, gain)
    kind = "payload" if figures["socket_bytes_up"]["mean"] is None else "socket"
    for direction in ("up", "down"):
        key = f"{kind}_bytes_{direction}"
        ratio = compared.get(f"{key}_ratio")
        gain = f"{units.times_less(ratio)} than {name}" if ratio is not None else ""
        note = "on the socket" if kind == "socket" else "payload"
        yield _tile(f"Bytes {direction} per device and round", units.size(figures[key]["mean"]), note, gain)
    peak, idle = figures["peak_rss_bytes"]["mean"], figures["idle_rss_bytes"]["mean"]
    if peak is None:
        yield _tile("Memory of a device", "–", "not metered")
    else:
        yield _tile("Memory of a device at its peak", units.size(peak), f"{units.size(idle)} when idle")


def _tile(name: str, value: str, note: str, gain: str = "") -> str:
    lines = f'<div class="note">{escape(note)}</div>'
    better = "gain" if " less " in gain or gain.startswith("+") else ""
    lines += f'<div class="note {better}">{escape(gain)}</div>' if gain else ""
    return (
        f'<div class="card tile"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div>{lines}</div>\n'
    )


def _figure(name: str, svg: str) -> str:
    label = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    return f'<figure class="card"><h2>{escape(name)}</h2>\n{label}\n</figure>\n'


def _section(name: str, body: str) -> str:
    return f'<section class="card"><h2>{escape(name)}</h2>\n<div class="scroll">{body}</div></section>\n'


def _differences(report: Report) -> str:
    """Write the settings that differ from those of the run beside it, if there is one."""
    if not report.get("compared"):
        return ""
    rows = ([key, *("–" if value is None else str(value) for value in both)] for key, *both in report["compared"])
    return _section("Settings that differ", _table(("setting", report["algorithm"], *report["baselines"]), rows))


def _folded(name: str, body: str) -> str:
    return (
        f'<details class="card"><summary><h2>{escape(name)}</h2></summary>\n'
        f'<div class="scroll">{body}</div></details>\n'
    )


def _trouble(report: Report) -> str:
    """Write what was thrown out or refused, and what was promised to devices, where there is any of it."""
    made = ""
    if report["rejected"]:
        rows = [[str(one["round"] + 1), one["device"], one["reason"]] for one in report["rejected"][:_MOST_ROWS]]
        made += _section(
            f"Updates thrown out: {len(report['rejected']):,}", _table(("round", "device", "reason"), rows, "words")
        )
    found = refused(report)
    if found:
        rows = [[device, why, f"{count:,}"] for device, why, count in found[:_MOST_ROWS]]
        table = _table(("device", "reason", "messages"), rows)
        made += _section(f"Messages refused: {sum(count for *_, count in found):,}", table)
    return made + (_section("Privacy", f"<p>{escape(report['privacy'])}</p>") if report["privacy"] else "")


def _summary(report: Report) -> str:
    head = ["mean over devices"]
    for name in (report["algorithm"], *report["baselines"]):
        head += [name, "p10 – p90"]
    head += [f"against {name}" for name in report["baselines"]]
    return _table(head, ([label, *summary.cells(report, key)] for label, key in summary.lines(report)))


def _devices(report: Report) -> str:
    kind = "payload" if report["summary"]["socket_bytes_up"]["mean"] is None else "socket"
    columns: list[tuple[str, str, Callable[[Any], str]]] = [
        ("rounds", "training_rounds", str),
        ("shared", "accuracy_shared", units.percent),
        ("personal, before", "accuracy_personal_before", units.percent),
        ("personal", "accuracy_personal", units.percent),
        (f"{kind} up per round", f"{kind}_bytes_up", units.size),
        (f"{kind} down per round", f"{kind}_bytes_down", units.size),
        ("idle memory", "idle_rss_bytes", units.size),
        ("peak memory", "peak_rss_bytes", units.size),
        ("samples", "train_samples", lambda value: "–" if value is None else f"{value:,}"),
        *(
            (name, key, say)
            for name, key, say in units.HARDWARE
            if any(one.get(key) is not None for one in report["devices"])
        ),
    ]
    chosen = any(device["choice"] for device in report["devices"])
    known = any(device.get("profile") for device in report["devices"])
    head = ["device", *(name for name, _, _ in columns), "CPU per round"]
    head += [*(["given"] if chosen else []), *(["what it is"] if known else [])]
    rows = (
        [
            device["id"],
            *(say(device[key]) for _, key, say in columns),
            units.duration(device["times"]["cpu_s"]),
            *([device["choice"] or "–"] if chosen else []),
            *([profiles.line(device.get("profile") or {})] if known else []),
        ]
        for device in report["devices"]
    )
    return _table(head, rows)


def _settings(report: Report) -> str:
    settings = {"seed": report["seed"], **report["configuration"], "versions": report["versions"]}
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _flat(settings))
    return f'<table class="settings">{rows}</table>'


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Give nested settings as dotted names and texts."""
    for key, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)


def _table(head: Iterable[str], rows: Iterable[list[str]], kind: str = "") -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    start = f'<table class="{kind}">' if kind else "<table>"
    return f"{start}<thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table>"


def _footer(report: Report) -> str:
    started = f", started {report['times']['started']}" if report["times"]["started"] else ""
    return f"Run {report['run']}{started}. All figures: report.json ({report['schema']})."
