"""The page of measured boards: `python -m edge_runtime.devices.boards docs/boards docs/boards.md`.

Each file in the folder is what `edge-agent measure --json` printed on a board, as it was printed; the page is made of
them and of nothing else.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_HEAD = """\
# Measured boards

What training takes on real boards. Made by `make boards` from the files in `docs/boards/`, each of them as `edge-agent
measure --json` printed it on the board; change those, not this page.

| board | cores | RAM | backend | model | batch | step, ms (p10 – p90) | CPU, ms | training, MB | agent, MB | step, mJ |
|---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|
"""
_FOOT = """
*Step* is the median of a step of training, dense unless a density is named, on one thread unless more are named; *CPU*
is what it takes of a processor: less, where the board has other work too. *Training* is the peak over the process with
everything imported, *agent* an agent that waits. *mJ* is the energy of the parts that the board's sensor sees
([energy](energy.md)); a dash: it tells none.

## Add yours

<!-- not run: it adds a board to the repository -->
```bash
edge-agent measure --model cnn --backend all --json > docs/boards/my-board.json
make boards
```

Let the board be idle, and name the file after it. What is in the file is what `edge-agent profile` shows and the
measurements: nothing that tells whose board it is.

## In a fleet

```bash
edge-agent measure --publish --id gateway-7
```

on a device (without `--id`, where one was enrolled) leaves the profile with its agent, which tells it to every run
once. `edge-coordinator device list` shows it, and [report.json](report.md) has it as `profile` of the device.
"""
_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "backend": str,
    "batch": int,
    "threads": int,
    "density": (int, float),
    "over_baseline_bytes": int,
    "step_ms_p10": (int, float),
    "step_ms_median": (int, float),
    "step_ms_p90": (int, float),
    "step_cpu_ms": (int, float),
}


def read(path: Path) -> dict[str, Any]:
    """Read what was measured on a board.

    Raises:
        ValueError: it is not what `edge-agent measure --json` prints.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        found = record["profile"]["cpu"], record["profile"]["cores"], record["agent_idle_rss_bytes"]
        wrong = [
            name for one in record["measurements"] for name, kind in _KINDS.items() if not isinstance(one[name], kind)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what `edge-agent measure --json` prints ({error!r})") from error
    if wrong or not record["measurements"] or not isinstance(found[1], int) or not isinstance(found[2], int):
        raise ValueError(f"{path}: not what `edge-agent measure --json` prints ({', '.join(wrong) or 'empty'})")
    return dict(record)


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """Write the page."""
    rows = [_row(record, one) for record in records for one in record["measurements"]]
    return _HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in sorted(rows)) + _FOOT


def _row(record: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    device = record["profile"]
    names = [name for name in (device.get("board"), device["cpu"]) if name]
    model = one["model"] + ("" if one["density"] == 1 else f", density {one['density']:g}")
    threads = "" if one["threads"] == 1 else f", {one['threads']} threads"
    energy_j, ram = one.get("step_energy_j"), device.get("ram_bytes")
    return [
        _plain(f"{', '.join(names) or 'unknown'} ({device.get('arch', '')})"),
        str(device["cores"]),
        f"{ram / 1e9:.1f} GB" if ram else "–",
        _plain(one["backend"] + threads),
        _plain(model),
        str(one["batch"]),
        f"{one['step_ms_median']:.1f} ({one['step_ms_p10']:.1f} – {one['step_ms_p90']:.1f})",
        f"{one['step_cpu_ms']:.1f}",
        f"{one['over_baseline_bytes'] / 1e6:.0f}",
        f"{record['agent_idle_rss_bytes'] / 1e6:.1f}",
        "–" if energy_j is None else f"{1000 * energy_j:.3g}",
    ]


def _plain(text: str) -> str:
    """Let a text stand in a table's cell."""
    return " ".join(text.replace("|", "/").split())


def main(arguments: list[str]) -> None:
    """Make the page anew."""
    folder, out = map(Path, arguments)
    out.write_text(page(map(read, sorted(folder.glob("*.json")))), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
