"""Make a bundle of a torch module (`edge_runtime/bundle.py` has its form), and check it before it is written.

    python -m edge_runtime.export.bundle package.module:factory --input 1x28x28 --out bundle/

`edge-coordinator export` starts this in a process of its own, so that torch and its memory stay out of the coordinator.
"""

import argparse
import dataclasses
import fcntl
import fnmatch
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime import bundle, config, data, flags, narrow
from edge_runtime.backends import torch as torch_backend
from edge_runtime.bundle import Bundle
from edge_runtime.compression import submodel
from edge_runtime.compression.submodel import Cut
from edge_runtime.data import DataConfig, Split
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.export import channels, check, graphs, origin, packed, program
from edge_runtime.export import importance as importances
from edge_runtime.files import write_atomic
from edge_runtime.models import ModelSpec
from edge_runtime.tree import Flat

_TYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class Source:
    """What bundles are made of: a torch module, or part of one."""

    name: str
    module: torch.nn.Module
    input_shape: tuple[int, ...]
    input_type: str = "float32"
    private: tuple[str, ...] = ()

    @property
    def sample(self) -> torch.Tensor:
        """Make inputs that the module takes."""
        shape = (2, *self.input_shape)
        return torch.rand(shape) if self.input_type == "float32" else torch.zeros(shape, dtype=torch.int64)

    def flat(self) -> Flat:
        """Give the module's parameters, end to end."""
        values = {name: value.detach().numpy() for name, value in self.module.named_parameters()}
        return torch_backend.layout(self.module).join(values)


def factory(path: str, seed: int, input_shape: tuple[int, ...], input_type: str, private: list[str]) -> Source:
    """Make a user's own module, `package.module:factory`, with initial parameters by torch's seed `seed`.

    `private` are patterns (`head.*`) of the names of parameters that by default stay on the device.

    Raises:
        ConfigError: the module cannot be made.
    """
    torch.manual_seed(seed)
    module = torch_backend.prepare(torch_backend.make(path))
    names = [name for name, _ in module.named_parameters()]
    for pattern in private:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--private {pattern!r} fits no parameter (there are {', '.join(names[:5])}, ...)")
    kept = tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in private))
    return Source(path, module, input_shape, input_type, kept)


def built_in(spec: ModelSpec) -> Source:
    """Make the module of a built-in model, or of a part of one."""
    return Source(spec.name, torch_backend.module_of(spec), spec.input_shape)


def of(source: Source, memory: graphs.Knob = 1.0) -> Bundle:
    """Make a bundle without initial parameters; `edge_runtime/bundles/` holds those of the built-in models.

    Raises:
        ConfigError: the module cannot be exported.
    """
    made = graphs.export(source.module, source.input_shape, _TYPES[source.input_type], memory)
    layout = torch_backend.layout(source.module)
    versions = (graphs.OPSET, graphs.IR_VERSION)
    ends = (source.input_shape, source.input_type, made.outputs, source.private, made.saved, made.memory)
    content = {
        bundle.FORWARD: made.forward,
        bundle.BACKWARD: made.backward,
        bundle.PACKED_FORWARD: packed.forward(made.forward, layout),
        bundle.PACKED_BACKWARD: packed.backward(made.backward, layout),
        bundle.GROWTH: packed.growth(made.backward, layout),
    }
    return Bundle(source.name, layout, *ends, *versions, content, None)


def kept(source: Source, memory: graphs.Knob, folder: Path) -> Bundle:
    """Make a bundle as `of` does and check it, or read it in `folder` where it was made before of the same code.

    One at a time: who waits for another that makes the same finds it there.

    Raises:
        ConfigError: the module cannot be exported, or its graphs compute something else.
    """
    ends = [*source.input_shape, source.input_type, *source.private, memory]
    path = folder / f"own-{origin.digest(source.name, source.module, ends)}.bundle"
    folder.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return bundle.unpack(path.read_bytes())
        except (OSError, DecodeError):
            print(f"{source.name}: making its graphs, once: half a minute", file=sys.stderr, flush=True)
            made = of(source, memory)
            check.parity(source.module, made)
            write_atomic(path, bundle.pack(made), durable=False)
            return made


def importance(source: Source, by: str, split: Split | None) -> NDArray[np.floating] | None:
    """Say how much every parameter of a module matters [size]; None: a part has the first channels.

    Args:
        source: the module.
        by: `first`, `magnitude`, or `taylor` on training samples of a device.
        split: those.

    Raises:
        ConfigError: the module begins at random, or does not take the samples.
    """
    if by != "first" and ":" not in source.name:
        raise ConfigError(f"--by {by}: {source.name} begins at random, so that none of its channels matters more")
    if (by == "taylor") != (split is not None):
        raise ConfigError(
            "--by taylor goes with --data, whose training samples say what matters, and nothing else does"
        )
    if split is not None:
        return importances.taylor(source.module, source.flat(), split)
    return importances.magnitude(source.flat()) if by == "magnitude" else None


def part(source: Source, width: float, scores: NDArray[np.floating] | None = None) -> tuple[Source, Cut]:
    """Make the part of a module that has `width` of its channels: the first, or by `scores` of its parameters [size].

    Raises:
        ConfigError: the module has no channels that can go.
    """
    found = channels.find(source.module, source.sample)
    for layer, reason in found.whole.items():
        print(f"{source.name}: {layer} stays whole: {reason}", file=sys.stderr)
    if not found.structure.groups:
        raise ConfigError(f"{source.name}: no channels of it can be taken away")
    kept = found.structure
    cut = submodel.nested(kept, width) if scores is None else submodel.chosen(kept, width, scores)
    return dataclasses.replace(source, module=channels.narrow(source.module, cut)), cut


def write(made: Bundle, folder: Path, parts: Mapping[float, tuple[Bundle, Cut]] | None = None) -> None:
    """Write a bundle's folder, and in it parts of the model by their widths, whole or not at all.

    It must not exist yet, or be a bundle.

    Raises:
        ConfigError: it cannot be written, or holds something else.
    """
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / bundle.MANIFEST).exists():
            raise ConfigError(f"{folder}: is there already, and not a bundle; choose another --out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            whole = Path(temporary) / "bundle"
            _write_files(whole, bundle.files(made))
            for width, (smaller, cut) in (parts or {}).items():
                record = json.dumps(submodel.record(cut)).encode()
                _write_files(bundle.part_folder(whole, width), {**bundle.files(smaller), bundle.CUT: record})
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from error


def _write_files(folder: Path, content: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, written in content.items():
        (folder / name).write_bytes(written)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_runtime.export.bundle", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model")
    parser.add_argument("--input", default="")
    parser.add_argument("--type", default="float32", choices=sorted(_TYPES))
    parser.add_argument("--memory", default="1")
    parser.add_argument("--private", action="append", default=[])
    parser.add_argument("--width", type=float, action="append", default=[])
    parser.add_argument("--by", choices=("first", "magnitude", "taylor"), default="first")
    parser.add_argument("--cut", type=bytes.fromhex, default=b"")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--json", action="store_true")
    flags.add_data(parser)
    parser.set_defaults(data=None)
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
    if budget := re.fullmatch(r"(\d+)(k|M)?B", text):
        return graphs.Budget(int(budget[1]) * {None: 1, "k": 1000, "M": 1_000_000}[budget[2]])
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ConfigError(f"--memory {text!r} is neither a fraction from 0 to 1 nor bytes a sample (60kB)")
    return fraction


def _split(options: argparse.Namespace) -> Split | None:
    if options.data is None:
        return None
    return data.load(config.build(DataConfig, flags.data_table(options), "data"), config.cache_folder())


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    memory = _knob(options.memory)
    for width in options.width:
        if not 0 < width <= 1:
            raise ConfigError(f"--width must be above 0 and at most 1, not {width:g}")
    if ":" in options.model:
        source = factory(options.model, options.seed, _shape(options.input), options.type, options.private)
    else:
        source = built_in(narrow.find(options.model, options.cut))
    if options.kept:
        write(dataclasses.replace(kept(source, memory, options.kept), initial=source.flat()), options.out)
        return
    made = of(source, memory)
    if ":" in options.model:
        made = dataclasses.replace(made, initial=source.flat())
    found = check.parity(source.module, made)
    scores = importance(source, options.by, _split(options)) if options.width else None
    parts = {}
    for width in options.width:
        print(f"{source.name}: a part with {width:g} of the channels ...", file=sys.stderr)
        smaller, cut = part(source, width, scores)
        parts[width] = of(smaller, memory), cut
        check.parity(smaller.module, parts[width][0])
    write(made, options.out, parts)
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
        "parts": {
            f"{width:g}": {"parameters": one.layout.size, "bytes_per_sample": one.memory.per_sample}
            for width, (one, _) in parts.items()
        },
    }
    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
        return
    sys.stdout.write(
        f"{made.model}: {made.layout.size:,} parameters, written to {options.out}\n"
        f"  parity with torch: outputs within {found.outputs:.1e}, gradients within {found.gradients:.1e}\n"
        f"  {record['wire_bytes']:,} bytes on the wire; a batch takes about {made.memory.per_sample:,} bytes a sample\n"
    )
    for width, (one, _) in parts.items():
        size = f"{one.layout.size:,} parameters, about {one.memory.per_sample:,} bytes a sample"
        sys.stdout.write(f"  {width:g} of its channels: {size}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    options = _parser().parse_args(arguments)
    return program.exit_code(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
