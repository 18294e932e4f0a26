"""`edge-coordinator run list`, `show`, `stop`, `resume` and `replay`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import config, identity
from edge_runtime.command_line import add_command
from edge_runtime.coordinator.device_cli import add_fleet_folder, fleet_of
from edge_runtime.coordinator.watch_cli import add_watching, watching
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.link_cli import add_link, link
from edge_runtime.notify import Notifier

if TYPE_CHECKING:
    from edge_runtime.coordinator.runs import Standing

_RUNS, _LATEST = Path("runs"), Path("runs/latest")
_LIST_EXAMPLES = """examples:
  edge-coordinator run list
  edge-coordinator run list /var/lib/edge-coordinator --json
"""
_SHOW_EXAMPLES = """examples:
  edge-coordinator run show                            # the newest
  edge-coordinator run show runs/first --json
"""
_STOP_EXAMPLES = """examples:
  edge-coordinator run stop runs/first
  edge-coordinator run stop runs/first && edge-coordinator run resume runs/first

The coordinator ends at once and loses nothing: devices keep what is not acknowledged.

"""
_RESUME_EXAMPLES = """examples:
  edge-coordinator run resume runs/first
  edge-coordinator run resume runs/first -h other-broker.lan --password-file secret

All settings are in the run's folder, the broker's address among them; a password is not.

"""
_REPLAY_EXAMPLES = """examples:
  edge-coordinator start --folder runs/first --set run.keep-updates=true
  edge-coordinator run replay runs/first

Exit code 5 if a checkpoint or the model comes out otherwise.

"""


def add_commands(kinds: Any) -> None:
    """Add the commands."""
    listing = add_command(kinds, "list", "List the runs that are there", _LIST_EXAMPLES, _list)
    listing.add_argument("folder", type=Path, nargs="?", default=_RUNS, help="where runs are (default runs)")
    show = add_command(kinds, "show", "Say where a run stands", _SHOW_EXAMPLES, _show)
    stop = add_command(kinds, "stop", "End a run's coordinator; the run can go on", _STOP_EXAMPLES, _stop)
    stop.add_argument("--patience-s", type=float, default=10.0, metavar="S", help="how long to wait (default 10)")
    resume = add_command(kinds, "resume", "Go on with a run, with the settings that it has", _RESUME_EXAMPLES, _resume)
    add_watching(resume)
    add_link(resume)
    add_fleet_folder(resume)
    replay = add_command(
        kinds, "replay", "Compute a run again from its journal, and compare", _REPLAY_EXAMPLES, _replay
    )
    for parser in (show, stop, resume, replay):
        parser.add_argument("run", type=Path, nargs="?", default=_LATEST, help=f"its folder (default {_LATEST})")
    for parser in (listing, show, stop, resume, replay):
        parser.add_argument("--json", action="store_true", help="for scripts")


def _list(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import runs

    if not options.folder.is_dir() and options.folder != _RUNS:
        raise ConfigError(f"{options.folder}: no such folder{config.nearest_path(options.folder)}")
    found, faults = list[runs.Standing](), list[str]()
    for folder in runs.folders(options.folder):
        try:
            found.append(runs.standing(folder))
        except RunError as error:
            faults.append(str(error))
    _print_list(options, found)
    if faults:
        raise RunError("\n".join(faults))


def _print_list(options: argparse.Namespace, found: "list[Standing]") -> None:
    if options.json:
        sys.stdout.write(json.dumps([one.record() for one in found], indent=1) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "algorithm", "state", "round", "devices", "started")
    for one in found:
        at = f"{one.round} of {one.rounds}"
        table.add_row(one.folder, one.algorithm, one.state, at, str(one.devices), one.started)
    Console().print(table if found else f"no runs in {options.folder}", highlight=False)


def _show(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import runs

    found = runs.standing(runs.the_one(options.run)).record()
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for name, value in found.items():
        sys.stdout.write(f"{name.replace('_', ' '):<14} {value}\n")


def _stop(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import runs

    folder = runs.the_one(options.run)
    pid = runs.stop(folder, options.patience_s)
    state = runs.standing(folder).state
    if options.json:
        sys.stdout.write(json.dumps({"process": pid, "state": state}) + "\n")
        return
    sys.stdout.write(f"process {pid} has ended; the run is {state}: edge-coordinator run resume {options.run}\n")


def _resume(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import demo, runs
    from edge_runtime.coordinator.gate import Sealed
    from edge_runtime.coordinator.reports_cli import finish
    from edge_runtime.seal import read_key

    folder = runs.the_one(options.run)
    run, known = runs.rebuild(folder)
    if known is None:
        raise ConfigError(f"{folder}: this run was simulated in memory, which begins anew: edge-coordinator simulate")
    fleet = fleet_of(options)
    who = identity.load(fleet.coordinator) if fleet else None
    if who is not None and run.config.fleet != who.fleet:
        raise ConfigError(f"{folder}: this run is of fleet {run.config.fleet!r}, and {who.key.parent} of {who.fleet!r}")
    options.host, options.port = options.host or known.host, options.port or known.port
    options.insecure = options.insecure or known.insecure
    given = link(options, known.client_id, who)
    said = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
    usual = {field.name: field.default for field in dataclasses.fields(given)}
    connection = dataclasses.replace(known, **{key: value for key, value in said.items() if value != usual[key]})
    gate = Sealed(who.fleet, read_key(who.key), fleet) if fleet and who else None
    with Notifier(*config.service_manager()) as notifier, watching(options) as look:
        done = demo.go_on(run, connection, folder, gate, notifier.beat, look)
    finish(done, options.json)


def _replay(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import replay, runs
    from edge_runtime.coordinator.journal import Journal

    folder = runs.the_one(options.run)
    run, _ = runs.rebuild(folder)
    journal = Journal(folder)
    try:
        found = replay.replay(run, journal)
    finally:
        journal.close()
    if options.json:
        sys.stdout.write(json.dumps({**dataclasses.asdict(found), "equal": found.equal}) + "\n")
    if not found.equal:
        where = f"after round {found.differs}" if found.differs is not None else "in the final model"
        raise RunError(f"{folder}: the replay differs {where}")
    if not options.json:
        model = {True: ", and so is the final model", False: "", None: ""}[found.model]
        sys.stdout.write(f"{found.updates} updates again: all {found.rounds} checkpoints are bit-equal{model}\n")
