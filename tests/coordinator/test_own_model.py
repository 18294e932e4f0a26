"""A run's model that is a torch module of one's own: its graphs are made once, and devices need no torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import bundle
from edge_runtime.coordinator import own_model
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.errors import ConfigError

NET = """
import torch
from torch import nn
from own_net.sizes import HIDDEN

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))

def none():
    return 7
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with a package `own_net`, and a cache of its own."""
    (tmp_path / "own_net").mkdir()
    (tmp_path / "own_net" / "models.py").write_text(NET)
    (tmp_path / "own_net" / "sizes.py").write_text("HIDDEN = 4\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def kept(home: Path) -> list[Path]:
    return sorted(home.glob("cache/edge-runtime/own-*.bundle"))


def a_run(**settings: Any) -> RunConfig:
    return RunConfig(**{"algorithm": "fedavg", "model": "own_net.models:net", "input": "2x3", **settings})


def test_devices_are_given_its_graphs_which_are_made_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = prepare(a_run(), {})
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "own_net.models:net: making its graphs, once: half a minute\n")
    card = first.description.model
    assert card.layout.names == ("1.weight", "1.bias", "3.weight", "3.bias")
    assert bundle.unpack(card.bundle).input_shape == (2, 3)
    (made,) = kept(home)
    again = prepare(a_run(), {})
    assert capfd.readouterr().err == ""
    assert again.description == first.description
    assert again.initial.tobytes() == first.initial.tobytes()
    other = prepare(a_run(seed=1), {})
    assert other.description.model.bundle == card.bundle
    assert other.initial.tobytes() != first.initial.tobytes()
    made.write_bytes(b"damaged")
    assert prepare(a_run(), {}).description.model.bundle == card.bundle


def test_another_code_anywhere_in_its_package_is_another_model(home: Path) -> None:
    own_model.exported("own_net.models:net", "2x3", "float32", 0)
    (home / "own_net" / "sizes.py").write_text("HIDDEN = 5\n")
    changed = own_model.exported("own_net.models:net", "2x3", "float32", 0)
    assert changed.layout.shapes[0] == (5, 6)
    assert len(kept(home)) == 2


def test_what_it_begins_as_is_what_torch_draws_from_the_seed(home: Path) -> None:
    graphs = own_model.exported("own_net.models:net", "2x3", "float32", 3)
    layout, initial = own_model.initial("own_net.models:net", 3)
    assert graphs.layout == layout
    assert graphs.initial is not None
    assert np.array_equal(graphs.initial, initial)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "watch-cnn"}, r"run: input: 'watch-cnn' has its own"),
        ({"input_type": "float16"}, r"run: input-type must be float32 or int64, not 'float16'"),
        ({"input": "2by3"}, r"'2by3' is not a shape"),
        ({"model": "own_net.models:nett"}, r"own_net\.models:nett"),
        ({"model": "own_net.models:none"}, r"gives a int, not a torch\.nn\.Module"),
        ({"input": "5"}, r"own_net\.models:net"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(settings: Any, words: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        prepare(a_run(**settings), {})
    assert "\n" not in str(caught.value)


def test_an_agents_process_that_trains_it_imports_neither_torch_nor_the_code(home: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from edge_runtime import backends, bundle\n"
        "from edge_runtime.compute import Compute\n"
        "model = backends.load(Compute('onnx'), 'own_net.models:net', bundle.unpack(open(sys.argv[1], 'rb').read()))\n"
        "print(model.layout.size, sorted({'torch', 'own_net'} & set(sys.modules)))\n"
    )
    packed = tmp_path / "packed"
    packed.write_bytes(prepare(a_run(), {}).description.model.bundle)
    done = subprocess.run([sys.executable, "-c", program, packed], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("43 []\n", "")
