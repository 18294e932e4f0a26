"""FedAsync and FedBuff against closed forms, on f(w) = a/2 (w - c)^2."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm
from edge_runtime.algorithm import Batch
from edge_runtime.algorithms import fedasync, fedbuff
from edge_runtime.errors import ConfigError, DecodeError

Make = Callable[..., Any]
EXACT = {"lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "local_steps": 1}


class One:
    """A device whose only sample is (a, c)."""

    def __init__(self, a: float, c: float) -> None:
        self.batch = Batch(np.array([[a, c]], np.float32), np.zeros(1, np.int64))
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 1

    def sample(self, batch_size: int) -> Batch:
        return self.batch


@pytest.fixture
def play(flat_model: Make, arrivals: Make) -> Make:
    """Start a run of an algorithm on devices (a, c), all with w at 0."""
    model = flat_model(lambda w, x: x[:, 0] * (w - x[:, 1]), (1,))

    def make(name: str, devices: Any = ((1, -1), (1, 1)), initial: float = 0.0, **wanted: Any) -> Any:
        config = algorithm.load(name).Config(**(EXACT | wanted))
        return arrivals(name, config, [model] * len(devices), [One(*device) for device in devices], [initial])

    return make


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (1.0, [-0.5, 0.5, -0.75, 0.75, -0.875, 0.875]),
        (0.5, [-0.25, 0.125, -0.25, 0.15625, -0.234375, 0.171875]),
    ],
)
def test_fedasync_mixes_models_where_persafl_adds_differences(mixing: float, expected: list[float], play: Make) -> None:
    run = play("fedasync", lr=0.5, mixing=mixing, staleness="constant")
    assert [float(run.arrive(device)[0]) for device in (0, 1) * 3] == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"staleness": "constant"}, (0.6, 0.6, 0.6)),
        ({"staleness": "polynomial"}, (0.6, 0.3, 0.2)),
        ({"staleness": "polynomial", "staleness_exponent": 1.0}, (0.6, 0.15, 0.6 / 9)),
        ({"staleness": "hinge"}, (0.6, 0.6, 0.6 / 41)),
        ({"staleness": "hinge", "hinge_start": 0, "hinge_slope": 1.0}, (0.6, 0.15, 0.6 / 9)),
    ],
)
def test_a_stale_model_is_mixed_in_by_the_function_of_its_staleness(wanted: Any, expected: Any, play: Make) -> None:
    for age, part in zip((0, 3, 8), expected, strict=True):
        server = play("fedasync", **wanted).server
        for _ in range(8):
            server.close()
        server.absorb("device", fedasync.Up(8 - age, np.full(1, 5, np.float32)))
        server.close()
        assert server.shared() == pytest.approx(5 * part)


def test_models_that_come_together_move_the_shared_one_by_the_mean_of_their_moves(play: Make) -> None:
    server = play("fedasync", initial=1.0, staleness="polynomial").server
    server.close()
    server.absorb("new", fedasync.Up(1, np.full(1, 3, np.float32)))
    server.absorb("old", fedasync.Up(0, np.full(1, -2, np.float32)))
    server.close()
    assert server.shared() == pytest.approx(1 + 0.6 * (2 - 3 / 2**0.5) / 2)


def test_fedasync_draws_a_device_towards_where_it_began(play: Make) -> None:
    free, drawn = (play("fedasync", lr=0.1, local_steps=300, mixing=1.0, attraction=force) for force in (0.0, 3.0))
    assert float(free.arrive(1)[0]) == pytest.approx(1.0)
    assert float(drawn.arrive(1)[0]) == pytest.approx(1 / (1 + 3))


@pytest.mark.parametrize(("exponent", "parts"), [(0.5, (1, 1 / 2, 1 / 3)), (0.0, (1, 1, 1))])
def test_fedbuff_takes_the_mean_of_its_buffer_by_staleness(exponent: float, parts: Any, play: Make) -> None:
    server = play("fedbuff", staleness_exponent=exponent, server_lr=0.5).server
    for _ in range(8):
        server.close()
    for age, value in ((0, 1.0), (3, 10.0), (8, 100.0)):
        server.absorb("device", fedbuff.Up(8 - age, 1, np.full(1, value, np.float32)))
    server.close()
    assert server.shared() == pytest.approx(-0.5 * np.dot(parts, (1, 10, 100)) / 3)


def test_in_a_synchronous_run_fedbuff_and_fedasync_are_fedavg_bit_for_bit(new_fleet: Make) -> None:
    fleets = [new_fleet("fedavg"), new_fleet("fedbuff"), new_fleet("fedasync", mixing=1.0)]
    for _ in range(3):
        for fleet in fleets:
            fleet.round()
    average, buffered, mixed = (fleet.server.shared() for fleet in fleets)
    assert buffered.tobytes() == average.tobytes()
    assert mixed.tobytes() == average.tobytes()


def test_fedbuff_is_persafl_of_plain_losses_with_stale_updates_weighed_down_bit_for_bit(play: Make) -> None:
    devices = [(1, -1), (0.5, 2), (2, 1)]
    buffered = play("fedbuff", devices, lr=0.1, server_lr=0.7)
    plainly = play("persafl", devices, lr=0.1, server_lr=0.7, option="A", staleness="down-weight")
    for device in (0, 1, 1, 2, 0, 1, 2, 1):
        assert buffered.arrive(device).tobytes() == plainly.arrive(device).tobytes()


def test_without_staleness_mixing_models_is_adding_differences_bit_for_bit(play: Make) -> None:
    mixed = play("fedasync", lr=0.3, mixing=0.25, staleness="polynomial", initial=0.7)
    added = play("persafl", lr=0.3, server_lr=0.25, option="A", initial=0.7)
    for _ in range(5):
        assert mixed.arrive(0).tobytes() == added.arrive(0).tobytes()
    assert mixed.arrive(1)[0] != added.arrive(1)[0]  # which is stale


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_a_stale_update_is_checked_before_it_is_made_smaller(name: str, play: Make) -> None:
    run = play(name, staleness_exponent=2.0)
    up = run.parts.Client(run.config, run.models[0], None).round(run.downs[0], run.batches[0])
    for _ in range(9):
        run.server.close()
    for values in ([600.0], [np.nan], [1.0, 2.0], []):
        with pytest.raises(DecodeError):
            run.server.absorb("0", type(up)(**(vars(up) | {"values": np.array(values, np.float32)})))
    run.server.close()
    assert run.server.shared() == [0.0]


def test_settings_that_cannot_be_are_refused() -> None:
    for wanted in ({"mixing": 1.1}, {"mixing": 0.0}, {"staleness": "linear"}, {"lr": 1.0, "attraction": 2.0}):
        with pytest.raises(ConfigError):
            fedasync.Config(**wanted)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        fedbuff.Config(server_lr=0.0)
