"""`edge-agent`: what a person types on a device."""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__, coding, config
from edge_runtime.agent import Agent
from edge_runtime.command_line import EXIT_CODES, Parser, add_command, run_command, subcommands, until_signal
from edge_runtime.completion_cli import add_completion, complete
from edge_runtime.compute import Compute, usual
from edge_runtime.doctor_cli import add_doctor
from edge_runtime.errors import ConfigError
from edge_runtime.flags import add_compute, add_data, compute_table, data_table, limit
from edge_runtime.infer_cli import add_infer
from edge_runtime.link import wait_for
from edge_runtime.link_cli import add_enroll, add_identity, add_link, fleet_of, identity_of, link
from edge_runtime.measure_cli import add_measuring
from edge_runtime.message import MAX_ALGORITHM, MAX_ALGORITHMS, Hello, check_name
from edge_runtime.mqtt import Mqtt
from edge_runtime.notify import Notifier
from edge_runtime.own import is_module
from edge_runtime.service_cli import INSTALL_EXAMPLES, UNIT_EXAMPLES, add_services
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Job, ProcessTrainer

if TYPE_CHECKING:
    from edge_runtime.identity import Identity
    from edge_runtime.seal import Seals

_EPILOG = f"""examples:
  edge-agent enroll gateway-7.edge          # become a member of a fleet
  edge-agent start --data /var/lib/sensors  # train whatever is asked for
  edge-agent start --help                   # each command explains itself

{EXIT_CODES}"""
_START_EXAMPLES = """examples:
  edge-agent start --data /var/lib/sensors         # after `edge-agent enroll gateway-7.edge`
  edge-agent start --id gateway-7 -h broker.lan --cafile broker.pem -u sensors -P secret --data /var/lib/sensors
  edge-agent start --id left-wrist -h 127.0.0.1 -p 1883 --data watch --part 3 --labels-per-class 5
  edge-agent start --data my_project.data:Sensor --allow-algorithm my_project.fedmine

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `edge-agent`."""
    program = parser()
    if config.asked_by_shell():
        complete(program)
    options = program.parse_args(arguments)
    run_command(options, "edge-agent")


def parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    program = Parser("edge-agent", description="Train on this device what a coordinator asks for.", epilog=_EPILOG)
    program.add_argument("--version", action="version", version=__version__)
    commands = subcommands(program)
    _add_start(commands)
    add_enroll(commands)
    add_infer(commands)
    add_measuring(commands)
    add_doctor(commands, _add_start_flags, _job)
    add_services(commands, "edge-agent", _unit, _install, (UNIT_EXAMPLES, INSTALL_EXAMPLES))
    add_completion(commands, "edge-agent")
    return program


def _add_start(commands: Any) -> None:
    _add_start_flags(add_command(commands, "start", "Serve a coordinator until stopped", _START_EXAMPLES, _start))


def _add_start_flags(start: argparse.ArgumentParser) -> None:
    start.add_argument(
        "--id", metavar="ID", help="name of this device, unique in the fleet (not needed where one was enrolled)"
    )
    add_identity(start)
    start.add_argument("--store", type=Path, metavar="DIR", help="where this device keeps its state")
    start.add_argument("--wait", action="store_true", help="for a broker that is not there yet, instead of giving up")
    start.add_argument(
        "--warm", action="store_true", help="keep the trainer process between rounds: faster, more memory"
    )
    start.add_argument(
        "--allow-model", action="append", default=[], metavar="MODULE:FACTORY", help="model code that may be imported"
    )
    start.add_argument(
        "--allow-algorithm",
        action="append",
        default=[],
        type=_own_algorithm,
        metavar="MODULE",
        help="algorithm of yours that tasks may have: package.module, installed here; repeatable",
    )
    group = start.add_argument_group(
        "wire", "cheaper ways than the run's: bf16 or step:S, and bits:B of updates and posteriors"
    )
    group.add_argument("--up", default="", metavar="CODING", help="how updates travel (default: as the run says)")
    group.add_argument("--down", default="", metavar="CODING", help="how the model travels (default: as the run says)")
    limits = start.add_argument_group("limits", "beside --memory-mb; what takes more is not sent here")
    limits.add_argument("--step-ms", type=limit, default=0, metavar="N", help="longest step of training (default any)")
    limits.add_argument(
        "--round-kb", type=limit, default=0, metavar="N", help="most kB of messages for a round (default any)"
    )
    add_compute(start)
    add_data(start)
    add_link(start)


def _own_algorithm(text: str) -> str:
    if not is_module(text) or len(text) > MAX_ALGORITHM:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a module, my_project.fedmine say")
    return text


def _start(options: argparse.Namespace) -> None:
    who = identity_of(options, options.id)
    if who is None and options.id is None:
        raise ConfigError("--id is missing: name this device, or enrol it with `edge-agent enroll FILE`")
    device = who.name if who else check_name(options.id, "--id")
    fleet = fleet_of(options, who)
    job = _job(options, device)
    if len(options.allow_algorithm) > MAX_ALGORITHMS:
        raise ConfigError(f"--allow-algorithm: at most {MAX_ALGORITHMS} are taken, not {len(options.allow_algorithm)}")
    for flag in ("up", "down"):
        if getattr(options, flag):
            coding.parse(getattr(options, flag), f"--{flag}")
    folder = options.store or config.state_folder() / "devices" / device
    store = FileStore(folder)
    trainer = ProcessTrainer(job, folder, options.warm)
    hello = _hello(options, trainer.check())
    where, asked = link(options, device, who), until_signal()
    if options.wait and not wait_for(where, asked):
        store.close()
        return
    transport = Mqtt(where)
    with Notifier(*config.service_manager()) as notifier:

        def stop() -> bool:  # asked on every turn of the agent's loop
            notifier.beat(transport.alive())
            return asked()

        try:
            Agent(fleet, device, store, trainer, transport, hello, _seals(who)).run(stop)
        finally:
            store.close()


def _job(options: argparse.Namespace, device: str) -> Job:
    return {
        "device": device,
        "data": data_table(options),
        "cache": str(config.cache_folder()),
        "compute": compute_table(options),
        "factories": options.allow_model,
        "algorithms": options.allow_algorithm,
        "up": options.up,
    }


def _unit(options: argparse.Namespace) -> None:
    from edge_runtime.service import agent_unit
    from edge_runtime.unit import render

    start = parser().parse_args(["start", *options.arguments])
    name = check_name(start.id, "--id") if start.id else None
    sys.stdout.write(render(agent_unit(options, start, name)))


def _install(options: argparse.Namespace) -> None:
    from edge_runtime.service import install_agent

    install_agent(options, parser().parse_args(["start", *options.arguments]))


def _seals(who: "Identity | None") -> "Seals | None":
    """Make what a device with an identity seals by."""
    if who is None or who.coordinator is None:
        return None
    from edge_runtime import seal

    return seal.seals(who.fleet, who.name, who.key, who.coordinator)


def _hello(options: argparse.Namespace, found: dict[str, float]) -> Hello:
    """Say who this is, what it has for tasks (as the trainer found), and what it allows them."""
    return Hello(
        boot=secrets.token_hex(8),
        down=options.down,
        backend=usual(config.build(Compute, compute_table(options), "compute")),
        room=int(found["room-bytes"]),
        reference_us=round(1000 * found["reference-ms"]),
        step_ms=options.step_ms,
        round_bytes=1000 * options.round_kb,
        algorithms=tuple(options.allow_algorithm),
    )


if __name__ == "__main__":
    main()
