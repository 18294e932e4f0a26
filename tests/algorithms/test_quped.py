"""QuPeD against closed forms, its neighbours and one step done by hand; the traps that are known of its code."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime import config, losses, personal
from edge_runtime.algorithm import Batch, Model, OwnModel
from edge_runtime.algorithms import quped
from edge_runtime.algorithms.quped import Client, Config, Down
from edge_runtime.compression import prox, quantize
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.tree import Layout

Make = Callable[..., Any]
PLAIN: dict[str, Any] = {
    "lr_decay": 1.0,
    "clip_norm": 0.0,
    "local_steps": 1,
    "freeze_at": 1.0,
    "rounds": 10_000,
    "shared_ce": 0.0,
}
ALONE: dict[str, Any] = PLAIN | {"lambda_p": 0.0, "full_precision": "", "lambda_growth": 0.0}
STILL = {"clip_norm": 0.0, "bits": 0, "centre_lr": 0.0, "lambda_0": 0.0}
ALL = {"full_precision": "", "bits": 1, "shared_ce": 0.0}
LAYOUT = Layout(("w1", "b1", "w2", "b2"), ((6, 4), (6,), (3, 6), (3,)))


class OneBatch:
    """Deals one batch for ever; implements `algorithm.Batches`."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.rng = batch, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.batch.y)

    def epoch(self, batch_size: int) -> Any:
        yield self.batch

    def sample(self, batch_size: int) -> Batch:
        return self.batch


NOTHING = OneBatch(Batch(np.zeros((1, 1), np.float32), np.zeros(1, np.int64)))


def own(model: Model, initial: Any, shared: Model | None = None) -> OwnModel:
    initial = np.asarray(initial, np.float32)
    return OwnModel(model.layout, model.oracle, shared=shared or model, initial=initial)


def kept(x: Any, centres: Any) -> dict[str, Any]:
    """Make the state of a device with these weights and centres."""
    return {"psi": 2.0, "x": np.asarray(x, np.float32), "centres": np.asarray(centres, np.float32).ravel()}


def play(client: Client, rounds: int = 1, w: Any = None, start: int = 0) -> list[dict[str, Any]]:
    """Let a device train alone, and give its state after every round."""
    size = client._model.shared.layout.size
    states = []
    for t in range(start, start + rounds):
        client.round(Down(t, np.zeros(size, np.float32) if w is None else w), NOTHING)
        states.append({name: np.copy(value) for name, value in client.state().items()})
    return states


@pytest.fixture
def pulled(flat_model: Make) -> Callable[..., Client]:
    """Make a device with f(x) = |x - goal|^2 / 2: pulled(goal, x, centres, settings...)."""

    def make(goal: Any, x: Any, centres: Any, **wanted: Any) -> Client:
        goal = np.asarray(goal, np.float32)
        model = flat_model(lambda w, _: w - goal, (len(goal),))
        return Client(Config(**(ALONE | {"bits": 1} | wanted)), own(model, x), kept(x, centres))

    return make


@pytest.fixture
def fleet(new_fleet: Make) -> Make:
    """Make a fleet whose layers are all quantised, to two values each."""
    return lambda **wanted: new_fleet("quped", **(ALL | wanted))


def same_start(fleet: Any) -> Any:
    """Let every device begin with the shared model's initial values."""
    fleet.own = lambda device: own(fleet.model, fleet.initial)
    return fleet


# ---- one step


def objective(x: Any, w: Any, batch: Batch, model: Model, settings: Config) -> float:
    """Compute h(x) in float64."""
    outputs = [model.oracle.vjp(model.layout.views(at), batch.x)[0] for at in (x, w)]
    labels, _ = losses.cross_entropy(outputs[0], batch.y)
    p, q = (np.exp(o / settings.temperature) for o in outputs[::-1])
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    apart = settings.temperature**2 * float((p * np.log(p / q)).sum(axis=1).mean())
    return (1 - settings.lambda_p) * labels + settings.lambda_p * apart


def numeric(function: Any, at: Any) -> Any:
    moves = np.eye(at.size).reshape(at.size, *at.shape) * 1e-6
    return np.array([(function(at + move) - function(at - move)) / 2e-6 for move in moves]).reshape(at.shape)


@pytest.mark.parametrize("shared_ce", [0.0, 0.7])
def test_steps_move_x_then_c_by_the_new_x_then_w_by_both_while_the_teacher_stays(mlp: Model, shared_ce: float) -> None:
    wanted = {"local_steps": 2, "lr": 0.3, "shared_lr": 0.7, "centre_lr": 0.2, "lambda_0": 0.05, "soft_p": 3.0}
    wanted |= {"temperature": 2.0, "lambda_p": 0.4, "bits": 2, "full_precision": "b*", "shared_ce": shared_ce}
    settings = Config(**(PLAIN | wanted))
    labels = dataclasses.replace(settings, lambda_p=0.0)
    rng = np.random.default_rng(5)
    x, w = (rng.normal(0, 1, 51) for _ in range(2))
    batch = Batch(rng.normal(0, 1, (4, 4)), rng.integers(0, 3, 4))
    parts = [slice(0, 24), slice(30, 48)]
    c = np.sort(rng.normal(0, 1, (2, 4)), axis=1)
    client, start = Client(settings, own(mlp, x), kept(x, c)), w.astype(np.float32)
    up = client.round(Down(0, start), OneBatch(batch))

    def soft(x: Any, c: Any) -> Any:
        q = x.copy()
        for row, where in enumerate(parts):
            q[where] = quantize.soften(x[where], c[row], 3.0)
        return q

    def h(x: Any, w: Any, which: Config = settings) -> float:
        return objective(x, w, batch, mlp, which)

    def step(x: Any, c: Any, w: Any) -> tuple[Any, Any, Any]:
        x = x - 0.3 * numeric(lambda at: h(at, w) + h(soft(at, c), w), x)
        codes = [quantize.assign(x[where], row) for where, row in zip(parts, c, strict=True)]
        for row, where in enumerate(parts):
            x[where] = prox.weights_l1(x[where], c[row][codes[row]], 0.3 * 0.05 / 2)
        c = c - 0.2 * numeric(lambda at: h(soft(x, at), w), c)
        for row, where in enumerate(parts):
            c[row] = prox.centres_l1(c[row], x[where], codes[row], 0.2 * 0.05 / 2)
        c = np.sort(c, axis=1)
        by_labels = numeric(lambda at: h(at, at, labels), w)
        return x, c, w - 0.7 * (numeric(lambda at: h(x, at) + h(soft(x, c), at), w) + shared_ce * by_labels)

    x, c, w = step(*step(x, c, w))
    assert client.state()["x"] == pytest.approx(x, abs=3e-6)
    assert client.state()["centres"] == pytest.approx(c.ravel(), abs=3e-6)
    assert start - up.values == pytest.approx(w, abs=3e-6)


def test_centres_take_the_golden_step(pulled: Make) -> None:
    x, centres = [-0.9, -0.2, 0.3, 0.8], [-0.5, 0.5]
    client = pulled([-1, -0.4, 0.1, 1.2], x, centres, lr=1e-12, centre_lr=0.1, lambda_0=0.0)
    assert play(client)[0]["centres"] == pytest.approx([-0.54, 0.53], abs=1e-6)


def test_a_centres_gradient_is_clipped(pulled: Make) -> None:
    client = pulled([-99] * 4, [-0.9, -0.2, 0.3, 0.8], [-0.5, 0.5], lr=1e-12, centre_lr=0.1, centre_clip=2.0)
    assert play(client)[0]["centres"] == pytest.approx([-0.7, 0.3], abs=1e-5)


def test_trap_10_centres_that_have_crossed_are_sorted_and_weights_coded_anew(pulled: Make) -> None:
    x = [-0.1] * 3 + [0.1] * 3  # the lower three want their centre at 9, the upper three theirs at -9
    client = pulled([9, 9, 9, -9, -9, -9], x, [-0.1, 0.1], lr=1e-12, centre_lr=0.04, lambda_0=0.0)
    state = play(client)[0]  # gradients are clipped to 10, so that -0.1 comes to 0.3 and 0.1 to -0.3
    assert state["centres"] == pytest.approx([-0.3, 0.3], abs=1e-6)
    assert client.personal(None).values == pytest.approx([-0.3] * 3 + [0.3] * 3, abs=1e-6)


def test_trap_2_a_student_with_its_teachers_outputs_learns_nothing_at_any_temperature(new_fleet: Make) -> None:
    calm = same_start(new_fleet("quped", bits=0, lambda_p=1.0, temperature=3.0, local_steps=1, shared_ce=0.0))
    calm.round()
    for device in calm.data:
        assert calm.personal[device] == pytest.approx(calm.initial, abs=1e-7)
    assert calm.server.shared() == pytest.approx(calm.initial, abs=1e-7)


def test_trap_3_the_shared_model_learns_from_its_students(fleet: Make) -> None:
    moving = fleet(lambda_p=0.5)
    before = moving.server.shared()
    moving.round()
    assert not np.allclose(moving.server.shared(), before, atol=1e-4)


def test_trap_4_lambda_is_a_schedule_and_its_threshold_a_half_or_as_the_authors_have_it_a_whole(pulled: Make) -> None:
    settings = Config(lambda_0=0.01)
    assert [settings.pressure(t) for t in (0, 1, 9)] == pytest.approx([0.01, 0.02, 0.1])
    assert Config(lambda_0=0.01, lambda_growth=0.0).pressure(9) == 0.01
    x, lr, pressure = [-0.9, -0.2, 0.3, 0.8], 0.1, 0.4
    for compat, threshold in ((False, lr * pressure / 2), (True, lr * pressure)):
        client = pulled(x, x, [-0.5, 0.5], lr=lr, lambda_0=pressure, centre_lr=0.0, qr_compat=compat)
        signs = np.array([1, -1, 1, -1])
        assert play(client)[0]["x"] == pytest.approx(np.array(x) + threshold * signs, abs=1e-6)


def test_as_the_authors_code_weights_are_clamped_and_coded_by_their_sign(pulled: Make) -> None:
    x, centres = [-0.3, 0.2, 0.1, 0.9], [-0.1, 0.9]  # the sign says 0.9 of 0.2 and 0.1, which are nearer to -0.1
    for compat, hard in ((False, [-0.1, -0.1, -0.1, 0.9]), (True, [-0.1, 0.9, 0.9, 0.9])):
        client = pulled([-5, 0.2, 0.1, 5], x, centres, qr_compat=compat, lr=0.5, lambda_0=0.0, centre_lr=0.0)
        assert client.personal(None).values == pytest.approx(hard)
        moved = play(client)[0]["x"]
        assert moved == pytest.approx([-1, 0.2, 0.1, 1] if compat else [-2.65, 0.2, 0.1, 2.95], abs=1e-6)


# ---- limits and neighbours


def test_without_collaboration_no_device_depends_on_the_shared_model_nor_moves_it(fleet: Make) -> None:
    one, other = fleet(lambda_p=0.0), fleet(lambda_p=0.0, initial=np.full(51, 0.25, np.float32))
    for _ in range(3):
        one.round()
        other.round()
    assert one.states == other.states
    assert (other.server.shared() == 0.25).all()


@pytest.mark.parametrize("wanted", [{"bits": 0}, {"bits": 1, "full_precision": ""}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_lambda_and_collaboration_x_is_trained_as_local_training_does_bit_for_bit(
    wanted: Any, momentum: float, new_fleet: Make
) -> None:
    plain = {"momentum": momentum, "weight_decay": 1e-3, "freeze_at": 1.0}
    alone = new_fleet("local", **plain)
    student = same_start(new_fleet("quped", lambda_p=0.0, lambda_0=0.0, **plain, **wanted))
    for cohort in (None, ["device-2", "device-0"], None):
        alone.round(cohort)
        student.round(cohort)
    for device in alone.data:
        assert student.client(device).state()["x"].tobytes() == alone.client(device).state()["personal"].tobytes()


def test_with_an_infinite_lambda_one_step_makes_a_model_of_two_values_a_layer(fleet: Make) -> None:
    hard = fleet(lambda_0=1e30, local_steps=1, freeze_at=1.0)
    hard.round()
    for device in hard.data:
        client = hard.client(device)
        assert (client.state()["x"] == client.personal(None).values).all()
        assert all(len(np.unique(client.state()["x"][where])) <= 2 for where in LAYOUT.slices)


def test_with_collaboration_alone_labels_are_not_used(mlp_data: Any, fleet: Make) -> None:
    other = {device: (x, (y + 1) % 3) for device, (x, y) in mlp_data.items()}
    one, two = fleet(lambda_p=1.0), fleet(lambda_p=1.0, data=other)
    for _ in range(2):
        one.round()
        two.round()
    assert one.states == two.states
    assert one.server.shared().tobytes() == two.server.shared().tobytes()


def test_two_centres_at_plus_and_minus_one_give_proxquant(pulled: Make) -> None:
    goal, x = np.array([0.3, -2, 0.7, 1.4]), np.array([0.1, -0.2, 0.4, 0.9])
    client = pulled(goal, x, [-1, 1], lr=0.1, lambda_0=0.6, centre_lr=0.0)
    for state in play(client, 30):
        y = x - 0.1 * (x - goal)
        sign = np.where(y > 0, 1.0, -1.0)
        x = sign + np.sign(y - sign) * np.maximum(np.abs(y - sign) - 0.03, 0)
        assert state["x"] == pytest.approx(x, abs=1e-5)
    assert np.isin(client.personal(None).values, [-1, 1]).all()


GOALS = {"device-0": 0.0, "device-1": 4.0}


@pytest.fixture
def qupel(new_fleet: Make, flat_model: Make) -> Make:
    """Make a fleet of QuPeL (or another algorithm) on f_i(x) = (x - a_i)^2 / 2 with a = (0, 4)."""
    data = {name: (np.full((1, 1), goal, np.float32), np.zeros(1, np.int64)) for name, goal in GOALS.items()}
    model = flat_model(lambda w, x: w - x.mean())

    def make(name: str = "quped", **wanted: Any) -> Any:
        plain = PLAIN | {"weight_decay": 0.0, "penalty": "proximal", "bits": 0, "lambda_p": 1.0, "lr": 0.3}
        return new_fleet(name, model=model, data=data, initial=np.ones(8, np.float32), **(plain | wanted))

    return make


def test_qupel_comes_to_rest_between_the_devices_minima_and_the_shared_model(qupel: Make) -> None:
    drawn = qupel()
    for _ in range(150):
        drawn.round()
    assert drawn.personal["device-0"] == pytest.approx([1.0] * 8, abs=1e-4)
    assert drawn.personal["device-1"] == pytest.approx([3.0] * 8, abs=1e-4)
    assert drawn.server.shared() == pytest.approx([2.0] * 8, abs=1e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_qupel_comes_to_the_same_rest_with_more_steps_in_a_round_as_the_shared_rate_falls(
    steps: int, qupel: Make
) -> None:
    errors = []
    for shared_lr in (0.02, 0.002):
        drawn = qupel(local_steps=steps, shared_lr=shared_lr)
        drawn.server._model[:] = 2.0  # where w rests, so that slow w need not travel
        for _ in range(20):
            drawn.round()
        errors.append(abs(float(drawn.personal["device-0"][0]) - 1.0))
    assert errors[1] < errors[0] / 5 < 0.1


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_shared_models_gradient_falls_with_the_length_of_the_run_as_the_theory_says(
    steps: int, qupel: Make
) -> None:
    lengths, means = (25, 100, 400), []
    for length in lengths:
        drawn = qupel(local_steps=steps, shared_lr=1 / math.sqrt(length))
        squares = []
        for _ in range(length // steps):
            w = drawn.server.shared()
            squares.append(float(np.sum((w - (np.mean(list(GOALS.values())) + w) / 2) ** 2)))  # by the best x of this w
            drawn.round()
        means.append(np.mean(squares))
    slope = np.polyfit(np.log(lengths), np.log(means), 1)[0]
    assert slope <= -0.4


def test_qupels_shared_model_does_not_learn_from_labels(qupel: Make) -> None:
    one, other = qupel(), qupel(shared_ce=1.0)
    for _ in range(3):
        one.round()
        other.round()
    assert one.server.shared().tobytes() == other.server.shared().tobytes()


def test_with_labels_and_without_collaboration_the_shared_model_is_fedavgs_bit_for_bit(new_fleet: Make) -> None:
    average = new_fleet("fedavg", weight_decay=0.0)
    alone = new_fleet("quped", bits=0, lambda_p=0.0, shared_ce=1.0)
    for _ in range(3):
        average.round()
        alone.round()
    assert alone.server.shared().tobytes() == average.server.shared().tobytes()


def test_qupel_with_a_shared_model_that_stands_still_is_dittos_personal_model_bit_for_bit(qupel: Make) -> None:
    drawn = same_start(qupel(local_steps=7, lambda_p=0.5, shared_lr=1e-30))
    ditto = qupel("ditto", local_steps=7, personal_steps=7, attraction=0.5)
    drawn.round()
    ditto.round()
    for device in GOALS:
        assert drawn.personal[device].tobytes() == ditto.personal[device].tobytes()


# ---- theory, of the centralised algorithm

LONG = {"lr": 0.05, "centre_lr": 0.02, "lambda_0": 0.1, "soft_p": 4.0}
GOAL = np.random.default_rng(2).normal(0, 1, 12)


def value(state: dict[str, Any], steepness: float, pressure: float) -> float:
    """Compute F of the state of a device with f(x) = |x - GOAL|^2 / 2."""
    x, centres = state["x"].astype(np.float64), state["centres"].astype(np.float64)
    soft, hard = quantize.soften(x, centres, steepness), quantize.soften(x, centres, math.inf)
    return float(((x - GOAL) ** 2 + (soft - GOAL) ** 2).sum() / 2 + pressure * np.abs(x - hard).sum() / 2)


@pytest.mark.parametrize("pressure", [0.0, 0.1, 1.0])
def test_with_a_finite_steepness_the_objective_never_rises(pressure: float, pulled: Make) -> None:
    client = pulled(GOAL, np.zeros(12) + np.linspace(-1, 1, 12), [-0.3, 0.4], **(LONG | {"lambda_0": pressure}))
    values = [value(state, 4.0, pressure) for state in play(client, 200)]
    assert (np.diff(values) <= 1e-6 * values[0]).all()  # the rounding of float32
    assert values[-1] < values[0]


def test_the_least_squared_step_falls_at_least_as_one_over_their_number(pulled: Make) -> None:
    states = play(pulled(GOAL, np.linspace(-1, 1, 12), [-0.3, 0.4], **LONG), 1000)
    moved = [
        float(np.sum(((b["x"] - a["x"]) / 0.05) ** 2) + np.sum(((b["centres"] - a["centres"]) / 0.02) ** 2))
        for a, b in itertools.pairwise(states)
    ]
    products = [min(moved[:count]) * count for count in (10, 100, 999)]
    assert products[0] > products[1] > products[2]


def test_as_the_steepness_grows_the_soft_solution_becomes_a_hard_one(pulled: Make) -> None:
    start = {"x": np.linspace(-1, 1, 12), "centres": [-0.3, 0.4]}
    soft = play(pulled(GOAL, *start.values(), **(LONG | {"soft_p": 1.0, "soft_p_growth": 1.02})), 600)[-1]
    steepness = 1.02**599
    assert value(soft, steepness, 0.1) == pytest.approx(value(soft, math.inf, 0.1), abs=1e-4)
    hard = play(pulled(GOAL, soft["x"], soft["centres"], **(LONG | {"soft_p": 0.0})), 300)[-1]
    assert value(hard, math.inf, 0.1) == pytest.approx(value(soft, math.inf, 0.1), abs=1e-3)


# ---- what a device keeps, and deploys


def test_trap_12_a_device_goes_on_from_its_own_model_after_rounds_without_it(fleet: Make) -> None:
    resting = fleet()
    resting.round()
    held = resting.states["device-1"]
    before = resting.client("device-1").personal(None).values
    for _ in range(3):
        resting.round(["device-0", "device-2"])
    assert resting.states["device-1"] == held
    client = resting.client("device-1")
    assert (client.personal(resting.server.down("device-1", False)).values == before).all()


def test_a_new_devices_model_is_its_own_and_never_the_shared_one(fleet: Make) -> None:
    fresh = fleet(bits=0)
    for device in fresh.data:
        model = fresh.own(device)
        assert (Client(fresh.config, model, None).personal(None).values == model.initial).all()
        assert not np.array_equal(model.initial, fresh.server.shared())


def test_trap_9_once_frozen_codes_and_centres_stay_whatever_momentum_and_decay_want(new_fleet: Make) -> None:
    wanted = {"bits": 2, "full_precision": "b*", "freeze_at": 0.5, "rounds": 4, "momentum": 0.9, "weight_decay": 0.01}
    icy = new_fleet("quped", **wanted)
    icy.round()
    icy.round()
    before = {device: icy.client(device) for device in icy.data}
    for _ in range(2):
        icy.round()
    assert icy.server.round == 4
    for device, client in before.items():
        old, new = client.personal(None).values, icy.client(device).personal(None).values
        for name, where in zip(LAYOUT.names, LAYOUT.slices, strict=True):
            if name.startswith("w"):
                assert (old[where] == new[where]).all()
                assert len(np.unique(new[where])) <= 4
            else:
                assert (old[where] != new[where]).any()
        held = icy.client(device).state()
        assert held.keys() == {"psi", "deployed"}
        again = quantize.decode(held["deployed"], quantize.Form(2, (24, 18), 9))
        first = quantize.decode(client.deployed().data, quantize.Form(2, (24, 18), 9))
        assert (again[0] == first[0]).all()
        assert (again[1] == first[1]).all()


class Watched:
    """An oracle that writes down what a tensor is whenever it is asked."""

    def __init__(self, oracle: Any, name: str) -> None:
        self.oracle, self.name, self.seen = oracle, name, list[Any]()

    def vjp(self, params: Any, x: Any) -> Any:
        self.seen.append(params[self.name].copy())
        return self.oracle.vjp(params, x)


FROZEN = PLAIN | {"bits": 1, "full_precision": "b*,w2", "freeze_at": 0.0, "lambda_p": 0.0}


def test_trap_9_frozen_weights_are_their_codebooks_at_every_step_of_training(mlp: Model, mlp_data: Any) -> None:
    watched = Watched(mlp.oracle, "w1")
    wanted = FROZEN | {"local_steps": 4, "momentum": 0.9, "weight_decay": 0.1, "lr": 0.3}
    x = np.linspace(-1, 1, 51)
    client = Client(Config(**wanted), own(Model(LAYOUT, watched), x, mlp), kept(x, [-0.9, -0.1]))
    client.round(Down(0, np.zeros(51, np.float32)), OneBatch(Batch(*mlp_data["device-0"])))
    assert len(watched.seen) == 4
    assert all((seen == watched.seen[0]).all() for seen in watched.seen)
    assert len(np.unique(watched.seen[0])) == 2


def test_the_gradient_of_frozen_weights_does_not_shorten_the_step_of_the_others(mlp: Model, mlp_data: Any) -> None:
    wanted = FROZEN | {"clip_norm": 1e-3, "lr": 0.5, "weight_decay": 0.0}
    client = Client(Config(**wanted), own(mlp, np.zeros(51)), kept(np.linspace(-1, 1, 51), [-0.9, -0.1]))
    before = client.personal(None).values
    client.round(Down(0, np.zeros(51, np.float32)), OneBatch(Batch(*mlp_data["device-0"])))
    moved = client.personal(None).values - before
    assert np.linalg.norm(moved) == pytest.approx(0.5 * 1e-3, rel=1e-3)  # of weights near 1, in float32


def test_a_device_that_comes_late_trains_once_before_its_weights_freeze(fleet: Make) -> None:
    late = fleet(freeze_at=0.5, rounds=4)
    for _ in range(3):
        late.round(["device-0"])
    late.round()
    assert "deployed" in late.client("device-0").state()
    first = Client(late.config, late.own("device-1"), None)
    values = late.client("device-1").state()["x"]
    assert all((values[where] != first.state()["x"][where]).any() for where in LAYOUT.slices)
    late.round()
    assert "deployed" in late.client("device-1").state()


def test_freezing_waits_for_the_rounds_part_and_a_model_of_full_precision_never_freezes() -> None:
    settings = Config(rounds=10, freeze_at=0.8)
    assert [settings.frozen(t) for t in (0, 7, 8, 10)] == [False, False, True, True]
    assert not dataclasses.replace(settings, freeze_at=1.0).frozen(9)
    assert not dataclasses.replace(settings, bits=0).frozen(9)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("freeze_at", [0.0, 1.0])
def test_the_deployed_bytes_are_the_personal_model_bit_for_bit(bits: int, freeze_at: float, new_fleet: Make) -> None:
    wide = new_fleet("quped", bits=bits, full_precision="b*", freeze_at=freeze_at)
    wide.round()
    wide.round()
    client = wide.client("device-0")
    deployed, values = client.deployed(), client.personal(None).values
    assert personal.dense(deployed, LAYOUT).tobytes() == values.tobytes()
    assert len(deployed.data) == quantize.size_bytes(bits, (24, 18), 9)


def test_a_model_of_full_precision_is_stored_as_its_values(new_fleet: Make) -> None:
    wide = new_fleet("quped", bits=0)
    wide.round()
    assert wide.client("device-0").deployed() is None


def test_what_a_device_shows_is_the_hard_model(fleet: Make) -> None:
    soft = fleet(soft_p=3.0, freeze_at=1.0)
    soft.round()
    client = soft.client("device-0")
    assert all(len(np.unique(client.personal(None).values[where])) <= 2 for where in LAYOUT.slices)
    assert len(np.unique(client.state()["x"])) > 8


def test_a_state_of_another_architecture_is_refused(mlp: Model) -> None:
    state = Client(Config(full_precision="b*", bits=2), own(mlp, np.ones(51)), None).state()
    with pytest.raises(DeviceError, match="other bits"):
        Client(Config(full_precision="b*", bits=1), own(mlp, np.ones(51)), state)


# ---- layers, architectures, devices


def test_trap_6_layers_of_full_precision_are_known_by_name_not_by_their_number_of_outputs() -> None:
    layout = Layout(
        ("conv1.weight", "conv1.bias", "conv2.weight", "norm.weight", "fc.weight", "head.weight", "head.bias"),
        ((16, 3, 3, 3), (16,), (10, 16, 3, 3), (10,), (10, 40), (100, 10), (100,)),
    )

    def quantised(globs: str, bits: int = 2) -> set[str]:
        slices = quped.layers(layout, Config(full_precision=globs, bits=bits)).slices
        return {name for name, where in zip(layout.names, layout.slices, strict=True) if where in slices}

    assert quantised("auto") == {"conv2.weight", "fc.weight"}
    assert quantised("auto, fc.*") == {"conv2.weight"}
    assert quantised("*.bias,norm*") == {"conv1.weight", "conv2.weight", "fc.weight", "head.weight"}
    assert quantised("") == set(layout.names)
    assert quantised("", bits=4) == set(layout.names) - {"conv1.bias", "norm.weight"}  # no more weights than centres
    assert quantised("", bits=0) == set()


def test_devices_may_have_models_of_other_architectures(new_fleet: Make, mlp: Model) -> None:
    mixed = new_fleet("quped", bits=2, full_precision="b*")
    small = Model(Layout(LAYOUT.names, ((3, 4), (3,), (3, 3), (3,))), mlp.oracle)
    mixed.own = lambda device: own(small, np.linspace(-1, 1, 27), mixed.model)
    ups = mixed.round()
    mixed.round()
    assert all(len(mixed.decoded(up, quped.Up).values) == 51 for up in ups.values())
    assert all(values.shape == (27,) for values in mixed.personal.values())
    with pytest.raises(DeviceError, match="penalty proximal needs the run's model"):
        Client(Config(penalty="proximal"), mixed.own("device-0"), None)


def test_a_model_that_knows_other_classes_than_the_shared_one_is_refused(mlp: Model, mlp_data: Any) -> None:
    two = Model(Layout(LAYOUT.names, ((6, 4), (6,), (2, 6), (2,))), mlp.oracle)
    client = Client(Config(), own(two, np.zeros(44), mlp), None)
    with pytest.raises(DeviceError, match="this device's model has 2 classes, the shared one 3"):
        client.round(Down(0, np.zeros(51, np.float32)), OneBatch(Batch(*mlp_data["device-0"])))


def test_devices_may_have_other_bits(new_fleet: Make, mlp: Model) -> None:
    mixed = new_fleet("quped", full_precision="b*")
    for bits, device in zip((0, 1, 2, 3), mixed.data, strict=True):
        client = Client(Config(bits=bits, full_precision="b*", lr=0.3), mixed.own(device), None)
        mixed.server.absorb(device, client.round(mixed.server.down(device, True), mixed.batches(device)))
    mixed.server.close()
    assert not np.array_equal(mixed.server.shared(), mixed.initial)


# ---- AdaPeD


def test_adapeds_weight_comes_to_rest_where_psi_is_the_distance() -> None:
    settings, psi = Config(adaptive=True, psi_lr=0.05), 2.0
    for _ in range(2000):
        psi = quped.adapt(psi, 0.7, settings)
    assert psi == pytest.approx(0.7)
    assert quped.adapt(psi, -1e9, settings) == settings.psi_min


def test_adapeds_weight_falls_as_the_distance_does_and_is_kept(fleet: Make) -> None:
    learning = fleet(adaptive=True, psi_lr=0.1)
    kept_psi = []
    for _ in range(4):
        learning.round()
        kept_psi.append({device: learning.client(device).state()["psi"] for device in learning.data})
    for device in learning.data:
        path = [psi[device] for psi in kept_psi]
        assert 2.0 > path[0] > path[1] > path[2] > path[3] > 0.1


def test_adaped_with_a_psi_that_stands_still_distils_with_the_weight_of_one_over_twice_psi(fleet: Make) -> None:
    # Twice the objective of adaptive is that of lambda-p 1/2 where psi is 1/2: labels and distillation count 1 each.
    learning = fleet(adaptive=True, psi=0.5, psi_lr=0.0, lr=0.1, **STILL)
    plain = fleet(lambda_p=0.5, lr=0.2, **STILL)
    for _ in range(2):
        learning.round()
        plain.round()
    for device in plain.data:
        assert learning.personal[device] == pytest.approx(plain.personal[device], abs=1e-5)
    assert learning.server.shared() == pytest.approx(plain.server.shared(), abs=1e-5)


# ---- settings


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"bits": 9}, "bits must be at least 0 and at most 8"),
        ({"lambda_p": 1.5}, "lambda-p must be at least 0 and at most 1"),
        ({"soft_p": math.inf}, "soft-p must be at least 0"),
        ({"penalty": "kd"}, "penalty must be one of distillation, proximal"),
        ({"adaptive": True, "penalty": "proximal"}, "adaptive needs penalty distillation"),
        ({"qr_compat": True, "soft_p": 1.0}, "qr-compat needs soft-p 0"),
        ({"psi": 0.01}, "psi must be at least 0.1"),
        ({"weights": "size"}, "weights must be one of uniform, samples"),
    ],
)
def test_settings_that_cannot_be_are_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**wanted)


def test_an_infinite_steepness_travels_as_a_plain_number() -> None:
    settings = Config(soft_p=0.0)
    assert settings.steepness(3) == math.inf
    record = json.loads(json.dumps(config.table(settings), allow_nan=False))
    assert config.build(Config, record, "algorithm") == settings
    assert Config(soft_p=2.0, soft_p_growth=3.0).steepness(2) == 18.0
    assert Config(penalty="proximal", lambda_p=1.5).lambda_p == 1.5
