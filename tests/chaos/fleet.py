"""A whole fleet on this machine: broker, coordinator and light agents, each a real process that can really be killed.

What ends without having been told to is started again a moment later, as a service manager would.
"""

import heapq
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from edge_runtime.coordinator import broker as brokers
from edge_runtime.errors import LinkError
from edge_runtime.processes import die_with_parent
from tests.chaos import light
from tests.chaos.links import Proxy
from tests.chaos.schedule import Fault

ROOT = Path(__file__).parents[2]
MARK = "EDGE_CHAOS"
"""A variable in the environment of all that a fleet starts, by which what is left of it is found."""
_RESTART_S = 0.3
_GRACE_S = 8.0


class Herd:
    """The light agents of one process that forks them."""

    def __init__(self, settings: light.Settings, environment: Mapping[str, str], log: Path, stack: ExitStack) -> None:
        self.pids: dict[str, int] = {}
        command = [sys.executable, "-m", "tests.chaos.light", json.dumps(asdict(settings))]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one call to the kernel
            )
        stack.callback(self.close)
        self._rest = b""

    def start(self, name: str) -> None:
        """Ask for an agent."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"start {name}\n".encode())
        self._process.stdin.flush()

    def fileno(self) -> int:
        """Be something that can be waited for."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> list[tuple[str, int]]:
        """List the agents that have ended, each with its exit status; to be called when there is something to read."""
        data = os.read(self.fileno(), 65_536)
        if not data:
            raise AssertionError("the process that forks light agents died: its last words are in agents.log")
        *lines, self._rest = (self._rest + data).split(b"\n")
        ended = []
        for what, name, pid, *status in (line.decode().split() for line in lines):
            if what == "began":
                self.pids[name] = int(pid)
            elif self.pids.get(name) == int(pid):
                del self.pids[name]
                ended.append((name, int(status[0])))
        return ended

    def close(self) -> None:
        """End the process, and with it all agents that are left."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Fleet:
    """Processes, and what happens to them. All methods are called from one thread."""

    def __init__(self, folder: Path, kind: str, port: int, stack: ExitStack) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.falls: list[str] = []
        """Of what ended by itself, other than for want of a broker."""
        self.finished = False
        self.lives = 0
        """Starts of the coordinator."""
        self.began_s = 0.0
        """When it was started last."""
        self.proxies: list[Proxy] = []
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: str(folder)}
        os.environ[MARK] = str(folder)  # for the broker, which inherits ours
        self._coordinator: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._extra: dict[str, str] = {}
        self._herds: dict[str, Herd] = {}
        self._away: set[str] = set()
        """Agents that are not to be started again by themselves."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._stack = stack
        self._kind = kind
        self.broker = brokers.start(kind, port=port, folder=folder / "broker")
        stack.callback(self._end)

    @property
    def coordinator(self) -> int | None:
        """Give the coordinator's process id; None: it is not running."""
        running = self._coordinator is not None and self._coordinator.poll() is None
        return self._coordinator.pid if self._coordinator is not None and running else None

    @property
    def pids(self) -> dict[str, int]:
        """Give the process ids of the agents that are running."""
        return {name: herd.pids[name] for name, herd in self._herds.items() if name in herd.pids}

    def herd(self, settings: light.Settings, names: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start agents, in an environment with something `extra`."""
        environment = {**self.environment, **(extra or {})}
        herd = Herd(settings, environment, self.folder / "agents.log", self._stack)
        for name in names:
            self._herds[name] = herd
            herd.start(name)

    def coordinate(self, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Start a coordinator, and start it again whenever it ends before the run is finished."""
        self._command, self._extra = list(command), dict(extra or {})
        self._start_coordinator()

    def step(self, timeout_s: float) -> None:
        """Let some time pass; see to what has ended, and to what is due."""
        herds = set(self._herds.values())
        for herd in select.select(herds, [], [], timeout_s)[0]:
            for name, status in herd.read():
                self._ended(name, status)
        process = self._coordinator
        if process is not None and process.poll() is not None:
            self._coordinator = None
            self.finished = process.returncode == 0
            if not self.finished:
                self._fell("coordinator", process.returncode)
                self.later(_RESTART_S, self._start_coordinator)
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def later(self, wait_s: float, event: Callable[[], None]) -> None:
        """Do something in a while."""
        heapq.heappush(self._due, (time.monotonic() + wait_s, next(self._count), event))

    def suffer(self, fault: Fault) -> None:
        """Let a fault happen; what it kills or stops is there again after its time."""
        self.kills[fault.kind] += 1
        match fault.kind:
            case "broker":
                self.kill_broker(fault.lasts_s)
            case "coordinator":
                self.kill_coordinator(fault.lasts_s)
            case "agents":
                self.kill_agents(fault.agents, fault.lasts_s)
            case "pause agents":
                self._pause([self.pids[name] for name in fault.agents if name in self.pids], fault.lasts_s)
            case "pause coordinator":
                self._pause([self.coordinator] if self.coordinator else [], fault.lasts_s)
            case "cut":
                for proxy in self.proxies:
                    proxy.break_all()

    def kill_broker(self, lasts_s: float) -> None:
        """Kill the broker; another is started on the same port."""
        self.broker.process.kill()
        self.broker.process.wait()
        self.later(lasts_s, self._start_broker)

    def kill_coordinator(self, lasts_s: float) -> None:
        """Kill the coordinator."""
        process, self._coordinator = self._coordinator, None
        if process is not None:
            process.kill()
            process.wait()
            if process.returncode == 0:  # it was faster
                self.finished = True
            else:
                self.later(lasts_s, self._start_coordinator)

    def kill_agents(self, names: Sequence[str], lasts_s: float) -> None:
        """Kill agents; they stay away until they are started again."""
        for name in names:
            if name in self.pids and name not in self._away:
                self._away.add(name)
                os.kill(self.pids[name], signal.SIGKILL)
                self.later(lasts_s, lambda name=name: self._back(name))  # type: ignore[misc]

    def end_agents(self) -> list[str]:
        """Ask all agents to end; name those that had to be killed."""
        self._due.clear()
        self._away |= self._herds.keys()
        for pid in self.pids.values():
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _GRACE_S
        while self.pids and time.monotonic() < deadline_s:
            self.step(0.05)
        return list(self.pids)

    def _start_broker(self) -> None:
        if self.broker.process.poll() is not None:
            self.broker = brokers.start(self._kind, port=self.broker.port, folder=self.folder / "broker")

    def _start_coordinator(self) -> None:
        if self._coordinator is not None or self.finished:
            return
        self.lives, self.began_s = self.lives + 1, time.monotonic()
        with (self.folder / "coordinator.log").open("ab") as errors:
            self._coordinator = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**self.environment, **self._extra},
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one call to the kernel
            )

    def _end(self) -> None:
        self.broker.close()
        if self._coordinator is not None:
            self._coordinator.kill()
            self._coordinator.wait()

    def _ended(self, name: str, status: int) -> None:
        if name not in self._away:
            self._fell(name, status)
            self.later(_RESTART_S, lambda: self._herds[name].start(name))

    def _back(self, name: str) -> None:
        if name in self.pids:  # its end was not told yet
            self.later(_RESTART_S, lambda: self._back(name))
            return
        self._away.discard(name)
        self._herds[name].start(name)

    def _fell(self, who: str, status: int) -> None:
        if status != LinkError.exit_code:  # started while there was no broker
            self.falls.append(f"{who} ended with {status}")

    def _pause(self, pids: Sequence[int], lasts_s: float) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self.later(lasts_s, lambda: self._go_on(pids))

    def _go_on(self, pids: Sequence[int]) -> None:
        for pid in {self.coordinator, *self.pids.values()} & set(pids):
            if pid is not None:
                os.kill(pid, signal.SIGCONT)


def left_over(folder: Path) -> list[int]:
    """List the processes that a fleet has left behind."""
    wanted, found = f"{MARK}={folder}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_bytes()
        except OSError:
            continue  # it has just ended
        if wanted in text + b"\0" and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
