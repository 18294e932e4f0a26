"""What models cost lies beside their bundles, is made by measuring, and is refused where it is damaged."""

from pathlib import Path

import pytest

from edge_runtime import bundle, config, costs, models
from edge_runtime.devices import budget
from edge_runtime.devices.budget import Costs, Point
from edge_runtime.errors import ConfigError

MADE = Costs("here", (Point("onnx", 1.0, 4, 10_000, 1.25), Point("onnx", 0.5, 4, 9_000, 1.5)))


@pytest.mark.parametrize("name", models.names())
def test_every_built_in_model_comes_with_costs_dense_and_packed(name: str) -> None:
    known = costs.read(bundle.built_in_folder(name))
    assert known is not None
    for density in (1.0, 0.2):
        found = budget.estimate(known, "onnx", density, 32)
        assert found is not None
        assert found.peak_bytes > 3 * 4 * density * models.find(name).layout.size / 2
        assert found.step > 0


def test_costs_survive_a_file_with_a_line_for_each_point(tmp_path: Path) -> None:
    costs.write(MADE, tmp_path)
    assert costs.read(tmp_path) == MADE
    assert sum("over_bytes" in line for line in (tmp_path / costs.FILE).read_text().splitlines()) == 2


def test_a_model_that_was_not_measured_has_none(tmp_path: Path) -> None:
    assert costs.read(tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"format": 2, "machine": "", "points": [{}]}'])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / costs.FILE).write_bytes(data)
    with pytest.raises(ConfigError, match=r"costs\.json: says of no costs .*bench costs"):
        costs.read(tmp_path)


def test_a_model_is_measured_at_every_point_of_the_grid() -> None:
    grid = costs.Grid(("numpy",), (2, 4), (1.0, 0.5), steps=2, repeats=2)
    said: list[str] = []
    found = costs.calibrate("linear", grid, config.environment(1), said.append)
    assert [(one.backend, one.density, one.batch) for one in found.points] == [
        ("numpy", density, batch) for density in (1.0, 0.5) for batch in (2, 4)
    ]
    assert all(one.over_bytes > 0 and one.step > 0 for one in found.points)
    assert len(said) == 4
    assert budget.read(budget.record(found)) == found


def test_what_is_no_model_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lenet'"):
        costs.folder_of("lenett")
