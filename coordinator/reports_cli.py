"""What is done with the reports of finished runs: `edge-coordinator report`, `run compare` and `run log`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.command_line import add_command
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic

LATEST = Path("runs/latest")
_ADDED: dict[str, dict[str, Any]] = {
    "report": {"privacy": None, "dropped": {}, "rejected": []},
    "devices": {"choice": None, "rejected": 0},
}
"""Keys that reports of long ago do not have."""
_TO = ("mlflow", "tensorboard")
_REPORT_EXAMPLES = """examples:
  edge-coordinator report                              # of the newest run
  edge-coordinator report runs/first --picture first.png
  edge-coordinator report runs/first --csv tables/     # rounds.csv and devices.csv
  edge-coordinator report --json

docs/report.md has what the figures mean, and the columns of the tables.

"""
_COMPARE_EXAMPLES = """examples:
  edge-coordinator run compare runs/first runs/second
  edge-coordinator run compare runs/first runs/latest --html both.html
  edge-coordinator run compare runs/first runs/second --json

Differences are those of the first run from the second. Below them stand the settings that are not the same.

"""
_LOG_EXAMPLES = """examples:
  edge-coordinator run log --to tensorboard --folder boards
  edge-coordinator run log runs/first --to mlflow --folder mlruns

Settings, the figures of every round and the summary go into files in the folder, which more runs may share.

"""


def add_report(commands: Any) -> None:
    """Add `edge-coordinator report`."""
    report = add_command(commands, "report", "Show the summary of a finished run", _REPORT_EXAMPLES, _report)
    _add_run(report)
    report.add_argument("--json", action="store_true", help="print report.json")
    report.add_argument("--picture", type=Path, metavar="FILE", help="draw the report's plots as one PNG")
    report.add_argument("--csv", type=Path, metavar="DIR", help="write rounds.csv and devices.csv there")


def add_commands(kinds: Any) -> None:
    """Add the commands of `run`."""
    compare = add_command(kinds, "compare", "Show two finished runs beside each other", _COMPARE_EXAMPLES, _compare)
    compare.add_argument("one", type=Path, metavar="RUN", help="its folder")
    compare.add_argument("other", type=Path, metavar="OTHER", help="the folder of the other")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page with both, and their curves")
    compare.add_argument("--json", action="store_true", help="for scripts")
    log = add_command(kinds, "log", "Write a finished run for MLflow or TensorBoard", _LOG_EXAMPLES, _log)
    _add_run(log)
    log.add_argument("--to", required=True, choices=_TO, help="for which of them (extras of the same names)")
    log.add_argument("--folder", type=Path, required=True, metavar="DIR", help="where its files are")


def _add_run(parser: Any) -> None:
    parser.add_argument("run", type=Path, nargs="?", default=LATEST, help=f"its folder (default {LATEST})")


def read(folder: Path) -> dict[str, Any]:
    """Read the report of a finished run.

    Raises:
        ConfigError: there is none; with the nearest folder.
    """
    path = folder / "report.json"
    try:
        record: Any = json.loads(path.read_text())
    except OSError as error:
        near = config.nearest_path(folder) or "; run `edge-coordinator demo` first"
        raise ConfigError(f"{folder}: no finished run there{near}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no report ({error}); restore a backup") from error
    if not (isinstance(record, dict) and record.get("schema") == "edge-runtime/report/1"):
        raise ConfigError(f"{path}: no report of this program")
    record["devices"] = [{**_ADDED["devices"], **device} for device in record["devices"]]
    return {**_ADDED["report"], **record}


def _report(options: argparse.Namespace) -> None:
    record = read(options.run)
    if options.picture:
        from edge_runtime.coordinator import plots

        plots.picture(record, options.picture)
    if options.csv:
        from edge_runtime.coordinator import report_tables

        options.csv.mkdir(parents=True, exist_ok=True)
        write_atomic(options.csv / "rounds.csv", report_tables.rounds_csv(record).encode())
        write_atomic(options.csv / "devices.csv", report_tables.devices_csv(record).encode())
    finish((record, options.run), options.json)


def _compare(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import compare

    one, other = read(options.one), read(options.other)
    names = _names(options.one, options.other)
    if options.html:
        from edge_runtime.coordinator import report_html

        write_atomic(options.html, report_html.page(compare.beside(one, other, names)).encode())
    if options.json:
        sys.stdout.write(json.dumps(compare.record(one, other, names), indent=1) + "\n")
        return
    from rich.console import Console

    from edge_runtime.coordinator import summary

    console = Console()
    console.print(summary.comparison_table(compare.beside(one, other, names)))
    differ = compare.differences(one, other)
    console.print(summary.difference_table(differ, names) if differ else "all settings are the same")
    if options.html:
        console.print(f"page: {options.html}", highlight=False)


def _names(one: Path, other: Path) -> tuple[str, str]:
    """Name two folders as shortly as can be."""
    if one.resolve() == other.resolve():
        raise ConfigError(f"{one} and {other} are the same run")
    short = one.resolve().name, other.resolve().name
    return short if short[0] != short[1] else (str(one), str(other))


def _log(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import tracking

    how = tracking.WRITERS[options.to](read(options.run), options.folder)
    sys.stdout.write(f"written to {options.folder}; to look at it: {how}\n")


def finish(done: tuple[dict[str, Any], Path], as_json: bool) -> None:
    """Print a report's summary, or all of it as JSON."""
    record, folder = done
    if as_json:
        sys.stdout.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
        return
    from rich.console import Console

    from edge_runtime.coordinator import summary

    console = Console()
    console.print(summary.summary_table(record))
    console.print(f"report: {folder / 'report.html'}  (figures: {folder / 'report.json'})", highlight=False)
