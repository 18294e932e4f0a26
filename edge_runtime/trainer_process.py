"""Trainer processes from the agent's side: start one per task (or keep one warm), talk to it, end it.

The child is `python -m edge_runtime.trainer`; the agent never imports what it imports.
"""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_runtime import logs
from edge_runtime.devices.energy import Recorder
from edge_runtime.devices.sensors import Sensors
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.message import Task
from edge_runtime.processes import die_with_parent

log = logging.getLogger(__name__)

Job = dict[str, Any]
"""The fields of `trainer.Job` as plain values."""
_MAX_HEAD_BYTES = 65_536
_LAST_WORDS_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """What a trainer process reported: the update, the state that it leaves, figures, a model; or why it failed."""

    payload: bytes = b""
    state: bytes = b""
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    """Peers whose message made no sense, and why."""
    personal: bytes = b""
    """The personal model (`personal.py`), where it was asked for."""


class ProcessTrainer:
    """Runs tasks in child processes; implements `agent.Trainer` on a `FileStore` folder."""

    def __init__(self, job: Job, folder: Path, warm: bool = False, sensors: Sensors | None = None) -> None:
        self._job, self._folder, self._warm = job, folder, warm
        self._sensors = sensors or Sensors()
        self._child: subprocess.Popen[bytes] | None = None
        self._busy = False
        self._done: Callable[[Task, Outcome], None] = lambda task, outcome: None

    def attach(self, done: Callable[[Task, Outcome], None]) -> None:
        """Say whom to tell, from a thread of the trainer's, what came of a task."""
        self._done = done

    def check(self) -> dict[str, float]:
        """See in a child whether the device's data loads, and count its samples.

        Raises:
            ConfigError: it does not.
        """
        child = self._spawn()
        outcome = _ask(child, {"job": self._job, "task": None, "store": ""})
        _end(child)
        if outcome.reason:
            raise ConfigError(outcome.reason)
        return outcome.metrics

    def start(self, task: Task) -> None:
        """Begin with `task` in a child, ending whatever the last one does."""
        if self._busy or (self._child is not None and self._child.poll() is not None):
            self.stop()
        child = self._child or self._spawn()
        self._child, self._busy = child, True
        threading.Thread(target=self._serve, args=(child, task), daemon=True, name="trainer").start()

    def stop(self) -> None:
        """End the child."""
        child, self._child, self._busy = self._child, None, False
        if child is not None:
            _end(child)

    def _serve(self, child: subprocess.Popen[bytes], task: Task) -> None:
        with Recorder(self._sensors) as recorder:
            outcome = _ask(child, {"job": self._job, "task": asdict(task), "store": str(self._folder)})
        if child is not self._child:
            return  # ended for another task, or with the agent
        outcome = replace(outcome, metrics={**outcome.metrics, **recorder.figures()})
        self._busy = False
        if not self._warm:
            self.stop()
        self._done(task, outcome)

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "edge_runtime.trainer", *(["json"] if logs.as_json() else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the agent, which then ends its trainer
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, looked up before the fork
            )
        except OSError as error:
            raise DeviceError(f"a trainer process cannot be started: {error.strerror}") from error


def _ask(child: subprocess.Popen[bytes], request: dict[str, Any]) -> Outcome:
    assert child.stdin is not None  # noqa: S101  # both are pipes
    assert child.stdout is not None  # noqa: S101  # see above
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        head = json.loads(child.stdout.readline(_MAX_HEAD_BYTES))
        payload, state, personal = (child.stdout.read(head[part]) for part in ("payload", "state", "personal"))
        return Outcome(payload, state, head["metrics"], head["reason"], head["faults"], personal)
    except (OSError, ValueError, KeyError, TypeError):
        status = _status(child)
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return Outcome(reason=f"the trainer process died ({how}); its last words are in the agent's log")


def _status(child: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a child that made no sense, and see to it."""
    try:
        return child.wait(_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                log.debug("the trainer ended with a request unread")
