"""`edge-coordinator dashboard`."""

import argparse
import contextlib
import ipaddress
import logging
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import config
from edge_runtime.command_line import add_command, add_host, whole
from edge_runtime.coordinator.device_cli import add_fleet_folder, fleet_of
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic

if TYPE_CHECKING:
    from edge_runtime.coordinator.dashboard.acting import Acting

log = logging.getLogger(__name__)

PORT = 8642
_LOOPBACK = "127.0.0.1"
_TABLES = ("run", "algorithm", "data", "variant")
_EXAMPLES = """examples:
  edge-coordinator dashboard                           # the runs in ./runs, for this machine
  edge-coordinator dashboard --runs /srv/runs --read-only
  edge-coordinator dashboard --config run.toml -- -h broker.lan --fleet-folder fleet
  edge-coordinator dashboard -h 0.0.0.0 --cert server.pem --key server.key --name server.lan

What follows `--` is what `edge-coordinator start` and `run resume` are to be told when a run is started or goes on from
the page: the broker, mostly. A token is in the address that is printed wherever something can be done, or others than
this machine can reach it; it stays the same from one start to the next.

"""
Parse = Callable[[list[str]], argparse.Namespace]


def add_dashboard(commands: Any, parse: Parse) -> None:
    """Add the command; `parse` reads the command line of another."""
    parser = add_command(commands, "dashboard", "Show runs and devices in a browser", _EXAMPLES, _dashboard)
    parser.set_defaults(parse=parse)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default runs)")
    where = add_host(parser, "where", meaning=f"address to listen on (default {_LOOPBACK})")
    port = f"port (default {PORT}, or any that is free)"
    where.add_argument("-p", "--port", type=whole(0, 65_535), metavar="PORT", help=port)
    where.add_argument("--name", action="append", default=[], help="host name by which it is reached; repeatable")
    where.add_argument("--cert", type=Path, metavar="FILE", help="certificate, PEM: turns TLS on")
    where.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    where.add_argument("--insecure", action="store_true", help="speak in clear with other machines")
    parser.add_argument("--read-only", action="store_true", help="show, and let nothing be started or stopped")
    parser.add_argument(
        "--config", type=Path, action="append", default=[], metavar="FILE", help="a run that may be started; repeatable"
    )
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="of start and run resume")
    add_fleet_folder(parser)


def _dashboard(options: argparse.Namespace) -> None:
    options.host = options.host or _LOOPBACK
    _check(options)
    try:
        import uvicorn

        from edge_runtime.coordinator.dashboard import app
        from edge_runtime.coordinator.dashboard.fleet import Roster
        from edge_runtime.coordinator.dashboard.guard import Door
    except ImportError as error:
        needs = "pip install 'edge-runtime[dashboard]'"
        raise ConfigError(f"the dashboard needs {error.name}; run: {needs}") from error
    reachable = not _is_loopback(options.host)
    token = "" if options.read_only and not reachable else _token()
    names = {"localhost", options.host, socket.gethostname(), *options.name}
    door = Door(frozenset(name.lower() for name in names), token, options.cert is not None)
    served = app.build(options.runs, door, Roster(fleet_of(options)), _acting(options))
    with contextlib.closing(_listen(options.host, options.port)) as place:
        port = place.getsockname()[1]
        how = "https" if options.cert else "http"
        name = next(iter(options.name), socket.gethostname() if _is_any(options.host) else options.host)
        shown = f"[{name}]" if ":" in name else name
        address = f"{how}://{shown}:{port}/" + (f"?token={token}" if token else "")
        sys.stdout.write(f"{address} shows {options.runs}; Ctrl-C stops the dashboard, and no run\n")
        sys.stdout.flush()
        settings = uvicorn.Config(
            served,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=options.cert,
            ssl_keyfile=options.key,
        )
        with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
            uvicorn.Server(settings).run(sockets=[place])


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be, or should not be without being asked for."""
    if bool(options.cert) != bool(options.key):
        raise ConfigError("--cert and --key go together")
    if not _is_loopback(options.host) and not (options.cert or options.insecure):
        raise ConfigError(
            f"-h {options.host}: other machines could read along; give --cert and --key, or --insecure for in clear"
        )
    if options.runs.exists() and not options.runs.is_dir():
        raise ConfigError(f"{options.runs}: no folder")
    for path in (options.cert, options.key):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path}: no such file")


def _acting(options: argparse.Namespace) -> "Acting | None":
    """Prepare what can be done from the pages; a wrong flag or file is found here, not when somebody clicks."""
    from edge_runtime.coordinator.dashboard.acting import Acting

    if options.read_only:
        if options.config or options.arguments:
            raise ConfigError("--read-only: nothing can be started, so leave --config and what follows -- out")
        return None
    fleet = ["--fleet-folder", str(options.fleet_folder)] if options.fleet_folder else []
    arguments = [*options.arguments, *fleet]
    for command in (["start"], ["run", "resume"]):
        options.parse([*command, *arguments])
    files = {path.stem: path.resolve() for path in options.config}
    if len(files) < len(options.config):
        raise ConfigError("--config: two files of the same name; rename one")
    for path in options.config:
        config.read(path, _TABLES)
    return Acting(options.runs, files, arguments)


def _token() -> str:
    """Give the token, the same from one start to the next, which only this user can read."""
    path = config.state_folder() / "dashboard-token"
    try:
        held = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        held = ""
    if len(held) < 32 or not held.isalnum():
        held = secrets.token_hex(16)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, held.encode(), mode=0o600)
    return held


def _listen(host: str, port: int | None) -> socket.socket:
    """Open the port; where none was named and the usual one is taken, any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for number in (port,) if port is not None else (PORT, 0):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            last = error
    raise ConfigError(f"{host}:{port or PORT}: cannot listen there: {last}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
