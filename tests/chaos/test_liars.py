"""The rows of devices that lie, a tenth of each."""

from pathlib import Path

import pytest

from edge_runtime.errors import ConfigError
from tests.chaos import liars
from tests.chaos.scorecard import Row, Scale

ROWS = {row.name: row for row in liars.ROWS}


@pytest.fixture(autouse=True)
def _needs_fashion_mnist() -> None:
    try:
        liars.Trial(devices=1).splits()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("row", [ROWS["R17"], ROWS["byzantine-mqtt"]], ids=lambda row: row.name)
def test_a_small_part_of_a_row_is_met(row: Row, tmp_path: Path) -> None:
    figure = row.measure(Scale(0.1, folder=tmp_path))
    assert figure.met, figure


def test_of_six_devices_one_lies_and_a_scaled_backdoor_is_kept_out_by_its_norm() -> None:
    trial = liars.Trial(devices=10, rounds=4)
    assert len(trial.liars) == 2
    plain = liars.simulated(trial, "", robust=False)
    pulled = liars.simulated(trial, "backdoor", robust=False)
    held = liars.simulated(trial, "backdoor")
    assert pulled.success > 0.3 > held.success
    assert held.accuracy > plain.accuracy - 10  # of four rounds, which is no more than a beginning
