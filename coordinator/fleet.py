"""Agents on this machine: started as processes of their own for the demo, and all ended again."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.coordinator.broker import Broker
from edge_runtime.errors import RunError
from edge_runtime.processes import die_with_parent

_GRACE_S = 3.0


@contextlib.contextmanager
def agents(
    names: Sequence[str], broker: Broker, data_flags: Sequence[str], folder: Path, warm: bool
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start one agent per name, and end them all on the way out, whatever happens."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for part, name in enumerate(names):
            command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", name, "--part", str(part)]
            command += ["-h", broker.host, "-p", str(broker.port), "--store", str(folder / "devices" / name)]
            command += [*data_flags, *(["--warm"] if warm else [])]
            with (folder / "logs" / f"{name}.log").open("wb") as log:
                processes.append(_start(command, stderr=log))
        yield processes
    finally:
        _end(processes)


def check(processes: Sequence["subprocess.Popen[bytes]"], names: Sequence[str], folder: Path) -> None:
    """Raise RunError with an agent's last words if one has died."""
    for process, name in zip(processes, names, strict=True):
        if process.poll() is not None:
            lines = (folder / "logs" / f"{name}.log").read_text(errors="replace").strip().splitlines()
            raise RunError(f"agent {name} died: {lines[-1] if lines else f'exit status {process.returncode}'}")


def _start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C is for the coordinator, which then ends the agents in order.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, looked up before the fork
        **options,
    )


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
