"""PersA-FL against what its theory says: the rate 1/sqrt(T), the floors of B and C, and what delay does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_runtime.algorithm import Batch, Model
from edge_runtime.algorithms.persafl import Config

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


DEVICES, SIZE, COPIES, Q, ALPHA, LAMBDA = 10, 5, 16, 5, 0.2, 2.0


class Quadratics:
    """f_i(w) = (w - c_i)' H_i (w - c_i) / 2 with L = 1 on 10 devices, in as many copies as average the noise.

    The copies are one long vector: everything that PersA-FL does to quadratics it does to each of them alone.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        turns = np.linalg.qr(rng.normal(size=(DEVICES, SIZE, SIZE)))[0]
        curvatures = rng.uniform(0.1, 1.0, (DEVICES, SIZE))
        curvatures[:, 0] = 1.0
        self.hessians = np.einsum("kij,kj,klj->kil", turns, curvatures, turns)
        self.minima = rng.normal(0, 1, (DEVICES, SIZE))

    def models(self, flat_model: Make) -> list[Model]:
        def of(device: int) -> Model:
            hessian, minimum = (part[device].astype(np.float32) for part in (self.hessians, self.minima))

            def gradient(w: Any, x: Any) -> Any:
                return ((w.reshape(COPIES, SIZE) - minimum) @ hessian).ravel() + x[0]

            return flat_model(gradient, (COPIES, SIZE))

        return [of(device) for device in range(DEVICES)]

    def square_slopes(self, option: str, w: Any) -> Any:
        """Give |F'|^2 at each w [times, COPIES, SIZE], the mean over copies, from closed forms."""
        one = np.eye(SIZE)
        shapes = {
            "A": self.hessians,
            "B": (one - ALPHA * self.hessians) @ self.hessians @ (one - ALPHA * self.hessians),
            "C": LAMBDA * self.hessians @ np.linalg.inv(LAMBDA * one + self.hessians),
        }[option]
        mean, shift = shapes.mean(0), np.einsum("kij,kj->i", shapes, self.minima) / DEVICES
        return ((w @ mean - shift) ** 2).sum(-1).mean(-1)


def mean_square_slope(option: str, delay: int, versions: int, flat_model: Make, arrivals: Make) -> float:
    """Run `versions` versions; each is made by a device drawn at random, from a w that is `delay` versions old."""
    problem, rng = Quadratics(), np.random.default_rng(versions)
    inner = {"adaptation_lr": ALPHA, "attraction": LAMBDA, "inner_lr": 1 / (1 + LAMBDA), "inner_steps": 4}
    config = plain(option, lr=1 / (Q * versions**0.5), local_steps=Q, **inner)
    noise = [Noise(COPIES * SIZE, 1.0, [versions, device]) for device in range(DEVICES)]
    run = arrivals("persafl", config, problem.models(flat_model), noise, np.full(COPIES * SIZE, 3.0))
    waiting = [(int(rng.integers(DEVICES)), run.downs[0]) for _ in range(delay)]
    seen = np.empty((versions, COPIES, SIZE))
    for version in range(versions):
        down = run.server.down("", False)
        seen[version] = down.values.reshape(COPIES, SIZE)
        waiting.append((int(rng.integers(DEVICES)), down))
        device, run.downs[device] = waiting.pop(0)
        run.answer(device)
        run.server.close()
    return float(problem.square_slopes(option, seen).mean())


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 10])
@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_the_mean_square_gradient_falls_as_one_over_the_root_of_the_versions(
    option: str, delay: int, flat_model: Make, arrivals: Make
) -> None:
    versions = [250, 1000, 4000]
    squares = [mean_square_slope(option, delay, count, flat_model, arrivals) for count in versions]
    slope = np.polyfit(np.log(versions), np.log(squares), 1)[0]
    print(option, delay, slope, squares)
    assert slope <= -0.40, f"{slope}: {squares}"
