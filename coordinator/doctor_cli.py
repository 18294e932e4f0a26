"""`edge-coordinator doctor`: from the flags of `start` to a check-up."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import checkup, config, identity
from edge_runtime.command_line import add_command
from edge_runtime.coordinator.device_cli import add_fleet_folder, fleet_of
from edge_runtime.errors import EdgeError
from edge_runtime.link import Link, tls_context
from edge_runtime.link_cli import FLEET, add_link, link
from edge_runtime.link_cli import fleet_of as fleet_name
from edge_runtime.message import up_topic

if TYPE_CHECKING:
    from edge_runtime.coordinator.pki import Fleet

_EXAMPLES = """examples:
  edge-coordinator doctor            # with the fleet in ./fleet, the runs in ./runs
  edge-coordinator doctor --fleet-folder /srv/fleet --runs /srv/runs --json
  edge-coordinator doctor -h 127.0.0.1 -p 1883

Each check says PASS, WARN, FAIL or SKIP (not tried, because of another), what was seen, and after an arrow what to do.
0 is given if nothing failed, else the code of the first that did.
"""


def add_doctor(commands: Any) -> None:
    """Add `edge-coordinator doctor`."""
    doctor = add_command(commands, "doctor", "Find out what keeps runs from going on", _EXAMPLES, _doctor)
    doctor.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default runs)")
    checkup.add_flags(doctor)
    add_fleet_folder(doctor)
    add_link(doctor)


def _doctor(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import doctor
    from edge_runtime.station import Station

    fleet, who, trouble = _fleet(options)
    name, connection = FLEET, None
    try:
        name = fleet_name(options, who)
        connection = None if trouble else _connection(options, name, who)
    except EdgeError as error:
        trouble = trouble or str(error)
    at = Station(
        name, "coordinator", connection, who, (up_topic(name, "+"),), coordinates=True, now_s=time.time()
    )  # fmt: skip
    office = doctor.Office(at, trouble, fleet, options.runs, config.state_folder() / "broker", options.take_over)
    sys.exit(checkup.examine(doctor.CHECKS, office, options))


def _fleet(options: argparse.Namespace) -> "tuple[Fleet | None, identity.Identity | None, str]":
    """Open the fleet, or say why that cannot be."""
    fleet = None
    try:
        fleet = fleet_of(options)
        return fleet, identity.load(fleet.coordinator) if fleet else None, ""
    except (EdgeError, OSError) as error:
        return fleet, None, str(error)


def _connection(options: argparse.Namespace, fleet: str, who: identity.Identity | None) -> Link:
    """Make a link; without a certificate under another name than a run's coordinator has."""
    found = link(options, f"_coordinator-{fleet}", who)
    tls_context(found)
    return found if found.cert else replace(found, client_id=f"_doctor-{fleet}")
