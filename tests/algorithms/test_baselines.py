"""FedAvg, Ditto and local training against closed forms, on F_k(x) = |x - a_k|^2 / 2."""

import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm
from edge_runtime.algorithms import ditto, fedavg
from edge_runtime.errors import ConfigError, DecodeError
from edge_runtime.tree import Part

Make = Callable[..., Any]
GOALS = {"device-0": 4.0, "device-1": -2.0}
EXACT = {"lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}


@pytest.fixture
def fleet(new_fleet: Make, flat_model: Make) -> Make:
    """Make a fleet of two devices with the minima 4 (one sample) and -2 (three samples); all start at 1."""
    data = {
        device: (np.full((samples, 1), GOALS[device], np.float32), np.zeros(samples, np.int64))
        for device, samples in (("device-0", 1), ("device-1", 3))
    }
    model = flat_model(lambda w, x: w - x.mean())

    def make(name: str, **wanted: Any) -> Any:
        return new_fleet(name, model=model, data=data, initial=np.ones(8, np.float32), **(EXACT | wanted))

    return make


@pytest.mark.parametrize(
    ("wanted", "goal"),
    [
        ({}, 1.0),
        ({"weights": "samples"}, -0.5),
        ({"weights": "samples", "samples_cap": 2}, 0.0),
        ({"weights": "samples", "samples_cap": 1}, 1.0),
    ],
)
def test_fedavg_goes_to_the_weighted_mean_of_the_devices_minima(
    wanted: dict[str, Any], goal: float, fleet: Make
) -> None:
    average = fleet("fedavg", lr=0.5, local_steps=3, **wanted)
    after_one = goal + (1 - goal) * 0.5**3
    average.round()
    assert average.server.shared() == pytest.approx([after_one] * 8)
    for _ in range(9):
        average.round()
    assert average.server.shared() == pytest.approx([goal] * 8, abs=1e-6)


def test_fedavg_remembers_nothing_of_a_device(fleet: Make) -> None:
    average = fleet("fedavg")
    average.round()
    assert average.devices == {}
    assert average.client("device-0").state() == {}


@pytest.mark.parametrize("attraction", [0.0, 0.5, 3.0])
def test_dittos_personal_model_lies_between_the_devices_minimum_and_the_shared_model(
    attraction: float, fleet: Make
) -> None:
    pulled = fleet("ditto", lr=0.1, local_steps=20, personal_steps=100, attraction=attraction)
    for _ in range(8):
        pulled.round()
    for device, goal in GOALS.items():
        closed = (goal + attraction * 1.0) / (1 + attraction)  # the shared model has come to 1, the mean of 4 and -2
        assert pulled.personal[device] == pytest.approx([closed] * 8, abs=1e-5)


def test_dittos_shared_model_is_fedavgs_bit_for_bit(new_fleet: Make) -> None:
    average, pulled = new_fleet("fedavg"), new_fleet("ditto")
    for _ in range(3):
        average.round()
        pulled.round()
    assert pulled.server.shared().tobytes() == average.server.shared().tobytes()


def test_dittos_personal_model_goes_on_from_where_the_device_left_it(fleet: Make) -> None:
    pulled = fleet("ditto", lr=0.1, local_steps=1, personal_steps=1, attraction=0.0)
    for _ in range(5):
        pulled.round()
    assert pulled.personal["device-0"] == pytest.approx([4 - 3 * 0.9**5] * 8)


def test_an_attraction_with_which_training_would_diverge_is_refused() -> None:
    with pytest.raises(ConfigError, match="attraction must be at least 0 and below 20, not 20"):
        ditto.Config(lr=0.1, attraction=20.0)


def test_local_training_shares_nothing_after_the_first_values(fleet: Make) -> None:
    alone = fleet("local", lr=0.5, local_steps=1)
    sizes = []
    for _ in range(5):
        sizes.append(len(alone.down("device-0")))
        ups = alone.round()
        assert all(len(up) < 60 for up in ups.values())
    assert all(size < 60 for size in sizes[1:])
    assert alone.personal["device-0"] == pytest.approx([4 - 3 * 0.5**5] * 8)
    assert alone.server.shared().tolist() == [1.0] * 8


def test_a_device_without_a_model_of_its_own_says_that_it_was_sent_none(fleet: Make) -> None:
    alone = fleet("local")
    with pytest.raises(DecodeError, match="no initial values"):
        alone.client("device-0").personal(alone.server.down("device-0", False))


def test_an_update_says_how_many_samples_are_behind_it(fleet: Make) -> None:
    average = fleet("fedavg")
    ups = average.round()
    counts = {device: average.decoded(up, fedavg.Up).samples for device, up in ups.items()}
    assert counts == {"device-0": 1, "device-1": 3}


@pytest.mark.parametrize("name", algorithm.names())
def test_every_message_holds_only_what_the_codec_carries(name: str) -> None:
    parts = algorithm.load(name)
    kinds = {hint for kind in (parts.Down, parts.Up) for hint in typing.get_type_hints(kind).values()}
    assert kinds <= {int, float, bytes, fedavg.Flat, Part}
