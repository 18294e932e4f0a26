"""A systemd unit for the agent or the coordinator, as text: hardened, watched over, and started anew when it dies."""

import argparse
import logging
import shutil
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from edge_runtime.errors import ConfigError

log = logging.getLogger(__name__)

AGENT_MB = 64
"""What an agent takes beside its tasks: `edge-agent measure` shows less than 50 when it waits, and it may fetch."""
_FILES = ("cafile", "cert", "key", "password_file", "identity")
"""Options that name files which a user of the service's own could not read."""
_PLAIN = frozenset(string.ascii_letters + string.digits + "-_./:=,@+")
_HIDDEN = ("/home", "/root", "/run/user")
"""What `ProtectHome=yes` hides from a service."""


@dataclass(frozen=True)
class Unit:
    """What a unit runs, and as whom."""

    program: str
    """`edge-agent` or `edge-coordinator`: also the name of the folders under /var/lib and /var/cache."""
    description: str
    arguments: Sequence[str]
    """Of the program; `${CREDENTIALS_DIRECTORY}/NAME` stands for the file of a credential."""
    credentials: Mapping[str, Path] = field(default_factory=dict)
    """Files that systemd reads as root and hands to the service, by name: keys stay 0600 and root's."""
    user: str = ""
    """Empty: a user that exists while the service runs."""
    memory_mb: int = 0
    """Most memory of the service, children included; 0: nine tenths of the machine's."""
    restart: str = "always"
    cpu_weight: int = 100
    cpu_percent: int = 0
    """Most CPU time of the service, in percent of one core, children included; 0: no limit."""


def render(unit: Unit) -> str:
    """Write the unit.

    Raises:
        ConfigError: an argument that no line of a unit can hold.
    """
    _see(unit.program)
    command = [*_program(unit.program), *unit.arguments]
    loads = "\n".join(_load(name, path.absolute()) for name, path in unit.credentials.items())
    values = {
        "NAME": unit.program,
        "DESCRIPTION": unit.description,
        "COMMAND": " ".join(_quoted(word) for word in command),
        "CREDENTIALS": loads,
        "RESTART": unit.restart,
        "USER": f"User={unit.user}" if unit.user else "DynamicUser=yes",
        "MEMORY": f"{unit.memory_mb}M" if unit.memory_mb else "90%",
        "CPU": str(unit.cpu_weight),
        "QUOTA": f"CPUQuota={unit.cpu_percent}%" if unit.cpu_percent else "",
    }
    text = resources.files("edge_runtime").joinpath("systemd", "edge.service").read_text("utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def credentials(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Let the service manager hand over the files of a connection; give the changed arguments, and files by name."""
    changed: list[str] = list(arguments)
    files: dict[str, Path] = {}
    for name in _FILES:
        path = getattr(options, name, None)
        if path is not None and not path.is_dir():
            files[name] = path
            flags = ("-P", "--password-file") if name == "password_file" else (f"--{name}",)
            changed = _replaced(changed, flags, f"${{CREDENTIALS_DIRECTORY}}/{name}")
    return changed, files


def with_absolute(arguments: Sequence[str], flag: str, path: Path) -> list[str]:
    """Name a folder so that the service finds it from where it stands, which is its own state."""
    return _replaced(arguments, (flag,), str(path.absolute()))


def _replaced(arguments: Sequence[str], flags: Sequence[str], value: str) -> list[str]:
    """Give another value to a flag, however it is written."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        joined = any(word.startswith(f"{flag}=" if flag.startswith("--") else flag) and word != flag for flag in flags)
        if not (skip or joined or word in flags):
            kept.append(word)
        skip = word in flags
    return [*kept, flags[-1], value]


def _see(program: str) -> None:
    """Warn if the unit hides its own program."""
    folder = hidden(program)
    if folder:
        log.warning("this program lies under %s, which a unit may not see: install it under /opt, say", folder)


def hidden(program: str) -> str:
    """Name the folder that a unit hides and in which its own program, or its Python, lies; "" if there is none."""
    places = [Path(word) for word in (*_program(program), sys.prefix, sys.base_prefix)]
    return next((folder for folder in _HIDDEN if any(place.is_relative_to(folder) for place in places)), "")


def is_hidden(path: Path) -> bool:
    """Say whether a unit hides `path`; what is temporary each service has for itself."""
    return any(path.absolute().is_relative_to(folder) for folder in (*_HIDDEN, "/tmp", "/var/tmp"))  # noqa: S108


def _program(name: str) -> list[str]:
    """Say how a program of ours is started: by its script, beside this Python or on the PATH, else as a module."""
    script = Path(sys.executable).with_name(name)
    found = str(script) if script.exists() else shutil.which(name)
    module = {"edge-agent": "edge_runtime.cli", "edge-coordinator": "edge_runtime.coordinator.cli"}[name]
    return [found] if found else [sys.executable, "-m", module]


def _load(name: str, path: Path) -> str:
    if not set(str(path)) <= _PLAIN:
        raise ConfigError(f"{path}: systemd takes no credential of a path with such characters: name it more plainly")
    return f"LoadCredential={name}:{path}"


def _quoted(word: str) -> str:
    """Write a word as systemd reads it (systemd.service(5), "Command lines"; systemd.unit(5), "Specifiers")."""
    if not word.isprintable():
        raise ConfigError(f"{word!r} cannot stand in a unit: it has characters that do not print")
    credential = "${CREDENTIALS_DIRECTORY}/"
    if word.startswith(credential):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if word and set(word) <= _PLAIN else f'"{escaped}"'
