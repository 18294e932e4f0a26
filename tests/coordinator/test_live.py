import dataclasses
import io
import logging
import sys

import pytest
from rich.console import Console

from edge_runtime.coordinator.live import DeviceStatus, Live, Status, line, render

DEVICE = DeviceStatus("watch-01", "training", 0.5, 0.75, 34_000, 36_000, 150_000_000)


def status(devices: int = 2, round_: int = 2, phase: str = "train", accepted: int = 1) -> Status:
    fleet = tuple(dataclasses.replace(DEVICE, id=f"watch-{number:03}") for number in range(devices))
    return Status("fedspa", round_, 12, phase, accepted, devices, 65.0, fleet)


def drawn(shown: Status, width: int = 100, height: int = 40) -> list[str]:
    console = Console(width=width, height=height, color_system=None, file=io.StringIO())
    with console.capture() as text:
        console.print(render(shown, width, height))
    return text.get().splitlines()


def with_states(*states: str) -> Status:
    fleet = tuple(dataclasses.replace(DEVICE, id=f"watch-{i}", state=state) for i, state in enumerate(states))
    return dataclasses.replace(status(), devices=fleet)


def plain() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=80), stream


def test_a_device_is_one_row_of_its_figures() -> None:
    (row,) = (text for text in drawn(status()) if text.startswith("watch-000"))
    assert row.split() == ["watch-000", "training", "50.0", "75.0", "34.0", "kB", "36.0", "kB", "150", "MB"]


def test_the_first_line_says_where_the_run_stands() -> None:
    first = drawn(status())[0]
    assert first.startswith("fedspa  round 3/12")
    assert first.rstrip().endswith("1:05")


def test_after_the_last_round_comes_the_evaluation() -> None:
    assert "final evaluation" in drawn(status(round_=12, phase="evaluate"))[0]


def test_states_are_counted() -> None:
    assert drawn(with_states("done", "training", "done"))[1].split("  ") == ["3 devices", "2 done", "1 training"]


def test_the_last_line_is_the_mean_over_the_fleet() -> None:
    worse = dataclasses.replace(DEVICE, id="b", accuracy_after=0.25, bytes_up=36_000, peak_rss_bytes=160_000_000)
    shown = dataclasses.replace(status(), devices=(DEVICE, worse, DeviceStatus("new")))
    assert drawn(shown)[-1] == "fleet  accuracy 50.0 -> 50.0 %, 35.0 kB up, 36.0 kB down per round, peak 160 MB"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (200, 24)])
def test_twenty_devices_fit_a_terminal(width: int, height: int) -> None:
    lines = drawn(status(20), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert sum(text.count("watch-") for text in lines) == 20


def test_a_wide_terminal_shows_devices_in_columns() -> None:
    lines = drawn(status(40), 200, 24)
    assert len(lines) == 24
    assert sum(text.count("watch-") for text in lines) == 40


def test_of_two_hundred_devices_those_in_trouble_and_the_weakest_are_shown() -> None:
    fleet = [dataclasses.replace(DEVICE, id=f"watch-{number:03}", accuracy_after=number / 200) for number in range(200)]
    fleet[150] = dataclasses.replace(fleet[150], state="offline")
    lines = drawn(dataclasses.replace(status(), devices=tuple(fleet)), 80, 24)
    shown = [text.split()[0] for text in lines if text.startswith("watch-")]
    assert len(lines) == 24
    assert shown == ["watch-150", *(f"watch-{number:03}" for number in range(19))]
    assert lines[1].startswith("200 devices (not shown: 180 ")


def test_a_run_without_devices_can_be_shown() -> None:
    assert drawn(status(0))[-1].startswith("fleet  accuracy –")


def test_what_a_device_says_cannot_steer_the_terminal() -> None:
    hostile = dataclasses.replace(DEVICE, id="\x1b[2Jx", state="\x1b]0;\x07[red]")
    text = "\n".join(drawn(dataclasses.replace(status(), devices=(hostile,))))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "?[2Jx" in text


def test_a_pipe_gets_one_line_per_closed_round_and_nothing_else() -> None:
    console, stream = plain()
    with Live(console) as live:
        for round_ in (0, 0, 1, 1, 1, 2):
            live.show(status(round_=round_))
    lines = stream.getvalue().splitlines()
    assert [text.split(":")[0] for text in lines] == ["fedspa round 1/12", "fedspa round 2/12"]
    assert "\x1b" not in stream.getvalue()


def test_a_resumed_run_does_not_tell_of_rounds_before() -> None:
    console, stream = plain()
    with Live(console) as live:
        live.show(status(round_=7))
        live.show(status(round_=8))
    assert [text.split(":")[0] for text in stream.getvalue().splitlines()] == ["fedspa round 8/12"]


def test_the_evaluation_gets_a_line_once_it_is_over() -> None:
    console, stream = plain()
    with Live(console) as live:
        for accepted in (0, 1, 2, 0):
            live.show(status(round_=12, phase="evaluate", accepted=accepted))
        assert stream.getvalue() == ""
    assert stream.getvalue().startswith("fedspa final evaluation: accuracy 50.0 -> 75.0 %")


def _interrupted(live: Live) -> None:
    live.show(status(round_=12, phase="evaluate"))
    raise KeyboardInterrupt


def test_a_run_that_was_broken_off_claims_no_evaluation() -> None:
    console, stream = plain()
    live = Live(console)
    with pytest.raises(KeyboardInterrupt), live:
        _interrupted(live)
    assert stream.getvalue() == ""


def test_a_line_names_the_devices_in_trouble() -> None:
    text = line(with_states("done", "offline", "offline", "late"), 2)
    assert text.startswith("fedspa round 3/12: accuracy 50.0 -> 75.0 %, 34.0 kB up, 36.0 kB down per round")
    assert text.endswith("1 late, 2 offline, after 1:05")


def test_by_default_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as live:
        live.show(status(round_=0))
        live.show(status(round_=1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fedspa round 1/12")


def test_a_terminal_is_refreshed_four_times_a_second_at_most() -> None:
    stream, now = io.StringIO(), [0.0]
    with Live(Console(file=stream, force_terminal=True, width=80, height=24), clock=lambda: now[0]) as live:
        live.show(status(round_=0))
        size = len(stream.getvalue())
        for now[0] in (0.1, 0.2):
            live.show(status(round_=1))
        assert len(stream.getvalue()) == size
        now[0] = 0.26
        live.show(status(round_=2))
        assert "round 3/12" in stream.getvalue()


def test_the_last_picture_stays_on_the_terminal() -> None:
    stream = io.StringIO()
    with Live(Console(file=stream, force_terminal=True, width=80, height=24), clock=lambda: 0.0) as live:
        live.show(status(round_=0))
        live.show(status(round_=5))
    assert "round 6/12" in stream.getvalue()


def test_log_lines_go_through_the_table_while_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with Live(Console(file=stream, force_terminal=True, width=80, height=24)) as live:
        live.show(status())
        assert handler.stream is not stream
        logging.getLogger().warning("a device is late")
    assert handler.stream is stream
    assert "a device is late" in stream.getvalue()


def test_messages_that_were_refused_are_shown() -> None:
    assert "refused" not in "".join(drawn(status()))
    assert "1,234 messages refused" in drawn(dataclasses.replace(status(), dropped=1234))[1]
