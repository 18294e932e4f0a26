from pathlib import Path

import pytest

from edge_runtime.coordinator import demo, live
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.serve import Inbox, serve
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.message import Chunk, Hello, Message, Task
from edge_runtime.transport import Loopback


class Told:
    """A network that writes down what devices are told."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    def send(self, device: str, message: Message) -> bool:
        self.tasks += [device] if isinstance(message, Task) else []
        return True

    def share(self, chunk: Chunk) -> bool:
        return True

    def room(self) -> bool:
        return True


class Enough(Exception):
    """All events were served."""


@pytest.fixture
def run() -> Run:
    return prepare(RunConfig(algorithm="fedavg", model="linear", rounds=1, devices=1, evaluate=False), {})


def test_on_a_new_connection_open_tasks_are_repeated(run: Run, tmp_path: Path) -> None:
    journal, post, end = Journal(tmp_path), Told(), Loopback().end()
    coordinator, inbox = Coordinator(run.plan("run", 1), run, journal, post), Inbox(end, "f")
    coordinator.handle("a", Hello("boot"))
    assert post.tasks == ["a"]
    told = []
    for up in (True, False, True):
        inbox._connected(up)

    def watch(_: Coordinator) -> None:
        told.append(len(post.tasks))
        if len(told) == 3:
            raise Enough

    with pytest.raises(Enough):
        serve(coordinator, inbox, end, 60.0, watch)
    assert told == [2, 2, 3]  # once at the start, and the first connection is no news
    journal.close()


def test_the_table_of_a_run_is_drawn_when_something_is_new_and_not_at_every_event(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    coordinator = Coordinator(run.plan("run", 1), run, journal, Told())
    shown: list[live.Status] = []
    monkeypatch.setattr(live.Live, "show", lambda self, status: shown.append(status))
    monkeypatch.setattr(demo, "_PICTURE_S", 60.0)
    with demo._watching(run, [], lambda: None) as watch:
        for _ in range(100):
            watch(coordinator)
        assert len(shown) == 1
        coordinator.handle("a", Hello("boot"))
        watch(coordinator)
    assert [status.cohort for status in shown] == [0, 1]
    journal.close()
