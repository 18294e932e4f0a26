"""`unit` of both programs: the flags of a service."""

from typing import Any

from edge_runtime.command_line import Run, add_command
from edge_runtime.flags import limit


def add_unit(commands: Any, program: str, examples: str, run: Run) -> None:
    """Add the command that prints a systemd unit which runs `start` with the arguments after `--`."""
    unit = add_command(commands, "unit", f"Print a hardened systemd unit that runs {program} start", examples, run)
    unit.add_argument("--user", default="", metavar="U", help="who runs it (default: a user for this service alone)")
    unit.add_argument(
        "--memory-mb",
        type=limit,
        default=0,
        metavar="N",
        help="memory that it may take (default 90 %% of the machine)",
    )
    unit.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="after --: of start, as it is to run")
