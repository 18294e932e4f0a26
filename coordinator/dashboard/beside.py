"""The dashboard as a process beside a command that runs something, for as long as that takes."""

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.processes import die_with_parent

log = logging.getLogger(__name__)

NEEDED = ("jinja2", "starlette", "uvicorn")
_GRACE_S = 3.0


@contextmanager
def showing(runs: Path | None) -> Iterator[str]:
    """Show the runs in a folder on a port of this machine, say where on standard error, and give the address.

    It shows, and lets nothing be stopped. The address is empty where that cannot be, which one line says, and where
    nothing is to be shown (None).
    """
    if runs is None:
        yield ""
        return
    missing = [name for name in NEEDED if not importlib.util.find_spec(name)]
    if missing:
        log.warning("no dashboard: it needs %s; run: pip install 'edge-runtime[dashboard]'", ", ".join(missing))
        yield ""
        return
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "dashboard", "--read-only", "--runs", str(runs)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the command, which then ends this one
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, looked up before the fork
        text=True,
    )
    try:
        address = (process.stdout.readline() if process.stdout else "").partition(" ")[0]
        if address:
            sys.stderr.write(f"dashboard: {address}\n")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
