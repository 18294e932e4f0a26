"""`edge-agent infer`: classes by the personal model of a device."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import config
from edge_runtime.command_line import add_command, until_signal
from edge_runtime.compute import Compute
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.files import write_atomic
from edge_runtime.flags import add_compute, compute_table
from edge_runtime.link_cli import add_identity, add_link, fleet_of, identity_of, link
from edge_runtime.message import check_name
from edge_runtime.mqtt import Mqtt
from edge_runtime.places import served_path

if TYPE_CHECKING:
    from edge_runtime.serving import Loaded

_INFER_EXAMPLES = """examples:
  edge-agent infer --id gateway-7 --in samples.npz
  edge-agent infer --id gateway-7 --in samples.csv --out classes.csv
  edge-agent infer --id gateway-7 --listen
  mosquitto_pub -h 127.0.0.1 -t edge/default/infer/gateway-7/in -m '{"x": [0.1, 0.2, ...]}'

Samples are as those that the device was trained on: NPZ with x (and y, to count what is right), NPY, or CSV with
a sample in each row. The model is the best that training has left on the device's own data; a better one takes over
between two answers. At the broker of a fleet --listen takes an identity of its own: enrol gateway-7_infer too.

"""


def add_infer(commands: Any) -> None:
    """Add the command."""
    infer = add_command(
        commands, "infer", "Name the classes of samples by this device's personal model", _INFER_EXAMPLES, _infer
    )
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


def _infer(options: argparse.Namespace) -> None:
    from edge_runtime import serving

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
