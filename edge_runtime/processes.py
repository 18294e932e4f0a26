"""What a process asks of the system: to end with the one that started it, and to get back what it frees."""

import ctypes
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Looked up before any fork: between fork and exec a child may do little more than this one call.
_prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent dies; a `preexec_fn` for `subprocess.Popen`.

    The parent is the thread that calls Popen: start a child that is to last from a thread that lasts. A program that
    changes its user loses the request (prctl(2)). Other systems than Linux do not know it, and there this does nothing.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def give_back_freed_memory() -> None:
    """Let the C library return what is freed to the system at once, if it is at least 1 MiB.

    Left to itself glibc learns to keep ever larger pieces, and a peak of one phase stays for the next.
    """
    if _mallopt is not None:  # else another C library, which has ways of its own
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            _mallopt(parameter, 1 << 20)
