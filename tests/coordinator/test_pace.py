"""The time that tasks take in a simulation: drawn again the same, with the right means, slow where it should be."""

import math

import numpy as np
import pytest

from edge_runtime.coordinator.pace import Pace, chosen
from edge_runtime.errors import ConfigError

DEVICES = [f"device-{i}" for i in range(40)]


def test_the_default_takes_one_second_for_every_task() -> None:
    assert {Pace().task_s(seed, device, task) for seed in (0, 1) for device in "ab" for task in (0, 1)} == {1.0}


@pytest.mark.parametrize("kind", ["exponential", "log-normal"])
def test_a_time_depends_on_seed_device_and_task_and_on_nothing_else(kind: str) -> None:
    pace = Pace(kind)
    drawn = [pace.task_s(seed, device, task) for seed in (0, 1) for device in ("a", "b") for task in (0, 1)]
    again = [pace.task_s(seed, device, task) for seed in (0, 1) for device in ("a", "b") for task in (0, 1)]
    assert drawn == again
    assert len(set(drawn)) == len(drawn)


# Standard deviations of one draw: exponential, its mean; log-normal, mean sqrt(e^sigma^2 - 1).
@pytest.mark.parametrize(("kind", "deviation"), [("exponential", 3.0), ("log-normal", 3 * math.sqrt(math.expm1(0.25)))])
def test_times_have_the_mean_and_the_spread_of_their_distribution(kind: str, deviation: float) -> None:
    draws = 4000
    times = [Pace(kind, mean_s=3.0).task_s(7, "a", task) for task in range(draws)]
    assert np.mean(times) == pytest.approx(3.0, abs=4 * deviation / math.sqrt(draws))
    assert np.std(times) == pytest.approx(deviation, rel=0.15)


def test_a_slow_device_takes_so_many_times_longer_for_the_same_task() -> None:
    pace = Pace("exponential", slow_part=0.25, slow_factor=10)
    assert pace.task_s(0, "a", 3, slow=True) == pytest.approx(10 * pace.task_s(0, "a", 3))


def test_as_many_devices_are_slow_as_were_asked_for_and_others_with_another_seed() -> None:
    pace = Pace(slow_part=0.25)
    slow = pace.slow(0, DEVICES)
    assert len(slow) == 10
    assert slow == pace.slow(0, DEVICES[::-1])
    assert slow != pace.slow(1, DEVICES)
    assert slow != chosen(0, "attackers", DEVICES, 0.25)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "normal"}, "kind must be one of constant, exponential, log-normal, not 'normal'"),
        ({"mean_s": 0.0}, "mean-s must be above 0"),
        ({"slow_factor": math.inf}, "slow-factor must be above 0"),
        ({"sigma": -1.0}, "sigma must be from 0 to 5"),
        ({"slow_part": 1.5}, "slow-part must be from 0 to 1"),
    ],
)
def test_a_pace_that_cannot_be_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pace(**wrong)  # type: ignore[arg-type]
