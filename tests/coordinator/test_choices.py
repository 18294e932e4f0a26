"""Each device is given the most that fits what it says, keeps it, and is sent nothing that does not fit."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import config
from edge_runtime.coordinator.choices import Choices
from edge_runtime.coordinator.journal import Journal
from edge_runtime.coordinator.run import Run, RunConfig, prepare
from edge_runtime.coordinator.server import Coordinator
from edge_runtime.coordinator.simulate import Scene, simulate
from edge_runtime.data import DataConfig, device_names
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.message import Chunk, Hello, Message, Task

DATA = DataConfig("watch", parts=4, labels_per_class=5, test_samples=20)
NAMES = device_names(DATA)
SETTINGS: dict[str, Any] = {"lr": 0.05, "local-steps": 2, "batch-size": 8}
RUN = RunConfig("fedavg", "watch-cnn", rounds=2, devices=4, widths="1, 0.5", codings="step:1", evaluate=False)


def run_of(settings: Mapping[str, Any] | None = None, variants: Any = None, **how: Any) -> Run:
    return prepare(RunConfig(**{**vars(RUN), **how}), {**SETTINGS, **(settings or {})}, variants)


class Post:
    """A network that only remembers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []

    def send(self, device: str, message: Message) -> bool:
        self.sent.append((device, message))
        return True

    def share(self, chunk: Chunk) -> bool:
        raise AssertionError(f"chunk {chunk.index} of nothing that was asked for")

    def room(self) -> bool:
        return True

    def tasks(self) -> dict[str, Task]:
        return {device: message for device, message in self.sent if isinstance(message, Task)}


@contextlib.contextmanager
def coordinating(run: Run, folder: Path) -> Iterator[tuple[Coordinator, Post]]:
    with contextlib.closing(Journal(folder)) as journal:
        post = Post()
        coordinator = Coordinator(run.plan("run", journal.next_epoch()), run, journal, post)
        coordinator.start()
        yield coordinator, post


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of()


@pytest.fixture(scope="module")
def rooms(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[float, int]:
    """Say what each width needs."""
    with contextlib.closing(Journal(tmp_path_factory.mktemp("journal"))) as journal:
        choices = Choices(run, journal)
        return {one.width: choices.needs(one.variant, one.down, "onnx").memory_bytes for one in run.options}


def chosen(run: Run, folder: Path, hello: Hello) -> tuple[str, str]:
    """Give the name of what a device with that hello is given, and why or why not."""
    with contextlib.closing(Journal(folder)) as journal:
        heard = Choices(run, journal).hear("a", hello)
        return journal.chosen("a"), heard.lacking or heard.chosen


def test_the_largest_part_that_fits_is_given_and_the_reason_said(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    whole, why = chosen(run, tmp_path / "a", Hello("boot", room=rooms[1]))
    assert whole == "1 lossless lossless"
    assert why.startswith("the whole model of ")
    half, why = chosen(run, tmp_path / "b", Hello("boot", room=rooms[1] - 1))
    assert half == "0.5 lossless lossless"
    assert why.startswith("0.5 of the channels, ")
    assert "more does not fit: the whole model of " in why
    assert "MB of memory beside the program" in why
    nothing, why = chosen(run, tmp_path / "c", Hello("boot", room=rooms[0.5] - 1))
    assert nothing == ""
    assert why.startswith("nothing fits; the smallest that there is, 0.5 of the channels, ")


def test_a_device_that_says_nothing_is_given_the_whole_model(run: Run, tmp_path: Path) -> None:
    assert chosen(run, tmp_path, Hello("boot"))[0] == "1 lossless lossless"


def test_few_bytes_for_a_round_ask_for_a_cheaper_coding_before_a_smaller_part(run: Run, tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path / "needs")) as journal:
        choices = Choices(run, journal)
        sizes = [choices.needs(one.variant, one.down, "onnx").round_bytes for one in run.options]
    assert [one.name for one in run.options] == [
        "1 lossless lossless",
        "1 step:1 step:1",
        "0.5 lossless lossless",
        "0.5 step:1 step:1",
    ]
    for number, (option, size) in enumerate(zip(run.options[:2], sizes[:2], strict=True)):
        assert chosen(run, tmp_path / str(number), Hello("boot", round_bytes=size))[0] == option.name
    assert chosen(run, tmp_path / "least", Hello("boot", round_bytes=min(sizes)))[0] == "0.5 step:1 step:1"


def test_a_slow_device_is_given_the_part_whose_step_is_short_enough(run: Run, tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path / "needs")) as journal:
        half = run.options[-1]
        step = Choices(run, journal).needs(half.variant, half.down, "onnx").step
    assert step is not None
    hello = Hello("boot", reference_us=10_000, step_ms=int(10 * step * 1.25) + 1)
    assert chosen(run, tmp_path / "slow", hello)[0].startswith("0.5 ")


def test_a_choice_holds_over_a_restart_and_whatever_is_said_later(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("boot", room=rooms[0.5]))
        assert coordinator.journal.chosen("a").startswith("0.5 ")
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("again", room=100 * rooms[1]))
        assert coordinator.journal.chosen("a").startswith("0.5 ")
        assert coordinator._choices.cut_of("a") == run.options[-1].variant.cut


def test_who_was_given_nothing_is_given_something_when_it_has_more(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("boot", room=1))
        assert "nothing fits" in coordinator.unfit["a"]
        assert "nothing fits" in coordinator.journal.choices()["a"]
        coordinator.handle("a", Hello("boot", room=rooms[1]))
        assert coordinator.unfit == {}
        assert coordinator.journal.chosen("a").startswith("1 ")


@pytest.mark.parametrize("variants", [None, {"small": {"devices": "*", "width": 0.5}}], ids=["whole", "by its name"])
def test_a_device_with_less_than_it_needs_gets_no_task(
    variants: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = run_of(None, variants, widths="", codings="", devices=2, quorum=0.5)
    with caplog.at_level(logging.WARNING), coordinating(fixed, tmp_path) as (coordinator, post):
        for _ in range(2):
            coordinator.handle("a", Hello("boot", room=1_000_000))
        coordinator.handle("b", Hello("boot"))
        coordinator.deadline()
        assert set(post.tasks()) == {"b"}
    assert [record.message.split(":")[0] for record in caplog.records] == ["device a gets no task"]
    assert "it needs up to " in caplog.text


def test_a_task_that_no_longer_fits_is_taken_back_and_the_round_goes_on(tmp_path: Path) -> None:
    fixed = run_of(widths="", codings="", devices=2, quorum=0.5)
    with coordinating(fixed, tmp_path) as (coordinator, post):
        for name in ("a", "b"):
            coordinator.handle(name, Hello("boot"))
        assert set(post.tasks()) == {"a", "b"}
        post.sent.clear()
        coordinator.handle("a", Hello("again", room=1_000_000))
        for _ in range(50):
            coordinator.tick()
        assert set(post.tasks()) == {"b"}
        assert coordinator.core.missing() == ["b"]


def test_devices_of_two_sizes_train_in_one_run_and_one_too_small_stays_out(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    sizes = (rooms[1], rooms[0.5], rooms[0.5] - 1_000_000, 2 * rooms[1])
    hellos = {name: Hello(name, room=size + 999_999) for name, size in zip(NAMES, sizes, strict=True)}
    coded = run_of(quorum=0.5, deadline_s=30.0)
    scene = Scene(DATA, NAMES, config.cache_folder(), hellos=hellos)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:

        def hurry(coordinator: Coordinator) -> None:
            if not coordinator.core.open:
                coordinator.deadline()  # the fourth device will never come

        simulate(coded, "run", scene, journal, hurry)
        sent = {one.device: one.metrics["payload-bytes-up"] for one in journal.accepted()}
        given = journal.choices()
    assert NAMES[2] not in sent
    assert "nothing fits" in given[NAMES[2]]
    assert set(sent) == {NAMES[0], NAMES[1], NAMES[3]}
    assert 2 * sent[NAMES[1]] < min(sent[NAMES[0]], sent[NAMES[3]])


def test_what_is_sent_is_within_what_was_reckoned(run: Run, tmp_path: Path) -> None:
    limits: dict[str, int] = {}
    with contextlib.closing(Journal(tmp_path / "needs")) as journal:
        choices = Choices(run, journal)
        for name, option in zip(NAMES, run.options, strict=True):
            limits[name] = choices.needs(option.variant, option.down, "onnx").round_bytes
    hellos = {name: Hello(name, round_bytes=size) for name, size in limits.items()}
    scene = Scene(DATA, NAMES, config.cache_folder(), hellos=hellos)
    with contextlib.closing(Journal(tmp_path / "run", durable=False)) as journal:
        simulate(run, "run", scene, journal, lambda coordinator: None)
        for one in journal.accepted():
            assert one.metrics["payload-bytes-up"] + one.metrics["payload-bytes-down"] < limits[one.device]


def test_a_run_in_which_nobody_fits_ends_with_the_reason(run: Run, tmp_path: Path) -> None:
    scene = Scene(DATA, NAMES, config.cache_folder(), hellos={name: Hello(name, room=1) for name in NAMES})
    with (
        contextlib.closing(Journal(tmp_path, durable=False)) as journal,
        pytest.raises(
            RunError, match=r"none of 4 devices gets a task .*the smallest that there is, 0.5 of the channels"
        ),
    ):
        simulate(run, "run", scene, journal, lambda coordinator: None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"widths": "1,2"}, "'2' is not above 0 and at most 1"),
        ({"widths": "half"}, "'half' is not above 0"),
        ({"widths": ""}, "codings: goes with widths"),
        ({"codings": "bits:4"}, "'bits:4' is not for both ways"),
        ({"codings": "zip"}, "'zip' is none of lossless"),
        ({"algorithm": "ffgg"}, "with ffgg all devices have the whole model"),
        ({"model": "linear"}, "'linear' has no channels"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(**how)
