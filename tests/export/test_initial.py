import subprocess
import sys

import numpy as np
import pytest

from edge_runtime import models

torch = pytest.importorskip("torch")
from edge_runtime.export import initial  # noqa: E402  # it imports torch

MODULE = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    name = f"initial_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_users_module_is_written_with_the_values_of_its_seed_and_without_buffers(own, tmp_path) -> None:
    out = tmp_path / "model.npz"

    code = initial.main([f"{own}:net", "--seed", "5", "--out", str(out)])

    torch.manual_seed(5)
    expected = torch.nn.Linear(3, 2)
    layout, flat = models.read_initial(out)
    assert code == 0
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert layout.shapes == ((2, 3), (2,), (2,), (2,))
    np.testing.assert_array_equal(layout.views(flat)["0.weight"], expected.weight.detach().numpy())


def test_a_file_of_initial_values_is_the_same_bytes_for_the_same_seed(own, tmp_path) -> None:
    files = [tmp_path / f"{i}.npz" for i in range(3)]
    for seed, file in zip((1, 1, 2), files, strict=True):
        initial.write(f"{own}:net", seed, file)

    first, again, other = (models.read_initial(file)[1].tobytes() for file in files)

    assert first == again != other


def test_a_module_beside_the_caller_is_found_by_the_child_process_and_a_missing_one_costs_one_line(
    own, tmp_path
) -> None:
    command = [sys.executable, "-m", "edge_runtime.export.initial", "--out", "model.npz"]

    good = subprocess.run([*command, f"{own}:net"], cwd=tmp_path, capture_output=True, text=True, check=False)
    bad = subprocess.run([*command, "absent:net"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (good.returncode, good.stderr) == (0, "")
    assert models.read_initial(tmp_path / "model.npz")[0].size == 12
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
    assert "absent" in bad.stderr
