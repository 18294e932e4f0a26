"""Write the names, shapes and initial values of a user's own torch module to a file.

    python -m edge_runtime.export.initial package.module:factory --seed 0 --out model.npz

The coordinator runs this as a child process, so that torch and its memory never enter the coordinator; it reads the
file with `edge_runtime.models.read_initial`. Buffers (running statistics) are not parameters and are left out.
"""

import argparse
import sys
from pathlib import Path

import torch

from edge_runtime.backends.torch import layout, make
from edge_runtime.errors import ConfigError
from edge_runtime.export import program
from edge_runtime.models import write_initial


def write(factory: str, seed: int, out: Path) -> None:
    """Make the module under torch's seed `seed` and write its parameters to `out`.

    Raises:
        ConfigError: the module cannot be made, or `out` not be written.
    """
    torch.manual_seed(seed)
    module = make(factory)
    cut = layout(module)
    flat = cut.join({name: value.detach().cpu().numpy() for name, value in module.named_parameters()})
    try:
        write_initial(out, cut, flat)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the program; gives the exit code (see `errors.py`)."""
    parser = argparse.ArgumentParser(
        prog="python -m edge_runtime.export.initial", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("factory", help="package.module:factory of a torch module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the NPZ file to write")
    options = parser.parse_args(arguments)
    return program.exit_code(lambda: write(options.factory, options.seed, options.out))


if __name__ == "__main__":
    sys.exit(main())
