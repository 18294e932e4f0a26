"""How a device computes, as a person sets it: plain data that loads no backend."""

import importlib.util
from dataclasses import dataclass

from edge_runtime import config
from edge_runtime.errors import ConfigError

NAMES = ("auto", "onnx", "torch", "numpy", "ort_training")
DEVICES = ("cpu", "cuda")
_PACKAGES = {"onnx": "onnxruntime", "torch": "torch", "numpy": "numpy"}
"""What each backend imports."""


@dataclass(frozen=True)
class Compute:
    """How a device computes."""

    backend: str = "auto"
    """`auto` is the first of onnx, torch and numpy that is installed here and knows the model; or `ort_training`."""
    device: str = "cpu"
    """`cpu`, or `cuda` for onnx and torch."""
    threads: int = 1
    arena: bool = True
    """Of onnx: keep freed memory for the next step instead of asking the system for it every time."""
    memory_mb: int = 0
    """What a task may take, in MB; 0: what is free when it starts. One that needs more is refused."""
    artifacts: str = ""
    """Of ort_training: the folder that `python -m edge_runtime.export.ort_training` made of the model's bundle."""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.backend not in NAMES:
            raise ConfigError(f"backend: {self.backend!r} is unknown{config.nearest(self.backend, NAMES)}")
        if self.device not in DEVICES:
            raise ConfigError(f"device: {self.device!r} is unknown{config.nearest(self.device, DEVICES)}")
        if self.memory_mb < 0:
            raise ConfigError(f"memory-mb must be 0 (what is free) or more, not {self.memory_mb}")
        if self.threads < 1:
            raise ConfigError(f"threads must be 1 or more, not {self.threads}")


DEFAULT = Compute()


def usual(compute: Compute) -> str:
    """Say which backend computes a built-in model here."""
    if compute.backend != "auto":
        return compute.backend
    there = installed()
    if compute.device == "cuda" and "torch" in there:
        return "torch"
    return "numpy" if compute.device == "cpu" and "onnx" not in there else "onnx"


def installed() -> list[str]:
    """List the backends whose packages are installed here, without importing them."""
    return [name for name, package in _PACKAGES.items() if importlib.util.find_spec(package) is not None]
