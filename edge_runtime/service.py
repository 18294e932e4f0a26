"""Making an agent or a coordinator a service of this machine, and taking it off again, as a person asked for it."""

import argparse
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from edge_runtime import data, identity, install, unit
from edge_runtime.errors import ConfigError
from edge_runtime.install import Place
from edge_runtime.link_cli import identity_of
from edge_runtime.message import check_name

AGENT = "edge-agent"
_UP_S = 10.0
_ELSEWHERE = "install it under /opt (`python3 -m venv /opt/edge-runtime`) and run that"


def agent_unit(options: argparse.Namespace, start: argparse.Namespace, name: str | None) -> unit.Unit:
    """Describe the unit of an agent.

    Args:
        options: of `unit` or `install`.
        start: what follows `--` there, as `start` reads it.
        name: of the device, where it is known.
    """
    arguments, files = unit.credentials(start, options.arguments)
    if Path(start.data).is_dir():
        arguments = unit.with_absolute(arguments, "--data", Path(start.data))
    if options.memory_mb and not start.memory_mb:
        arguments += ["--memory-mb", str(options.memory_mb)]
    return unit.Unit(
        AGENT,
        f"edge-runtime: agent {name or ''}".rstrip(),
        ["start", *arguments],
        files,
        options.user,
        options.memory_mb and options.memory_mb + unit.AGENT_MB,
        cpu_weight=20,
        cpu_percent=options.cpu_percent or 100 * start.threads,
    )


def install_agent(options: argparse.Namespace, start: argparse.Namespace) -> None:
    """Make an agent a service; its identity lies where systemd alone can read it.

    Raises:
        ConfigError: the service could not run so: no identity or name, or data that it may not read.
        DeviceError: the disk is full or cannot be written, or systemd refuses.
    """
    data.device_names(data.DataConfig(start.data))
    place = Place(AGENT)
    name, bundle = _identity(start)
    keys = {f"{name}.edge": bundle} if bundle else {}
    if bundle:
        start.identity = place.keys / f"{name}.edge"
    carry_out(options, place, agent_unit(options, start, name), keys, _out_of_reach(Path(start.data), options.user))


def carry_out(
    options: argparse.Namespace, place: Place, described: unit.Unit, keys: Mapping[str, bytes], hindrance: str = ""
) -> None:
    """Install a unit and say how the service stands; or only show what would be done.

    `hindrance` is a reason why the service could not run.

    Raises:
        ConfigError, DeviceError: as `install_agent`.
    """
    steps = install.installing(place, unit.render(described), keys, options.force)
    if folder := unit.hidden(place.program):
        hindrance = f"{place.program} or its Python lies under {folder}, which a service cannot see: {_ELSEWHERE}"
    if options.dry_run:
        sys.stdout.write("".join(map(install.told, steps)))
        sys.stderr.write(f"it would be refused: {hindrance}\n" if hindrance else "")
        return
    if hindrance:
        raise ConfigError(hindrance)
    install.carry_out(steps, place)
    sys.stdout.write(f"{place.unit} is written, and starts with the system; `{place.program} uninstall` removes it\n")
    sys.stdout.write(_standing(place))


def _standing(place: Place) -> str:
    """Say how a service stands, once it is up or has had the time for it."""
    if not place.runs:
        return f"systemd does not run here: nothing is started now; `{place.program} start` does it by hand\n"
    deadline_s = time.monotonic() + _UP_S
    while (found := install.standing(place.program))[:1] != ["active"] and time.monotonic() < deadline_s:
        time.sleep(0.2)
    said = f"{place.program}.service: {' '.join(found) or 'unknown'}"
    if found[:1] == ["active"]:
        return f"{said}: its broker has let it in\n"
    return f"{said}: it goes on trying; `journalctl -u {place.program}` says what is in the way\n"


def uninstall(options: argparse.Namespace) -> None:
    """Take a service off this machine, and say what goes.

    Raises:
        ConfigError, DeviceError: as `install.carry_out`.
    """
    place = Place(options.program)
    steps = install.uninstalling(place, options.keep_state)
    if not steps:
        sys.stdout.write(f"no {place.program}.service is installed here\n")
        return
    for path in install.edited(place):
        what = "is kept" if options.keep_state else "goes too"
        sys.stdout.write(f"{path} was made or edited by hand, and {what}\n")
    sys.stdout.write("".join(map(install.told, steps)))
    if options.dry_run:
        return
    for folder in install.carry_out(steps, place):
        sys.stdout.write(f"{folder} is left: it holds files that are not of `{place.program} install`\n")


def _identity(start: argparse.Namespace) -> tuple[str, bytes]:
    """Find out who the device is, and its identity as a bundle; b"" for one without."""
    with tempfile.TemporaryDirectory() as scratch:
        if start.identity is not None and not start.identity.is_dir():
            who = identity.install(start.identity, Path(scratch) / "identity")  # checked, and kept nowhere
            if start.id not in (None, who.name):
                raise ConfigError(f"--identity {start.identity}: that is {who.name!r}, not {start.id!r}")
        else:
            found = identity_of(start, start.id)
            if found is None and start.id is None:
                raise ConfigError(
                    "who is this device? give `-- --identity FILE`, of `edge-coordinator device enroll`, or --id"
                )
            if found is None:
                return check_name(start.id, "--id"), b""
            who = found
        folder = who.key.parent
        return who.name, identity.pack({name: (folder / name).read_bytes() for name in identity.FILES})


def _out_of_reach(folder: Path, user: str) -> str:
    """Say why a service of this user ("": of its own) could not read a folder; "": it can, or this is none."""
    if not folder.is_dir():
        return ""
    if unit.is_hidden(folder):
        return f"--data {folder}: a service cannot see what lies there: move it under /srv, say"
    shut = None if user else closed(folder.absolute())
    if shut is None:
        return ""
    return (
        f"--data {folder}: the service runs as a user of its own, who may not read {shut}: "
        f"`chmod o+rX {shut}`, or name with --user who may"
    )


def closed(folder: Path) -> Path | None:
    """Name what keeps a stranger from reading all of a folder; None: nothing."""
    for path in (*reversed(folder.parents), folder, *sorted(folder.rglob("*"))):
        mode = path.stat().st_mode
        enough = stat.S_IXOTH if path in folder.parents else stat.S_IROTH
        if stat.S_ISDIR(mode) and path not in folder.parents:
            enough |= stat.S_IXOTH
        if mode & enough != enough:
            return path
    return None
