"""Algorithms that average, under aggregators that withstand liars: what the contract asks holds for these as well."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import aggregate, algorithm, testing
from edge_runtime.algorithms import fedspa
from edge_runtime.compression import codec
from edge_runtime.coordinator import attacks
from edge_runtime.errors import ConfigError

Make = Callable[..., Any]
AVERAGING = [name for name in algorithm.names() if issubclass(algorithm.load(name).Config, aggregate.Averaging)]
WAYS: list[dict[str, Any]] = [
    {"aggregator": "median", "byzantine": 1, "nearest_mixing": True},
    {"aggregator": "trimmed-mean", "bucket": 2},
    {"aggregator": "geometric-median", "byzantine": 1},
    {"aggregator": "krum"},
    {"aggregator": "multi-krum"},
    {"aggregator": "centred-clipping", "bucket": 2, "clip_radius": 0.1},
    {"aggregator": "norm-bound", "clip_radius": 0.1},
]
averaging = pytest.mark.parametrize("name", AVERAGING)
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way["aggregator"])


def bits(fleet: Any) -> tuple[bytes, bytes, dict[str, bytes]]:
    return fleet.server.shared().tobytes(), codec.encode_state(fleet.server.state()), dict(fleet.devices)


def test_the_algorithms_that_average_are_known() -> None:
    assert {"fedavg", "ditto", "fedspa"} <= set(AVERAGING)


@averaging
@ways
def test_the_order_of_arrival_does_not_change_one_bit(name: str, way: dict[str, Any], new_fleet: Make) -> None:
    outcomes = []
    for order in itertools.islice(itertools.permutations(["device-0", "device-1", "device-2", "device-3"]), 0, 24, 9):
        fleet = new_fleet(name, **way)
        for _ in range(2):
            fleet.round(order)
        outcomes.append(bits(fleet))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert fleet.server.shared().tobytes() != fleet.initial.tobytes()


@averaging
@ways
def test_a_server_that_crashed_in_a_round_resumes_to_identical_bits(name: str, way: dict[str, Any]) -> None:
    testing.updates_absorbed_again_count_once(testing.Subject(name, way))


@pytest.mark.parametrize("way", [{"aggregator": "mean"}, *WAYS], ids=lambda way: way["aggregator"])
def test_no_aggregator_but_the_mean_lets_one_liar_lead_fedavg_astray(
    way: dict[str, Any], new_fleet: Make, flat_model: Make
) -> None:
    data = {f"device-{i}": (np.full((2, 1), 3, np.float32), np.zeros(2, np.int64)) for i in range(7)}
    exact = {"lr": 0.5, "lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "local_steps": 1}
    liars = {} if way["aggregator"] == "mean" else {"byzantine": 1}
    model = flat_model(lambda w, x: w - x.mean())
    fleet = new_fleet("fedavg", model=model, data=data, initial=np.ones(8, np.float32), **(exact | way | liars))
    for _ in range(100):
        ups = {device: fleet.decoded(fleet.train(device)[0], fleet.parts.Up) for device in fleet.data}
        good = np.stack([up.values for up in ups.values()])
        lie = attacks.inner_product(good[:6], 1, np.random.default_rng(0))[0].clip(-500, 500)
        ups["device-6"] = type(ups["device-6"])(fleet.server.round, 1, lie)
        for device, up in ups.items():
            fleet.server.absorb(device, up)
        fleet.server.close()
    off = abs(fleet.server.shared() - 3).max()
    if way["aggregator"] == "mean":
        assert off > 2
    elif "clip_radius" in way:  # it comes to rest where the liar's pull and that of the other inputs cancel
        others = 3 if "bucket" in way else 6
        assert off == pytest.approx(way["clip_radius"] / others / (0.5 * 8**0.5), rel=1e-3)
    else:
        assert off < 1e-6


def test_fedspa_takes_what_a_device_does_not_own_for_zero(new_fleet: Make) -> None:
    fleet = new_fleet("fedspa", aggregator="median", mode="rsm", density=0.5)
    before = fleet.server.shared()
    rows = []
    for device in fleet.data:
        row = np.zeros(len(before), np.float32)
        client = fleet.client(device)
        down = fleet.server.down(device, True)
        row[client.personal(down).mask.bits()] = client.round(down, fleet.batches(device)).values
        rows.append(row)
    fleet.round()
    np.testing.assert_allclose(before - fleet.server.shared(), np.median(rows, axis=0), rtol=0, atol=2e-7)


def test_fedspa_cannot_divide_by_owners_what_is_no_mean() -> None:
    with pytest.raises(ConfigError, match="aggregate must be cohort with aggregator median, not owners"):
        fedspa.Config(aggregate="owners", aggregator="median")
