"""Tables of settings become frozen dataclasses: the one place where what a person wrote is checked.

Keys are kebab-case and stand for the dataclass's fields. A `Config` checks its own ranges in `__post_init__`.
"""

import dataclasses
import difflib
import itertools
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.errors import ConfigError

C = TypeVar("C")
BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What the libraries under numpy read, when they are loaded, as their number of threads."""
_MOST_NAMES = 10_000
"""Of a folder that are looked at for the nearest one."""


def build(kind: type[C], table: Mapping[str, Any], where: str) -> C:
    """Make a `kind` from a table with kebab-case keys; `where` names the table in errors.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of the wrong type, or out of range.
    """
    check_keys(kind, table, where)
    hints = typing.get_type_hints(kind)
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        values[fields[name].name] = _convert(value, hints[fields[name].name], f"{where}: {name}")
    missing = [
        name
        for name, field in fields.items()
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
    return kind(**values)


def check_keys(kind: type[Any], table: Mapping[str, Any], where: str) -> None:
    """Refuse a key that a `kind` has not.

    Raises:
        ConfigError: with the nearest key.
    """
    fields = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    for key in table:
        if key.replace("_", "-") not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key.replace('_', '-'), fields)}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Offer the nearest known name, as the end of an error message."""
    names = {one.lower(): one for one in known}
    near = [names[one] for one in difflib.get_close_matches(name.lower(), names, 1)]
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(names.values()))})"


def nearest_path(path: Path) -> str:
    """Offer the nearest path that is there, as the end of an error message; nothing where none is near."""
    try:
        there = next(above for above in path.parents if above.is_dir())
        missing = path.relative_to(there).parts
        names = [found.name for found in itertools.islice(there.iterdir(), _MOST_NAMES)]
    except (OSError, StopIteration, ValueError):
        return ""
    near = difflib.get_close_matches(missing[0], names, 1) if missing and not path.exists() else []
    return f"; did you mean '{there.joinpath(near[0], *missing[1:])}'?" if near else ""


def unreadable(path: Path, error: OSError) -> ConfigError:
    """Make the error of a file that a person named, and that cannot be read."""
    return ConfigError(f"{path}: cannot be read: {error.strerror or error}{nearest_path(path)}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # `X | None`
        return None if value is None else _convert(value, typing.get_args(hint)[0], where)
    if hint is float and type(value) is int:
        return float(value)
    wanted = typing.get_origin(hint) or hint
    if wanted is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if type(value) is not wanted:
        raise ConfigError(f"{where} must be {_spoken(wanted)}, not {value!r}")
    return value


def _spoken(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}
    return names.get(kind, str(kind))


def table(settings: Any) -> dict[str, Any]:
    """Turn a dataclass back into a table with kebab-case keys, the inverse of `build`."""
    return {name.replace("_", "-"): value for name, value in dataclasses.asdict(settings).items()}


def read(path: Path, tables: typing.Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read a TOML file that holds only the given tables.

    Raises:
        ConfigError: no such file, not TOML, or an unknown table.
    """
    try:
        record = tomllib.loads(path.read_text())
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    known = list(tables)
    for name, value in record.items():
        if name not in known:
            raise ConfigError(f"{path}: unknown table [{name}]{nearest(name, known)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {name} must be a table, [{name}]")
    return {name: record.get(name, {}) for name in known}


def override(tables: dict[str, dict[str, Any]], settings: typing.Iterable[str]) -> None:
    """Apply `TABLE.KEY=VALUE` settings of a command line (values as in TOML, or bare text) to `tables`, in place.

    A key with dots, as in `variant.small.bits=2`, names a key of a table within the table.

    Raises:
        ConfigError: not of that form, or an unknown table.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        group, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set {setting}: write TABLE.KEY=VALUE, as in algorithm.density=0.5")
        if group not in tables:
            raise ConfigError(f"--set {setting}: unknown table {group!r}{nearest(group, tables)}")
        *inner, last = key.split(".")
        table = tables[group]
        for part in inner:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {setting}: {group}.{part} is a value, not a table")
        table[last] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def environment(threads: int) -> dict[str, str]:
    """Give this process's environment to a child whose BLAS is to have so many threads, whatever was set before."""
    return {**os.environ, **dict.fromkeys(BLAS_THREADS, str(threads)), "ORT_DISABLE_TELEMETRY": "1"}


def settle_environment(threads: int) -> None:
    """Set what libraries read when they are loaded, here or in a child: threads, unless set already, and no telemetry.

    onnxruntime would report to its maker, and leave a file in TMPDIR, from when it is imported.
    """
    for name in BLAS_THREADS:
        os.environ.setdefault(name, str(threads))
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def asked_by_shell() -> bool:
    """Say whether a shell started this process to learn how a command line may go on (argcomplete's convention)."""
    return "_ARGCOMPLETE" in os.environ


def service_manager() -> tuple[str, float]:
    """Say where the service manager that started this process listens ("": there is none), and its patience in seconds.

    The patience is 0 where it has no end. As systemd sets them (sd_notify(3), sd_watchdog_enabled(3)).
    """
    address, pid = os.environ.get("NOTIFY_SOCKET", ""), os.environ.get("WATCHDOG_PID", "")
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    ours = microseconds.isdecimal() and pid in ("", str(os.getpid()))
    return address, int(microseconds) / 1e6 if ours else 0.0


def cache_folder() -> Path:
    """Say where prepared data sets are kept (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-runtime"


def place_matplotlib() -> None:
    """Let matplotlib, if it is not loaded yet, keep what it knows of fonts in our cache: a service has no home."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))


def state_folder() -> Path:
    """Say where devices and coordinators keep what must last (XDG_STATE_HOME, else ~/.local/state)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edge-runtime"
