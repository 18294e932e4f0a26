"""What a user's module was made of, as one digest: the same digest, the same graphs.

The graphs of a module follow from the code that built it, which may lie in several files, from the shape of its
inputs, and from what is in it that is neither parameter nor code (buffers). So the digest is over the source of all
modules of the factory's package that were imported, what torch says the module is, its tensors, and the versions of
what makes graphs.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from edge_runtime import __version__
from edge_runtime.backends import torch as torch_backend

_MAKERS = ("torch", "onnx", "onnxscript")


def digest(factory: str, module: torch.nn.Module, ends: Sequence[Any]) -> str:
    """Name what `package.module:factory` gave.

    Args:
        factory: where it came from.
        module: what it gave, with its parameters, which do not count.
        ends: what else the graphs depend on: the inputs' shape, a memory budget.
    """
    layout = torch_backend.layout(module)
    record = {
        "made by": [__version__, *(metadata.version(name) for name in _MAKERS)],
        "factory": factory,
        "files": _sources(factory.partition(":")[0].partition(".")[0]),
        "module": repr(module),
        "layout": [layout.names, layout.shapes],
        "buffers": [(name, _sha256(value.cpu().numpy().tobytes())) for name, value in module.named_buffers()],
        "ends": [str(end) for end in ends],
    }
    return _sha256(json.dumps(record).encode())[:24]


def _sources(package: str) -> list[tuple[str, str]]:
    """Give the names and digests of all modules of a package that were imported."""
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == package and file:
            found.append((name, _sha256(Path(file).read_bytes())))
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
