"""Who may import whom, and what nobody may use: the layers as rules that a person can read."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("coordinator", "compression", "export", "devices")

# layer -> the layers of ours that its files may import
MAY_IMPORT = {
    "compression": {"compression"},
    "devices": {"devices"},
    "edge_runtime": {"edge_runtime", "compression", "devices"},
    "coordinator": {"coordinator", "edge_runtime", "compression", "devices"},
    "export": {"export", "edge_runtime", "compression", "devices"},
}
FRAMEWORKS = {"torch", "torch_pruning", "onnx", "onnxruntime"}
FRAMEWORKS_ALLOWED_IN = ("edge_runtime/backends/", "export/")
DEVICE_ONLY = ("agent", "device", "measure", "store", "backends", "trainer", "trainer_process")
DEVICE_ONLY_ALLOWED_IN = "coordinator/simulate.py"
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec"}
UNPICKLING_ALLOWED_IN = "edge_runtime/datasets/watch.py"  # one file, known by its SHA-256, is published as a pickle
ENVIRONMENT_ALLOWED_IN = {"cli.py", "config.py"}


def source_files() -> list[str]:
    """List our files by the folder that they really lie in, not by the link to it."""
    folders = [ROOT / "edge_runtime", *(ROOT / name for name in LINKED)]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return sorted({path.resolve().relative_to(ROOT.resolve()).as_posix() for path in files})


def imported(tree: ast.Module) -> Iterator[str]:
    """Give the dotted name of everything that is imported anywhere in a file, `importlib` with a literal included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def called(node: ast.Call) -> str:
    """Give the last part of the name of the function that is called."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def allows_pickle(keyword: ast.keyword) -> bool:
    """Say whether an argument may let numpy unpickle: anything but a literal False."""
    refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
    return keyword.arg == "allow_pickle" and not refused


def layer_of(name: str) -> str | None:
    """Give the layer of ours that a dotted name belongs to, or None for somebody else's module."""
    first, *rest = name.split(".")
    if first != "edge_runtime":
        return None
    return rest[0] if rest and rest[0] in LINKED else "edge_runtime"


def import_faults(path: str, tree: ast.Module) -> Iterator[str]:
    """Say what a file imports that it may not."""
    layer = path.partition("/")[0]
    for name in imported(tree):
        first, second = (*name.split("."), "")[:2]
        target = layer_of(name)
        if name.startswith(".") or first in LINKED:
            yield f"imports {name}: write edge_runtime.… in full"
        if target is not None and target not in MAY_IMPORT[layer]:
            yield f"imports {name}: {layer} may import {', '.join(sorted(MAY_IMPORT[layer]))}"
        if first in FRAMEWORKS and not path.startswith(FRAMEWORKS_ALLOWED_IN):
            yield f"imports {name}: frameworks belong in {', '.join(FRAMEWORKS_ALLOWED_IN)}"
        device_only = target == "edge_runtime" and second in DEVICE_ONLY
        if layer == "coordinator" and device_only and path != DEVICE_ONLY_ALLOWED_IN:
            yield f"imports {name}: of the device's side, only {DEVICE_ONLY_ALLOWED_IN} may"
        if first in UNSAFE_MODULES:
            yield f"imports {name}: nothing that runs what it reads"


def use_faults(path: str, tree: ast.Module) -> Iterator[str]:
    """Say what a file uses that it may not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                yield f"calls {node.func.id}: nothing that runs what it reads"
            if path != UNPICKLING_ALLOWED_IN and any(map(allows_pickle, node.keywords)):
                yield "allows pickles: nothing that runs what it reads"
        names = {node.attr} if isinstance(node, ast.Attribute) else set()
        names |= {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        if names & {"environ", "environb", "getenv"} and Path(path).name not in ENVIRONMENT_ALLOWED_IN:
            yield "reads the environment: only cli.py and config.py do, and pass on what they read"


def faults(path: str, source: str) -> list[str]:
    """Say how a file breaks the rules, one line each."""
    tree = ast.parse(source)
    found = [*import_faults(path, tree), *use_faults(path, tree)]
    return [f"{path} {fault}" for fault in found]


@pytest.mark.parametrize("path", source_files())
def test_a_file_keeps_to_its_layer_and_uses_nothing_unsafe(path: str) -> None:
    assert faults(path, (ROOT / path).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("compression/mask.py", "from edge_runtime.tree import Layout"),
        ("compression/mask.py", "import edge_runtime"),
        ("compression/mask.py", "from edge_runtime import devices"),
        ("devices/meter.py", "def late():\n    from edge_runtime.compression import codec"),
        ("edge_runtime/tree.py", "from edge_runtime.coordinator import server"),
        ("edge_runtime/tree.py", "from edge_runtime import export"),
        ("edge_runtime/tree.py", "from . import errors"),
        ("edge_runtime/tree.py", "from coordinator import server"),
        ("edge_runtime/tree.py", "import torch.nn"),
        ("edge_runtime/tree.py", "import importlib\nimportlib.import_module('torch')"),
        ("coordinator/server.py", "import edge_runtime.export.graph"),
        ("coordinator/server.py", "from edge_runtime.store import Store"),
        ("coordinator/server.py", "from edge_runtime import trainer"),
        ("coordinator/server.py", "from edge_runtime.backends.numpy import build"),
        ("export/graph.py", "from edge_runtime.coordinator.server import Server"),
        ("edge_runtime/store.py", "import pickle"),
        ("edge_runtime/store.py", "from marshal import loads"),
        ("edge_runtime/store.py", "eval('1')"),
        ("edge_runtime/store.py", "np.load(path, allow_pickle=True)"),
        ("edge_runtime/store.py", "np.load(path, allow_pickle=trusted)"),
        ("edge_runtime/agent.py", "import os\nhome = os.environ['HOME']"),
        ("edge_runtime/agent.py", "from os import getenv"),
        ("compression/submodel.py", "import torch_pruning"),
    ],
)
def test_a_broken_rule_is_seen(path: str, source: str) -> None:
    assert len(faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("compression/codec.py", "import numpy\nfrom edge_runtime.compression.errors import DecodeError"),
        ("edge_runtime/errors.py", "from edge_runtime.compression.errors import DecodeError"),
        ("edge_runtime/backends/torch.py", "import torch"),
        ("coordinator/simulate.py", "from edge_runtime.agent import Agent"),
        ("coordinator/server.py", "from edge_runtime.algorithm import load\nfrom edge_runtime.devices import meter"),
        ("coordinator/cli.py", "import os\nos.environ['HOME']"),
        ("edge_runtime/store.py", "np.load(path, allow_pickle=False)"),
        (UNPICKLING_ALLOWED_IN, "np.load(path, allow_pickle=True)"),
        ("edge_runtime/backends/torch.py", "model.eval()"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert faults(path, source) == []


@pytest.mark.parametrize("name", LINKED)
def test_a_linked_folder_is_a_relative_symlink_to_a_folder_without_init(name: str) -> None:
    link = ROOT / "edge_runtime" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert not (ROOT / name / "__init__.py").exists()


def test_importing_the_agent_loads_neither_torch_nor_numpy() -> None:
    program = "import sys, edge_runtime.agent; print(sorted({'torch', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
