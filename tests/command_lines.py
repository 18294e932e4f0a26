"""What commands in the documentation say, by the programs' own parsers: no flag, key or target there can be wrong."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import algorithm, cli, config, models
from edge_runtime.coordinator import cli as coordinator_cli
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.data import DataConfig
from edge_runtime.errors import ConfigError
from edge_runtime.seed_set import SeedSet
from tests.pages import ROOT

PARSERS = {"edge-agent": cli.parser, "edge-coordinator": coordinator_cli.parser}
TABLES = ("run", "algorithm", "data", "variant")
SIZES = {
    "rounds",
    "parts",
    "samples",
    "test_samples",
    "steps",
    "batch",
    "repeats",
    "seeds",
    "epochs",
    "labels_per_class",
}
SIZES |= {"quick", "no_baseline", "model", "scenario", "case"}
"""What a stand-in for a command may have other than it: flags by their names in the parser's result."""
SIZE_KEYS = (
    "run.rounds",
    "run.devices",
    "run.cohort",
    "run.seed-samples",
    "run.deadline-s",
    "data.parts",
    "data.samples",
)
SIZE_KEYS += (
    "data.labels-per-class",
    "data.test-samples",
    "algorithm.local-steps",
    "algorithm.local-epochs",
    "run.model",
)
SEEDS = SeedSet(np.zeros((8, 6, 100), np.float32), np.zeros(8, np.int64), tuple("abcdefg"))
_OPERATORS = re.compile(r"[();<>|&]+")
_PLACEHOLDER = "..."


def split(script: str) -> list[list[str]]:
    """Split a script into its commands, each a list of words, without what redirects them."""
    script = re.sub(r"\\\n", " ", script)
    script = re.sub(r"\d?>&\d?|\d>", " > ", script)
    return [words for line in script.splitlines() for words in _line(line)]


def _line(line: str) -> Iterable[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # a quotation or a document that goes on in the next line
        return
    words: list[str] = []
    redirected = False
    for token in [*tokens, ";"]:
        if _OPERATORS.fullmatch(token):
            redirected = token in (">", ">>", "<")
            if not redirected:
                yield from [_bare(words)] if _bare(words) else []
                words = []
        elif redirected:
            redirected = False
        else:
            words.append(token)


def _bare(words: list[str]) -> list[str]:
    """Leave out what stands before a command's name."""
    while words and (words[0] in ("sudo", "exec", "nohup", "time", "nice") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    return words


def fault(words: list[str]) -> str:
    """Say what is wrong with a command; empty: nothing, or it is not one of ours."""
    name, rest = words[0], [word for word in words[1:] if word != _PLACEHOLDER]
    if name == "make":
        return _make_fault(rest)
    if name not in PARSERS:
        return ""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            options = PARSERS[name]().parse_args(rest)
            if "unit" in rest[:1]:
                PARSERS[name]().parse_args(["start", *options.arguments])
        _check_settings(options)
    except SystemExit as end:
        return told.getvalue().strip() if end.code else ""
    except ConfigError as error:
        return str(error)
    return ""


def _make_fault(words: list[str]) -> str:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unknown = [word for word in words if "=" not in word and not word.startswith("-") and word not in targets]
    return f"make: no target {unknown[0]!r}" if unknown else ""


def _check_settings(options: argparse.Namespace) -> None:
    """Raise ConfigError if `--set` names a key that there is not."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    config.override(tables, getattr(options, "set", []))
    chosen = tables["run"].get("algorithm") or getattr(options, "algorithm", None)
    known = {"robust", *(key for name in ([chosen] if chosen else algorithm.names()) for key in _keys(name))}
    model = {"model": options.model} if isinstance(getattr(options, "model", None), str) else {}
    config.build(RunConfig, {**model, **tables["run"]}, "run")
    config.build(DataConfig, tables["data"], "data")
    own = [key for table in tables["variant"].values() for key in table]
    for key in (*tables["algorithm"], *own):
        if key not in known and not (key in own and key in ("devices", "model", "width")):
            raise ConfigError(f"algorithm: unknown key {key!r}{config.nearest(key, known)}")


def _keys(name: str) -> Iterable[str]:
    try:
        return (field.replace("_", "-") for field in algorithm.load(name).Config.__dataclass_fields__)
    except ConfigError:  # of the reader's own
        return (key for known in algorithm.names() for key in _keys(known))


def inline_fault(text: str) -> str:
    """Say what is wrong with a command within a sentence, which may leave out what it needs; empty: nothing."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return "its quotation marks do not match"
    parser: argparse.ArgumentParser = PARSERS[words[0]]()
    for at, word in enumerate(words[1:], 1):
        if word == "--":
            return inline_fault(shlex.join([words[0], "start", *words[at + 1 :]]))
        kinds = next((act for act in parser._actions if isinstance(act, argparse._SubParsersAction)), None)
        flag = word.partition("=")[0]
        if word.startswith("-"):
            if flag not in parser._option_string_actions:
                return f"{parser.prog} has no flag {flag}"
        elif kinds is not None and re.fullmatch(r"[a-z][a-z-]*", word):
            if word not in kinds.choices:
                return f"{parser.prog} has no command {word!r}"
            parser = kinds.choices[word]
    return ""


def table_fault(path: Path) -> str:
    """Say what is wrong with a file of settings, as `edge-coordinator start --config` would; empty: nothing.

    Models that are code or folders of the reader's own are not looked at.
    """
    try:
        tables = config.read(path, TABLES)
        run = {"devices": 20, **tables["run"]}
        if "widths" in run or any("width" in table for table in tables["variant"].values()):
            run["model"] = "mlp"  # parts of which are made soonest
        elif run.get("model") not in models.names():
            run = {**run, "model": "watch-cnn", "input": ""}
        settings = config.build(RunConfig, run, "run")
        config.build(DataConfig, tables["data"], "data")
        seeds = SEEDS if settings.algorithm == "fedh2l" else None
        prepare(settings, tables["algorithm"], tables["variant"], seeds)
    except ConfigError as error:
        return str(error)
    return ""


def stand_in_fault(shown: str, run: str) -> str:
    """Say where what is run instead of a script differs from it in more than size; empty: nowhere."""
    wanted, there = split(shown), split(run)
    if len(wanted) != len(there):
        return f"{len(there)} commands stand in for {len(wanted)}"
    for one, other in zip(wanted, there, strict=True):
        if one[0] != other[0]:
            return f"{other[0]} stands in for {one[0]}"
        if one[0] not in PARSERS:
            if one != other:
                return f"{shlex.join(other)!r} stands in for {shlex.join(one)!r}"
        elif (wrong := fault(other)) or (wrong := _difference(one, other)):
            return wrong
    return ""


def _difference(one: list[str], other: list[str]) -> str:
    wanted, there = (vars(PARSERS[words[0]]().parse_args(words[1:])) for words in (one, other))
    if wanted["command"] != there["command"]:
        return "another command stands in for it"
    for key in sorted(wanted.keys() | there.keys()):
        values = [_unsized(key, options.get(key)) for options in (wanted, there)]
        if values[0] != values[1]:
            return f"it differs in {key}, which is not a matter of size: {values[0]!r}, {values[1]!r}"
    return ""


def _unsized(key: str, value: Any) -> Any:
    if key in SIZES:
        return None
    if key == "set":
        return sorted(setting for setting in value if not setting.startswith(SIZE_KEYS))
    return value
