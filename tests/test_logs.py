"""What a program says on stderr: for a person, for a machine, and not without end."""

import json
import logging
import subprocess
import sys

import pytest

from edge_runtime import logs


def record(message: str = "dropped from %s", line: int = 7, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("edge_runtime.gate", logging.WARNING, "gate.py", line, message, ("a",), None)
    made.__dict__.update(more)
    return made


def test_a_record_becomes_one_line_of_json_with_what_it_carries() -> None:
    text = logs.JsonLines("edge-agent").format(record("two\nlines of %s", device="a", reason="stale", other=1))
    said = json.loads(text)
    assert "\n" not in text
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning",
        "program": "edge-agent",
        "from": "gate",
        "message": "two\nlines of a",
        "device": "a",
        "reason": "stale",
    }


def test_what_one_line_of_code_says_too_often_is_counted_and_told_later() -> None:
    now = [0.0]
    fewer = logs.Fewer(most=3, window_s=10.0, clock=lambda: now[0])
    assert [fewer.filter(record()) for _ in range(5)] == [True, True, True, False, False]
    assert fewer.filter(record(line=8))
    now[0] = 10.0
    late = record()
    assert fewer.filter(late)
    assert late.getMessage() == "dropped from a (and 2 more like it)"
    again = record()
    assert fewer.filter(again)
    assert again.getMessage() == "dropped from a"


@pytest.mark.parametrize(
    ("flags", "heard"),
    [
        ([], ["warning", "error"]),
        (["--verbose"], ["info", "warning", "error"]),
        (["--log-level", "error"], ["error"]),
        (["--log", "json"], ["info", "warning", "error"]),
        (["--log", "json", "--log-level", "warning"], ["warning", "error"]),
    ],
)
def test_levels_are_as_the_flags_say(flags: list[str], heard: list[str]) -> None:
    program = (
        "import argparse, logging, sys; from edge_runtime import command_line\n"
        "log = logging.getLogger('edge_runtime.some')\n"
        "def run(options):\n"
        "    for level in ('debug', 'info', 'warning', 'error'): getattr(log, level)('it is %s', level)\n"
        "parser = command_line.Parser('edge-agent'); command_line.add_common(parser)\n"
        "parser.set_defaults(command=run); command_line.run_command(parser.parse_args(), 'edge-agent')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    if "json" in flags:
        assert [(said["level"], said["message"]) for said in map(json.loads, lines)] == [
            (level, f"it is {level}") for level in heard
        ]
    else:
        assert lines == [f"edge-agent: it is {level}" for level in heard]


def test_how_a_program_ends_is_said_in_the_form_that_was_asked_for() -> None:
    command = [sys.executable, "-m", "edge_runtime.cli", "start", "--id", "a/b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("edge-agent: --id")
    done = subprocess.run([*command, "--log", "json"], capture_output=True, text=True, check=False)
    said = json.loads(done.stderr)
    assert (said["level"], said["exit_code"], done.returncode) == ("critical", 2, 2)
