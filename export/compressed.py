"""Make a personal model a file that a device's inference engine loads, as small as its compression allows.

    python -m edge_runtime.export.compressed PERSONAL.bin --format codes --out FILE.onnx

PERSONAL.bin is `edge_runtime/personal.py`'s. Beside FILE.onnx comes its signed manifest, FILE.json (`manifest.py`).
Before anything is written, a fresh process that has only numpy and stock onnxruntime runs the file (`try_out.py`), and
what it says is compared with the model as it was trained. `edge-coordinator run export` starts this.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime import __version__, bundle, command_line, flags, losses, personal
from edge_runtime.bundle import FORWARD, Bundle
from edge_runtime.errors import ConfigError, DecodeError, EdgeError
from edge_runtime.export import inference, int8, manifest, program, storage, trial
from edge_runtime.export.inference import Graph
from edge_runtime.export.trial import Array, Samples
from edge_runtime.files import write_atomic
from edge_runtime.personal import Personal
from edge_runtime.setup import ModelCard

FORMS = ("auto", "float32", "sparse", "codes", "int8")
TOLERANCE = 1e-5
"""Of the largest output; float32 sums in another order differ by some 1e-7."""
_RANDOM_INPUTS = 32


@dataclass(frozen=True)
class Report:
    """What became of a model: the file itself, and that of its float32, each in a fresh process."""

    format: str
    how: str
    """What a value is held as."""
    bytes: int
    float32_bytes: int
    ratio: float
    """How many times smaller than float32's."""
    parity: float
    """Largest difference from the trained model's outputs, relative to the largest of them."""
    parity_on: str
    accuracy: float | None
    """On the samples given; None: none were."""
    accuracy_before: float | None
    samples: int
    latency_ms: float
    """Median of single samples on one thread."""
    latency_float32_ms: float
    load_ms: float
    load_float32_ms: float
    onnxruntime: str


def read(path: Path) -> tuple[Personal, str]:
    """Read a personal model's file, and its SHA-256.

    Raises:
        ConfigError: it is none, or damaged.
    """
    try:
        content = path.read_bytes()
        model = personal.decode(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}; collect it from its device again") from error
    if not 0 <= model.origin.accuracy <= 1:
        raise ConfigError(f"{path}: its accuracy is no fraction; collect it from its device again")
    return model, hashlib.sha256(content).hexdigest()


def graphs(card: ModelCard) -> Bundle:
    """Give the graphs of a personal model.

    Raises:
        ConfigError: it comes without, or with those of another model.
    """
    if not card.bundle and (":" in card.name or card.cut):
        raise ConfigError(
            f"model {card.name!r}: is code that its devices have, and comes without graphs; "
            "export the module with `edge-coordinator export`, and start runs with --model BUNDLE"
        )
    try:
        found = bundle.unpack(card.bundle) if card.bundle else bundle.built_in(card.name)
    except DecodeError as error:
        raise ConfigError(f"model {card.name!r}: its graphs are damaged: {error}") from error
    if found.layout != card.layout:
        raise ConfigError(
            f"model {card.name!r}: has other tensors than its graphs take; use the version that trained it"
        )
    return found


def choose(model: Personal, form: str) -> str:
    """Say which format `auto` is for a model; any other stays what it is."""
    if form != "auto":
        return form
    return "codes" if model.quantised else "sparse" if model.active is not None else "float32"


def build(model: Personal, graphs: Bundle, form: str, calibration: Array | None = None) -> bytes:
    """Make the ONNX file of a model in a format; `calibration` [samples, ...] is for int8 with activations.

    Raises:
        ConfigError: the format does not fit the model, or its graphs are not ours.
    """
    try:
        return _build(model, graphs, form, calibration)
    except (EdgeError, DecodeError):
        raise
    except Exception as error:  # of onnx or its quantiser: whatever they make of a graph that nobody of ours wrote
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model {graphs.model!r}: {FORWARD} is malformed ({reason}); export the model again"
        ) from error


def _build(model: Personal, graphs: Bundle, form: str, calibration: Array | None) -> bytes:
    hold: dict[str, Callable[[Graph, Personal], None]] = {"sparse": storage.sparse, "codes": storage.codes}
    graph = inference.strip(graphs.graphs[FORWARD], graphs)
    hold.get(form, storage.float32)(graph, model)
    if form == "int8" and calibration is None:
        int8.weights(graph)
    written = inference.write(graph)
    return written if calibration is None else int8.everything(written, graphs, calibration)


def judge(model: Personal, graphs: Bundle, form: str, samples: Samples | None) -> tuple[bytes, Report]:
    """Make a file, run it in a fresh process, and compare it with the model as it was trained.

    Raises:
        ConfigError: as `build`; or the file says something else than it must.
        DeviceError: this onnxruntime does not run it.
    """
    calibration = samples.calibration if form == "int8" and samples and len(samples.calibration) else None
    made, plain = build(model, graphs, form, calibration), build(model, graphs, "float32")
    x = trial.random_inputs(graphs, _RANDOM_INPUTS if calibration is None else 0)  # they lie beyond its ranges
    on = ["random inputs"] if len(x) else []
    if samples is not None:
        x, on = np.concatenate([x, samples.x]), [*on, f"{len(samples.y)} samples"]
    trained, tried = trial.trained(model, graphs, x), trial.run((made, plain), x)
    parity = trial.difference(tried.outputs[0], trained)
    if not parity <= TOLERANCE and form != "int8":
        raise ConfigError(
            f"model {model.card.name!r} as {form}: differs by {parity:.1e} of its largest output from the model as it "
            f"was trained, more than {TOLERANCE:.0e}; nothing is written: please report this model"
        )
    found = [
        losses.accuracy(one[-len(samples.y) :], samples.y) if samples else None for one in (*tried.outputs, trained)
    ]
    return made, Report(
        format=form,
        how=_how(model, form, 0 if calibration is None else len(calibration)),
        bytes=len(made),
        float32_bytes=len(plain),
        ratio=len(plain) / len(made),
        parity=parity,
        parity_on=" and ".join(on),
        accuracy=found[0],
        accuracy_before=found[-1],
        samples=len(samples.y) if samples else 0,
        latency_ms=tried.latency_ms[0],
        latency_float32_ms=tried.latency_ms[1],
        load_ms=tried.load_ms[0],
        load_float32_ms=tried.load_ms[1],
        onnxruntime=tried.onnxruntime,
    )


def _how(model: Personal, form: str, calibrated: int) -> str:
    if form == "codes" and model.quantised:
        return f"{model.quantised.bits}-bit codes of {len(model.quantised.names)} tensors, the others float32"
    if form == "sparse" and model.active is not None:
        return f"{model.active.mean():.4g} of the values, float32"
    if form == "int8":
        return f"weights and activations, in the ranges of {calibrated} samples" if calibrated else "weights only"
    return "all values, float32"


def record(model: Personal, graphs: Bundle, report: Report, digest: str, options: dict[str, Any]) -> dict[str, Any]:
    """Say what a file is, for its manifest; nothing of it comes from the data but the accuracy that is told anyway."""
    origin = model.origin
    return {
        "format": report.format,
        "how": report.how,
        "run": origin.run,
        "round": origin.round,
        "device": origin.device,
        "algorithm": origin.algorithm,
        "model": model.card.name,
        "class_names": list(origin.class_names),
        "input": {"shape": list(graphs.input_shape), "type": graphs.input_type},
        "outputs": graphs.outputs,
        "accuracy": origin.accuracy,
        "samples": origin.samples,
        "made_from": {"personal_sha256": digest, "program": f"edge-runtime {__version__}", "options": options},
    }


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser("python -m edge_runtime.export.compressed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("personal", type=Path, metavar="PERSONAL.bin")
    parser.add_argument("--format", choices=FORMS, default="auto", help="default: what the model's compression is")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx", help="FILE.json is its signed manifest")
    parser.add_argument(
        "--calibrate",
        type=int,
        default=0,
        metavar="N",
        help="int8: activations too, in the ranges of N training samples",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    flags.add_data(parser)
    parser.set_defaults(data=None)
    return parser


def _run_program(options: argparse.Namespace) -> None:
    if options.out.suffix != ".onnx":
        raise ConfigError(f"--out {options.out}: must end in .onnx")
    if options.calibrate < 0 or (options.calibrate and options.format != "int8"):
        raise ConfigError("--calibrate is a number of samples, for --format int8")
    model, digest = read(options.personal)
    graphs_ = graphs(model.card)
    samples = trial.read_samples(options, graphs_)
    made, report = judge(model, graphs_, choose(model, options.format), samples)
    key = manifest.own_key(manifest.key_folder())
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {options.out}: cannot be written: {error.strerror}") from error
    write_atomic(options.out, made)
    asked = {"format": options.format, "calibrate": options.calibrate}
    signed = manifest.sign(record(model, graphs_, report, digest, asked), made, key)
    write_atomic(manifest.manifest_path(options.out), signed)
    if options.json:
        sys.stdout.write(json.dumps({"file": str(options.out), **dataclasses.asdict(report)}, indent=1) + "\n")
    else:
        sys.stdout.write(_text(model, report, options.out))


def _text(model: Personal, report: Report, out: Path) -> str:
    lines = [
        f"{model.card.name} as {report.format} ({report.how}): {out}, signed in {manifest.manifest_path(out).name}",
        f"{report.bytes:,} bytes, 1/{report.ratio:.2f} of the {report.float32_bytes:,} of float32",
        f"outputs within {report.parity:.1e} of the model as it was trained, on {report.parity_on}",
        f"a sample takes {report.latency_ms:.2f} ms (float32 {report.latency_float32_ms:.2f})",
        f"loading takes {report.load_ms:.0f} ms (float32 {report.load_float32_ms:.0f})",
    ]
    if report.samples:
        lines.insert(3, f"accuracy {report.accuracy:.4f}, before {report.accuracy_before:.4f}")
    return "\n  ".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    options = _parser().parse_args(arguments)
    return program.exit_code(lambda: _run_program(options))


if __name__ == "__main__":
    sys.exit(main())
