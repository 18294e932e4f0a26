"""Both command lines as a new user meets them: help that fits, examples that work, wrong words answered."""

import argparse
import contextlib
import io
import shlex
from collections.abc import Callable, Iterator

import pytest

from edge_runtime import cli as agent
from edge_runtime.coordinator import cli as coordinator

PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "edge-agent": agent.parser,
    "edge-coordinator": coordinator.parser,
}


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give a parser and those of all its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


ALL = {parser.prog: parser for make in PROGRAMS.values() for parser in commands(make())}


def examples(text: str) -> list[list[str]]:
    """Read the commands of ours below `examples:`, as a shell would."""
    shown = text.partition("\nexamples:\n")[2].replace("\\\n", " ")
    found = []
    for line in shown.splitlines():
        if line.startswith("  "):
            words = shlex.split(line, comments=True)
            found += [part.split("\0") for part in "\0".join(words).split("\0&&\0") if part]
    return [words[: words.index(">")] if ">" in words else words for words in found]


def answer(arguments: list[str]) -> tuple[int, str]:
    """Parse a command line; give exit code and what was said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), pytest.raises(SystemExit) as caught:
        PROGRAMS[arguments[0]]().parse_args(arguments[1:])
    return int(str(caught.value.code or 0)), said.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_help_fits_eighty_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, said = answer([*name.split(), "-h"])
    assert code == 0
    assert [line for line in said.splitlines() if len(line) > 80] == []
    assert said == answer([*name.split(), "--help"])[1]


@pytest.mark.parametrize("columns", ["40", "80", "300"])
@pytest.mark.parametrize("name", ALL)
def test_help_has_examples_and_they_parse(name: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = examples(ALL[name].format_help())
    ours = [words for words in shown if words and words[0] in PROGRAMS]
    assert any(words[: len(name.split())] == name.split() for words in ours), shown
    for words in ours:
        if "--help" not in words:
            PROGRAMS[words[0]]().parse_args(words[1:])


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_flag_is_answered_in_one_line_by_the_command_itself(name: str) -> None:
    code, said = answer([*name.split(), "--hepl"])
    assert (code, said) == (2, f"{name}: unknown flag '--hepl'; did you mean '--help'? (see {name} --help)\n")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("edge-agent strat", "unknown command 'strat'; did you mean 'start'?"),
        ("edge-coordinator enroll gateway-7", "unknown command 'enroll'; did you mean 'device enroll'?"),
        ("edge-coordinator lst", "unknown command 'lst' (known: "),
        ("edge-coordinator list", "unknown command 'list'; did you mean 'device list' or 'run list'?"),
        ("edge-coordinator help", "unknown command 'help'; did you mean '--help'?"),
        ("edge-agent version", "did you mean '--version'?"),
        ("edge-coordinator --rounds 3 start", "unknown flag '--rounds'; it goes after a command that has it: demo, "),
        ("edge-coordinator run lits", "unknown command 'lits'; did you mean 'list'?"),
        ("edge-coordinator start --ronds 3", "unknown flag '--ronds'; did you mean '--rounds'?"),
        ("edge-coordinator start --Rounds=3", "unknown flag '--Rounds'; did you mean '--rounds'?"),
        ("edge-coordinator demo --labels_per_class 3", "did you mean '--labels-per-class'?"),
        ("edge-coordinator export --modle net", "unknown flag '--modle'; did you mean '--model'?"),
        ("edge-coordinator export", "missing: --model, --out"),
        ("edge-coordinator start --rounds ten", "--rounds must be a whole number, not 'ten'"),
        ("edge-coordinator simulate --drop much", "--drop must be a number, not 'much'"),
        ("edge-coordinator start --rounds", "--rounds: expected one argument"),
        ("edge-coordinator broker --kind mosquito", "--kind: 'mosquito' is unknown; did you mean 'mosquitto'?"),
        ("edge-agent start --backend onx", "--backend: 'onx' is unknown; did you mean 'onnx'?"),
        ("edge-agent start -h broker.lan:8883", "a port is a flag of its own: -h broker.lan -p 8883"),
        ("edge-agent start -h mqtt://broker.lan", "give a name or address alone, as in -h broker.lan"),
        ("edge-agent start --host", "--host: expected one argument"),
        ("edge-coordinator report runs/first runs/second", "'runs/second' is one word too many"),
        ("edge-agent start -x", "unknown flag '-x'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest_right_one(line: str, complaint: str) -> None:
    code, said = answer(line.split())
    assert code == 2
    assert complaint in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_without_a_command_shows_its_commands(program: str) -> None:
    code, said = answer([program])
    assert code == 2
    assert "commands:" in said


def test_h_names_the_host_where_there_is_a_broker_and_alone_shows_the_help() -> None:
    given = agent.parser().parse_args(["start", "-h", "broker.lan"])
    assert given.host == "broker.lan"
    assert agent.parser().parse_args(["start", "--host", "::1"]).host == "::1"
    assert "usage: edge-agent start" in answer(["edge-agent", "start", "--id", "a", "-h"])[1]
