"""What is done with a fleet: `edge-coordinator fleet`, `device`, `broker` and `broker-config`."""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import config, identity
from edge_runtime.command_line import Run, add_command, add_group, add_host, offer, subcommands, until_signal, whole
from edge_runtime.coordinator import broker
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomic
from edge_runtime.link import Link

if TYPE_CHECKING:
    from edge_runtime.coordinator.pki import Fleet

_PORT = 1883
_EVERYWHERE = "0.0.0.0"  # noqa: S104  # with the fleet's TLS
_FLEET_EXAMPLES = """examples:
  edge-coordinator fleet init --host broker.lan --host 192.168.1.5
  edge-coordinator fleet hosts broker.lan 10.0.0.5     # another certificate for the broker; start it anew

"""
_DEVICE_EXAMPLES = """examples:
  edge-coordinator device enroll gateway-7             # writes gateway-7.edge, to be carried to the device
  edge-coordinator device enroll gateway-7 --again     # a new key; what it had before is revoked
  edge-coordinator device enroll gateway-7 --request gateway-7.csr   # of `edge-agent enroll --request gateway-7`
  edge-coordinator device list
  edge-coordinator device revoke gateway-7

"""
_INIT_EXAMPLES = """examples:
  edge-coordinator fleet init --host broker.lan
  edge-coordinator fleet init --name plant-3 --host broker.lan --host 192.168.1.5 --port 8884
"""
_HOSTS_EXAMPLES = """examples:
  edge-coordinator fleet hosts broker.lan 10.0.0.5     # start the broker anew afterwards
"""
_ENROLL_EXAMPLES = """examples:
  edge-coordinator device enroll gateway-7 --host broker.lan   # makes the fleet too, where there is none
  edge-coordinator device enroll gateway-7 gateway-8 --out bundles/
  edge-coordinator device enroll gateway-7 --again     # a new key; what it had before is revoked
  edge-coordinator device enroll gateway-7 --request gateway-7.csr   # of `edge-agent enroll --request gateway-7`
"""
_LIST_EXAMPLES = """examples:
  edge-coordinator device list
  edge-coordinator device list --json
"""
_REVOKE_EXAMPLES = """examples:
  edge-coordinator device revoke gateway-7
"""
_CONFIG_EXAMPLES = """examples:
  edge-coordinator broker-config --out mosquitto/      # to be copied to /etc/mosquitto/edge of the broker's machine

After `device revoke` make and copy it again, and then: systemctl reload mosquitto

"""
_BROKER_EXAMPLES = """examples:
  edge-coordinator broker                # with a fleet: TLS, for all machines; without one: in clear, for this one
  edge-coordinator broker -h 127.0.0.1 -p 8883

"""


def add_fleet_folder(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where the fleet is kept."""
    parser.add_argument("--fleet-folder", type=Path, metavar="DIR", help="who belongs to the fleet (default fleet)")


def fleet_of(options: argparse.Namespace) -> "Fleet | None":
    """Open the fleet; None where no folder was named and the usual one is not there.

    Raises:
        ConfigError: it cannot be read, or what it takes is not installed.
    """
    folder = options.fleet_folder or Path("fleet")
    if options.fleet_folder is None and not (folder / "fleet.toml").exists():
        return None
    fleet: Fleet = _pki().Fleet(folder)
    return fleet


def _pki() -> Any:
    try:
        from edge_runtime.coordinator import pki
    except ImportError as error:
        raise ConfigError(f"a fleet needs {error.name}; run: pip install 'edge-runtime[coordinator]'") from error
    return pki


def _needed(options: argparse.Namespace) -> "Fleet":
    fleet = fleet_of(options)
    if fleet is None:
        raise ConfigError("no fleet in ./fleet: make one with `edge-coordinator fleet init`, or give --fleet-folder")
    return fleet


def add_fleet_commands(commands: Any) -> None:
    """Add all of them."""
    what = subcommands(add_group(commands, "fleet", "Make the authority of a fleet", _FLEET_EXAMPLES))
    summary = "Make a fleet: an authority, and certificates of its broker and coordinator"
    _add_init(init := _sub(what, "init", summary, _INIT_EXAMPLES, _init))
    hosts = "Make the broker another certificate, for these names and addresses"
    _sub(what, "hosts", hosts, _HOSTS_EXAMPLES, _hosts).add_argument("hosts", nargs="+", metavar="HOST")
    what = subcommands(add_group(commands, "device", "Say which devices belong to the fleet", _DEVICE_EXAMPLES))
    _add_enroll(enroll := _sub(what, "enroll", "Make devices members of the fleet", _ENROLL_EXAMPLES, _enroll))
    listing = _sub(what, "list", "Show which devices were enrolled, and how they stand", _LIST_EXAMPLES, _list)
    listing.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="whose devices said what they are (default runs)"
    )
    revoke = _sub(what, "revoke", "Take devices out of the fleet, for good", _REVOKE_EXAMPLES, _revoke)
    offer(revoke.add_argument("ids", nargs="+", metavar="ID"), _enrolled)
    for parser in (init, enroll, listing, revoke):
        parser.add_argument("--json", action="store_true", help="for scripts")
    summary = "Run an MQTT broker on this machine until Ctrl-C"
    _add_broker(_sub(commands, "broker", summary, _BROKER_EXAMPLES, _broker))
    summary = "Write what a Mosquitto needs to be the fleet's broker"
    _add_config(_sub(commands, "broker-config", summary, _CONFIG_EXAMPLES, _config))


def _enrolled() -> list[str]:
    """Name the devices of the fleet in its usual folder."""
    fleet = _pki().Fleet(Path("fleet"))
    return [member.name for member in fleet.members() if member.state != "revoked"]


def _sub(commands: Any, name: str, summary: str, examples: str, run: Run) -> Any:
    parser = add_command(commands, name, summary, examples, run)
    add_fleet_folder(parser)
    return parser


def _add_init(parser: Any) -> None:
    parser.add_argument("--name", default="default", help="name of the fleet (default: default)")
    parser.add_argument(
        "--host", action="append", default=[], help="name or address of the broker as devices see it; repeatable"
    )
    parser.add_argument("-p", "--port", type=whole(1, 65_535), metavar="N", help="port of the broker (default 8883)")


def _init(options: argparse.Namespace) -> None:
    fleet = _create(options)
    if options.json:
        made = {"fleet": fleet.name, "folder": str(fleet.folder), "host": fleet.host, "port": fleet.port}
        sys.stdout.write(json.dumps(made) + "\n")
        return
    sys.stdout.write(
        f"fleet {fleet.name} in {fleet.folder}, with a broker at {fleet.host}:{fleet.port}. Keep "
        f"{fleet.folder / 'authority'} to yourself: who has it can enrol anybody\n"
    )


def _create(options: argparse.Namespace) -> "Fleet":
    pki = _pki()
    port = pki.PORT if options.port is None else options.port
    fleet: Fleet = pki.create(options.fleet_folder or Path("fleet"), options.name, options.host, port)
    return fleet


def _hosts(options: argparse.Namespace) -> None:
    fleet = _needed(options)
    fleet.certify_broker(options.hosts)
    sys.stdout.write(f"{fleet.broker / identity.CERTIFICATE} is another now: start the broker anew\n")


def _add_enroll(parser: Any) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="names of devices, unique in the fleet")
    parser.add_argument("--out", type=Path, metavar="FILE|DIR", help="where the bundles go (default ID.edge)")
    parser.add_argument("--days", type=int, metavar="N", help="how long the certificate is good for (default 730)")
    parser.add_argument("--again", action="store_true", help="for a device that is enrolled: revoke, and make anew")
    parser.add_argument(
        "--request", type=Path, metavar="FILE", help="of a device that makes its key itself: its ID.csr"
    )
    group = parser.add_argument_group("where there is no fleet yet, it is made, as by `fleet init`")
    _add_init(group)


def _enroll(options: argparse.Namespace) -> None:
    request, made = _request(options), {}
    if not ((options.fleet_folder or Path("fleet")) / "fleet.toml").exists():
        if not options.host:
            raise ConfigError("there is no fleet yet: say with --host where devices will find its broker")
        fleet = _create(options)
    else:
        fleet = _needed(options)
        if options.host:
            raise ConfigError("--host: the fleet has a broker already: see `edge-coordinator fleet hosts`")
    for name in options.ids:
        path = _bundle_path(options, name)
        days: dict[str, int] = {} if options.days is None else {"days": options.days}
        write_atomic(path, fleet.enroll(name, again=options.again, request=request, **days), mode=0o600)
        made[name] = str(path)
        if not options.json:
            sys.stdout.write(f"{path}: carry it to {name}, and there: edge-agent enroll {path.name}\n")
    if options.json:
        sys.stdout.write(json.dumps({"fleet": fleet.name, "bundles": made}) + "\n")


def _request(options: argparse.Namespace) -> bytes:
    if options.request is None:
        return b""
    if len(options.ids) > 1:
        raise ConfigError("--request is that of one device, and more than one ID was given")
    try:
        with options.request.open("rb") as file:
            return bytes(file.read(identity.MAX_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"--request {options.request}: cannot be read: {error.strerror}") from error


def _bundle_path(options: argparse.Namespace, name: str) -> Path:
    if options.out is None:
        return Path(f"{name}.edge")
    if options.out.is_dir():
        return Path(options.out / f"{name}.edge")
    if len(options.ids) > 1:
        raise ConfigError(f"--out {options.out}: no folder, and more than one device")
    return Path(options.out)


def _list(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator import profiles

    members, told = _needed(options).members(), profiles.newest(options.runs)
    if options.json:
        listed = [{**asdict(member), "profile": told.get(member.name)} for member in members]
        sys.stdout.write(json.dumps(listed) + "\n")
        return
    for member in members:
        sys.stdout.write(f"{member.name:<24} {member.state:<9} until {member.expires}  serial {member.serial}\n")
        if member.name in told:
            sys.stdout.write(f"{'':<24} {profiles.line(told[member.name])}\n")


def _revoke(options: argparse.Namespace) -> None:
    fleet = _needed(options)
    for name in options.ids:
        fleet.revoke(name)
        if not options.json:
            sys.stdout.write(f"{name} is out of fleet {fleet.name}\n")
    if options.json:
        sys.stdout.write(json.dumps({"fleet": fleet.name, "revoked": options.ids}) + "\n")


def _add_broker(parser: Any) -> None:
    parser.add_argument("--kind", default="auto", choices=broker.KINDS, help="auto, mosquitto or amqtt (default auto)")
    parser.add_argument("--insecure", action="store_true", help="in clear, and for anybody, whoever can reach it")
    group = add_host(parser, "address", meaning="to listen on (default: all with a fleet, 127.0.0.1 without)")
    group.add_argument(
        "-p", "--port", type=whole(0, 65_535), metavar="N", help="port (default: as the fleet says; 1883 without one)"
    )


def _broker(options: argparse.Namespace) -> None:
    fleet = None if options.insecure else fleet_of(options)
    stop = until_signal()
    with begin(options.kind, options, fleet) as running:
        how = f"TLS, for fleet {fleet.name}" if fleet else "in clear"
        sys.stdout.write(f"{running.kind} listens on {running.host}:{running.port} ({how}); Ctrl-C stops it\n")
        sys.stdout.flush()
        while not stop():
            time.sleep(0.2)
            running.check()


def begin(kind: str, options: argparse.Namespace, fleet: "Fleet | None") -> broker.Broker:
    """Start a broker as the flags say, `-h` and `-p` being where it listens; see `broker.start`."""
    host = options.host or (_EVERYWHERE if fleet else "127.0.0.1")
    port = options.port if options.port is not None else (fleet.port if fleet else _PORT)
    folder = config.state_folder() / "broker"
    return broker.start(kind, host, port, folder=folder, fleet=fleet, insecure=options.insecure)


def beside(running: broker.Broker, connection: Link) -> Link:
    """Change a connection to one with a broker on this machine, whose certificate is good for loopback too."""
    host = "127.0.0.1" if running.host == _EVERYWHERE else running.host
    return replace(connection, host=host, port=running.port)


def _add_config(parser: Any) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    at = Path("/etc/mosquitto/edge")
    parser.add_argument("--at", type=Path, default=at, metavar="DIR", help=f"... and are copied to (default {at})")


def _config(options: argparse.Namespace) -> None:
    fleet = _needed(options)
    from edge_runtime.coordinator import broker_config

    broker_config.export(fleet, options.out, options.at)
    sys.stdout.write(
        f"on the broker's machine, with {options.out} there:\n"
        f"  sudo install -d -o mosquitto -m 700 {options.at}\n"
        f"  sudo install -o mosquitto -m 600 {options.out}/* {options.at}\n"
        f"  sudo install -D {options.out}/unit.conf /etc/systemd/system/mosquitto.service.d/edge.conf\n"
        "  sudo systemctl daemon-reload && sudo systemctl restart mosquitto\n"
    )
