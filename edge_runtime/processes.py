"""Child processes that end with the process that started them, however that one ends."""

import ctypes
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Looked up before any fork: between fork and exec a child may do little more than this one call.
_prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent dies; a `preexec_fn` for `subprocess.Popen`.

    The parent is the thread that calls Popen: start a child that is to last from a thread that lasts. A program that
    changes its user loses the request (prctl(2)). Other systems than Linux do not know it, and there this does nothing.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
