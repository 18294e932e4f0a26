"""FFGG against what its theory says (T1 to T6), on least squares f_m = |H th - b|^2 / 2 + |A th + B w - y|^2 / 2.

B has orthonormal columns, so that one fine-tuning step with rate 1 is exact. Then F_m(th) = S_m th - c_m with
S_m = H'H + A'(I - BB')A. Unless said otherwise b = y = 0: theta* = 0 suits every device, and errors of 1e-10 show in
float32. Devices' updates go through the real halves.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edge_runtime.algorithms import ffgg
from edge_runtime.algorithms.ffgg import Config, Server, Up
from edge_runtime.coordinator.attacks import inner_product, sign_flip
from edge_runtime.tree import Layout, Part

Make = Callable[..., Any]
THETA, OWN, ROWS = 6, 3, 24
EXACT = {"weight_decay": 0.0, "clip_norm": 0.0, "private": "w", "private_lr": 1.0, "private_steps": 1}


class Squares:
    """One device's f_m, in float64; `goal` [theta] puts the minimum of its first term, and of phi_m, elsewhere."""

    def __init__(self, rng: np.random.Generator, goal: Any = None, scale: float = 0.3) -> None:
        self.H = rng.normal(size=(ROWS, THETA)) * scale
        self.A = rng.normal(size=(ROWS, THETA)) * scale
        self.B = np.linalg.qr(rng.normal(size=(ROWS, OWN)))[0]
        goal = np.zeros(THETA) if goal is None else goal
        self.b, self.y = self.H @ goal, self.A @ goal

    @property
    def curvature(self) -> Any:
        """Give S_m."""
        return self.H.T @ self.H + self.A.T @ (self.A - self.B @ (self.B.T @ self.A))

    def best(self, theta: Any) -> Any:
        return self.B.T @ (self.y - self.A @ theta)

    def slopes(self, theta: Any, w: Any) -> dict[str, Any]:
        rest = self.A @ theta + self.B @ w - self.y
        return {"theta": self.H.T @ (self.H @ theta - self.b) + self.A.T @ rest, "w": self.B.T @ rest}

    def value(self, theta: Any, w: Any) -> float:
        rest = self.A @ theta + self.B @ w - self.y
        return float(np.sum((self.H @ theta - self.b) ** 2) + np.sum(rest**2)) / 2

    def exact(self, theta: Any) -> Any:
        """Give F_m(theta)."""
        return self.slopes(theta, self.best(theta))["theta"]


class World:
    """A fleet of such devices, and the F and Phi that it minimises."""

    def __init__(self, new_fleet: Make, split_model: Make, devices: Sequence[Squares], **wanted: Any) -> None:
        self.devices = {f"device-{i}": squares for i, squares in enumerate(devices)}
        data = {name: (np.full((1, 1), i, np.float32), np.zeros(1, np.int64)) for i, name in enumerate(self.devices)}

        def slopes(params: Any, x: Any) -> Any:
            return devices[int(x[0, 0])].slopes(params["theta"], params["w"])

        start = np.random.default_rng(5).normal(size=THETA + OWN).astype(np.float32)
        model = split_model(slopes, theta=THETA, w=OWN)
        self.fleet = new_fleet("ffgg", model=model, data=data, initial=start, **(EXACT | wanted))
        self.states: dict[str, Any] = {}

    @property
    def theta(self) -> Any:
        return self.fleet.server.shared()[:THETA].astype(np.float64)

    def error(self) -> float:
        return float(np.linalg.norm(self.theta))

    def norm(self) -> float:
        """Give |F(theta)|."""
        return float(np.linalg.norm(np.mean([m.exact(self.theta) for m in self.devices.values()], axis=0)))

    def value(self) -> float:
        """Give Phi(theta)."""
        return float(np.mean([m.value(self.theta, m.best(self.theta)) for m in self.devices.values()]))

    def down(self, device: str) -> Any:
        return self.fleet.server.down(device, device not in self.states)

    def train(self, device: str, down: Any) -> Up:
        client = ffgg.Client(self.fleet.config, self.fleet.model, self.states.get(device))
        up: Up = client.round(down, self.fleet.batches(device))
        self.states[device] = client.state()
        return up

    def round(self, cohort: Sequence[str] | None = None) -> None:
        for device in cohort or self.devices:
            self.fleet.server.absorb(device, self.train(device, self.down(device)))
        self.fleet.server.close()

    def arrive(self, arrivals: Sequence[str]) -> tuple[list[float], list[float]]:
        """Play an asynchronous run: every update moves theta, which then goes to its sender.

        Gives |theta| and |F(theta)| after every update.
        """
        server, errors, norms = self.fleet.server, [], []
        held = {device: self.down(device) for device in self.devices}
        for device in arrivals:
            server.absorb(device, self.train(device, held[device]))
            server.close()
            held[device] = self.down(device)
            errors.append(self.error())
            norms.append(self.norm())
        return errors, norms


@pytest.fixture
def world(new_fleet: Make, split_model: Make) -> Callable[..., World]:
    def make(devices: Sequence[Squares], **wanted: Any) -> World:
        return World(new_fleet, split_model, devices, **wanted)

    return make


def alike(count: int = 5, seed: int = 0) -> list[Squares]:
    rng = np.random.default_rng(seed)
    return [Squares(rng) for _ in range(count)]


def unlike(count: int = 5, seed: int = 0, spread: float = 0.3) -> list[Squares]:
    """Make devices whose minima differ: the model is not overpersonalised."""
    rng = np.random.default_rng(seed)
    return [Squares(rng, goal=spread * rng.normal(size=THETA)) for _ in range(count)]


def smoothness(devices: Sequence[Squares]) -> float:
    return float(np.linalg.eigvalsh(np.mean([m.curvature for m in devices], axis=0))[-1])


def extremes(devices: Sequence[Squares]) -> tuple[float, float]:
    """Give the least and the largest curvature of any device's phi_m."""
    values = [np.linalg.eigvalsh(m.curvature) for m in devices]
    return float(min(v[0] for v in values)), float(max(v[-1] for v in values))


# The rate, with an exact fine-tuning (T1) and an inexact one (T2)


@pytest.mark.parametrize("make", [alike, unlike])
def test_the_least_gradient_falls_as_one_over_the_rounds(make: Any, world: Callable[..., World]) -> None:
    devices = make()
    gamma = 1 / smoothness(devices)
    run = world(devices, lr=gamma)
    best = np.linalg.solve(
        np.mean([m.curvature for m in devices], axis=0), -np.mean([m.exact(np.zeros(THETA)) for m in devices], axis=0)
    )
    least = float(np.mean([m.value(best, m.best(best)) for m in devices]))
    gap, norms = run.value() - least, []
    for rounds in range(1, 80):
        norms.append(run.norm() ** 2)
        run.round()
        assert min(norms) <= 2 * gap / (gamma * rounds)


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_an_inexact_fine_tuning_leaves_no_more_than_its_contraction_says(
    steps: int, world: Callable[..., World]
) -> None:
    devices, rate = alike(), 0.3
    gamma = 1 / smoothness(devices)
    run = world(devices, lr=gamma, private_lr=rate, private_steps=steps, private_start="zeros")
    gap, norms, errors = run.value(), [], []
    for rounds in range(1, 30):
        theta, norm = run.theta, run.norm()
        for name, m in run.devices.items():
            sent = run.train(name, run.down(name)).values.values
            bound = np.linalg.norm(m.A.T @ m.B, 2) * (1 - rate) ** steps * np.linalg.norm(m.best(theta))
            error = np.linalg.norm(sent - m.exact(theta))
            assert error <= bound + 1e-5  # float32, beside values of about 1
            errors.append(error)
        norms.append(norm**2)
        run.round()
        assert min(norms) <= 2 * gap / (gamma * rounds) + max(errors) ** 2


# Client sampling (T3)


def test_with_one_theta_for_all_a_sampled_cohort_has_no_floor_and_otherwise_it_has(world: Callable[..., World]) -> None:
    low, high = extremes(alike(8))
    rng = np.random.default_rng(1)
    run = world(alike(8), lr=1 / high)
    start = run.error()
    for round_ in range(1, 120):
        run.round(rng.choice(sorted(run.devices), 2, replace=False).tolist())
        assert run.error() <= start * (1 - low / high) ** round_ + 1e-11
    other, floor = world(unlike(8), lr=1 / high), []
    for _ in range(120):
        other.round(rng.choice(sorted(other.devices), 2, replace=False).tolist())
        floor.append(other.norm())
    assert run.norm() < 1e-9
    assert min(floor[60:]) > 1e-4


# Asynchronous runs (T4)


def test_any_delays_lead_to_the_one_theta_for_all_and_otherwise_stop_at_a_floor(world: Callable[..., World]) -> None:
    rng = np.random.default_rng(2)
    arrivals = [f"device-{i}" for _ in range(100) for i in rng.permutation(5)]
    gamma = 1 / (extremes(alike())[1] * 9)  # between two turns of a device lie 8 other updates at most
    errors, norms = world(alike(), lr=gamma).arrive(arrivals)
    assert max(errors[-5:]) < 1e-10
    assert max(norms[-5:]) < 1e-10
    floor = world(unlike(), lr=gamma).arrive(arrivals)[1]
    assert min(floor) > 1e-4


def test_a_rate_below_mu_over_the_delay_times_the_square_of_l_shrinks_the_error_as_fast_as_said(
    world: Callable[..., World],
) -> None:
    rng = np.random.default_rng(4)
    devices = alike(3)
    low, high = extremes(devices)
    most = 4  # three devices in permutations: at most four versions between an update and its theta
    gamma = 0.5 * low / (high**2 * most)
    run = world(devices, lr=gamma)
    errors = [run.error()]
    errors += run.arrive([f"device-{i}" for _ in range(40) for i in rng.permutation(3)])[0]
    factor = 1 - gamma * low + gamma**2 * high**2 * most
    assert factor < 1
    for t in range(len(errors) - 1):
        assert errors[t + 1] <= factor * max(errors[max(0, t - 2 * most) : t + 1]) * (1 + 1e-5)  # float32


@pytest.mark.parametrize(("workers", "threshold"), [(1, 2.0), (2, 1.0), (3, 0.6180339887)])
def test_the_largest_rate_under_a_constant_delay_is_that_of_the_scalar_recursion(
    workers: int, threshold: float, new_fleet: Make, split_model: Make
) -> None:
    """e_{t+1} = e_t - g e_{t-d} is stable for g < 2 sin(pi / (4d + 2)), and workers in turn have d = workers - 1."""
    delay = workers - 1
    assert threshold == pytest.approx(2 * np.sin(np.pi / (4 * delay + 2)), abs=1e-10)
    assert radius(threshold, delay) == pytest.approx(1, abs=1e-9)
    enough = int(np.log(1e-11) / np.log(radius(0.9 * threshold, delay)))
    both = [in_turn(new_fleet, split_model, workers, part * threshold, enough) for part in (0.9, 1.1)]
    assert both[0] < 1e-10
    assert both[1] > 1


def radius(rate: float, delay: int) -> float:
    """Give the largest root of the recursion, the factor by which an error shrinks in the end."""
    return float(max(abs(np.roots([1, -1, *[0] * (delay - 1), rate] if delay else [1, rate - 1]))))


def in_turn(new_fleet: Make, split_model: Make, workers: int, rate: float, updates: int) -> float:
    """Let workers take turns on f = (th^2 + (th + w)^2) / 2, which is th^2 / 2 once w = -th; gives the last error."""

    def slopes(params: Any, x: Any) -> Any:
        rest = params["theta"] + params["w"]
        return {"theta": params["theta"] + rest, "w": rest}

    model = split_model(slopes, theta=1, w=1)
    data = {f"device-{i}": (np.zeros((1, 1), np.float32), np.zeros(1, np.int64)) for i in range(workers)}
    fleet = new_fleet("ffgg", model=model, data=data, initial=np.array([1, 0], np.float32), lr=rate, **EXACT)
    server, held = fleet.server, {name: fleet.server.down(name, True) for name in data}
    for name in itertools.islice(itertools.cycle(data), updates):
        up = ffgg.Client(fleet.config, fleet.model, None).round(held[name], fleet.batches(name))
        server.absorb(name, up)
        server.close()
        held[name] = server.down(name, True)
        if abs(server.shared()[0]) > 100:
            break
    return abs(float(server.shared()[0]))


# Local steps (T5)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_local_steps_never_lead_away_from_the_one_theta_for_all(steps: int, world: Callable[..., World]) -> None:
    _, high = extremes(alike())
    run = world(alike(), lr=1.9 / high, variant="local", local_steps=1, alternations=steps)
    errors = [run.error()]
    for _ in range(25):
        run.round()
        errors.append(run.error())
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize(("steps", "expected", "rounds"), [(1, 2.5, 25), (5, 2.09174, 10), (50, 2.0, 4)])
def test_local_steps_stop_between_the_minima_but_at_a_common_one_exactly(
    steps: int, expected: float, rounds: int, new_fleet: Make, split_model: Make
) -> None:
    def slopes(params: Any, x: Any) -> Any:
        curvature, goal = x[0]
        return {
            "theta": curvature * (params["theta"] - goal) + params["theta"] - params["w"],
            "w": params["w"] - params["theta"],
        }

    model = split_model(slopes, theta=1, w=1)
    for goals, end in (((1.0, 3.0), expected), ((2.0, 2.0), 2.0)):
        points = {f"device-{c}": np.array([[c, goal]], np.float32) for c, goal in zip((1, 3), goals, strict=True)}
        data = {name: (point, np.zeros(1, np.int64)) for name, point in points.items()}
        local = {"variant": "local", "lr": 0.3, "local_steps": 1, "alternations": steps}
        fleet = new_fleet("ffgg", model=model, data=data, initial=np.zeros(2, np.float32), **local, **EXACT)
        for _ in range(rounds):
            fleet.round()
        assert fleet.server.shared()[0] == pytest.approx(end, abs=5e-6)


# Devices that lie (T6)


def attacked(
    curvatures: Any, start: Any, config: Config, liars: Callable[[Any, Any], Any], rounds: int, goals: Any = 0.0
) -> list[float]:
    """Play rounds of the server half against devices F_m(th) = S_m (th - goal_m); gives |F| of the honest in each."""
    layout = Layout(("theta", "w"), ((len(start),), (1,)))
    server = Server(config, layout, np.append(start, 0).astype(np.float32), {}, 0)
    rng, found = np.random.default_rng(0), []
    for _ in range(rounds):
        theta = server.shared()[:-1].astype(np.float64)
        good = np.einsum("mij,mj->mi", curvatures, np.broadcast_to(theta - goals, (len(curvatures), len(theta))))
        found.append(float(np.linalg.norm(good.mean(axis=0))))
        if found[-1] > 10 * found[0]:
            break
        sent = good.astype(np.float32)
        for index, values in enumerate([*sent, *liars(sent, rng)]):
            server.absorb(f"device-{index:02}", Up(server.round, 1, Part(layout.bits(["theta"]), values)))
        server.close()
    return found


def notebook(samples: int) -> tuple[Any, Any, float]:
    """Make the official code's Byzantine set-up (M = 32, theta of 100 and w of 50 values, no noise, seed 42).

    Gives S_m [M, 100, 100], theta*, and the L that the official code uses (of its last client, and partly a Frobenius
    norm). Everything that it computes is in the Gram matrices.
    """
    rng = np.random.default_rng(42)
    goal, curvatures, used = rng.normal(size=100), [], 0.0
    for _ in range(32):
        H, A, B = (rng.uniform(size=(samples, width)) / width for width in (100, 100, 50))
        rng.normal(size=150)  # two vectors of the data: one is not used, the other is undone by w*
        schur = A.T @ A - A.T @ B @ np.linalg.solve(B.T @ B, B.T @ A)
        used = max(float(np.linalg.norm(schur)), float(np.linalg.eigvalsh(H.T @ H)[-1]))
        curvatures.append(H.T @ H + schur)
    return np.array(curvatures), goal, used


def nobody(good: Any, rng: Any) -> Any:
    return good[:0]


ATTACKS = {
    "flip": lambda good, rng: sign_flip(good, 10, rng),
    "inner product": lambda good, rng: inner_product(good, 10, rng, 4.0),  # above 32 / 10 the mean turns round
}
PLAIN = {"private": "w", "lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
MEDIAN = {"aggregator": "median", "byzantine": 10, "bucket": 2}


def test_the_byzantine_set_up_is_the_official_ones() -> None:
    curvatures, goal, used = notebook(10_000)
    mean = curvatures.mean(axis=0)
    values = np.linalg.eigvalsh(mean)
    assert used == pytest.approx(25.0592, abs=5e-5)
    assert values[[-1, 0]] == pytest.approx([25.3295, 0.1622], abs=5e-5)
    assert np.linalg.norm(mean @ goal) == pytest.approx(12.8, abs=5e-3)


def test_the_median_of_buckets_keeps_within_twice_the_gradient_without_liars_where_the_mean_diverges() -> None:
    curvatures, goal, _ = notebook(1_000)
    gamma = 1 / float(np.linalg.eigvalsh(curvatures.mean(axis=0))[-1])

    def norms(attack: Any, **wanted: Any) -> list[float]:
        return attacked(curvatures, -goal, Config(lr=gamma, **PLAIN, **wanted), attack, 200)

    alone = norms(nobody)
    diverging = norms(ATTACKS["inner product"])
    assert diverging[-1] > 10 * diverging[0]
    assert alone[-1] < 0.05 * alone[0]
    assert norms(ATTACKS["inner product"], **MEDIAN)[-1] < 2 * alone[-1]


def test_flipped_gradients_only_shrink_the_mean() -> None:
    curvatures, start = np.array([np.eye(3)] * 32), np.ones(3)
    found = attacked(curvatures, start, Config(lr=0.5, **PLAIN), ATTACKS["flip"], 20)
    shrunk = 1 - 0.5 * (32 - 10) / 42
    assert found == pytest.approx([np.sqrt(3) * shrunk**t for t in range(20)], rel=1e-5)


def test_a_median_stands_still_where_every_device_sees_a_coordinate_of_its_own() -> None:
    """Overpersonalisation takes differences away at theta* only: g_m = e_m e_m' (th - th*)."""
    curvatures = np.array([np.outer(row, row) for row in np.eye(3)])

    def moved(**wanted: Any) -> float:
        found = attacked(curvatures, np.ones(3), Config(lr=1.0, **PLAIN, **wanted), nobody, 12)
        return found[0] - found[-1]

    assert moved(aggregator="median") == 0
    assert moved(aggregator="geometric-median") > 0.5
    assert moved(aggregator="median", bucket=2) > 0.5


def test_what_liars_leave_grows_with_the_spread_of_the_minima_and_is_nothing_without_it() -> None:
    rng = np.random.default_rng(3)
    curvatures, away = np.array([np.eye(4)] * 12), rng.normal(size=(12, 4))
    config = Config(lr=0.5, aggregator="median", byzantine=3, **PLAIN)
    floors = []
    for spread in (0.0, 0.1, 0.2, 0.4):
        found = attacked(
            curvatures, np.ones(4), config, lambda good, rng: inner_product(good, 3, rng, 6.0), 80, spread * away
        )
        floors.append(found[-1])
    assert floors[0] < 1e-10
    assert floors[1] > 1e-3
    assert floors[2:] == pytest.approx([2 * floors[1], 4 * floors[1]], rel=1e-3)
