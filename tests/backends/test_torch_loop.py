"""The page for those who come from Flower: its files, as they stand there, keep the contract and train."""

import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_runtime import backends, data, testing
from edge_runtime.backends.torch_loop import TorchLoop
from edge_runtime.compute import Compute
from edge_runtime.data import DataConfig
from edge_runtime.errors import DeviceError

PAGE = Path(__file__).parents[2] / "docs" / "from-flower.md"
TORCH = Compute("torch")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the page's files."""
    for title, text in re.findall(r'^```python title="([^"]+)"\n(.*?)^```', PAGE.read_text(), re.DOTALL | re.MULTILINE):
        (tmp_path / title).parent.mkdir(exist_ok=True)
        (tmp_path / title).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def subject(app: Path, **settings: Any) -> testing.Subject:
    splits = {
        f"device-{part}": data.load(DataConfig("quickstart.data:Partitions", part=part), app) for part in range(4)
    }
    samples = {name: (split.x_train[:20], split.y_train[:20]) for name, split in splits.items()}
    table = {"lr": 0.01, **settings}
    return testing.Subject("quickstart.client", table, backends.load(TORCH, "quickstart.task:Net"), samples)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_a_loop_of_ones_own_keeps_the_contract(check: Any, app: Path) -> None:
    check(subject(app))


def test_it_moves_as_the_loop_alone_would(app: Path) -> None:
    task = importlib.import_module("quickstart.task")
    fleet = subject(app, **{"local-epochs": 2, "batch-size": 8, "lr": 0.05}).fleet()
    up = fleet.client("device-0").round(fleet.server.down("device-0", True), fleet.batches("device-0"))
    net, batches = task.Net(), fleet.batches("device-0")
    views = fleet.model.layout.views(fleet.initial.copy())
    net.load_state_dict({name: torch.from_numpy(view) for name, view in views.items()})
    torch.manual_seed(int(batches.rng.integers(2**31)))
    (batch,) = batches.epoch(20)
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(batch.x), torch.from_numpy(batch.y))
    task.train(net, torch.utils.data.DataLoader(pairs, 8, shuffle=True), 2, 0.05, "cpu")
    trained = np.concatenate([value.detach().numpy().ravel() for value in net.parameters()])
    assert up.samples == 20
    assert np.array_equal(fleet.initial - trained, up.values)


def test_training_leaves_the_model_that_others_use_as_it_was(app: Path) -> None:
    fleet = subject(app).fleet()
    module: Any = fleet.model.oracle.module  # type: ignore[attr-defined]
    before = [value.clone() for value in module.parameters()]
    fleet.round()
    assert not module.training
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
    assert all(value.grad is None for value in module.parameters())


def test_a_batch_may_be_a_dictionary(app: Path) -> None:
    seen = []

    class Named(TorchLoop):
        keys = ("img", "label")

        def train(self, net: Any, trainloader: Any, device: Any) -> None:
            seen.extend((set(batch), len(batch["label"]), device.type) for batch in trainloader)

    fleet = subject(app).fleet()
    client = Named(fleet.config, fleet.model, None)
    up = client.round(fleet.server.down("device-0", True), fleet.batches("device-0"))
    assert seen == [({"img", "label"}, 4, "cpu")] * 5
    assert not up.values.any()


def test_a_model_that_torch_does_not_compute_is_refused_in_one_line(app: Path) -> None:
    fleet = dataclasses.replace(subject(app), model=testing.MLP).fleet()
    with pytest.raises(DeviceError, match="start the agent with --backend torch and --allow-model"):
        fleet.client("device-0").round(fleet.server.down("device-0", True), fleet.batches("device-0"))


def test_a_loop_that_diverges_is_told_in_one_line(app: Path) -> None:
    fleet = subject(app, lr=1e30).fleet()
    with pytest.raises(DeviceError, match="training diverged in round 0"):
        fleet.client("device-0").round(fleet.server.down("device-0", True), fleet.batches("device-0"))


def test_the_pages_command_trains(app: Path) -> None:
    (script,) = re.findall(r"^```bash\n(edge-coordinator simulate .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    words = shlex.split(script.replace("\\\n", " "))[1:]
    command = [sys.executable, "-m", "edge_runtime.coordinator.cli", *words, "--json"]
    done = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["devices"]) == 4
    assert report["summary"]["accuracy_shared"]["mean"] > 0.9
