"""PersA-FL against what its theory says: the rate 1/sqrt(T), the floors of B and C, and what delay does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_runtime.algorithm import Batch, Model
from edge_runtime.algorithms.persafl import Client, Config, Down

Make = Callable[..., Any]


class Noise:
    """Batches of one row of normal noise [size] with the given deviation; as an epoch, a row of zeros."""

    def __init__(self, size: int, deviation: float, seed: Any) -> None:
        self.size, self.deviation, self.rng = size, deviation, np.random.default_rng(seed)

    def __len__(self) -> int:
        return 1

    def sample(self, batch_size: int) -> Batch:
        return _row(self.rng.normal(0, self.deviation, self.size))

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        yield _row(np.zeros(self.size))


def _row(values: Any) -> Batch:
    return Batch(np.asarray(values, np.float32)[None], np.zeros(1, np.int64))


def plain(option: str, **wanted: Any) -> Config:
    """Make settings without clipping; on quadratics a difference of gradients is exact whatever the distance."""
    base = {"option": option, "lr": 1.0, "local_steps": 1, "clip_norm": 0.0, "hessian_step": 1.0}
    return Config(**(base | wanted))


DEVICES, SIZE, COPIES, Q, ALPHA, LAMBDA, K = 10, 5, 8, 5, 0.2, 2.0, 4
SETTINGS = {
    "adaptation_lr": ALPHA,
    "attraction": LAMBDA,
    "inner_lr": 1 / (1 + LAMBDA),
    "inner_steps": K,
    "local_steps": Q,
}


class Quadratics:
    """f_i(w) = (w - c_i)' H_i (w - c_i) / 2 on 10 devices, L = 1, with noise of deviation 1 in every gradient.

    In the eigenbasis of H_i (values h) each option's stochastic gradient is slope * (w - c_i) + normal noise, so that Q
    steps of it are one known map with one known noise.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.turns = np.linalg.qr(rng.normal(size=(DEVICES, SIZE, SIZE)))[0]
        self.h = rng.uniform(0.1, 1.0, (DEVICES, SIZE))
        self.h[:, 0] = 1.0
        self.minima = rng.normal(0, 1, (DEVICES, SIZE))
        reach = (1 - (1 - (self.h + LAMBDA) / (1 + LAMBDA)) ** K) / (self.h + LAMBDA)  # of K inner steps
        adapt = 1 - ALPHA * self.h
        self.slopes = {"A": self.h, "B": self.h * adapt**2, "C": LAMBDA * reach * self.h}
        self.noises = {"A": 1.0, "B": adapt * np.sqrt(1 + (ALPHA * self.h) ** 2), "C": LAMBDA * reach}
        self.exact = self.slopes | {"C": LAMBDA * self.h / (LAMBDA + self.h)}

    def updates(self, option: str, rate: float) -> tuple[Any, Any]:
        """Give D per distance w_0 - c_i, and the deviation of D, both in the eigenbasis [devices, SIZE]."""
        kept = 1 - rate * self.slopes[option]
        powers = kept[..., None] ** (2 * np.arange(Q))
        return 1 - kept**Q, rate * self.noises[option] * np.sqrt(powers.sum(-1))

    def square_slopes(self, option: str, w: Any) -> Any:
        """Give |F'|^2 at w [..., SIZE]."""
        shapes = np.einsum("kij,kj,klj->kil", self.turns, self.exact[option], self.turns)
        shift = np.einsum("kij,kj->i", shapes, self.minima) / DEVICES
        return ((w @ shapes.mean(0) - shift) ** 2).sum(-1)

    def model(self, device: int, copies: int, flat_model: Make) -> Model:
        """Make a device's model: `copies` independent ones beside each other. The noise is the batch."""
        hessian = ((self.turns[device] * self.h[device]) @ self.turns[device].T).astype(np.float32)
        minimum = self.minima[device].astype(np.float32)

        def gradient(w: Any, x: Any) -> Any:
            return ((w.reshape(copies, SIZE) - minimum) @ hessian).ravel() + x[0]

        return flat_model(gradient, (copies, SIZE))


def trajectories(options: str, delay: int, versions: int, noise: float = 1.0) -> Any:
    """Play a run by the known maps: w of each option [versions, options, COPIES, SIZE].

    Each version is made by a device drawn at random, from the w that is `delay` versions old (at first the initial).
    """
    problem, rng = Quadratics(), np.random.default_rng(versions)
    maps = [problem.updates(option, 1 / (Q * versions**0.5)) for option in options]
    gains, deviations = np.stack([m[0] for m in maps], 1), np.stack([m[1] for m in maps], 1)
    devices = rng.integers(DEVICES, size=versions)
    draws = noise * rng.normal(size=(versions, COPIES, SIZE))
    w = np.full((versions + 1, len(options), COPIES, SIZE), 3.0)
    for version, device in enumerate(devices.tolist()):
        turn = problem.turns[device]
        away = (w[max(version - delay, 0)] - problem.minima[device]) @ turn
        update = gains[device, :, None] * away + deviations[device, :, None] * draws[version]
        w[version + 1] = w[version] - update @ turn.T
    return w[:-1]


@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_a_devices_update_on_quadratics_is_the_known_map_with_the_known_noise(option: str, flat_model: Make) -> None:
    problem, copies, device = Quadratics(), 4000, 3
    model, config = problem.model(device, copies, flat_model), plain(option, lr=0.1, **SETTINGS)
    noise, start = Noise(copies * SIZE, 1.0, 5), np.full(copies * SIZE, 3, np.float32)
    update = Client(config, model, None).round(Down(0, start), noise).values.reshape(copies, SIZE)
    turned = update.astype(np.float64) @ problem.turns[device]
    gain, deviation = problem.updates(option, config.lr)
    expected = gain[device] * ((3 - problem.minima[device]) @ problem.turns[device])
    np.testing.assert_array_less(np.abs(turned.mean(0) - expected), 4.5 * deviation[device] / copies**0.5)
    np.testing.assert_allclose(turned.std(0), deviation[device], rtol=0.05)  # 4.5 deviations of a deviation


@pytest.mark.parametrize("delay", [0, 10])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_both_halves_go_the_way_of_the_known_maps(option: str, delay: int, flat_model: Make, arrivals: Make) -> None:
    versions, problem = 100, Quadratics()
    config = plain(option, lr=1 / (Q * versions**0.5), **SETTINGS)
    models = [problem.model(device, COPIES, flat_model) for device in range(DEVICES)]
    silent = [Noise(COPIES * SIZE, 0.0, 0)] * DEVICES
    run = arrivals("persafl", config, models, silent, np.full(COPIES * SIZE, 3.0))
    old = [run.downs[0]] * delay
    expected = trajectories(option, delay, versions, noise=0.0)[:, 0].reshape(versions, -1)
    for version, device in enumerate(np.random.default_rng(versions).integers(DEVICES, size=versions).tolist()):
        old.append(run.server.down("", False))
        np.testing.assert_allclose(old[-1].values, expected[version], atol=2e-5)  # float32, 100 versions of 5 steps
        run.downs[device] = old.pop(0)
        run.answer(device)
        run.server.close()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 10])
def test_the_mean_square_gradient_falls_as_one_over_the_root_of_the_versions(delay: int) -> None:
    problem, lengths = Quadratics(), [250, 1000, 4000, 16000, 64000]
    squares = []
    for versions in lengths:
        w = trajectories("ABC", delay, versions)
        squares.append([float(problem.square_slopes("ABC"[k], w[:, k]).mean()) for k in range(3)])
    slopes = np.polyfit(np.log(lengths), np.log(squares), 1)[0]
    assert (slopes <= -0.40).all(), f"{slopes}: {squares}"


def test_the_noise_of_maml_on_a_loss_that_is_not_quadratic_leaves_a_floor_that_a_batch_of_b_divides_by_b(
    flat_model: Make,
) -> None:
    # f(w) = w^4 / 4, noise of variance s^2 / b in each gradient: E (u - alpha e)^3 = u^3 + 3 u alpha^2 s^2 / b. So B
    # descends another F, and by just so much at w. The mean over all signs of the noise has no sampling error.
    model = flat_model(lambda w, x: w**3 + x[0], (1,))
    alpha, w, biases = 0.1, 1.5, []
    config = plain("B", adaptation_lr=alpha, hessian_step=1e-3)
    u, bend = w - alpha * w**3, 1 - alpha * 3 * w**2
    for b in (1, 4, 16):
        found = []
        for sign in (1, -1):
            feed = Noise(1, 0.0, 0)
            rows = iter([_row([sign * 2.0 / b**0.5]), _row([0]), _row([0])])
            feed.sample = lambda size, rows=rows: next(rows)  # type: ignore[assignment,misc]
            found.append(Client(config, model, None).round(Down(0, np.array([w], np.float32)), feed).values[0])
        biases.append(float(np.mean(found)) - bend * u**3)
        assert biases[-1] == pytest.approx(bend * 3 * u * alpha**2 * 2.0**2 / b, rel=0.03)  # float32 differences
    assert biases[0] / biases[2] == pytest.approx(16, rel=0.05)


def test_an_inexact_envelope_has_a_floor_and_half_the_tolerance_makes_it_a_quarter(
    flat_model: Make, arrivals: Make
) -> None:
    # Descent ends where theta = w is within the tolerance: a (w - c) = nu, and there F' = lambda nu / (lambda + a).
    model, a, squares = flat_model(lambda w, x: 2 * (w - 3), (1,)), 2.0, []
    for tolerance in (0.4, 0.2, 0.1):
        config = plain("C", lr=0.3, attraction=2.0, inner_lr=0.02, inner_steps=100, tolerance=tolerance)
        run = arrivals("persafl", config, [model], [Noise(1, 0.0, 0)], [3 + 0.7 * tolerance])
        w = [float(run.arrive(0)[0]) for _ in range(60)]
        assert w[-1] == w[-2]
        squares.append((2.0 * a / (2.0 + a) * (w[-1] - 3)) ** 2)
        assert squares[-1] == pytest.approx((2.0 * tolerance / (2.0 + a)) ** 2, rel=0.03)
    assert squares[0] / squares[1] == pytest.approx(4, rel=0.03)
    assert squares[1] / squares[2] == pytest.approx(4, rel=0.03)


def delayed(rates: list[float], delay: int, versions: int, flat_model: Make, arrivals: Make) -> Any:
    """Play x <- x - k x(delay versions ago) for several k at once: delay + 1 devices take turns; [versions, rates]."""
    k = np.array(rates, np.float32)
    models = [flat_model(lambda w, x: k * w, (len(rates),))] * (delay + 1)
    run = arrivals("persafl", plain("A"), models, [Noise(1, 0.0, 0)] * (delay + 1), np.full(len(rates), 10.0))
    return np.array([run.arrive(version % (delay + 1)) for version in range(versions)])


@pytest.mark.parametrize(("delay", "threshold"), [(0, 2.0), (1, 1.0), (2, 0.618034), (3, 0.445042), (4, 0.347296)])
def test_a_delay_is_stable_up_to_the_rate_that_theory_says(
    delay: int, threshold: float, flat_model: Make, arrivals: Make
) -> None:
    assert threshold == pytest.approx(2 * np.sin(np.pi / (2 * (2 * delay + 1))), abs=1e-6)
    x = np.abs(delayed([threshold - 1e-3, threshold + 1e-3], delay, 1200, flat_model, arrivals))
    assert x[-100:, 0].max() < 0.9 * x[100:200, 0].max()
    assert x[-100:, 1].max() > 1.1 * x[100:200, 1].max()


@pytest.mark.parametrize(("delay", "critical"), [(1, 0.25), (2, 0.148148), (3, 0.105469)])
def test_a_delay_makes_the_way_swing_from_the_critical_rate_on(
    delay: int, critical: float, flat_model: Make, arrivals: Make
) -> None:
    assert critical == pytest.approx(delay**delay / (delay + 1) ** (delay + 1), abs=1e-6)
    x = delayed([0.97 * critical, 1.06 * critical], delay, 25 * (delay + 1), flat_model, arrivals)
    assert (x[:, 0] > 0).all()
    assert (x[:, 1] < 0).any()


def picked(shares: Any, rate: float, versions: int, flat_model: Make, arrivals: Make) -> Any:
    """Give w of every version where devices with minima -1 and 1 answer at random, never stale."""
    models = [flat_model(lambda w, x, c=c: w - c, (1,)) for c in (-1, 1)]
    run = arrivals("persafl", plain("A", lr=rate), models, [Noise(1, 0.0, 0)] * 2, [0.0])
    seen = []
    for device in np.random.default_rng(1).choice(2, versions, p=shares).tolist():
        run.downs[device] = run.server.down("", False)
        seen.append(float(run.arrive(device)[0]))
    return np.array(seen)


@pytest.mark.slow
def test_devices_that_answer_more_often_count_more(flat_model: Make, arrivals: Make) -> None:
    w = picked((0.8, 0.2), 0.05, 4000, flat_model, arrivals)
    # The mean of w is the mean of the minima picked, up to the start: its deviation is 0.8 / 4000^0.5 = 0.0126
    assert w.mean() == pytest.approx(-0.6, abs=0.04)


@pytest.mark.slow
def test_heterogeneity_leaves_a_floor(flat_model: Make, arrivals: Make) -> None:
    w = picked((0.5, 0.5), 0.1, 5000, flat_model, arrivals)
    # w^2 forgets in about 5 versions, so that the mean has a deviation of about 5 % of itself
    assert np.mean(w[100:] ** 2) == pytest.approx(0.1 / (2 - 0.1), rel=0.15)
