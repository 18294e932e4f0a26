"""The flags of a connection to a broker, and who a device is there: `edge-agent enroll`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_runtime import config, identity
from edge_runtime.command_line import add_command, add_host, whole
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.identity import Identity
from edge_runtime.link import Link
from edge_runtime.message import check_name
from edge_runtime.quota import ANY, AWS

_HOST, _PORT, FLEET = "127.0.0.1", 1883, "default"
_ENROLL_EXAMPLES = """examples:
  edge-coordinator device enroll gateway-7         # where the fleet is kept: writes gateway-7.edge
  edge-agent enroll gateway-7.edge                 # on the device, with that file
  edge-agent enroll --request gateway-7            # or before: makes the key here, and gateway-7.csr to ask with
  edge-agent start --data /var/lib/sensors         # needs no flags for the broker, nor a name, any more

"""


def add_link(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a connection to a broker, named as mosquitto_pub names them."""
    known = "what an identity (`edge-agent enroll`) says already can be left out"
    group = add_host(parser, "broker", known, meaning=f"broker's host (default {_HOST})")
    group.add_argument(
        "-p", "--port", type=whole(1, 65_535), metavar="N", help=f"broker's port (default {_PORT}; with TLS often 8883)"
    )
    group.add_argument("-u", "--username", metavar="NAME", help="user name at the broker")
    group.add_argument("-P", "--password-file", type=Path, metavar="FILE", help="file that holds the password")
    group.add_argument(
        "--cafile", type=Path, metavar="FILE", help="certificates that the broker's must be signed by: turns TLS on"
    )
    group.add_argument("--cert", type=Path, metavar="FILE", help="certificate of this device")
    group.add_argument("--key", type=Path, metavar="FILE", help="private key of this device")
    group.add_argument("--insecure", action="store_true", help="speak in clear with a broker on another machine")
    group.add_argument("--profile", choices=("aws",), help="keep to what AWS IoT lets a client publish in a second")
    group.add_argument("--fleet", metavar="NAME", help=f"name of the fleet (default: {FLEET})")


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says who a device is."""
    what = "what `edge-coordinator device enroll` made, or the folder of `edge-agent enroll`"
    parser.add_argument("--identity", type=Path, metavar="FILE|DIR", help=what)


def link(options: argparse.Namespace, client_id: str, who: Identity | None = None) -> Link:
    """Read a connection from the flags; what they do not say is as the identity, if there is one, has it.

    Raises:
        ConfigError: the password file cannot be read.
    """
    try:
        password = options.password_file.read_text().strip() if options.password_file else None
    except OSError as error:
        raise config.unreadable(options.password_file, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--password-file {options.password_file}: no text: {error}") from error
    host = options.host or (who and who.host) or _HOST
    port = options.port if options.port is not None else (who and who.port) or _PORT
    settings: dict[str, Any] = {"username": options.username, "password": password, "insecure": options.insecure}
    settings["quota"] = AWS if options.profile else ANY
    if who is not None and not (options.cafile or options.insecure):
        settings |= {"cafile": str(who.authority), "cert": str(who.certificate), "key": str(who.key)}
        return Link(host, port, who.name, **settings, issued_s=who.issued_s)
    settings |= {name: str(getattr(options, name)) for name in ("cafile", "cert", "key") if getattr(options, name)}
    return Link(host, port, client_id, **settings)


def fleet_of(options: argparse.Namespace, who: Identity | None) -> str:
    """Name the fleet: as the flag says, else the identity.

    Raises:
        ConfigError: that cannot be a name, or they differ.
    """
    if who is not None and options.fleet not in (None, who.fleet):
        raise ConfigError(f"--fleet {options.fleet}: the identity of {who.name!r} is one in fleet {who.fleet!r}")
    return check_name(options.fleet or (who.fleet if who else FLEET), "--fleet")


def identity_of(options: argparse.Namespace, name: str | None) -> Identity | None:
    """Find out who a device is: by `--identity`, by its name, or because only one device was enrolled here.

    Raises:
        ConfigError: an identity that cannot be read, or is somebody else's.
    """
    if options.identity is not None:
        found = identity.load(options.identity) if options.identity.is_dir() else _installed(options.identity)
        if name not in (None, found.name):
            raise ConfigError(f"--identity {options.identity}: that is {found.name!r}, not {name!r}")
        return found
    held = _folder()
    if name is not None:
        return identity.load(held / name) if (held / check_name(name, "--id")).exists() else None
    names = sorted(path.name for path in held.glob("*") if not path.name.startswith("."))
    if len(names) > 1:
        raise ConfigError(f"--id is missing: {', '.join(names[:8])} were enrolled here")
    return identity.load(held / names[0]) if names else None


def _folder() -> Path:
    return config.state_folder() / "identities"


def _installed(bundle: Path) -> Identity:
    """Put a bundle where identities lie, unless its content is there already."""
    folder = _folder() / identity.name_in(bundle)
    return identity.load(folder) if identity.holds(folder, bundle) else identity.install(bundle, folder)


def add_enroll(commands: Any) -> None:
    """Add `edge-agent enroll`."""
    summary = "Become a member of a fleet, by what `edge-coordinator device enroll` made"
    enroll = add_command(commands, "enroll", summary, _ENROLL_EXAMPLES, _enroll)
    what = enroll.add_mutually_exclusive_group(required=True)
    what.add_argument("bundle", type=Path, nargs="?", metavar="FILE", help="what was made for this device")
    what.add_argument(
        "--request", metavar="ID", help="make the key here, and ID.csr: for `edge-coordinator device enroll --request`"
    )
    enroll.add_argument("--identity", type=Path, metavar="DIR", help="where to keep it (default: with what else lasts)")
    enroll.add_argument("--json", action="store_true", help="for scripts")


def _enroll(options: argparse.Namespace) -> None:
    if options.request is not None:
        _ask(options.request, options.json)
        return
    name = identity.name_in(options.bundle)
    asked = _key_asked_with(name)
    own_key = asked.read_bytes() if asked.exists() else b""
    found = identity.install(options.bundle, options.identity or _folder() / name, own_key)
    if found.key.read_bytes() == own_key:
        asked.unlink()
    if options.json:
        known = {"device": found.name, "fleet": found.fleet, "host": found.host, "port": found.port}
        sys.stdout.write(json.dumps(known) + "\n")
        return
    sys.stdout.write(
        f"this device is {found.name} in fleet {found.fleet}, with a broker at {found.host}:{found.port}; "
        f"remove {options.bundle} now: it may hold the private key\n"
    )


def _ask(name: str, as_json: bool) -> None:
    """Make a key that stays here, and what to ask for a certificate with."""
    from edge_runtime import request

    key, asks = request.make(name)
    path = _key_asked_with(name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, key, mode=0o600)
    write_atomic(Path(f"{name}.csr"), asks)
    if as_json:
        sys.stdout.write(json.dumps({"device": name, "request": f"{name}.csr"}) + "\n")
        return
    sys.stdout.write(f"{name}.csr: for `edge-coordinator device enroll {name} --request {name}.csr`\n")


def _key_asked_with(name: str) -> Path:
    return _folder() / f".{name}.key"
