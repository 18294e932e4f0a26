"""The flags of `unit`, `install` and `uninstall`, of both programs; `service.py` does what they ask for."""

import argparse
from typing import Any

from edge_runtime.command_line import Run, add_command
from edge_runtime.flags import limit

UNIT_EXAMPLES = """examples:
  edge-agent unit -- --identity /etc/edge/gateway-7.edge --data /srv/sensors
  edge-agent unit --user sensors --memory-mb 400 -- --id gateway-7

What follows `--` is what `edge-agent start` is to be told. --memory-mb is that
of start: what tasks may take; what the agent takes is added. Files of
--identity, --cafile, --cert, --key and --password-file are read by systemd and
handed over. `install` writes the unit where systemd looks for it.

"""
INSTALL_EXAMPLES = """examples:
  edge-agent install -- --identity gateway-7.edge --data /srv/sensors
  edge-agent install --memory-mb 400 --cpu-percent 50 -- --data /srv/sensors
  edge-agent install --dry-run -- --id gateway-7 --data /srv/sensors

What follows `--` is what `edge-agent start` is to be told; without --identity
it is who was enrolled here. Run it again to change that, or for the unit of a
newer version: state stays. A unit that was edited is not replaced without
--force; changes of your own belong into `systemctl edit edge-agent`.
--memory-mb is what tasks may take; the agent's own 64 MB are added.

"""
_UNINSTALL_EXAMPLES = """examples:
  {program} uninstall --dry-run
  {program} uninstall
  {program} uninstall --keep-state

Stops the service and removes its unit, identity, state and cache: what was
learnt here too, as `apt purge` does. With --keep-state only the unit goes, as
by `apt remove`. The program itself goes as it came: by apt, or with the folder
that it was installed in.

"""


def add_services(commands: Any, program: str, unit: Run, install: Run, examples: tuple[str, str]) -> None:
    """Add them: `unit` and `install` take the arguments of `start` after `--`; `examples` are of these two."""
    what = f"Print a hardened systemd unit that runs {program} start"
    _with_limits(add_command(commands, "unit", what, examples[0], unit))
    what = f"Make it a service: write a hardened systemd unit that runs {program} start, and start it"
    parser = add_command(commands, "install", what, examples[1], install)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    parser.add_argument("--force", action="store_true", help="replace a unit that was edited; it is kept as .old")
    _with_limits(parser)
    what = "Take the service off this machine, and all that it has here"
    parser = add_command(commands, "uninstall", what, _UNINSTALL_EXAMPLES.format(program=program), _uninstall)
    parser.add_argument("--keep-state", action="store_true", help="leave its identity, what it has learnt, and cache")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    parser.set_defaults(program=program)


def _with_limits(parser: Any) -> None:
    parser.add_argument("--user", default="", metavar="U", help="who runs it (default: a user for this service alone)")
    memory = "memory that it may take (default 90 %% of the machine)"
    parser.add_argument("--memory-mb", type=limit, default=0, metavar="N", help=memory)
    cpu = "CPU time that it may take, 100 being one core (default: of an agent, as many cores as it has threads)"
    parser.add_argument("--cpu-percent", type=limit, default=0, metavar="N", help=cpu)
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="after --: of start, as it is to run")


def _uninstall(options: argparse.Namespace) -> None:
    from edge_runtime import service

    service.uninstall(options)
