"""A service put onto a machine and taken off it again: a list of steps that can be shown before it is carried out.

    /etc/systemd/system/PROGRAM.service   the unit, with a mark by which a later installation sees whether it was edited
    /etc/systemd/system/multi-user.target.wants/PROGRAM.service   ... is started with the system
    /etc/PROGRAM/NAME.edge                the identity, for systemd to hand over: root's, mode 0600
    /var/lib/PROGRAM, /var/cache/PROGRAM  made by systemd: state, which upgrades leave alone; what can be made anew

With a user that exists only while the service runs (`DynamicUser=yes`) the last two are links into `private/` beside
them.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.files import write_atomic

_MARK = (
    "# Made by `{program} install`. To change it: `systemctl edit {program}`, or install it anew. SHA-256 of the rest: "
)


@dataclass(frozen=True)
class Place:
    """Where a service lies on a system."""

    program: str
    root: Path = Path("/")
    """Of the system; another than `/` is one that does not run: the card of a board, say."""

    @property
    def unit(self) -> Path:
        """Its unit."""
        return self.root / "etc/systemd/system" / f"{self.program}.service"

    @property
    def wanted(self) -> Path:
        """The link by which systemd starts it with the system."""
        return self.unit.parent / "multi-user.target.wants" / self.unit.name

    @property
    def changes(self) -> Path:
        """What `systemctl edit` makes: changes to the unit, in files of their own."""
        return self.unit.with_name(f"{self.unit.name}.d")

    @property
    def keys(self) -> Path:
        """The folder with its identity."""
        return self.root / "etc" / self.program

    @property
    def kept(self) -> tuple[Path, ...]:
        """The folders of its state and cache, links before what they point to."""
        folders = [self.root / "var" / kind for kind in ("lib", "cache")]
        return tuple(folder / part / self.program for folder in folders for part in ("", "private"))

    @property
    def runs(self) -> bool:
        """Say whether systemd runs this system."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()


@dataclass(frozen=True)
class Write:
    """A file to be written; its folder is made if need be."""

    path: Path
    data: bytes
    mode: int
    shown: bool = True
    """Whether its text is for everybody to read."""


@dataclass(frozen=True)
class Link:
    """A symbolic link to be made."""

    path: Path
    target: Path


@dataclass(frozen=True)
class Remove:
    """A file, a link or a whole folder to be removed."""

    path: Path


@dataclass(frozen=True)
class Run:
    """A command of the system's."""

    command: tuple[str, ...]
    needed: bool = True
    """Whether its failure ends the installation."""


Step = Write | Link | Remove | Run


def installing(place: Place, unit: str, keys: Mapping[str, bytes], force: bool) -> list[Step]:
    """List what installs a unit.

    Args:
        place: where.
        unit: its text.
        keys: identities by the names of their files.
        force: replace a unit that somebody has edited or made; it is kept beside.

    Raises:
        ConfigError: there is such a unit, and no `force`.
    """
    found = _read(place.unit)
    steps: list[Step] = [Write(place.keys / name, data, 0o600, shown=False) for name, data in keys.items()]
    if found is not None and not is_as_made(found):
        if not force:
            raise ConfigError(
                f"{place.unit}: was edited, or is not of this program's making; --force replaces it, and keeps what is "
                f"there as {_former(place).name}"
            )
        steps.append(Write(_former(place), found, 0o644, shown=False))
    steps.append(Write(place.unit, marked(place.program, unit), 0o644))
    if not place.wanted.is_symlink():
        steps.append(Link(place.wanted, Path("..") / place.unit.name))
    if place.runs:  # started anew where it runs already; systemd waits for it, not we
        steps += [_systemctl("daemon-reload"), _systemctl("--no-block", "restart", place.program)]
    return steps


def uninstalling(place: Place, keep_state: bool) -> list[Step]:
    """List what takes a service off a system; nothing if it is not there.

    Args:
        place: where.
        keep_state: leave its identity, state and cache, and what somebody has changed of the unit.
    """
    ours = (place.unit, place.wanted) if keep_state else (place.unit, place.wanted, place.changes)
    unit = [path for path in ours if path.is_symlink() or path.exists()]
    steps: list[Step] = []
    if place.runs and unit:
        steps += [_systemctl("stop", place.program, needed=False)]
    found = _read(place.unit)
    if keep_state and found is not None and not is_as_made(found):
        steps.append(Write(_former(place), found, 0o644, shown=False))
    steps += [Remove(path) for path in unit]
    if place.runs and unit:
        steps += [_systemctl("daemon-reload"), _systemctl("reset-failed", place.program, needed=False)]
    if not keep_state:
        gone = [_former(place), *sorted(place.keys.glob("*.edge")), *place.kept]
        steps += [Remove(path) for path in gone if path.is_symlink() or path.exists()]
        if place.keys.is_dir():
            steps.append(Remove(place.keys))
    return steps


def edited(place: Place) -> list[Path]:
    """List what somebody has changed of a service by hand."""
    found = _read(place.unit)
    mine = [] if found is None or is_as_made(found) else [place.unit]
    return [*mine, *sorted(place.changes.glob("*.conf"))]


def marked(program: str, unit: str) -> bytes:
    """Put a mark in front of a unit's text, by which `is_as_made` knows it."""
    return f"{_MARK.format(program=program)}{hashlib.sha256(unit.encode()).hexdigest()}\n{unit}".encode()


def is_as_made(data: bytes) -> bool:
    """Say whether a unit is as an installation left it."""
    mark, _, text = data.partition(b"\n")
    return mark.endswith(hashlib.sha256(text).hexdigest().encode()) and mark.startswith(b"# Made by ")


def told(step: Step) -> str:
    """Say in a line what a step does; of a file that is for everybody, what it will hold too."""
    match step:
        case Write(path, data, mode, shown):
            text = (
                "".join(f"    {line}\n".replace("    \n", "\n") for line in data.decode().splitlines()) if shown else ""
            )
            return f"write {path} (mode {mode:04o})\n{text}".rstrip() + "\n"
        case Link(path, target):
            return f"link {path} -> {target}\n"
        case Remove(path):
            return f"remove {path}{'/' if path.is_dir() and not path.is_symlink() else ''}\n"
        case Run(command):
            return f"run {' '.join(command)}\n"


def carry_out(steps: Iterable[Step], place: Place) -> list[Path]:
    """Do what was listed.

    Returns:
        Folders that were left because they hold something that is not ours.

    Raises:
        ConfigError: not allowed to.
        DeviceError: the disk is full or cannot be written, or systemd refuses.
    """
    if place.root == Path("/") and os.geteuid() != 0:
        raise ConfigError("only root may install a service: run this with sudo, or see what it does with --dry-run")
    left = []
    for step in steps:
        try:
            if isinstance(step, Remove):
                left += [step.path] if _remove(step.path, only_empty=step.path == place.keys) else []
            else:
                _do(step)
        except OSError as error:
            raise DeviceError(f"{error.filename or told(step).strip()}: {error.strerror}") from error
    return left


def _do(step: Write | Link | Run) -> None:
    match step:
        case Write(path, data, mode):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomic(path, data, mode=mode)
            path.chmod(mode)  # whatever the umask says
        case Link(path, target):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.symlink_to(target)
        case Run(command, needed):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and needed:
                raise DeviceError(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")


def _remove(path: Path, only_empty: bool) -> bool:
    """Remove what is there; say whether a folder that must be empty is not, and was left."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif not only_empty:
        shutil.rmtree(path)
    elif any(path.iterdir()):
        return True
    else:
        path.rmdir()
    return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read: {error.strerror}") from error


def _former(place: Place) -> Path:
    return place.unit.with_name(f"{place.unit.name}.old")


def _systemctl(*words: str, needed: bool = True) -> Run:
    return Run(("systemctl", *words), needed)


def standing(program: str) -> Sequence[str]:
    """Ask systemd how a service stands: its state and what it does in it, `active` and `running` say."""
    command = ("systemctl", "show", "--property=ActiveState,SubState", "--value", program)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()
