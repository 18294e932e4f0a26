"""`edge-agent doctor`: from the flags of `start` to a check-up."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edge_runtime import checkup, config
from edge_runtime.command_line import add_command
from edge_runtime.errors import EdgeError
from edge_runtime.identity import Identity
from edge_runtime.link import Link, tls_context
from edge_runtime.link_cli import FLEET, identity_of, link
from edge_runtime.link_cli import fleet_of as fleet_name
from edge_runtime.message import check_name
from edge_runtime.trainer_process import Job

_EXAMPLES = """examples:
  edge-agent doctor                # as `edge-agent start` would be run here
  edge-agent doctor --data /srv/sensors --json
  edge-agent doctor --id left -h broker.lan --insecure --data watch

The flags are those of start. Each check says PASS, WARN, FAIL or SKIP (not tried, because of another), what was seen,
and after an arrow what to do. 0 is given if nothing failed, else the code of the first that did.
"""


def add_doctor(commands: Any, add_flags: Callable[[argparse.ArgumentParser], None], to_job: Callable[..., Job]) -> None:
    """Add `edge-agent doctor`; `add_flags` adds those of `start`, and `to_job` reads them."""
    summary = "Find out what keeps this device from taking part"
    doctor = add_command(commands, "doctor", summary, _EXAMPLES, lambda options: _doctor(options, to_job))
    checkup.add_flags(doctor)
    add_flags(doctor)


def _doctor(options: argparse.Namespace, to_job: Callable[..., Job]) -> None:
    from edge_runtime import doctor
    from edge_runtime.station import Station

    who, trouble = _who(options)
    name = who.name if who else options.id or "unknown"
    fleet, connection = FLEET, None
    try:
        check_name(name, "--id")
        fleet = fleet_name(options, who)
        connection = None if trouble else _connection(options, name, who)
    except EdgeError as error:
        trouble = trouble or str(error)
    at = Station(fleet, name, connection, who, doctor.hears(fleet, name), now_s=time.time())
    store = options.store or config.state_folder() / "devices" / name
    job = to_job(options, name)
    agent = doctor.Agent(
        at,
        trouble,
        store,
        config.cache_folder(),
        job,
        options.take_over,
        environment=config.environment(options.threads),
    )
    sys.exit(checkup.examine(doctor.CHECKS, agent, options))


def _who(options: argparse.Namespace) -> tuple[Identity | None, str]:
    """Find out who this is, or why nobody knows."""
    try:
        who = identity_of(options, options.id)
    except (EdgeError, OSError) as error:
        return None, str(error)
    if who is None and options.id is None:
        return None, "--id is missing: name this device, or enrol it with `edge-agent enroll FILE`"
    return who, ""


def _connection(options: argparse.Namespace, name: str, who: Identity | None) -> Link:
    """Make a link; without a certificate under another name than the agent's, which then goes on undisturbed."""
    found = link(options, name, who)
    tls_context(found)
    return found if found.cert else replace(found, client_id=f"{name}_doctor")
