"""`edge-coordinator run`: what is done with the models that a run has left.

`runs_cli.py` has the commands for the run itself.
"""

import argparse
import difflib
import json
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.command_line import add_command, add_group, subcommands
from edge_runtime.coordinator import reports_cli, runs_cli
from edge_runtime.coordinator.exporting import start
from edge_runtime.errors import ConfigError
from edge_runtime.flags import add_data, data_table
from edge_runtime.places import personal_path

_RUN_EXAMPLES = """examples:
  edge-coordinator run list
  edge-coordinator run stop runs/first
  edge-coordinator run export --device gateway-7
"""
_EXPORT_EXAMPLES = """examples:
  edge-coordinator run export --device person-01-left
  edge-coordinator run export runs/first --device gateway-7 --format int8 --out gateway-7.onnx
  edge-coordinator run export --device person-01-left --data watch --part 0 --json
  edge-coordinator run export --personal gateway-7.bin --out gateway-7.onnx

A device's personal model is where the run collected it (run.collect), in the device's store if that is on this machine
(as in the demo), or in a file that you copied from there (STORE/personal/). docs/export.md has the formats.

"""
_VERIFY_EXAMPLES = """examples:
  edge-coordinator run verify gateway-7.onnx
  edge-coordinator run verify gateway-7.onnx --trust public.pem

"""
_FORMS = ("auto", "float32", "sparse", "codes", "int8")


def add_run_commands(commands: Any) -> None:
    """Add `run` and its commands."""
    summary = "Look at runs, stop them, go on with them, export what they have left"
    kinds = subcommands(add_group(commands, "run", summary, _RUN_EXAMPLES))
    runs_cli.add_commands(kinds)
    reports_cli.add_commands(kinds)
    summary = "Make a device's personal model a file for its inference engine"
    export = add_command(kinds, "export", summary, _EXPORT_EXAMPLES, _export)
    export.add_argument("run", type=Path, nargs="?", default=Path("runs/latest"), help="default runs/latest")
    export.add_argument("--device", metavar="ID", help="whose model")
    export.add_argument("--personal", type=Path, metavar="FILE", help="the model itself, instead of run and device")
    export.add_argument("--format", default="auto", choices=_FORMS, help="default: what the model's compression is")
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="default DEVICE.onnx; a signed DEVICE.json lies beside"
    )
    export.add_argument(
        "--calibrate", type=int, default=0, metavar="N", help="int8: of N training samples, activations too"
    )
    export.add_argument("--json", action="store_true", help="for scripts")
    add_data(export)
    export.set_defaults(data=None)
    verify = add_command(
        kinds, "verify", "Check an exported file against its signed manifest", _VERIFY_EXAMPLES, _verify
    )
    verify.add_argument("file", type=Path, help="the ONNX file")
    verify.add_argument(
        "--trust", type=Path, metavar="FILE", help="public key of who made it (default: this machine's)"
    )
    verify.add_argument("--json", action="store_true", help="for scripts")


def _export(options: argparse.Namespace) -> None:
    path = options.personal or find(options.run, options.device)
    out = options.out or Path(f"{options.device or path.stem}.onnx")
    command = [str(path), "--format", options.format, "--out", str(out), "--calibrate", str(options.calibrate)]
    start("compressed", [*command, *data_flags(options), *(["--json"] if options.json else [])])


def data_flags(options: argparse.Namespace) -> list[str]:
    """Give the flags of data that were given, for a program of ours; none without `--data`."""
    table = data_table(options) if options.data is not None else {}
    flags = {key: {"name": "data", "seed": "data-seed"}.get(key, key) for key in table}
    return [part for key, value in table.items() for part in (f"--{flags[key]}", str(value))]


def _verify(options: argparse.Namespace) -> None:
    if not options.file.exists():
        raise ConfigError(f"{options.file}: is not there{config.nearest_path(options.file)}")
    trust = ["--trust", str(options.trust)] if options.trust else []
    start("manifest", [str(options.file), *trust, *(["--json"] if options.json else [])])


def find(folder: Path, device: str | None) -> Path:
    """Find the personal model of a device in a run's folder.

    Raises:
        ConfigError: no run there, or nothing of that device.
    """
    try:
        report = json.loads((folder / "report.json").read_text())
        run, algorithm, devices = report["run"], report["algorithm"], [row["id"] for row in report["devices"]]
    except OSError as error:
        near = config.nearest_path(folder) or "; run `edge-coordinator demo` first"
        raise ConfigError(f"{folder}: no finished run there{near}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: no finished run there ({error}); run `edge-coordinator demo` first") from error
    if device not in devices:
        some = ", ".join(devices[:5]) + (", ..." if len(devices) > 5 else "")
        close = difflib.get_close_matches(device or "", devices, 1)
        offer = f"did you mean {close[0]!r}?" if close else f"it has {some}"
        raise ConfigError(f"--device {device!r} is not in this run; {offer}" if device else f"--device: one of {some}")
    places = folder / algorithm / "personal" / f"{device}.bin", personal_path(folder / "devices" / str(device), run)
    for path in places:
        if path.exists():
            return path
    raise ConfigError(
        f"{folder}: holds no personal model of {device}: let a run collect them (--set run.collect=true), or copy "
        f"personal/{personal_path(Path(), run).name} from the device's store, and name it with --personal"
    )
