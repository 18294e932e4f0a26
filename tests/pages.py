"""The pages of the documentation: their blocks of code, what is said about each, and how one is run.

tests/README.md says how a page is written so that it can be run; `test_docs.py` runs them all.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = ("bash", "console", "python")
CHECKED = ("toml", "json", "yaml")
SHOWN = ("text", "ini", "csv", "html", "xml", "diff", "nginx", "dockerfile")
"""Languages of blocks that are run, that are read by a program, and that are there to be looked at."""
NOT_RUN, RUN_INSTEAD, RUN_BY, BESIDE = "not run", "run instead", "run by", "in another terminal"
NOTES = (NOT_RUN, RUN_INSTEAD, RUN_BY, BESIDE)
READY_S = 60.0
"""Longest wait for what a block in another terminal says once it is ready."""

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)(?P<rest>.*)$")
_TITLE = re.compile(r'title="([^"]*)"')
_COMMAND_INDENTED = re.compile(r"^ {4,}(?:\$ )?(?:sudo )?(?:edge-agent|edge-coordinator|make|pip|python3?|docker) ")
_ITEM = re.compile(r"^\s*(?:[*+-]|\d+\.) ")


@dataclass(frozen=True)
class Note:
    """What a comment before a block says about it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str
    note: Note | None = None

    @property
    def where(self) -> str:
        """Say where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Say whether `Terminal` runs it, or what stands in for it."""
        kind = self.note.kind if self.note else ""
        return self.language in RUN and not self.title and kind not in (NOT_RUN, RUN_BY)

    @property
    def script(self) -> str:
        """Give what is run: the block, or what stands in for it; of a console session what was typed."""
        if self.note and self.note.kind == RUN_INSTEAD:
            return self.note.text
        if self.language == "console":
            return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))
        return self.text


@dataclass(frozen=True)
class Page:
    """A page: its blocks in their order, its text without them (line by line), and what is wrong with either."""

    name: str
    blocks: tuple[Block, ...]
    prose: tuple[str, ...]
    faults: tuple[str, ...]


def names() -> list[str]:
    """List all pages: of this repository's Markdown what a reader is to follow."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found += [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


_FOLDERS = ("edge_runtime", "coordinator", "compression", "export", "devices", "tests")


def read(name: str) -> Page:
    """Read a page."""
    return parse(name, (ROOT / name).read_text())


def parse(name: str, text: str) -> Page:
    """Find a page's blocks, with the comment that stands directly before each."""
    lines = text.splitlines()
    blocks: list[Block] = []
    prose: list[str] = []
    faults: list[str] = []
    note: Note | None = None
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        fence = _FENCE.match(line)
        if fence:
            end = _end(lines, number, fence["ticks"])
            body = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
            title = _TITLE.search(fence["rest"])
            block = Block(name, start, fence["language"], title[1] if title else "", body, note)
            blocks.append(block)
            faults += _faults(block) + ([f"{block.where}: this block has no end"] if end == len(lines) else [])
            prose += [""] * (end + 1 - number)
            note, number = None, end + 1
        elif line.strip().startswith("<!--"):
            end = next((at for at in range(number, len(lines)) if "-->" in lines[at]), len(lines) - 1)
            note = _note("\n".join(lines[number : end + 1]))
            prose += [""] * (end + 1 - number)
            number = end + 1
            if note and not _before_a_block(lines, number):
                faults.append(f"{name}:{start}: a note {note.kind!r} that stands before no block")
                note = None
        else:
            if _COMMAND_INDENTED.match(line) and not _in_item(prose):
                faults.append(f"{name}:{start}: a command that is only indented; put it between ```bash and ```")
            prose.append(line)
            number += 1
    return Page(name, tuple(blocks), tuple(prose), tuple(faults))


def _end(lines: list[str], start: int, ticks: str) -> int:
    closing = re.compile(rf"^\s*{ticks[0]}{{{len(ticks)},}}\s*$")
    return next((at for at in range(start + 1, len(lines)) if closing.match(lines[at])), len(lines))


def _note(comment: str) -> Note | None:
    """Read a comment; None: it is about something else."""
    said = comment.strip().removeprefix("<!--").partition("-->")[0].strip()
    kind, _, text = said.partition(":")
    if any(said.startswith(known) for known in NOTES) or kind in NOTES:
        return Note(kind.strip(), textwrap.dedent(text).strip())
    return None


def _before_a_block(lines: list[str], number: int) -> bool:
    following = [line for line in lines[number : number + 2] if line.strip()]
    return bool(following and _FENCE.match(following[0]))


def _in_item(prose: list[str]) -> bool:
    """Say whether what comes next continues an item of a list."""
    for line in reversed(prose):
        if _ITEM.match(line):
            return True
        if line.strip() and not line.startswith(" "):
            return False
    return False


def _faults(block: Block) -> list[str]:
    found = []
    if block.language not in (*RUN, *CHECKED, *SHOWN):
        known = ", ".join((*RUN, *CHECKED, *SHOWN))
        found.append(f"{block.where}: a block of the language {block.language!r}; take one of {known}")
    if block.note and block.note.kind not in NOTES:
        found.append(f"{block.where}: a note {block.note.kind!r}; there are {', '.join(NOTES)}")
    if block.note and not block.note.text and block.note.kind != BESIDE:
        found.append(f"{block.where}: the note {block.note.kind!r} says nothing after its colon")
    if block.note and block.note.kind == RUN_BY and not (ROOT / block.note.text).is_file():
        found.append(f"{block.where}: there is no {block.note.text} that could run it")
    return found


class Failed(AssertionError):
    """A block did not do what its page says."""


class Terminal:
    """Runs a page's blocks, each in a shell of its own, all in one folder and with one home."""

    def __init__(self, folder: Path, cache: Path, prefix: tuple[str, ...] = ()) -> None:
        """`cache`: where prepared data sets are kept, for all pages. `prefix`: a command that runs another."""
        self.folder = folder / "here"
        self._home, self._logs, self._prefix = folder / "home", folder / "logs", prefix
        for made in (self.folder, self._home, self._logs):
            made.mkdir(parents=True)
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"]
        own = {"HOME": str(self._home), "XDG_CACHE_HOME": str(cache), "PATH": os.pathsep.join(path)}
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        self._environment = {**kept, **own, "COLUMNS": "120"}
        self._beside: list[tuple[Block, subprocess.Popen[bytes]]] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def take(self, block: Block, limit_s: float) -> None:
        """Do what the page does with a block: write the file that it is, or run it.

        Raises:
            Failed: it ended otherwise than with exit code 0, or not in time.
        """
        if block.title and not (block.note and block.note.kind == NOT_RUN):
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.is_run:
            self._run(block, limit_s)

    def _run(self, block: Block, limit_s: float) -> None:
        log = self._logs / f"{len(self._started):02d}.log"
        script = log.with_suffix(".py" if block.language == "python" else ".sh")
        script.write_text(block.script)
        interpreter = ["python"] if block.language == "python" else ["bash", "-eu", "-o", "pipefail"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*self._prefix, *interpreter, str(script)],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        if block.note and block.note.kind == BESIDE:
            self._await(block.note.text, block, process, log)
            self._beside.append((block, process))
            return
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{block.where}: has not ended after {limit_s:.0f} s\n{self._said()}") from None
        if code:
            raise Failed(f"{block.where}: exit code {code}\n{self._said()}")

    def _await(self, words: str, block: Block, process: "subprocess.Popen[bytes]", log: Path) -> None:
        """Wait until what runs in another terminal has said these words."""
        due_s = time.monotonic() + READY_S
        while words not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > due_s:
                raise Failed(f"{block.where}: has not said {words!r} in another terminal\n{self._said()}")
            time.sleep(0.05)

    def check(self) -> None:
        """See that what runs in other terminals still does, or has ended well.

        Raises:
            Failed: something of it has ended otherwise.
        """
        for block, process in self._beside:
            if process.poll():
                raise Failed(f"{block.where}: exit code {process.returncode} in another terminal\n{self._said()}")

    def _said(self) -> str:
        """Give the last words of all that was run."""
        last = {
            log.name: log.read_text(errors="replace").splitlines()[-20:] for log in sorted(self._logs.glob("*.log"))
        }
        return "\n".join(line for name, lines in last.items() for line in (f"--- {name}", *lines))

    def close(self) -> None:
        """End everything that was started, newest first, and all that these started."""
        for process in reversed(self._started):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                due_s = time.monotonic() + 10
                while time.monotonic() < due_s and (process.poll() is None or _alive(process.pid)):
                    time.sleep(0.05)


def _alive(group: int) -> bool:
    """Say whether a process of a group still runs (Linux; elsewhere nobody knows)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                return True
    return False


@contextlib.contextmanager
def network() -> Iterator[tuple[str, ...]]:
    """Give a command that runs another in a network of its own, where every port is free; nothing where that cannot be.

    Nobody but root can make one. Without it pages share this machine's ports with whatever else listens there.
    """
    script = "PATH=$PATH:/usr/sbin:/sbin; ip link set lo up && echo up && exec sleep 3600"
    try:
        holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        yield ()
        return
    with holder:
        assert holder.stdout is not None
        made = holder.stdout.readline() == b"up\n"
        try:
            yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--") if made else ()
        finally:
            holder.kill()


def main() -> None:
    """Print what is not run as it stands, and why."""
    for block in (block for name in names() for block in read(name).blocks):
        if block.note and block.note.kind != BESIDE:
            print(f"{block.where}: {block.note.kind}: {' '.join(block.note.text.split())}")


if __name__ == "__main__":
    main()
