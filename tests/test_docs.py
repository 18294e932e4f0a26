"""Commands and code in the documentation do what the page says; README.md of this folder says how they are run."""

import fcntl
import importlib
import inspect
import json
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from edge_runtime import config
from tests import command_lines, pages
from tests.pages import ROOT, Block

LIMIT_S = 240.0
"""Longest that one block may take, on a machine that others use too."""
PAGES = {name: pages.read(name) for name in pages.names()}
RUNNABLE = [name for name, page in PAGES.items() if any(block.is_run for block in page.blocks)]
_INLINE = re.compile(r"`(edge-(?:agent|coordinator) [^`]+)`")
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_SETTINGS = re.compile(r"<!-- settings: ([\w.]+) -->\n\n((?:\|.*\n)+)")
_NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES.values() for block in page.blocks if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    text = block.text
    if block.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    return command_lines.split(text)


@pytest.fixture(scope="session")
def network() -> Iterator[tuple[str, ...]]:
    with pages.network() as prefix:
        yield prefix


@pytest.fixture
def terminal(tmp_path: Path, network: tuple[str, ...]) -> Iterator[pages.Terminal]:
    made = pages.Terminal(tmp_path, config.cache_folder().parent, network)
    with (Path(tempfile.gettempdir()) / "edge-runtime-pages.lock").open("w") as lock:
        if not network:  # of two pages that start a broker only one would get its port
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_a_page_tells_to_type_works_in_that_order(name: str, terminal: pages.Terminal) -> None:
    for block in PAGES[name].blocks:
        terminal.take(block, LIMIT_S)
    terminal.check()


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_says_what_it_is_and_if_it_is_not_run_why(name: str) -> None:
    assert PAGES[name].faults == ()


def test_commands_have_no_flag_key_or_target_that_there_is_not() -> None:
    found = [
        f"{block.where}: {wrong}"
        for block in blocks("bash", "console")
        for words in commands(block)
        if (wrong := command_lines.fault(words))
    ]
    assert found == []


def test_commands_within_sentences_have_none_either() -> None:
    found = [
        f"{name}:{line}: `{text}`: {wrong}"
        for name, page in PAGES.items()
        for line, text in _inline(page.prose)
        if (wrong := command_lines.inline_fault(text))
    ]
    assert found == []


def _inline(prose: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Find the commands in a text, of which some go on in the next line."""
    text = "\n".join(prose)
    for found in _INLINE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1].replace("\n", " ")


def test_what_is_run_instead_of_a_block_differs_from_it_in_size_alone() -> None:
    found = [
        f"{block.where}: {wrong}"
        for block in blocks("bash", "console")
        if block.note
        and block.note.kind == pages.RUN_INSTEAD
        and (wrong := command_lines.stand_in_fault(block.text, block.note.text))
    ]
    assert found == []


def test_a_test_that_is_said_to_run_a_block_names_its_commands() -> None:
    found = [
        f"{block.where}: {block.note.text} does not name {words[1]!r}"
        for block in blocks("bash", "console")
        if block.note and block.note.kind == pages.RUN_BY
        for words in commands(block)
        if words[0] in command_lines.PARSERS and words[1] not in (ROOT / block.note.text).read_text()
    ]
    assert found == []


def test_settings_are_such_that_a_run_can_have_them(tmp_path: Path) -> None:
    found = []
    for block in blocks("toml"):
        tomllib.loads(block.text)
        if block.note and block.note.kind == pages.NOT_RUN:
            continue
        (tmp_path / "run.toml").write_text(block.text)
        if wrong := command_lines.table_fault(tmp_path / "run.toml"):
            found.append(f"{block.where}: {wrong}")
    assert found == []


def test_records_are_records() -> None:
    for block in blocks("json"):
        json.loads(block.text)
    for block in blocks("yaml"):
        list(yaml.safe_load_all(block.text))


def test_python_that_is_not_run_can_be_read() -> None:
    for block in blocks("python"):
        compile(block.text, block.where, "exec")


@pytest.mark.parametrize("name", [name for name in PAGES if _SETTINGS.search((ROOT / name).read_text())])
def test_tables_of_settings_have_every_key_and_its_default(name: str) -> None:
    for found in _SETTINGS.finditer((ROOT / name).read_text()):
        module, _, kind = found[1].rpartition(".")
        known = getattr(importlib.import_module(module), kind)
        own = [field for field in inspect.get_annotations(known) if field in known.__dataclass_fields__]
        told = [[cell.strip().strip("`") for cell in row.split("|")[1:3]] for row in found[2].splitlines()[2:]]
        assert told == [[field.replace("_", "-"), _shown(getattr(known, field))] for field in own], found[1]


_MESSAGE = re.compile(r"^\| \[`(Down|Up)`\]\(\S+/(\w+)\.py\) \| ([^|]+) \|", re.MULTILINE)


def test_tables_of_messages_have_their_fields() -> None:
    found = [row for name in PAGES for row in _MESSAGE.finditer((ROOT / name).read_text())]
    assert len(found) >= 10
    for kind, module, fields in (row.groups() for row in found):
        message = getattr(importlib.import_module(f"edge_runtime.algorithms.{module}"), kind)
        assert re.findall(r"`(\w+)`", fields) == list(message.__dataclass_fields__), (module, kind)


def _shown(default: object) -> str:
    """Write a default as a page does."""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) or "(empty)"


def test_links_lead_to_files_headings_and_names_that_are_there() -> None:
    found = [
        f"{name}: [{link['text']}]({link['target']}): {wrong}"
        for name, page in PAGES.items()
        for link in _LINK.finditer("\n".join(page.prose))
        if (wrong := _link_fault(name, link["text"], link["target"]))
    ]
    assert found == []


def _link_fault(page: str, text: str, target: str) -> str:
    if re.match(r"[a-z]+:", target):
        return "" if target.startswith("https://") else "only https leads out of here"
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    if not file.exists():
        return "there is no such file"
    if anchor and file.suffix == ".md" and anchor not in _anchors(file):
        return "there is no such heading"
    name = _NAME.fullmatch(text.replace("\n", " "))
    if name and file.suffix == ".py" and name[1] not in (file.name, file.stem) and not name[1].endswith(".py"):
        return "" if _defines(file, name[1]) else f"{file.name} does not define {name[1]}"
    return ""


def _anchors(file: Path) -> set[str]:
    """Name the headings of a page as GitHub does."""
    page = pages.parse(file.name, file.read_text())
    titles = [line.lstrip("#").strip() for line in page.prose if re.match(r"#+ ", line)]
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def _defines(file: Path, name: str) -> bool:
    """Say whether a file has a name: `f`, `Class.method`, `Class.field`, with or without the module before it."""
    own, *inner = name.removeprefix(f"{file.stem}.").split(".")
    text = file.read_text()
    if not inner:
        return re.search(rf"^(?:def|class) {own}\b|^{own}\b.*=", text, re.MULTILINE) is not None
    inside = re.search(rf"^class {own}\b.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return inside is not None and re.search(rf"^    (?:def )?{inner[0]}\b", inside[0], re.MULTILINE) is not None


def test_a_page_is_refused_that_hides_a_command_or_a_reason() -> None:
    hidden = "```\nls\n```\n\n    edge-agent profile\n\n<!-- not run: -->\n```bash\nedge-agent profile\n```\n"
    text = f"{hidden}<!-- not run: it is about to snow -->\nIt is.\n"
    faults = pages.parse("page.md", text).faults
    assert [fault.split(":")[1] for fault in faults] == ["1", "5", "8", "11"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("edge-agent start --idd x", "--idd"),
        ("edge-coordinator start --set run.round=3", "did you mean 'rounds'"),
        ("edge-coordinator start --set algorithm.densty=0.3", "did you mean 'density'"),
        ("edge-agent unit -- --dada /srv", "--dada"),
        ("sudo make tests", "no target 'tests'"),
        ("edge-coordinator simulate --rounds 2 && edge-coordinator report --jason", "--jason"),
    ],
)
def test_a_wrong_command_is_found(command: str, words: str) -> None:
    assert words in " ".join(command_lines.fault(one) for one in command_lines.split(command))


@pytest.mark.parametrize(
    ("shown", "run", "words"),
    [
        ("edge-coordinator simulate --rounds 20", "edge-coordinator simulate --rounds 2 --parts 3", ""),
        ("edge-coordinator simulate", "edge-coordinator simulate --set run.rounds=2", ""),
        ("edge-coordinator simulate", "edge-coordinator simulate --algorithm quped", "algorithm"),
        ("edge-coordinator simulate", "edge-coordinator demo", "another command"),
        ("edge-coordinator simulate", "edge-coordinator simulate --set algorithm.density=0.1", "differs in set"),
        ("ls\nls", "ls", "1 commands stand in for 2"),
    ],
)
def test_a_stand_in_may_be_smaller_and_nothing_else(shown: str, run: str, words: str) -> None:
    found = command_lines.stand_in_fault(shown, run)
    assert words in found
    assert bool(found) == bool(words)


def test_what_a_page_has_started_ends_with_it(tmp_path: Path, network: tuple[str, ...]) -> None:
    beside = "<!-- in another terminal: here -->\n```bash\necho here; sleep 1000 & sleep 1000\n```\n"
    page = pages.parse("page.md", f"{beside}```bash\nsleep 1000 &\n```\n")
    assert page.faults == ()
    terminal = pages.Terminal(tmp_path, tmp_path, network)
    for block in page.blocks:
        terminal.take(block, 10)
    terminal.check()
    groups = [process.pid for process in terminal._started]
    assert pages._alive(groups[0])
    terminal.close()
    assert not any(pages._alive(group) for group in groups)


def test_a_block_that_fails_names_its_line_and_what_was_said(tmp_path: Path) -> None:
    (block,) = pages.parse("page.md", "\n```bash\necho so\nfalse\n```\n").blocks
    with pytest.raises(pages.Failed, match=r"(?s)page\.md:2: exit code 1.*so"):
        pages.Terminal(tmp_path, tmp_path).take(block, 10)
