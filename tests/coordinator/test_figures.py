"""What devices say of their hardware is taken for what it can be, and for nothing else."""

import pytest

from edge_runtime.coordinator import figures
from edge_runtime.coordinator.journal import Accepted
from edge_runtime.coordinator.run import RunConfig

RUN = RunConfig("fedavg")
NAMES = {"energy-j": "energy_j", "temperature-c": "temperature_c", "throttled": "throttled", "battery": "battery"}


def told(metrics: dict[str, float]) -> dict[str, float | None]:
    (row,) = figures.rows([Accepted(0, "train", "left", 0, metrics)], RUN)
    return {name: getattr(row, name) for name in NAMES.values()}


def test_a_device_that_tells_nothing_has_none() -> None:
    assert set(told({}).values()) == {None}


def test_what_a_device_tells_is_taken() -> None:
    said = {"energy-j": 3.5, "temperature-c": -10.0, "throttled": 1.0, "battery": 0.25}
    assert list(told(said).values()) == list(said.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [("energy-j", -1.0), ("energy-j", 1e12), ("temperature-c", 1000.0), ("throttled", 2.0), ("battery", -0.1)],
)
def test_what_no_hardware_says_is_not_taken(name: str, value: float) -> None:
    assert told({name: value})[NAMES[name]] is None
