"""Make a bundle of a torch module (`edge_runtime/bundle.py` has its form), and check it before it is written.

    python -m edge_runtime.export.bundle package.module:factory --input 1x28x28 --out bundle/

`edge-coordinator export` starts this in a process of its own, so that torch and its memory stay out of the coordinator.
"""

import argparse
import dataclasses
import fnmatch
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from edge_runtime import bundle, models, narrow
from edge_runtime.backends import torch as torch_backend
from edge_runtime.bundle import Bundle
from edge_runtime.compression import submodel
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.export import check, graphs, packed
from edge_runtime.models import ModelSpec

_TYPES = {"float32": torch.float32, "int64": torch.int64}


def of_built_in(spec: ModelSpec, memory: graphs.Knob = "recompute") -> Bundle:
    """Make the bundle of a built-in model, or of a part of one; `edge_runtime/bundles/` holds the whole ones."""
    return _make(spec.name, torch_backend.module_of(spec), spec.input_shape, "float32", (), memory)


def of_factory(
    path: str, seed: int, input_shape: tuple[int, ...], input_type: str, private: list[str], memory: graphs.Knob
) -> Bundle:
    """Make the bundle of a user's own module, `package.module:factory`, with initial parameters by torch's seed `seed`.

    `private` are patterns (`head.*`) of the names of parameters that by default stay on the device.

    Raises:
        ConfigError: the module cannot be made or exported.
    """
    torch.manual_seed(seed)
    module = torch_backend.prepare(torch_backend.make(path))
    names = [name for name, _ in module.named_parameters()]
    for pattern in private:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--private {pattern!r} fits no parameter (there are {', '.join(names[:5])}, ...)")
    kept = tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in private))
    made = _make(path, module, input_shape, input_type, kept, memory)
    flat = made.layout.join({name: value.detach().numpy() for name, value in module.named_parameters()})
    return dataclasses.replace(made, initial=flat)


def _make(
    name: str,
    module: torch.nn.Module,
    input_shape: tuple[int, ...],
    input_type: str,
    private: tuple[str, ...],
    memory: graphs.Knob,
) -> Bundle:
    made = graphs.export(module, input_shape, _TYPES[input_type], memory)
    layout = torch_backend.layout(module)
    versions = (graphs.OPSET, graphs.IR_VERSION)
    ends = (input_shape, input_type, made.outputs, private, made.saved, made.memory)
    content = {
        bundle.FORWARD: made.forward,
        bundle.BACKWARD: made.backward,
        bundle.PACKED_FORWARD: packed.forward(made.forward, layout),
        bundle.PACKED_BACKWARD: packed.backward(made.backward, layout),
        bundle.GROWTH: packed.growth(made.backward, layout),
    }
    return Bundle(name, layout, *ends, *versions, content, None)


def write(made: Bundle, folder: Path) -> None:
    """Write a bundle's folder, whole or not at all; it must not exist yet, or be a bundle.

    Raises:
        ConfigError: it cannot be written, or holds something else.
    """
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / bundle.MANIFEST).exists():
            raise ConfigError(f"{folder}: is there already, and not a bundle; choose another --out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            whole = Path(temporary) / "bundle"
            whole.mkdir()
            for name, data in bundle.files(made).items():
                (whole / name).write_bytes(data)
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_runtime.export.bundle", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model")
    parser.add_argument("--input", default="")
    parser.add_argument("--type", default="float32", choices=sorted(_TYPES))
    parser.add_argument("--memory", default="recompute")
    parser.add_argument("--private", action="append", default=[])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--cut", type=bytes.fromhex, default=b"")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"--input {text!r} is not a shape: write 1x28x28 for one sample (the batch is left out)")
    return shape


def _knob(text: str) -> graphs.Knob:
    if text in ("save", "recompute"):
        return text
    if budget := re.fullmatch(r"(\d+)(k|M)?B", text):
        return graphs.Budget(int(budget[1]) * {None: 1, "k": 1000, "M": 1_000_000}[budget[2]])
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigError(
            f"--memory {text!r} is neither save, recompute, a fraction from 0 to 1 nor bytes a sample (60kB)"
        )
    return fraction


def _cut(options: argparse.Namespace) -> bytes:
    if options.width == 1:
        return bytes(options.cut)
    try:
        return submodel.encode(submodel.nested(narrow.structure(models.find(options.model)), options.width))
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    memory = _knob(options.memory)
    if ":" in options.model:
        shape = _shape(options.input)
        made = of_factory(options.model, options.seed, shape, options.type, options.private, memory)
        torch.manual_seed(options.seed)
        module = torch_backend.prepare(torch_backend.make(options.model))
    else:
        spec = narrow.find(options.model, _cut(options))
        made = of_built_in(spec, memory)
        module = torch_backend.module_of(spec)
    found = check.parity(module, made)
    write(made, options.out)
    record = {
        "model": made.model,
        "folder": str(options.out),
        "parameters": made.layout.size,
        "private": list(made.private),
        "bytes": sum(map(len, bundle.files(made).values())),
        "wire_bytes": len(bundle.pack(made)),
        "saved_activations": len(made.saved),
        "saved_bytes_per_sample": made.memory.saved_per_sample,
        "bytes_per_sample": made.memory.per_sample,
        "outputs_differ": found.outputs,
        "gradients_differ": found.gradients,
        "opset": made.opset,
        "ir_version": made.ir_version,
    }
    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    sys.stdout.write(
        f"{made.model}: {made.layout.size:,} parameters, written to {options.out}\n"
        f"  parity with torch: outputs within {found.outputs:.1e}, gradients within {found.gradients:.1e}\n"
        f"  {record['wire_bytes']:,} bytes on the wire; a batch takes about {made.memory.per_sample:,} bytes a sample\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    try:
        _run(_parser().parse_args(arguments))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
