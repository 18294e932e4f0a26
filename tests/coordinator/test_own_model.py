"""A run's model that is a torch module of one's own: its graphs are made once, and devices need no torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import bundle
from edge_runtime.coordinator import own_model, session
from edge_runtime.coordinator.run import RunConfig, prepare
from edge_runtime.errors import ConfigError, LinkError
from edge_runtime.link import Link

NET = """
from torch import nn
from own_net.choices import Between

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), Between(), nn.Linear(4, 3))

def none():
    return 7
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with a package `own_net`, and a cache of its own."""
    (tmp_path / "own_net").mkdir()
    (tmp_path / "own_net" / "models.py").write_text(NET)
    (tmp_path / "own_net" / "choices.py").write_text("from torch.nn import ReLU as Between\n")
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
    other = prepare(a_run(seed=1), {})
    assert capfd.readouterr().err == ""
    assert other.description.model == card
    assert other.initial.tobytes() != first.initial.tobytes()
    layout, initial = own_model.initial("own_net.models:net", 1)  # as devices with torch would begin
    assert (layout, initial.tobytes()) == (card.layout, other.initial.tobytes())
    _trains_without_torch_and_without_the_code(card.bundle, home)


def _trains_without_torch_and_without_the_code(packed: bytes, folder: Path) -> None:
    (folder / "packed").write_bytes(packed)
    program = (
        "import sys\n"
        "from edge_runtime import backends, bundle\n"
        "from edge_runtime.compute import Compute\n"
        "model = backends.load(Compute('onnx'), 'own_net.models:net', bundle.unpack(open(sys.argv[1], 'rb').read()))\n"
        "print(model.layout.size, sorted({'torch', 'own_net'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, folder / "packed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("43 []\n", "")


def test_another_code_anywhere_in_its_package_is_another_model_and_another_run(home: Path, tmp_path: Path) -> None:
    def coordinate() -> None:
        session.over_mqtt(
            prepare(a_run(), {}), Link("127.0.0.1", 1, "c"), tmp_path / "run", "", lambda coordinator: None
        )

    with pytest.raises(LinkError):
        coordinate()
    (made,) = kept(home)
    made.write_bytes(b"damaged")
    with pytest.raises(LinkError):
        coordinate()
    assert len(made.read_bytes()) > 100
    (home / "own_net" / "choices.py").write_text("from torch.nn import Tanh as Between\n")
    with pytest.raises(ConfigError, match="holds another run"):
        coordinate()
    assert len(kept(home)) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "watch-cnn"}, r"run: input: 'watch-cnn' has its own"),
        ({"input_type": "float16"}, r"run: input-type must be float32 or int64, not 'float16'"),
        ({"input": "2by3"}, r"'2by3' is not a shape"),
        ({"model": "own_net.models:none"}, r"gives a int, not a torch\.nn\.Module"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(settings: Any, words: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        prepare(a_run(**settings), {})
    assert "\n" not in str(caught.value)
