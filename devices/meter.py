"""What a process costs: memory from the kernel's own books, CPU time of a child from its parting words.

Linux only, standard library only: the idle agent imports this.

* VmRSS and VmHWM of `/proc/<pid>/status` (proc_pid_status(5)) are the resident memory now and at its peak, in KiB. The
  kernel counts per core and may be some hundred KiB behind.
* `os.wait4` gives the rusage of a finished child (getrusage(2)): CPU time with that of its own finished children, and
  `ru_maxrss` in KiB. The kernel carries the memory of the process that called exec over into `ru_maxrss`, so this peak
  is never below what the parent itself had used by then; where that matters, let the child report its own VmHWM.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process, now and at its peak."""

    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True)
class ChildUsage:
    """What a finished child used in its life."""

    exit_code: int
    """As `subprocess` counts it: -9 for a child that signal 9 ended."""
    peak_rss_bytes: int
    cpu_s: float
    """User and system time together."""


def memory(pid: int | None = None, proc: Path = Path("/proc")) -> Memory:
    """Read the memory of a process; None: of this one.

    Raises:
        OSError: no such process, or no `/proc` (not Linux).
        ValueError: the kernel does not tell it.
    """
    path = proc / ("self" if pid is None else str(pid)) / "status"
    values = _status(path.read_text())
    if "VmRSS" not in values:
        raise ValueError(f"{path}: holds no VmRSS (a finished process or a kernel thread)")
    if "VmHWM" not in values and pid is None:  # sandboxed kernels leave it out
        values["VmHWM"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Memory(values["VmRSS"], max(values["VmRSS"], values.get("VmHWM", 0)))


def rss_bytes() -> int:
    """Read the resident memory of this process."""
    return memory().rss_bytes


def peak_rss_bytes() -> int:
    """Read the highest resident memory that this process ever had."""
    return memory().peak_rss_bytes


def reset_peak(proc: Path = Path("/proc")) -> bool:
    """Let this process's peak start anew from what it holds now; False where the system does not let it.

    Writing 5 to `clear_refs` does that (proc_pid_clear_refs(5)), to VmHWM alone: `ru_maxrss` keeps the old peak too.
    """
    try:
        if "VmHWM" not in _status((proc / "self/status").read_text()):
            return False
        (proc / "self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def wait(pid: int) -> ChildUsage:
    """Wait for a child to end and say what it used; nobody else may wait for it.

    Raises:
        ChildProcessError: not a child of this process, or already waited for.
    """
    _, status, usage = os.wait4(pid, 0)
    return child_usage(status, usage)


def child_usage(status: int, usage: resource.struct_rusage) -> ChildUsage:
    """Read the exit status and rusage that `os.wait4` gave."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    peak_bytes = usage.ru_maxrss * unit_bytes
    return ChildUsage(os.waitstatus_to_exitcode(status), peak_bytes, usage.ru_utime + usage.ru_stime)


def _status(text: str) -> dict[str, int]:
    """Read the lines `VmRSS:   1234 kB` (KiB, whatever they say) into bytes."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.startswith("Vm"):
            values[name] = int(value.split()[0]) * 1024
    return values
