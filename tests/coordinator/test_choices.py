"""Each device is given the most that fits what it says, keeps it, and is sent nothing that does not fit."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import coding, config
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
        return {
            one.width: choices.needs(one.variant, coding.parse(one.down, ""), "onnx").memory_bytes
            for one in run.options
        }


def chosen(run: Run, folder: Path, hello: Hello) -> tuple[str, str]:
    """Give the name of what a device with that hello is given, and why or why not."""
    with contextlib.closing(Journal(folder)) as journal:
        heard = Choices(run, journal).hear("a", hello)
        return journal.devices.chosen("a"), heard.lacking or heard.chosen


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
        sizes = [choices.needs(one.variant, coding.parse(one.down, ""), "onnx").round_bytes for one in run.options]
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
        step = Choices(run, journal).needs(half.variant, coding.parse(half.down, ""), "onnx").step
    assert step is not None
    hello = Hello("boot", reference_us=10_000, step_ms=int(10 * step * 1.25) + 1)
    assert chosen(run, tmp_path / "slow", hello)[0].startswith("0.5 ")


def test_a_choice_holds_over_a_restart_and_whatever_is_said_later(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("boot", room=rooms[0.5]))
        assert coordinator.journal.devices.chosen("a").startswith("0.5 ")
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("again", room=100 * rooms[1]))
        assert coordinator.journal.devices.chosen("a").startswith("0.5 ")
        assert coordinator.choices.cut_of("a") == run.options[-1].variant.cut


def test_who_was_given_nothing_is_given_something_when_it_has_more(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    with coordinating(run, tmp_path) as (coordinator, _):
        coordinator.handle("a", Hello("boot", room=1))
        assert "nothing fits" in coordinator.unfit["a"]
        assert "nothing fits" in coordinator.journal.devices.choices()["a"]
        coordinator.handle("a", Hello("boot", room=rooms[1]))
        assert coordinator.unfit == {}
        assert coordinator.journal.devices.chosen("a").startswith("1 ")


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


def test_a_coordinator_that_starts_again_sends_no_task_to_a_device_that_lacks_what_it_takes(tmp_path: Path) -> None:
    fixed = run_of(widths="", codings="", devices=2, quorum=0.5)
    with coordinating(fixed, tmp_path) as (coordinator, _):
        for name in ("a", "b"):
            coordinator.handle(name, Hello("boot"))
        coordinator.handle("a", Hello("again", room=1_000_000))
    with coordinating(fixed, tmp_path) as (coordinator, post):
        assert "it needs up to" in coordinator.unfit["a"]
        assert set(post.tasks()) == {"b"}
        assert coordinator.core.missing() == ["b"]
        coordinator.handle("a", Hello("once more"))
        assert coordinator.unfit == {}
    with coordinating(fixed, tmp_path) as (coordinator, _):
        assert coordinator.unfit == {}


def test_devices_that_get_nothing_do_not_end_a_run_that_others_may_join(tmp_path: Path) -> None:
    fixed = run_of(widths="", codings="", devices=2)
    with coordinating(fixed, tmp_path) as (coordinator, post):
        for name in ("a", "b"):
            coordinator.handle(name, Hello("boot", room=1_000_000))
            coordinator.check()
        for name in ("c", "d"):
            coordinator.handle(name, Hello("boot"))
        coordinator.deadline()
        assert set(post.tasks()) == {"c", "d"}


def test_a_run_begins_with_those_that_fit_once_it_has_waited_for_the_others(tmp_path: Path) -> None:
    fixed = run_of(widths="", codings="", devices=4, quorum=0.8)
    with coordinating(fixed, tmp_path) as (coordinator, post):
        coordinator.handle("a", Hello("boot", room=1_000_000))
        for name in ("b", "c", "d"):
            coordinator.handle(name, Hello("boot"))
        assert not post.tasks()
        coordinator.deadline()
        assert set(post.tasks()) == {"b", "c", "d"}


def test_a_run_that_nobody_can_take_part_in_ends_with_the_reason(tmp_path: Path) -> None:
    fixed = run_of(widths="", codings="", devices=2)
    with coordinating(fixed, tmp_path) as (coordinator, _):
        for name in ("a", "b"):
            coordinator.handle(name, Hello("boot", room=1_000_000))
        with pytest.raises(RunError, match=r"none of 2 devices gets a task \(a: the whole model"):
            coordinator.deadline()


def test_a_device_that_asks_for_a_cheaper_coding_is_reckoned_by_it(run: Run, tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path)) as journal:
        choices, whole = Choices(run, journal), run.options[0].variant
        dear, cheap = (choices.needs(whole, coding.parse(way, ""), "onnx").round_bytes for way in ("lossless", "bf16"))
        limit = (dear + cheap) // 2
        assert "1 of" not in choices.hear("a", Hello("boot", round_bytes=limit)).chosen
        assert journal.devices.chosen("a") != run.options[0].name
        choices.hear("b", Hello("boot", down="bf16", round_bytes=limit))
        assert journal.devices.chosen("b") == run.options[0].name


@pytest.mark.parametrize("backend", ["onnx", "torch", "numpy", "something"])
def test_a_backend_that_was_not_measured_takes_what_the_graphs_say_at_least(backend: str, tmp_path: Path) -> None:
    large = run_of({"batch-size": 256}, widths="", codings="")
    with contextlib.closing(Journal(tmp_path)) as journal:
        choices = Choices(large, journal)
        held = large.others.memory
        assert held is not None
        needed = choices.needs(large.others, coding.parse("lossless", ""), backend).memory_bytes
        assert needed > held.fixed + 256 * held.per_sample


def test_devices_of_two_sizes_train_in_one_run_and_one_too_small_stays_out(
    run: Run, rooms: dict[float, int], tmp_path: Path
) -> None:
    sizes = (rooms[1], rooms[0.5], rooms[0.5] - 1_000_000, 2 * rooms[1])
    hellos = {name: Hello(name, room=size + 999_999) for name, size in zip(NAMES, sizes, strict=True)}
    scene = Scene(DATA, NAMES, config.cache_folder(), hellos=hellos)
    with contextlib.closing(Journal(tmp_path, durable=False)) as journal:
        simulate(run, "run", scene, journal, lambda coordinator: None)
        sent = {one.device: one.metrics["payload-bytes-up"] for one in journal.accepted()}
        given = journal.devices.choices()
    assert NAMES[2] not in sent
    assert "nothing fits" in given[NAMES[2]]
    assert set(sent) == {NAMES[0], NAMES[1], NAMES[3]}
    assert 2 * sent[NAMES[1]] < min(sent[NAMES[0]], sent[NAMES[3]])


def test_what_is_sent_is_within_what_was_reckoned(run: Run, tmp_path: Path) -> None:
    limits: dict[str, int] = {}
    with contextlib.closing(Journal(tmp_path / "needs")) as journal:
        choices = Choices(run, journal)
        for name, option in zip(NAMES, run.options, strict=True):
            limits[name] = choices.needs(option.variant, coding.parse(option.down, ""), "onnx").round_bytes
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
