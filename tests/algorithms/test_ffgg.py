"""FFGG against worked numbers, on devices that one slope suits while each has a bias of its own; and its traps.

Device 1 has the points (0, 1) and (2, 5), device 2 has (-2, -5) and (0, -1): y = 2x + 1 and y = 2x - 1. The loss is
half the mean square; theta is the slope, w the bias. In both parts its curvature is 1 (in theta once w is fitted).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import algorithm, partial, sgd
from edge_runtime.algorithm import Batch, Model
from edge_runtime.algorithms import ffgg
from edge_runtime.algorithms.ffgg import Config, Server
from edge_runtime.compression import codec
from edge_runtime.errors import ConfigError, DecodeError, DeviceError
from edge_runtime.tree import Layout, Part

Make = Callable[..., Any]
POINTS = {"device-1": [(0.0, 1.0), (2.0, 5.0)], "device-2": [(-2.0, -5.0), (0.0, -1.0)]}
EXACT = {"lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "batch_size": 100, "local_epochs": 1}
FITTED = {"private": "bias", "private_lr": 1.0, "private_steps": 1}


def residuals(slope: Any, bias: Any, points: Any) -> Any:
    return slope * points[:, 0] + bias - points[:, 1]


def slopes(params: Any, points: Any) -> Any:
    r = residuals(params["slope"], params["bias"], points)
    return {"slope": np.array([np.mean(r * points[:, 0])]), "bias": np.array([np.mean(r)])}


def loss(values: Any, points: Any) -> float:
    return float(np.mean(residuals(values[0], values[1], np.array(points)) ** 2) / 2)


def samples(points: Any) -> Any:
    return np.array(points, np.float32), np.zeros(len(points), np.int64)


@pytest.fixture
def lines(new_fleet: Make, split_model: Make) -> Make:
    """Make the two devices."""

    def make(name: str = "ffgg", *, initial: Any = (0.0, 0.0), **wanted: Any) -> Any:
        data = {device: samples(points) for device, points in POINTS.items()}
        model = split_model(slopes, slope=1, bias=1)
        settings = EXACT | FITTED | wanted
        return new_fleet(name, model=model, data=data, initial=np.array(initial, np.float32), **settings)

    return make


def thetas(fleet: Any, rounds: int) -> list[float]:
    """Play rounds; gives theta after each."""
    found = []
    for _ in range(rounds):
        fleet.round()
        found.append(float(fleet.server.shared()[0]))
    return found


# The sequence of theta


@pytest.mark.parametrize(("lr", "expected"), [(1.0, [2.0, 2.0]), (0.5, [1.0, 1.5, 1.75, 1.875])])
def test_the_error_of_the_slope_shrinks_by_one_minus_gamma(lr: float, expected: list[float], lines: Make) -> None:
    assert thetas(lines(lr=lr), len(expected)) == expected


def test_one_model_for_both_devices_would_stop_at_another_slope_and_a_loss(lines: Make) -> None:
    fleet = lines("fedavg", lr=0.3)
    for _ in range(200):
        fleet.round()
    assert fleet.server.shared() == pytest.approx([2.5, 0.0], abs=1e-6)
    assert loss(fleet.server.shared(), POINTS["device-1"] + POINTS["device-2"]) == pytest.approx(0.25)


def test_the_biases_must_be_fitted_again_after_the_last_step_of_the_slope(lines: Make) -> None:
    fleet = lines(lr=1.0)
    fleet.round()
    for device, points in POINTS.items():
        down, client = fleet.decoded(fleet.down(device), fleet.parts.Down), fleet.client(device)
        assert loss(client.personal(down).dense(), points) == 2.0
        client.round(down, fleet.batches(device))
        assert loss(client.personal(None).dense(), points) == 0.0
        assert client.personal(None).dense().tolist() == [2.0, {"device-1": 1.0, "device-2": -1.0}[device]]


def test_what_a_device_shows_after_local_steps_is_the_theta_that_came_with_biases_fitted_to_it(lines: Make) -> None:
    fleet = lines(lr=0.5, variant="local", alternations=3)
    fleet.round()
    assert fleet.personal["device-1"].tolist() == [0.0, 3.0]
    assert fleet.server.shared()[0] == 2 - 2 * 0.5**3


def test_a_gradient_at_biases_that_were_fitted_to_the_last_theta_diverges(lines: Make) -> None:
    fleet = lines(lr=1.0, private_steps=0, private_epochs=0)
    found, last = [], 0.0
    for _ in range(6):
        here = float(fleet.server.shared()[0])
        for device, points in POINTS.items():
            bias = np.mean([y - last * x for x, y in points])
            fleet.states[device] = codec.encode_state({"private": np.array([bias], np.float32)})
        last = here
        found += thetas(fleet, 1)
    assert found == [2.0, 0.0, 4.0, -2.0, 8.0, -8.0]  # e_{k+1} = -e_k + e_{k-1}


# How well the private part is fitted


@pytest.mark.parametrize(("steps", "expected"), [(0, 2.5), (1, 2.3333333), (2, 2.2), (5, 2.030303), (20, 2.00000095)])
@pytest.mark.parametrize("start", ["initial", "zeros"])
def test_a_short_fine_tuning_from_the_same_start_every_time_is_biased(
    steps: int, expected: float, start: str, lines: Make
) -> None:
    fleet = lines(lr=0.4, private_lr=0.5, private_steps=steps, private_epochs=0, private_start=start)
    rho = 0.5**steps
    assert expected == pytest.approx(2 + rho / (1 + rho), abs=1e-7)
    assert thetas(fleet, 60)[-1] == pytest.approx(expected, abs=3e-7)  # an ulp of float32 there


def test_a_warm_start_is_exact_with_one_step(lines: Make) -> None:
    assert thetas(lines(lr=0.4, private_lr=0.5), 150)[-1] == pytest.approx(2.0, abs=3e-7)  # an ulp of float32 there


def test_a_fine_tuning_ends_where_the_gradient_is_within_the_tolerance(lines: Make) -> None:
    fleet = lines(private_lr=0.5, private_steps=1000, tolerance=0.1)
    fleet.round()
    assert fleet.personal["device-1"][1] == 3 - 3 * 0.5**5  # 3 / 2^5 = 0.09 is the first within 0.1


def test_a_normal_start_is_drawn_anew_in_every_round_and_repeats_with_the_round(lines: Make) -> None:
    fleet = lines(private_epochs=0, private_steps=0, private_start="normal")
    drawn = []
    for _ in range(200):
        assert fleet.train("device-1") == fleet.train("device-1")
        drawn.append(float(fleet.personal["device-1"][1]))
        fleet.round()
    assert np.mean(drawn) == pytest.approx(0, abs=0.2)  # three standard errors
    assert np.std(drawn) == pytest.approx(1, abs=0.15)


def test_a_warm_start_begins_at_the_initial_values_and_a_lost_one_begins_there_again(lines: Make) -> None:
    fleet = lines(initial=(0.0, 0.75), private_lr=0.5, lr=1e-9)
    biases = []
    for lost in (False, False, True):
        if lost:
            fleet.states.clear()
        fleet.round()
        biases.append(float(fleet.personal["device-1"][1]))
    assert biases == [1.875, 2.4375, 1.875]


def test_nothing_goes_back_through_the_fine_tuning(lines: Make) -> None:
    points, step = np.array(POINTS["device-1"]), 1e-4

    def tuned(theta: float, steps: int) -> float:
        bias = 0.0
        for _ in range(steps):
            bias -= 0.5 * np.mean(residuals(theta, bias, points))
        return bias

    def value(theta: float, bias: float) -> float:
        return float(np.mean(residuals(theta, bias, points) ** 2) / 2)

    for steps, same in ((3, False), (60, True)):
        fleet = lines(initial=(0.3, 0.0), private_lr=0.5, private_steps=steps)
        up = fleet.client("device-1").round(fleet.server.down("device-1", True), fleet.batches("device-1"))
        w = tuned(0.3, steps)
        partly = (value(0.3 + step, w) - value(0.3 - step, w)) / (2 * step)
        through = (value(0.3 + step, tuned(0.3 + step, steps)) - value(0.3 - step, tuned(0.3 - step, steps))) / (
            2 * step
        )
        assert up.values.values == pytest.approx([partly], rel=1e-5)
        assert (abs(partly - through) < 1e-6) == same  # the envelope theorem, at the minimum


# Neighbours


def bits(fleet: Any, rounds: int) -> bytes:
    for _ in range(rounds):
        fleet.round()
    return bytes(fleet.server.shared().tobytes())


def test_without_private_tensors_local_training_is_fedavg_bit_for_bit(new_fleet: Make) -> None:
    wanted = {"momentum": 0.5, "weight_decay": 1e-3, "clip_norm": 1.0, "lr_decay": 0.9}
    fleet = new_fleet("ffgg", private="", variant="local", **wanted)
    assert bits(fleet, 3) == bits(new_fleet("fedavg", **wanted), 3)
    assert fleet.client("device-0").shared(fleet.server.down("device-0", True)) is not None


def test_without_private_tensors_a_gradient_is_a_step_of_fedavg_on_all_samples(new_fleet: Make) -> None:
    wanted = {"batch_size": 100, "local_steps": 1, "weight_decay": 1e-3, "clip_norm": 1.0}
    averaged, shared = new_fleet("fedavg", lr_decay=1.0, **wanted), new_fleet("ffgg", private="", **wanted)
    for _ in range(3):
        averaged.round()
        shared.round()
        np.testing.assert_allclose(shared.server.shared(), averaged.server.shared(), rtol=0, atol=5e-7)  # roundings


def test_a_gradient_of_all_samples_does_not_depend_on_how_they_are_cut_into_batches(new_fleet: Make) -> None:
    whole, cut = (new_fleet("ffgg", batch_size=size, private_epochs=0) for size in (100, 2))
    bits(whole, 3)
    bits(cut, 3)
    np.testing.assert_allclose(cut.server.shared(), whole.server.shared(), rtol=0, atol=5e-7)  # roundings


def test_with_private_tensors_that_stay_it_is_fedavg_of_the_others_bit_for_bit(new_fleet: Make, mlp: Model) -> None:
    wanted = {"lr_decay": 1.0, "weight_decay": 0.0}
    fleet = new_fleet("ffgg", private="w1,b1", variant="local", private_epochs=0, **wanted)
    held = mlp.layout.views(fleet.initial)
    names = ("w2", "b2")
    others = partial.holding(mlp, mlp.layout.only(names), {name: held[name] for name in ("w1", "b1")})
    averaged = new_fleet("fedavg", model=others, initial=mlp.layout.cut(fleet.initial, names).values, **wanted)
    assert mlp.layout.cut(np.frombuffer(bits(fleet, 3), np.float32), names).values.tobytes() == bits(averaged, 3)


def test_one_local_step_is_a_gradient(new_fleet: Make) -> None:
    wanted = {"private": "w2,b2", "batch_size": 100, "private_steps": 3}
    one = new_fleet("ffgg", variant="local", local_steps=1, **wanted)
    other = new_fleet("ffgg", **wanted)
    bits(one, 3)
    bits(other, 3)
    np.testing.assert_allclose(one.server.shared(), other.server.shared(), rtol=0, atol=5e-7)  # roundings


def test_one_alternation_of_several_steps_each_is_fedalt(new_fleet: Make, mlp: Model) -> None:
    wanted = {"private": "b2", "private_lr": 0.2, "private_steps": 3, "local_steps": 4, "batch_size": 100}
    fleet = new_fleet("ffgg", variant="local", **wanted)
    flat, bias = fleet.initial.copy(), mlp.layout.slices[-1]
    private = {device: flat[bias].copy() for device in fleet.data}
    for _ in range(2):
        moved = []
        for device, (x, y) in fleet.data.items():
            own = flat.copy()
            own[bias] = private[device]
            for part, steps, lr in ((True, 3, 0.2), (False, 4, 0.3)):
                on = np.zeros(len(own), np.bool_)
                on[bias] = True
                for _ in range(steps):
                    own -= np.where(on == part, np.float32(lr) * sgd.gradient(mlp, own, Batch(x, y)), 0)
            private[device] = own[bias].copy()
            moved.append(own)
        flat = np.mean(moved, axis=0)
        flat[bias] = fleet.initial[bias]
        fleet.round()
    np.testing.assert_allclose(fleet.server.shared(), flat, rtol=0, atol=1e-6)  # some 10 roundings


def test_an_asynchronous_run_of_one_device_is_a_synchronous_one_bit_for_bit(lines: Make) -> None:
    fleet = lines(lr=0.3)
    played = [fleet.round(["device-1"]) and fleet.server.shared() for _ in range(5)]
    server, state = fleet.new_server(), None
    for expected in played:
        client = ffgg.Client(fleet.config, fleet.model, state)
        server.absorb("device-1", client.round(server.down("device-1", state is None), fleet.batches("device-1")))
        server.close()
        state = client.state()
        assert server.shared().tobytes() == expected.tobytes()


# Rates and delays


def vector(fleet: Any, value: float, round_: int = 0) -> Any:
    return ffgg.Up(round_, 1, Part(fleet.model.layout.bits(["slope"]), np.array([value], np.float32)))


def test_gamma_falls_with_the_versions(lines: Make) -> None:
    server = lines(lr=1.0, lr_slowdown=0.5, lr_decay=0.5).server
    steps = []
    for round_ in range(3):
        before = server.shared()[0]
        server.absorb("device-1", vector(lines(), 1.0, round_))
        server.close()
        steps.append(float(before - server.shared()[0]))
    assert steps == pytest.approx([1, 0.5 / 1.5, 0.25 / 2])


@pytest.mark.parametrize(("limit", "moved"), [(0, [1, 1, 1, 1, 1]), (2, [1, 1, 1, 2 / 3, 2 / 4])])
def test_an_old_update_counts_fully_or_as_little_as_it_is_late(limit: int, moved: list[float], lines: Make) -> None:
    server = lines(lr=1.0, delay_adaptive=limit).server
    steps = []
    for _ in moved:
        before = server.shared()[0]
        server.absorb("device-1", vector(lines(), 1.0))  # made at version 0
        server.close()
        steps.append(float(before - server.shared()[0]))
    assert steps == pytest.approx(moved)


def test_an_update_from_a_round_to_come_is_refused(lines: Make) -> None:
    with pytest.raises(DecodeError, match="round 1, and this is round 0"):
        lines().server.absorb("device-1", vector(lines(), 1.0, 1))


# What stays on the device


def test_an_up_holds_theta_and_nothing_else(new_fleet: Make, mlp: Model) -> None:
    fleet = new_fleet("ffgg", private="w2,b2")
    up = fleet.client("device-0").round(fleet.server.down("device-0", True), fleet.batches("device-0"))
    assert mlp.layout.names_of(up.values) == ("w1", "b1")


def test_a_down_holds_initial_private_values_once_and_never_others(new_fleet: Make, mlp: Model) -> None:
    fleet = new_fleet("ffgg", private="w2,b2")
    start = mlp.layout.cut(fleet.initial, ("w2", "b2")).values
    for _ in range(3):
        fleet.round()
        first, later = (fleet.server.down("device-0", new) for new in (True, False))
        assert first.initial.values.tolist() == start.tolist()
        assert len(later.initial.values) == 0
        assert mlp.layout.names_of(later.theta) == ("w1", "b1")
        assert mlp.layout.cut(fleet.server.shared(), ("w2", "b2")).values.tolist() == start.tolist()


@pytest.mark.parametrize("names", [("w1",), ("w1", "b1", "b2"), ()])
def test_an_up_of_other_tensors_is_refused(names: tuple[str, ...], new_fleet: Make, mlp: Model) -> None:
    fleet = new_fleet("ffgg", private="w2,b2")
    up = ffgg.Up(0, 1, mlp.layout.cut(np.zeros(mlp.layout.size, np.float32), names))
    with pytest.raises(DecodeError, match="not those that this run shares"):
        fleet.server.absorb("device-0", up)


def test_a_device_without_private_tensors_says_that_it_was_sent_none(lines: Make) -> None:
    fleet = lines()
    with pytest.raises(DecodeError, match="no initial values"):
        fleet.client("device-1").personal(fleet.server.down("device-1", False))


def test_a_model_that_is_all_private_is_refused(mlp: Model) -> None:
    with pytest.raises(ConfigError, match="use the algorithm `local`"):
        Server(Config(private="*"), mlp.layout, np.zeros(mlp.layout.size, np.float32), {}, 0)


def test_a_gradient_that_is_not_finite_is_the_devices_failure(new_fleet: Make, split_model: Make) -> None:
    model = split_model(lambda params, x: {name: np.full(1, np.inf) for name in params}, slope=1, bias=1)
    fleet = new_fleet("ffgg", model=model, initial=np.zeros(2, np.float32), private_epochs=0)
    with pytest.raises(DeviceError, match="not finite"):
        fleet.train("device-0")


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        ({"variant": "both"}, "variant"),
        ({"private_start": "hot"}, "private-start"),
        ({"private_lr": 0.0}, "private-lr"),
        ({"alternations": 0}, "alternations"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"delay_adaptive": -1}, "delay-adaptive"),
        ({"lr_slowdown": -0.1}, "lr-slowdown"),
    ],
)
def test_a_setting_out_of_range_is_refused(wanted: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Config(**wanted)


def test_the_last_layer_is_private_by_default() -> None:
    layout = Layout(("conv1.weight", "linear1.weight", "linear1.bias"), ((3,), (2,), (1,)))
    assert algorithm.private_names(Config(), layout) == ("linear1.weight", "linear1.bias")
    assert algorithm.private_names(dataclasses.replace(Config(), private="*.bias"), layout) == ("linear1.bias",)
