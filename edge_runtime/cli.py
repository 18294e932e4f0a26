"""`edge-agent`: what a person types on a device."""

import argparse
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from edge_runtime import __version__, coding, config
from edge_runtime.agent import Agent
from edge_runtime.compute import Compute, usual
from edge_runtime.errors import ConfigError, DecodeError, EdgeError
from edge_runtime.files import write_atomic
from edge_runtime.link_cli import add_enroll, add_identity, add_link, fleet_of, identity_of, link
from edge_runtime.message import Hello, check_name
from edge_runtime.mqtt import Mqtt
from edge_runtime.places import served_path
from edge_runtime.store import FileStore
from edge_runtime.trainer_process import Job, ProcessTrainer

if TYPE_CHECKING:
    from edge_runtime.identity import Identity
    from edge_runtime.seal import Seals
    from edge_runtime.serving import Loaded

log = logging.getLogger(__name__)

_EXIT_CODES = (
    "exit codes: 0 stopped on request, 1 a fault of this program, 2 wrong flag, key or data, 3 no broker, "
    "4 this device cannot, 5 run failed"
)
_START_EXAMPLES = """examples:
  edge-agent start --data /var/lib/sensors         # after `edge-agent enroll gateway-7.edge`
  edge-agent start --id gateway-7 -h broker.lan --cafile broker.pem -u sensors -P secret --data /var/lib/sensors
  edge-agent start --id left-wrist -h 127.0.0.1 -p 1883 --data watch --part 3 --labels-per-class 5

"""
_INFER_EXAMPLES = """examples:
  edge-agent infer --id gateway-7 --in samples.npz
  edge-agent infer --id gateway-7 --in samples.csv --out classes.csv
  edge-agent infer --id gateway-7 --listen
  mosquitto_pub -h 127.0.0.1 -t edge/default/infer/gateway-7/in -m '{"x": [0.1, 0.2, ...]}'

Samples are as those that the device was trained on: NPZ with x (and y, to count what is right), NPY, or CSV with
a sample in each row. The model is the best that training has left on the device's own data; a better one takes over
between two answers. At the broker of a fleet --listen takes an identity of its own: enrol gateway-7_infer too.

"""
_MEASURE_EXAMPLES = """examples:
  edge-agent measure
  edge-agent measure --model cnn --backend all --batch 16
  edge-agent measure --model bundles/net --threads 4 --json

baseline: memory with the backend imported; peak: the most that the process ever had; over: the peak of training over
the baseline; floor: parameters, gradients and momentum, which training cannot do without.

"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose `-h` is free (for the host, as in mosquitto) and whose errors are one line."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        """Make `--help` the only help flag, and keep the examples as they are laid out."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, add_help=False, allow_abbrev=False, **options)
        self.add_argument("--help", action="help", help="show this and exit")

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong."""
        self.exit(ConfigError.exit_code, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `edge-agent`."""
    options = _parser().parse_args(arguments)
    run_command(options, "edge-agent")


def run_command(options: argparse.Namespace, program: str) -> None:
    """Run the chosen command; an error of ours becomes one line and its exit code."""
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format=f"{program}: %(message)s", stream=sys.stderr
    )
    # One thread unless asked otherwise: numpy's BLAS reads this when it is loaded, here or in a trainer.
    for name in config.BLAS_THREADS:
        os.environ.setdefault(name, str(options.threads))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop is as orderly as Ctrl-C
    try:
        options.command(options)
    except EdgeError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: stopped\n")
        sys.exit(130)
    except Exception as error:
        log.exception("what follows is for whoever mends it:")
        sys.stderr.write(f"{program}: a fault of this program: {type(error).__name__}: {error}; please report it\n")
        sys.exit(1)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    parser.add_argument("--verbose", action="store_true", help="say more on stderr")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="BLAS threads of each process (default 1)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("edge-agent", description="Train on this device what a coordinator asks for.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
    _add_start(commands)
    add_enroll(commands, _EXIT_CODES)
    _add_infer(commands)
    _add_profile(commands)
    _add_measure(commands)
    return parser


def _add_start(commands: Any) -> None:
    start = commands.add_parser(
        "start", help="serve until stopped", description="Serve until stopped.", epilog=_START_EXAMPLES + _EXIT_CODES
    )
    start.set_defaults(command=_start)
    start.add_argument(
        "--id", metavar="ID", help="name of this device, unique in the fleet (not needed where one was enrolled)"
    )
    add_identity(start)
    start.add_argument("--store", type=Path, metavar="DIR", help="where this device keeps its state")
    start.add_argument(
        "--warm", action="store_true", help="keep the trainer process between rounds: faster, more memory"
    )
    start.add_argument(
        "--allow-model", action="append", default=[], metavar="MODULE:FACTORY", help="model code that may be imported"
    )
    group = start.add_argument_group(
        "wire", "cheaper ways than the run's: bf16 or step:S, and bits:B of updates and posteriors"
    )
    group.add_argument("--up", default="", metavar="CODING", help="how updates travel (default: as the run says)")
    group.add_argument("--down", default="", metavar="CODING", help="how the model travels (default: as the run says)")
    limits = start.add_argument_group("limits", "beside --memory-mb; what takes more is not sent here")
    limits.add_argument("--step-ms", type=_limit, default=0, metavar="N", help="longest step of training (default any)")
    limits.add_argument(
        "--round-kb", type=_limit, default=0, metavar="N", help="most kB of messages for a round (default any)"
    )
    add_compute(start)
    add_data(start)
    add_link(start)
    add_common(start)


def _limit(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 (no limit)")
    return int(text)


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how a device computes."""
    group = parser.add_argument_group("computing")
    group.add_argument("--backend", default="auto", help="auto, onnx, torch, numpy or ort_training (default auto)")
    group.add_argument("--accelerator", default="cpu", help="cpu, or cuda for onnx and torch (default cpu)")
    group.add_argument(
        "--memory-mb", type=int, default=0, metavar="N", help="memory that tasks may take (default: what is free)"
    )
    group.add_argument("--artifacts", default="", metavar="DIR", help="for ort_training: what its export made")
    group.add_argument("--no-arena", action="store_true", help="let onnx give memory back after every operator: slower")


def compute_table(options: argparse.Namespace) -> dict[str, Any]:
    """Read the computing flags as a table of `compute.Compute`."""
    table = {"backend": options.backend, "device": options.accelerator}
    table |= {"threads": options.threads, "arena": not options.no_arena}
    return {**table, "memory-mb": options.memory_mb, "artifacts": options.artifacts}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which data a device has."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", default="watch", metavar="NAME|DIR", help="watch, fashion-mnist or a folder of NPZ files"
    )
    group.add_argument("--part", type=int, default=0, metavar="K", help="which device's part of a built-in data set")
    group.add_argument("--parts", type=int, metavar="N", help="parts of fashion-mnist")
    group.add_argument("--labels-per-class", type=int, metavar="N", help="keep only N labelled samples per class")
    group.add_argument("--partition", help="of fashion-mnist: dirichlet, classes or rotations")
    group.add_argument("--alpha", type=float, help="of the Dirichlet partition: small is uneven")
    group.add_argument("--classes-per-device", type=int, metavar="N", help="of the classes partition")
    group.add_argument("--domains", type=int, metavar="N", help="angles of the rotations partition")
    group.add_argument("--degrees", type=float, help="... the largest of them")
    group.add_argument("--samples", type=int, metavar="N", help="... training samples of a device")
    group.add_argument("--test", help="... own or all: the domains that a device is tested on")
    group.add_argument("--test-samples", type=int, metavar="N", help="... test samples of a domain")
    group.add_argument("--data-seed", type=int, metavar="N", help="seed of the partition")


def data_table(options: argparse.Namespace) -> dict[str, Any]:
    """Read the data flags as a table of `data.DataConfig`; flags that were not given are left out."""
    names = ["parts", "labels_per_class", "partition", "alpha", "classes_per_device"]
    names += ["domains", "degrees", "samples", "test", "test_samples"]
    table = {"name": options.data, "part": options.part, "seed": options.data_seed}
    table |= {name.replace("_", "-"): getattr(options, name) for name in names}
    return {name: value for name, value in table.items() if value is not None}


def _start(options: argparse.Namespace) -> None:
    who = identity_of(options, options.id)
    if who is None and options.id is None:
        raise ConfigError("--id is missing: name this device, or enrol it with `edge-agent enroll FILE`")
    device = who.name if who else check_name(options.id, "--id")
    fleet = fleet_of(options, who)
    job: Job = {
        "device": device,
        "data": data_table(options),
        "cache": str(config.cache_folder()),
        "compute": compute_table(options),
        "factories": options.allow_model,
        "up": options.up,
    }
    for flag in ("up", "down"):
        if getattr(options, flag):
            coding.parse(getattr(options, flag), f"--{flag}")
    folder = options.store or config.state_folder() / "devices" / device
    store = FileStore(folder)
    trainer = ProcessTrainer(job, folder, options.warm)
    hello = _hello(options, trainer.check())
    transport = Mqtt(link(options, device, who))
    try:
        Agent(fleet, device, store, trainer, transport, hello, _seals(who)).run(until_signal())
    finally:
        store.close()


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
    )


def _add_infer(commands: Any) -> None:
    infer = commands.add_parser(
        "infer",
        help="answer with this device's personal model",
        description="Name the classes of samples with this device's personal model.",
        epilog=_INFER_EXAMPLES + _EXIT_CODES,
    )
    infer.set_defaults(command=_infer)
    whose = infer.add_mutually_exclusive_group(required=True)
    whose.add_argument("--id", metavar="ID", help="name of this device")
    whose.add_argument("--store", type=Path, metavar="DIR", help="or where it keeps its state, as its agent was told")
    what = infer.add_mutually_exclusive_group(required=True)
    what.add_argument("--in", dest="samples", type=Path, metavar="FILE", help="samples: .npz, .npy or .csv")
    what.add_argument("--listen", action="store_true", help="answer requests on a topic until stopped")
    infer.add_argument("--out", type=Path, metavar="FILE", help="write the classes as CSV, not to the screen")
    infer.add_argument("--json", action="store_true", help="for scripts")
    add_identity(infer)
    infer.add_argument("--topic-in", metavar="TOPIC", help="of requests (default edge/FLEET/infer/ID/in)")
    infer.add_argument("--topic-out", metavar="TOPIC", help="of answers (default edge/FLEET/infer/ID/out)")
    add_compute(infer)
    add_link(infer)
    add_common(infer)


def _infer(options: argparse.Namespace) -> None:
    from edge_runtime import serving
    from edge_runtime.compute import Compute

    folder = options.store or config.state_folder() / "devices" / check_name(options.id, "--id")
    compute = config.build(Compute, compute_table(options), "compute")
    model = serving.Served(served_path(folder), compute)
    if not options.listen:
        _print_classes(model.current(), options)
        return
    device = check_name(model.current().origin.device, str(folder))
    # A second connection of the device's own identity would end that of its agent.
    name = f"{device}_infer"
    who = identity_of(options, None if options.identity else name)
    base = f"edge/{fleet_of(options, who)}/infer/{who.name if who else device}"
    asked, answered = options.topic_in or f"{base}/in", options.topic_out or f"{base}/out"
    stop = until_signal()
    transport = Mqtt(link(options, name, who))
    sys.stderr.write(f"answering on {answered} what comes on {asked}; Ctrl-C stops it\n")
    serving.listen(model, transport, asked, answered, stop)


def _print_classes(model: "Loaded", options: argparse.Namespace) -> None:
    from edge_runtime import serving

    x, y = serving.read(options.samples)
    try:
        answers = model.answer(x)
    except DecodeError as error:
        raise ConfigError(f"{options.samples}: {error}") from error
    right = None if y is None or len(y) != len(answers) else sum(a.index == b for a, b in zip(answers, y, strict=True))
    if options.json:
        record = {**asdict(model.origin), "classes": [answer.record() for answer in answers]}
        record |= {} if right is None else {"right": int(right)}
        sys.stdout.write(json.dumps(record) + "\n")
        return
    lines = [f"{answer.index},{answer.name},{answer.probability:.6f}\n" for answer in answers]
    text = "".join(["class,name,probability\n", *lines])
    if options.out:
        write_atomic(options.out, text.encode())
    else:
        sys.stdout.write(text)
    origin = model.origin
    said = f"{len(answers)} samples" + ("" if right is None else f", {right} of them named rightly")
    reached = f"{100 * origin.accuracy:.1f} % on this device's own data"
    sys.stderr.write(f"{said}; model of {origin.algorithm} after round {origin.round}, {reached}\n")


def until_signal() -> Callable[[], bool]:
    """Turn SIGTERM and SIGINT into an answer to "stop?"."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)


def _add_profile(commands: Any) -> None:
    show = commands.add_parser("profile", help="say what this device is", description="Say what this device is.")
    show.set_defaults(command=_profile)
    show.add_argument("--json", action="store_true", help="for scripts")
    add_common(show)


def _profile(options: argparse.Namespace) -> None:
    from edge_runtime.devices.profile import profile

    figures = asdict(profile())
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name.replace('_', ' '):<16} {'unknown' if value is None else value}\n")


def _add_measure(commands: Any) -> None:
    show = commands.add_parser(
        "measure",
        help="say what training takes on this device",
        description="Train a model on random data, and say what time and memory that takes on this device.",
        epilog=_MEASURE_EXAMPLES + _EXIT_CODES,
    )
    show.set_defaults(command=_measure)
    show.add_argument("--model", default="watch-cnn", metavar="NAME|DIR", help="built-in name or folder of a bundle")
    show.add_argument(
        "--backend", action="append", metavar="NAME", help="auto, onnx, torch, numpy or all (default auto); repeatable"
    )
    show.add_argument("--accelerator", default="cpu", help="cpu, or cuda for onnx and torch (default cpu)")
    show.add_argument("--no-arena", action="store_true", help="let onnx give memory back after every operator: slower")
    show.add_argument("--batch", type=int, default=32, metavar="N", help="samples in a step (default 32)")
    show.add_argument("--steps", type=int, default=20, metavar="N", help="steps that are timed (default 20)")
    show.add_argument(
        "--density", type=float, default=1.0, metavar="D", help="part of the parameters that is trained (default 1)"
    )
    show.add_argument("--json", action="store_true", help="for scripts")
    add_common(show)


def _measure(options: argparse.Namespace) -> None:
    from edge_runtime import measure_process
    from edge_runtime.devices.profile import profile

    names = measure_process.backends_for(options.backend or ["auto"], options.model)
    computes = [Compute(name, options.accelerator, options.threads, not options.no_arena) for name in names]
    plans = [
        measure_process.Plan(options.model, compute, options.batch, options.steps, options.density)
        for compute in computes
    ]
    environment = config.environment(options.threads)
    idle_bytes = measure_process.idle_rss_bytes(environment)
    found = [measure_process.measure(plan, environment) for plan in plans]
    device = profile()
    if options.json:
        record = {"version": __version__, "profile": asdict(device), "agent_idle_rss_bytes": idle_bytes}
        sys.stdout.write(json.dumps({**record, "measurements": [asdict(one) for one in found]}) + "\n")
        return
    where = ", ".join(filter(None, (device.board, device.cpu, f"{device.cores} cores", device.arch)))
    threads = f"{options.threads} thread{'' if options.threads == 1 else 's'}"
    sys.stdout.write(f"{where}\n{options.model}, {found[0].parameters:,} parameters, {threads}\n\n")
    sys.stdout.write(measure_process.table(found))
    sys.stdout.write(f"\nan agent that waits has {idle_bytes / 1e6:.1f} MB\n")
    if not all(one.peak_was_reset for one in found):
        sys.stdout.write("this system cannot start a peak anew: it may be that of importing the backend\n")


if __name__ == "__main__":
    main()
