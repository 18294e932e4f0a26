"""FedSpa against what its theory says: gradient descent on the masked losses, and the rate 1/sqrt(T)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime.algorithm import Batch, Model
from edge_runtime.algorithms import fedspa
from edge_runtime.algorithms.fedspa import Config, Server, active_counts
from edge_runtime.compression import mask as masks

DEVICES, SIZE, SAMPLES = 10, 40, 100


class Samples:
    """A device's samples, labels in the last column; drawn with replacement, which is cheaper and as good here."""

    def __init__(self, table: Any, seed: Any) -> None:
        self.table, self.rng = table, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.table)

    def sample(self, batch_size: int) -> Batch:
        rows = slice(None) if batch_size >= len(self) else self.rng.integers(0, len(self), batch_size)
        return Batch(self.table[rows], np.zeros(len(self.table[rows]), np.int64))


def sigmoid_slope(w: Any, table: Any) -> Any:
    """Differentiate the non-convex loss mean 1 / (1 + exp(y a·w)) over rows (a, y)."""
    features, labels = table[:, :-1], table[:, -1]
    p = (1 - np.tanh(labels * (features @ w) / 2)) / 2
    return -(p * (1 - p) * labels) @ features / len(table)


def sigmoid_value(w: Any, table: Any) -> float:
    return float(np.mean(1 - np.tanh(table[:, -1] * (table[:, :-1] @ w) / 2)) / 2)


def tables() -> Any:
    """Give each device's samples [devices, samples, size + 1]: its own true weights, and a tenth of labels wrong.

    The scale of the features makes the smoothness L about 1, so that 50 rounds are past the first transient: before
    that no rate can show, since the gradient at the start is what it is.
    """
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, SIZE) + 0.5 * rng.normal(0, 1, (DEVICES, SIZE))
    features = rng.normal(0, 3, (DEVICES, SAMPLES, SIZE))
    labels = np.sign(np.einsum("ksd,kd->ks", features, truth))
    labels *= np.where(rng.random(labels.shape) < 0.1, -1, 1)
    return np.concatenate([features, labels[..., None]], axis=2).astype(np.float32)


class Run:
    """A run of FedSpa on the sigmoid losses, and the objective that it minimises."""

    def __init__(self, model: Model, config: Config, cohort: int, seed: int = 0) -> None:
        self.model, self.config, self.cohort, self.data = model, config, cohort, tables()
        self.server = Server(config, model.layout, np.zeros(SIZE, np.float32), {}, seed)
        self.states: dict[int, Any] = {}
        self.rng = np.random.default_rng(seed)

    def masks(self) -> Any:
        downs = [self.server.down(str(device), True) for device in range(DEVICES)]
        sizes, counts = self.model.layout.sizes, active_counts(self.model.layout, self.config)
        return np.array(
            [masks.decode(d.mask, SIZE) if d.mask else masks.from_seed(d.seed, sizes, counts) for d in downs]
        )

    def slope(self, held: Any) -> Any:
        """Differentiate f(w) = mean over devices of F_k(m_k * w)."""
        w = self.server.shared()
        return np.mean([m * sigmoid_slope(m * w, t) for m, t in zip(held, self.data, strict=True)], axis=0)

    def value(self, held: Any) -> float:
        w = self.server.shared()
        return float(np.mean([sigmoid_value(m * w, t) for m, t in zip(held, self.data, strict=True)]))

    def round(self) -> None:
        for device in self.rng.choice(DEVICES, self.cohort, replace=False).tolist():
            client = fedspa.Client(self.config, self.model, self.states.get(device))
            down = self.server.down(str(device), device not in self.states)
            up = client.round(down, Samples(self.data[device], [self.server.round, device]))
            self.states[device] = client.state()
            self.server.absorb(str(device), up)
        self.server.close()


def plain(**wanted: Any) -> Config:
    base = {"lr_decay": 1.0, "weight_decay": 0.0, "clip_norm": 0.0, "batch_size": 8, "local_steps": 5, "density": 0.5}
    return Config(**(base | wanted))


@pytest.fixture
def model(flat_model: Callable[..., Model]) -> Model:
    return flat_model(sigmoid_slope, (8, 5))


def test_one_full_batch_step_of_all_devices_is_gradient_descent_on_the_mean_of_masked_losses(model: Model) -> None:
    run = Run(model, plain(mode="rsm", lr=0.5, local_steps=1, batch_size=SAMPLES), cohort=DEVICES)
    held = run.masks()
    w, values = np.zeros(SIZE), []
    for _ in range(50):
        values.append(run.value(held))
        w -= run.config.lr * np.mean(
            [m * sigmoid_slope(m * w, t.astype(np.float64)) for m, t in zip(held, run.data, strict=True)], axis=0
        )
        run.round()
        np.testing.assert_allclose(run.server.shared(), w, rtol=0, atol=1e-6)  # 50 roundings to float32
    assert (np.diff(values) < 0).all()  # lr is below 1 / L here
    assert len({mask.tobytes() for mask in held}) == DEVICES


def square_slopes(model: Model, rounds: int, **wanted: Any) -> list[float]:
    """Give the squared norm of the objective's gradient at about 100 moments of a run with cohorts of 3."""
    run = Run(model, plain(**({"lr": rounds**-0.5, "rounds": rounds} | wanted)), cohort=3)
    every, squares, held = max(rounds // 100, 1), [], run.masks()
    for round_ in range(rounds):
        if round_ % every == 0:
            held = held if run.config.mode == "rsm" else run.masks()
            squares.append(float(np.sum(run.slope(held) ** 2)))
        run.round()
    return squares


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [{"mode": "rsm"}, {"mode": "dst", "prune_rate": 0.3}, {"mode": "rsm", "aggregate": "owners"}],
    ids=["rsm", "dst", "owners"],
)
def test_the_mean_square_gradient_falls_as_one_over_the_root_of_the_rounds(wanted: Any, model: Model) -> None:
    rounds = [50, 200, 800]
    squares = [np.mean(square_slopes(model, t, **wanted)) for t in rounds]
    slope = np.polyfit(np.log(rounds), np.log(squares), 1)[0]
    assert slope <= -0.40, f"{slope}: {squares}"


@pytest.mark.slow
def test_with_a_constant_rate_it_stops_falling_at_the_noise(model: Model) -> None:
    constant = square_slopes(model, 600, mode="rsm", lr=1.0)
    falling = square_slopes(model, 600, mode="rsm", lr=1.0, lr_decay=0.995)
    assert np.mean(constant[70:]) > 0.8 * np.mean(constant[40:70])
    assert np.mean(falling[90:]) < 0.5 * np.mean(constant[90:])
