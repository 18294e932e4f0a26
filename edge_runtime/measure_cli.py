"""`edge-agent measure` and `profile`: what this device is, and what training takes on it."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_runtime import __version__, config, published
from edge_runtime.command_line import add_command
from edge_runtime.compute import DEVICES, Compute
from edge_runtime.errors import ConfigError
from edge_runtime.link_cli import add_identity, identity_of
from edge_runtime.message import check_name

_PROFILE_EXAMPLES = """examples:
  edge-agent profile
  edge-agent profile --json
"""
_MEASURE_EXAMPLES = """examples:
  edge-agent measure
  edge-agent measure --model cnn --backend all --batch 16
  edge-agent measure --model bundles/net --threads 4 --json
  edge-agent measure --publish     # after `edge-agent enroll`: the fleet's owner sees it

baseline: memory with the backend imported; peak: the most that the process ever had; over: the peak of training over
the baseline; floor: parameters, gradients and momentum, which training cannot do without.

"""


def add_measuring(commands: Any) -> None:
    """Add both commands."""
    show = add_command(commands, "profile", "Say what this device is", _PROFILE_EXAMPLES, _profile)
    show.add_argument("--json", action="store_true", help="for scripts")
    _add_measure(commands)


def _profile(options: argparse.Namespace) -> None:
    from edge_runtime.devices.profile import profile

    figures = asdict(profile())
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name.replace('_', ' '):<16} {'unknown' if value is None else value}\n")


def _add_measure(commands: Any) -> None:
    summary = "Train a model on random data, and say what that takes on this device"
    show = add_command(commands, "measure", summary, _MEASURE_EXAMPLES, _measure)
    show.add_argument("--model", default="watch-cnn", metavar="NAME|DIR", help="built-in name or folder of a bundle")
    show.add_argument(
        "--backend", action="append", metavar="NAME", help="auto, onnx, torch, numpy or all (default auto); repeatable"
    )
    show.add_argument("--accelerator", default="cpu", choices=DEVICES, help="cuda: for onnx and torch (default cpu)")
    show.add_argument("--no-arena", action="store_true", help="let onnx give memory back after every operator: slower")
    show.add_argument("--batch", type=int, default=32, metavar="N", help="samples in a step (default 32)")
    show.add_argument(
        "--steps", type=int, default=0, metavar="N", help="steps that are timed (default 20, and more for a second)"
    )
    show.add_argument(
        "--density", type=float, default=1.0, metavar="D", help="part of the parameters that is trained (default 1)"
    )
    show.add_argument("--json", action="store_true", help="for scripts")
    publish = show.add_argument_group("publishing")
    publish.add_argument(
        "--publish", action="store_true", help="let this device's agent tell every run what was measured"
    )
    publish.add_argument("--id", metavar="ID", help="name of this device (not needed where one was enrolled)")
    publish.add_argument("--store", type=Path, metavar="DIR", help="where its agent keeps its state")
    add_identity(publish)


def _store_of(options: argparse.Namespace) -> Path:
    """Say where the agent of this device keeps its state."""
    who = None if options.store else identity_of(options, options.id)
    if options.store is None and who is None and options.id is None:
        raise ConfigError("--publish: --id is missing: name this device, or enrol it with `edge-agent enroll FILE`")
    name = who.name if who else options.id
    return Path(options.store or config.state_folder() / "devices" / check_name(name, "--id"))


def _measure(options: argparse.Namespace) -> None:
    from edge_runtime import measure_process
    from edge_runtime.devices.profile import profile

    store = _store_of(options) if options.publish else None
    names = measure_process.backends_for(options.backend or ["auto"], options.model)
    computes = [Compute(name, options.accelerator, options.threads, not options.no_arena) for name in names]
    plans = [
        measure_process.Plan(options.model, compute, options.batch, options.steps, options.density)
        for compute in computes
    ]
    environment = config.environment(options.threads)
    idle_bytes = measure_process.idle_rss_bytes(environment)
    found = [measure_process.measure(plan, environment) for plan in plans]
    device = profile()
    if store is not None:
        published.write(store, published.made_of(device, found, idle_bytes, __version__))
        sys.stderr.write(f"{store}: the agent of this device tells it to every run, within a minute\n")
    if options.json:
        record = {"version": __version__, "profile": asdict(device), "agent_idle_rss_bytes": idle_bytes}
        sys.stdout.write(json.dumps({**record, "measurements": [asdict(one) for one in found]}) + "\n")
        return
    where = ", ".join(filter(None, (device.board, device.cpu, f"{device.cores} cores", device.arch)))
    threads = f"{options.threads} thread{'' if options.threads == 1 else 's'}"
    sys.stdout.write(f"{where}\n{options.model}, {found[0].parameters:,} parameters, {threads}\n\n")
    sys.stdout.write(measure_process.table(found))
    sys.stdout.write(f"\nan agent that waits has {idle_bytes / 1e6:.1f} MB\n")
    if not all(one.peak_was_reset for one in found):
        sys.stdout.write("this system cannot start a peak anew: it may be that of importing the backend\n")
