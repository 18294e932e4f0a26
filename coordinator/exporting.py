"""The programs of `export/`, each run in a process of its own: torch, onnx and their memory stay out of this one."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from edge_runtime.errors import ConfigError, DeviceError

_NEEDED = {
    "bundle": ("torch", "torch_pruning", "onnx", "onnxscript", "onnxruntime"),
    "initial": ("torch",),
    "compressed": ("onnx", "onnxruntime", "cryptography"),
    "manifest": ("cryptography",),
}
"""What they need beside what a coordinator has."""


def start(module: str, arguments: Sequence[str]) -> None:
    """Run a program of `export/`, and print to stderr what it says there.

    Raises:
        ConfigError, DeviceError: as it says in the last line that it writes to stderr; the others go on to ours.
    """
    missing = [name for name in _NEEDED[module] if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(f"export needs {', '.join(missing)}; run: pip install 'edge-runtime[export]'")
    command = [sys.executable, "-W", "ignore", "-m", f"edge_runtime.export.{module}", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stderr or ():
            if last and line.strip():
                print(last, file=sys.stderr)
            last = line.strip() or last
    if process.returncode:
        last = last or "no reason given"
        kind = {error.exit_code: error for error in (ConfigError, DeviceError)}.get(process.returncode)
        raise kind(last) if kind else ConfigError(f"export failed: {last}")
    if last:
        print(last, file=sys.stderr)
