"""Torch modules of many kinds become bundles that compute the same, and what cannot says why."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import bundle, models, packed, sgd
from edge_runtime.algorithm import Batch
from edge_runtime.errors import ConfigError
from edge_runtime.mask import Mask

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from edge_runtime.backends import onnx  # noqa: E402
from edge_runtime.backends import torch as torch_backend  # noqa: E402
from edge_runtime.export import bundle as exported  # noqa: E402
from edge_runtime.export import check, graphs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx tells of its own deprecations


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def convolutions() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2),
        nn.GELU(),
        nn.Conv2d(4, 8, (3, 5), groups=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ELU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),  # depthwise
        nn.LeakyReLU(0.1),
    ]
    return nn.Sequential(*layers, *head(6)), (3, 11, 12)


def pools() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Hardswish(),
        nn.AvgPool2d(2, 1, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.AvgPool2d(2, 2, padding=1, count_include_pad=False),
        nn.AdaptiveAvgPool2d((2, 1)),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)), (3, 14, 15)


def one_dimension() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv1d(3, 4, 5, stride=2, padding=1),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.LayerNorm(8),
        nn.PReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
        nn.LogSoftmax(1),
    ]
    return nn.Sequential(*layers), (3, 20)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 5, batch_first=True), nn.GRU(5, 4, batch_first=True)
        self.cell, self.out = nn.LSTMCell(4, 4), nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        x = self.gru(self.lstm(x)[0])[0]
        hidden = cell = x.new_zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            hidden, cell = self.cell(x[:, step], (hidden, cell))
        return self.out(hidden)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.register_buffer("places", torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.layer(self.table(x) + self.places).mean(1))


ZOO: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "convolutions": convolutions,
    "pools": pools,
    "one dimension": one_dimension,
    "recurrent": lambda: (Recurrent(), (4, 6)),
    "attention": lambda: (Words(), (5,)),
}


def make(module: nn.Module, shape: tuple[int, ...], memory: graphs.Knob = 1.0, kind: str = "float32") -> Any:
    return exported.of(exported.Source("test", torch_backend.prepare(module), shape, kind), memory)


@pytest.mark.parametrize("kind", ZOO)
def test_a_module_becomes_a_bundle_that_computes_the_same_packed_or_not(kind: str) -> None:
    torch.manual_seed(0)
    module, shape = ZOO[kind]()
    made = make(module, shape, kind="int64" if kind == "attention" else "float32")
    found = check.parity(module, made)  # raises where they differ
    assert 0 < max(found.outputs, found.gradients) < check.TOLERANCE

    flat = made.layout.join({name: value.detach().numpy() for name, value in module.named_parameters()})
    rng = np.random.default_rng(1)
    mask = half(made.layout, rng)
    x = rng.integers(0, 11, (6, *shape)) if kind == "attention" else rng.normal(size=(6, *shape)).astype(np.float32)
    batch = Batch(x, rng.integers(0, 3, 6))
    model = onnx.from_bundle(made, onnx.Options())
    short = packed.of(model, mask)
    assert isinstance(short.oracle, onnx.PackedOracle)
    dense = sgd.gradient(model, mask.unpack(mask.pack(flat)), batch)
    sparse = sgd.gradient(short, mask.pack(flat), batch)
    assert np.abs(sparse - mask.pack(dense)).max() <= 1e-6 * np.abs(dense).max()


def half(layout: Any, rng: Any) -> Mask:
    pairs = zip(layout.shapes, layout.sizes, strict=True)
    draws = (np.sort(rng.choice(n, n // 2, replace=False)).astype(np.int32) if len(s) > 1 else None for s, n in pairs)
    return Mask(layout, tuple(draws))


def test_the_memory_knob_saves_fewer_bytes_and_changes_no_value() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    made = [make(module, (1, 8, 8), knob) for knob in (1.0, 0.7, 0.2)]
    saved = [one.memory.saved_per_sample for one in made]
    assert saved[0] > saved[1] > saved[2]
    for one in made:
        check.parity(module, one)
    fits = make(module, (1, 8, 8), graphs.Budget(saved[1] - 1))
    assert fits.memory.saved_per_sample < saved[1]


@pytest.mark.parametrize("name", models.names())
def test_the_bundles_that_ship_are_those_that_the_export_makes(name: str) -> None:
    shipped = Path(bundle.__file__).with_name("bundles") / name
    made = bundle.files(exported.of(exported.built_in(models.find(name))))
    assert {path.name: path.read_bytes() for path in shipped.iterdir() if path.name != "costs.json"} == made, (
        f"make it again: python -m edge_runtime.export.bundle {name} --out edge_runtime/bundles/{name}, "
        f"and what it costs: edge-coordinator bench costs --model {name}"
    )


def test_what_cannot_be_exported_says_which_operator() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(ConfigError, match="adaptive_max_pool2d_backward"):
        make(module, (1, 6, 6))
    with pytest.raises(ConfigError, match="cannot be traced"):
        make(nn.Linear(3, 2), (4,))
    with pytest.raises(ConfigError, match=r"does not hold.*AveragePool"):
        make(nn.Sequential(nn.AvgPool2d(2, 2, padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(16, 2)), (1, 7, 7))
    with pytest.raises(ConfigError, match="outputs have shape"):
        make(nn.Conv2d(1, 2, 3), (1, 6, 6))


def export(*flags: str, path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", "export", "--no-costs", *flags]
    environment = {"PYTHONPATH": str(path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_bundle_made_on_the_command_line_trains_without_torch(tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(600, 16), torch.nn.ReLU(),\n"
        "                               torch.nn.Linear(16, 7))\n"
    )
    out = tmp_path / "bundle"
    done = export(
        "--model", "own_net:net", "--input", "6x100", "--out", str(out), "--private", "3.*", "--json", path=tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parameters"] == 600 * 16 + 16 + 16 * 7 + 7
    assert record["private"] == ["3.weight", "3.bias"]
    assert record["gradients_differ"] < check.TOLERANCE
    program = """
import sys
sys.modules["torch"] = None  # an import of it fails
from edge_runtime.coordinator.cli import main
main(sys.argv[1:])
"""
    flags = ["simulate", "--model", str(out), "--parts", "2", "--rounds", "2", "--labels-per-class", "3", "--json"]
    command = [sys.executable, "-c", program, *flags, "--runs", str(tmp_path / "runs"), "--no-baseline"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]["accuracy_personal"]["mean"] > 0.3


OWN = ["--model", "own_net:net", "--input", "2"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "own_net:net", "--out", "OUT"], "--input '' is not a shape"),
        (["--model", "own_net:net", "--input", "1x0", "--out", "OUT"], "not a shape"),
        (["--model", "lenett", "--out", "OUT"], "did you mean 'lenet'"),
        (["--model", "linear", "--memory", "60kb", "--out", "OUT"], "--memory '60kb'"),
        (["--model", "linear", "--out", "."], "not a bundle"),
        (["--model", "linear", "--width", "0.5", "--by", "magnitude", "--out", "OUT"], "linear begins at random"),
        ([*OWN, "--width", "0.5", "--by", "taylor", "--out", "OUT"], "--by taylor goes with --data"),
        ([*OWN, "--width", "0.5", "--data", "watch", "--out", "OUT"], "--by taylor goes with --data"),
        ([*OWN, "--width", "0.5", "--by", "taylor", "--data", "watch", "--out", "OUT"], "does not take samples"),
    ],
)
def test_a_wrong_flag_of_export_is_one_line(flags: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(2, 2)\n")
    done = export(*[str(tmp_path / "out") if flag == "OUT" else flag for flag in flags], path=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
