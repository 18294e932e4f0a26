"""A dashboard as a person starts it, and somebody who asks it for pages."""

import contextlib
import http.client
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def command(*arguments: str) -> list[str]:
    """Give the command line of an `edge-coordinator` command."""
    return [sys.executable, "-m", "edge_runtime.coordinator.cli", *arguments]


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass(frozen=True)
class Served:
    """A dashboard that runs."""

    address: str
    """As it was printed."""
    pid: int

    @property
    def port(self) -> int:
        """Give the port that it listens on."""
        return urllib.parse.urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        """Give the token that is in its address; empty: none is."""
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.address).query)).get("token", "")

    def cookie(self) -> dict[str, str]:
        """Give the header of somebody who was let in."""
        return {"Cookie": f"edge-dashboard-{self.port}={self.token}"}

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> Answer:
        """Ask for a page; `Host` and others may be given, with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, given)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read().decode())


@contextlib.contextmanager
def dashboard(runs: Path, state: Path, *flags: str) -> Iterator[Served]:
    """Start a dashboard of the runs in a folder, on a free port, with its own state; and end it."""
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    program = command("dashboard", "--runs", str(runs), "-p", "0", *flags)
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            assert said.startswith("http"), said
            yield Served(said.split()[0], process.pid)
        finally:
            process.terminate()
