"""`edge-coordinator`: what a person types on a server."""

import argparse
import contextlib
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__, algorithm, config, identity
from edge_runtime.command_line import EXIT_CODES, Parser, add_command, offer, run_command, subcommands
from edge_runtime.completion_cli import add_completion, complete
from edge_runtime.coordinator import broker, device_cli, exporting, reports_cli, run_cli
from edge_runtime.coordinator.bench_cli import add_bench
from edge_runtime.coordinator.dashboard.cli import add_dashboard
from edge_runtime.coordinator.device_cli import add_fleet_commands, add_fleet_folder, fleet_of
from edge_runtime.coordinator.doctor_cli import add_doctor
from edge_runtime.coordinator.new import add_new
from edge_runtime.coordinator.watch_cli import add_grafana, add_watching, watching
from edge_runtime.errors import ConfigError
from edge_runtime.flags import add_compute, add_data, compute_table, data_table
from edge_runtime.link_cli import add_link, link
from edge_runtime.link_cli import fleet_of as fleet_name
from edge_runtime.notify import Notifier
from edge_runtime.service_cli import add_services

if TYPE_CHECKING:
    from edge_runtime.unit import Unit

_EPILOG = f"""examples:
  edge-coordinator demo                    # all of it on this machine: a broker, 20 agents, a report
  edge-coordinator start --rounds 10 --set run.devices=3
  edge-coordinator run list
  edge-coordinator start --help            # each command explains itself

{EXIT_CODES}"""
_TABLES = ("run", "algorithm", "data", "variant")
# What half a step costs is in docs/wire.md.
_CODED = {"up": "step:0.5", "down": "step:0.5"}
# What the watch data and its small model train well with, on either side of a comparison.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "run": {"rounds": 10, **_CODED},
    "algorithm": {"lr": 0.05, "local-steps": 20, "batch-size": 16},
    "data": {},
}
# What each algorithm is meant for, on those data: devices of several bits, delays, architectures that differ.
_USUAL: dict[str, dict[str, dict[str, Any]]] = {
    "quped": {
        "variant": {
            "one-bit": {"devices": "person-0[1-3]-*", "bits": 1},
            "four-bit": {"devices": "person-*-right", "bits": 4, "model": "watch-cnn-small"},
        },
    },
    "persafl": {
        "algorithm": {
            "option": "C",
            "attraction": 1.0,
            "inner-lr": 0.1,
            "lr": 0.5,
            "server-lr": 0.1,
            "local-steps": 20,
        },
    },
    "ffgg": {"algorithm": {"variant": "local", "private-lr": 0.05}},
    "fedh2l": {
        "run": {"seed-samples": 140, "up": "bits:6"},
        "variant": {
            "small": {"devices": "person-*[147]-*", "model": "watch-cnn-small"},
            "mlp": {"devices": "person-*[258]-*", "model": "watch-mlp"},
        },
    },
}
_DEMO_EXAMPLES = """examples:
  edge-coordinator demo
  edge-coordinator demo --rounds 20 --labels-per-class 5
  edge-coordinator demo --algorithm quped --set variant.one-bit.bits=2
  edge-coordinator demo --algorithm persafl --set run.buffer=5

"""
_SIMULATE_EXAMPLES = """examples:
  edge-coordinator simulate --rounds 20
  edge-coordinator simulate --data fashion-mnist --parts 100 --model lenet --set run.cohort=10
  edge-coordinator simulate --config study.toml --set algorithm.density=0.2 --json
  edge-coordinator simulate --model my_project.models:net --set run.input=3x50 --data my_project.data:Sensor

"""
_EXPORT_EXAMPLES = """examples:
  edge-coordinator export --model my_models:net --input 3x32x32 --out bundles/net
  edge-coordinator export --model my_models:net --input 3x32x32 --width 0.5 --width 0.25 --out bundles/net
  edge-coordinator export --model my_models:net --input 3x32x32 --width 0.5 --by taylor --data mine/ --out bundles/net
  edge-coordinator export --model my_models:text --input 64 --type int64 --private 'head.*' --out bundles/text
  edge-coordinator simulate --model bundles/net --data my_data/

"""
_START_EXAMPLES = """examples:
  edge-coordinator start --config run.toml --folder runs/first       # with the fleet in ./fleet
  edge-coordinator start --config run.toml -h broker.lan --cafile broker.pem -u coordinator -P secret
  edge-coordinator start --rounds 10 --set run.devices=3 --set algorithm.density=0.5
  edge-coordinator start --config run.toml --metrics 9464 --log json
  edge-coordinator start --broker auto --rounds 10     # and the fleet's broker, as by `edge-coordinator broker`

The same command again goes on with a run that was interrupted.
"""
_UNIT_EXAMPLES = """examples:
  edge-coordinator unit --memory-mb 1000 -- --config /etc/edge/run.toml --fleet-folder /var/lib/edge-coordinator/fleet

What follows `--` is what `edge-coordinator start` is to be told. Files of --cafile, --cert, --key and --password-file
are read by systemd and handed over.

"""


_INSTALL_EXAMPLES = """examples:
  edge-coordinator install -- --config /etc/edge/run.toml
  edge-coordinator install --dry-run --memory-mb 1000 -- --rounds 20

What follows `--` is what `edge-coordinator start` is to be told. Run it again
to change that: state stays.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `edge-coordinator`."""
    sys.path.append("")  # code of one's own is also found in the folder where one stands
    program = parser()
    if config.asked_by_shell():
        complete(program)
    options = program.parse_args(arguments)
    run_command(options, "edge-coordinator")


def parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    program = Parser("edge-coordinator", description="Train personalised models on a fleet of devices.", epilog=_EPILOG)
    program.add_argument("--version", action="version", version=__version__)
    commands = subcommands(program)
    _add_demo(commands)
    _add_simulate(commands)
    _add_start(commands)
    add_fleet_commands(commands)
    reports_cli.add_report(commands)
    _add_export(commands)
    add_new(commands)
    run_cli.add_run_commands(commands)
    add_services(commands, "edge-coordinator", _unit, _install, (_UNIT_EXAMPLES, _INSTALL_EXAMPLES))
    add_dashboard(commands, lambda arguments: parser().parse_args(arguments))
    add_bench(commands)
    add_doctor(commands)
    add_grafana(commands)
    add_completion(commands, "edge-coordinator")
    return program


def _add_run(parser: Any) -> None:
    group = parser.add_argument_group("run")
    tables = "TOML file with tables [run], [algorithm], [data], [variant.NAME]"
    group.add_argument("--config", type=Path, metavar="FILE", help=tables)
    flag = group.add_argument(
        "--algorithm", metavar="NAME", help=f"{', '.join(algorithm.names())}, or package.module of yours"
    )
    offer(flag, algorithm.names)
    models = "built-in name, folder of a bundle, or package.module:factory of a torch module"
    offer(group.add_argument("--model", metavar="NAME|DIR", help=models), _models)
    group.add_argument("--rounds", type=int, metavar="N", help="rounds of training")
    group.add_argument("--seed", type=int, metavar="N", help="seed of everything random")
    group.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="any key of a table, as in the file"
    )
    group.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where reports go (default runs)")
    group.add_argument("--no-baseline", action="store_true", help="do not run dense FedAvg on the same work beside it")
    group.add_argument("--json", action="store_true", help="print the report as JSON at the end")


def _models() -> list[str]:
    from edge_runtime import models

    return models.names()


def _tables(
    options: argparse.Namespace, defaults: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Collect the settings: defaults, then the file, then flags, then --set."""
    tables = config.read(options.config, _TABLES) if options.config else {name: {} for name in _TABLES}
    if options.config:
        _check_file(options.config, tables, options.algorithm)
    for name in ("algorithm", "model", "rounds", "seed"):
        if getattr(options, name) is not None:
            tables["run"][name] = getattr(options, name)
    chosen = str(tables["run"].get("algorithm", ""))
    usual = _USUAL.get(chosen, {}) if defaults is _DEFAULTS else {}
    plain_defaults = (defaults or {}).get("algorithm", {})
    if algorithm.is_own(chosen):  # which has defaults of its own, and perhaps none of these keys
        defaults = {**(defaults or {}), "algorithm": {}}
    watches = tables["data"].get("name", getattr(options, "data", "")) == "watch"
    if tables["variant"] or not watches:  # a file says which device has what, or these are other devices
        usual = {name: table for name, table in usual.items() if name != "variant"}
    merged = {name: {**(defaults or {}).get(name, {}), **usual.get(name, {}), **tables[name]} for name in _TABLES}
    # The baseline is FedAvg as it is best on these data, not with what is usual for another algorithm.
    plain = {"algorithm": {**plain_defaults, **tables["algorithm"]}}
    merged, plain = copy.deepcopy(merged), copy.deepcopy(plain)
    config.override(merged, options.set)
    config.override(plain, [setting for setting in options.set if setting.strip().startswith("algorithm.")])
    return {**merged, "baseline": plain["algorithm"]}


def _check_file(path: Path, tables: dict[str, dict[str, Any]], name: str | None) -> None:
    """Refuse unknown keys while it is known in which file they stand."""
    from edge_runtime.coordinator.run import RunConfig
    from edge_runtime.data import DataConfig

    config.check_keys(RunConfig, tables["run"], f"{path}: [run]")
    config.check_keys(DataConfig, tables["data"], f"{path}: [data]")
    known = algorithm.load(str(name or tables["run"].get("algorithm", RunConfig.algorithm))).Config
    config.check_keys(known, tables["algorithm"], f"{path}: [algorithm]")


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands, "demo", "Run a broker, a coordinator and 20 agents on this machine", _DEMO_EXAMPLES, _demo
    )
    _add_run(demo)
    add_data(demo)
    demo.add_argument("--broker", default="auto", choices=broker.KINDS, help="auto, mosquitto or amqtt (default auto)")
    add_watching(demo)
    demo.add_argument("--no-dashboard", action="store_true", help="show the runs in the terminal alone")
    demo.add_argument("--warm", action="store_true", help="keep trainer processes between rounds: faster, more memory")


def _demo(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator.dashboard.beside import showing
    from edge_runtime.coordinator.demo import demo

    tables = _tables(options, _DEFAULTS)
    tables["data"] = {**data_table(options), **tables["data"]}
    with watching(options) as look, showing(None if options.no_dashboard else options.runs):
        done = demo(tables, options.runs, options.broker, options.warm, not options.no_baseline, look)
    reports_cli.finish(done, options.json)
    if not options.no_dashboard:
        sys.stderr.write("edge-coordinator dashboard: shows this run, and those before it, again\n")


def _add_simulate(commands: Any) -> None:
    simulate = add_command(
        commands, "simulate", "Play a whole run in one process, deterministically", _SIMULATE_EXAMPLES, _simulate
    )
    _add_run(simulate)
    add_data(simulate)
    add_compute(simulate)
    simulate.add_argument("--drop", type=float, default=0.0, metavar="P", help="probability that a message is lost")
    simulate.add_argument("--duplicate", type=float, default=0.0, metavar="P", help="... that it comes twice")
    simulate.add_argument(
        "--delay", type=float, default=0.0, metavar="S", help="longest delay: messages overtake each other"
    )


def _simulate(options: argparse.Namespace) -> None:
    from edge_runtime.compute import Compute
    from edge_runtime.coordinator.demo import simulated
    from edge_runtime.transport import Faults

    tables = _tables(options, _DEFAULTS)
    tables["data"] = {**data_table(options), **tables["data"]}
    faults = Faults(options.drop, options.duplicate, options.delay)
    compute = config.build(Compute, compute_table(options), "compute")
    reports_cli.finish(simulated(tables, options.runs, faults, compute, not options.no_baseline), options.json)


def _add_start(commands: Any) -> None:
    start = add_command(commands, "start", "Coordinate a run over a broker", _START_EXAMPLES, _start)
    _add_run(start)
    add_watching(start)
    add_link(start)
    add_fleet_folder(start)
    start.add_argument("--broker", choices=broker.KINDS, help="start a broker too, while the run lasts")
    start.add_argument(
        "--folder", type=Path, metavar="DIR", help="the run's own folder; one that holds a run resumes it"
    )


def _start(options: argparse.Namespace) -> None:
    from edge_runtime.coordinator.demo import Beside, coordinate
    from edge_runtime.coordinator.gate import Sealed
    from edge_runtime.seal import read_key

    fleet = fleet_of(options)
    who = identity.load(fleet.coordinator) if fleet else None
    name = fleet_name(options, who)
    tables = _tables(options, {"run": {"fleet": name, **_CODED}})
    if who is not None and tables["run"]["fleet"] != who.fleet:
        raise ConfigError(f"[run] fleet is {tables['run']['fleet']!r}, and that of {who.key.parent} is {who.fleet!r}")
    folder = options.folder or options.runs / time.strftime("%Y%m%d-%H%M%S")
    connection = link(options, f"_coordinator-{tables['run']['fleet']}", who)
    gate = Sealed(who.fleet, read_key(who.key), fleet) if fleet and who else None
    with contextlib.ExitStack() as stack:
        notifier = stack.enter_context(Notifier(*config.service_manager()))
        beat, kind = notifier.beat, "external"
        if options.broker:
            running = stack.enter_context(device_cli.begin(options.broker, options, fleet))
            connection, kind = device_cli.beside(running, connection), running.kind

            def beat(alive: bool) -> None:
                running.check()
                notifier.beat(alive)

        look = stack.enter_context(watching(options))
        done = coordinate(tables, connection, folder, options.runs, gate, Beside(beat, look, kind))
    reports_cli.finish(done, options.json)


def _service(options: argparse.Namespace) -> "Unit":
    from edge_runtime.unit import Unit, credentials

    start = parser().parse_args(["start", *options.arguments])
    arguments, files = credentials(start, options.arguments)
    folder = [] if start.folder else ["--folder", "run"]  # under the unit's own: started anew it goes on with the run
    name = f"edge-runtime: coordinator of {fleet_name(start, None)}"
    limits = {"memory_mb": options.memory_mb, "cpu_percent": options.cpu_percent}
    command = ["start", *arguments, *folder]
    # A run that is finished is not to be started again.
    return Unit("edge-coordinator", name, command, files, options.user, restart="on-failure", **limits)


def _unit(options: argparse.Namespace) -> None:
    from edge_runtime.unit import render

    sys.stdout.write(render(_service(options)))


def _install(options: argparse.Namespace) -> None:
    from edge_runtime import install, service

    service.carry_out(options, install.Place("edge-coordinator"), _service(options), {})


def _add_export(commands: Any) -> None:
    export = add_command(
        commands, "export", "Make a bundle of a torch module, for devices without torch", _EXPORT_EXAMPLES, _export
    )
    export.add_argument("--model", required=True, metavar="NAME|MODULE:FACTORY", help="what to export")
    export.add_argument("--input", default="", metavar="SHAPE", help="shape of one sample, such as 1x28x28")
    export.add_argument(
        "--type", default="float32", choices=("float32", "int64"), help="of the input (default float32)"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    export.add_argument(
        "--memory",
        default="1",
        metavar="KNOB",
        help="part of what forward must keep for backward if nothing dear is computed twice: less takes more time, "
        "from 1 (default) to 0; or bytes for each sample: 60kB",
    )
    export.add_argument(
        "--private", action="append", default=[], metavar="PATTERN", help="parameters that stay on the device: head.*"
    )
    export.add_argument(
        "--width",
        type=float,
        action="append",
        default=[],
        metavar="W",
        help="also make a part that has W of the channels, 0.5 say, for [variant.NAME] width",
    )
    export.add_argument(
        "--by",
        default="first",
        choices=("first", "magnitude", "taylor"),
        help="which channels that part has: the first, those of the largest magnitude, or those without which the loss "
        "on the training samples of --data would change most",
    )
    export.add_argument(
        "--no-costs", action="store_true", help="do not measure what it costs: a minute less, but no [run] widths"
    )
    export.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial parameters (default 0)")
    export.add_argument("--json", action="store_true", help="for scripts")
    add_data(export)
    export.set_defaults(data=None)


def _export(options: argparse.Namespace) -> None:
    command = [options.model]
    for name in ("input", "type", "out", "memory", "seed", "by"):
        command += [f"--{name}", str(getattr(options, name))]
    command += [f"--width={width}" for width in options.width]
    for pattern in options.private:
        command += ["--private", pattern]
    command += run_cli.data_flags(options)
    exporting.start("bundle", command + (["--json"] if options.json else []))
    if not options.no_costs:
        from edge_runtime import bundle, costs
        from edge_runtime.coordinator import bench_costs

        folders = [options.out, *(bundle.part_folder(options.out, width) for width in options.width)]
        bench_costs.measure([str(folder) for folder in folders], costs.Grid(repeats=1), config.environment(1))


if __name__ == "__main__":
    main()
