"""Light agents, and the process that they are forked from: `python -m tests.chaos.light` with its settings as JSON.

A light agent is the real `Agent` on a real store and a real MQTT connection, in a process of its own; only its trainer
is a thread that plays the toy algorithm. What a process imports is imported once, in the process that forks them, so
that two hundred of them start in a second. It forks when told `start NAME`, tells of those that `began` and `ended`,
and takes all along when it dies or its standard input ends.
"""

import gc
import hashlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_runtime import wire
from edge_runtime.agent import Agent
from edge_runtime.compression import codec
from edge_runtime.errors import DecodeError, EdgeError
from edge_runtime.link import Link
from edge_runtime.message import Fate, Hello, Task, decode
from edge_runtime.mqtt import Mqtt
from edge_runtime.processes import die_with_parent
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Outcome
from edge_runtime.transport import Connected, Receive
from edge_runtime.tree import Layout
from tests.chaos import toy

_MOST_VALUES = 1 << 20
_STUMBLED = 70
"""Exit status of an agent that ended by a fault of its program."""


@dataclass(frozen=True)
class Settings:
    """What all light agents of a process have in common."""

    folder: str
    """Has `devices/NAME`, a store for each, and `events`, where they tell what happened to them."""
    port: int
    slow_port: int = 0
    """The port of a worse link, which every tenth device has; 0: none."""
    train_s: float = 0.02
    """How long a task takes; of each device up to twice that."""


class Diary:
    """What happened to whom and when, a line for each, from all processes into one file."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *facts: object) -> None:
        """Write a line in one piece."""
        os.write(self._file, (" ".join(map(str, (f"{time.monotonic():.6f}", *facts))) + "\n").encode())


class Trainer:
    """Plays the toy algorithm; implements what `Agent` asks of a `ProcessTrainer`."""

    def __init__(self, name: str, store: FileStore, diary: Diary, train_s: float) -> None:
        self._name, self._store, self._diary = name, store, diary
        self._train_s = train_s * (0.5 + (hash_of(name) % 1000) / 667)
        self._latest: Task | None = None

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        self._done = done

    def start(self, task: Task) -> None:
        self._latest = task
        threading.Thread(target=self._serve, args=(task,), daemon=True).start()

    def stop(self) -> None:
        self._latest = None

    def _serve(self, task: Task) -> None:
        threading.Event().wait(self._train_s)  # time.sleep stumbles over faketime
        try:
            outcome = work(self._name, task, self._store)
        except (DecodeError, OSError) as error:
            outcome = Outcome(reason=str(error))
        if task is self._latest:
            digest = hashlib.sha256(outcome.payload).hexdigest()
            self._diary.note(self._name, "trained", task.round, task.phase, digest)
            self._done(task, outcome)


def work(name: str, task: Task, store: FileStore) -> Outcome:
    """Do a task."""
    received, layout = store.read(task.down.digest), Layout(("w",), ((_MOST_VALUES,),))
    if task.phase == "evaluate":
        received, _ = wire.decode_evaluation(received, layout)
    down = wire.decode(received, toy.Down, layout)
    up, after = toy.answer(down, name, past_of(store.state(task.base)))
    metrics = {"accuracy-personal": 1.0, "train-samples": 1.0, "test-samples": 1.0}
    if task.phase == "evaluate":
        return Outcome(metrics=metrics)
    return Outcome(wire.encode(up), codec.encode_state(asdict(after)), metrics)


def past_of(state: bytes | None) -> toy.Past:
    """Read what a device kept."""
    return toy.Past() if state is None else toy.Past(**codec.decode_state(state, 0))  # type: ignore[arg-type]


def hash_of(name: str) -> int:
    """Give a number that is the same for a name in every process."""
    return int.from_bytes(name.encode(), "big") * 2_654_435_761 % 4_294_967_291


class Watched(Mqtt):
    """A connection that notes when it is made, and what becomes of updates."""

    def __init__(self, link: Link, diary: Diary) -> None:
        super().__init__(link)
        self._name, self._diary = link.client_id, diary

    def start(self, topics: Sequence[str], receive: Receive, connected: Connected) -> None:
        def heard(topic: str, payload: bytes) -> None:
            if payload[:32].find(b'"Fate"') > 0:
                self._note(payload)
            receive(topic, payload)

        def changed(up: bool) -> None:
            self._diary.note(self._name, "connected" if up else "lost", round(time.time()))
            connected(up)

        super().start(topics, heard, changed)

    def _note(self, payload: bytes) -> None:
        try:
            fate = decode(payload)
        except DecodeError:
            return  # the agent will say so
        if isinstance(fate, Fate):
            self._diary.note(self._name, "fate", fate.round, fate.phase, fate.digest, fate.fate)


def agent(name: str, settings: Settings, diary: Diary) -> None:
    """Be a light agent until SIGTERM."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    store = FileStore(Path(settings.folder) / "devices" / name)
    trainer: Any = Trainer(name, store, diary, settings.train_s)
    port = settings.slow_port if settings.slow_port and hash_of(name) % 10 == 0 else settings.port
    transport = Watched(Link("127.0.0.1", port, name), diary)
    hello = Hello(os.urandom(8).hex(), algorithms=(toy.__name__,))
    Agent("default", name, store, trainer, transport, hello).run(lambda: bool(stopped))


def fork(name: str, settings: Settings, diary: Diary) -> int:
    """Start a light agent, and give its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = _STUMBLED
    try:
        die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        agent(name, settings, diary)
        status = 0
    except EdgeError as error:
        sys.stderr.write(f"{name}: {error}\n")
        status = error.exit_code
    except BaseException:  # noqa: BLE001  # the child must not go on as its parent
        sys.stderr.write(f"{name}: {traceback.format_exc()}")
    sys.stderr.flush()
    os._exit(status)


def serve(settings: Settings) -> None:
    """Fork on demand until standard input ends, then end all."""
    alive: dict[int, str] = {}
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    diary, rest = Diary(Path(settings.folder)), b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(alive)
        if 0 in ready:
            data = os.read(0, 65_536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                name = line.decode().removeprefix("start ")
                alive[pid := fork(name, settings, diary)] = name
                _say(f"began {name} {pid}")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _reap(alive: dict[int, str]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _say(f"ended {alive.pop(pid)} {pid} {os.waitstatus_to_exitcode(status)}")


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def main() -> None:
    """Fork light agents."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = Settings(**json.loads(sys.argv[1]))
    gc.collect()
    gc.freeze()  # what all share stays shared
    serve(settings)


if __name__ == "__main__":
    main()
