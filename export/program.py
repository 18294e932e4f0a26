"""How the programs of this folder end, each in a process of its own."""

import sys
from collections.abc import Callable

from edge_runtime.errors import EdgeError


def exit_code(work: Callable[[], None]) -> int:
    """Do a program's work; an error of ours becomes one line on stderr and its exit code (see `errors.py`)."""
    try:
        work()
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
