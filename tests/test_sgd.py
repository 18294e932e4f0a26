from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime import packed
from edge_runtime.algorithm import Batch, Model
from edge_runtime.errors import ConfigError, DeviceError
from edge_runtime.mask import from_bits
from edge_runtime.sgd import Sgd, descend
from edge_runtime.tree import Layout


class Slopes:
    """An oracle whose gradient at step i is slopes[i], or slopes(w, i)."""

    def __init__(self, slopes: Any) -> None:
        self.slopes, self.step = slopes, -1

    def vjp(self, params: Any, x: Any) -> Any:
        def pullback(slope: Any) -> Any:
            self.step += 1
            value = self.slopes(params["w"], self.step) if callable(self.slopes) else self.slopes[self.step]
            return {"w": np.array(value, np.float32)}

        return np.zeros((1, 2), np.float32), pullback


def batches(per_epoch: int = 1) -> Any:
    batch = Batch(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    return SimpleNamespace(sample=lambda size: batch, epoch=lambda size: iter([batch] * per_epoch))


def train(
    slopes: Any, start: list[float], steps: int, round_: int = 0, mask: Any = None, **settings: Any
) -> list[float]:
    pull = settings.pop("pull", None)
    plain = {"lr": 0.1, "lr_decay": 1.0, "clip_norm": 0.0, "weight_decay": 0.0, "local_steps": steps}
    model = Model(Layout(("w",), ((len(start),),)), Slopes(slopes))
    begin = np.array(start, np.float32)
    if mask is None:
        x = descend(model, begin, batches(), Sgd(**(plain | settings)), round_, pull=pull)
        assert begin.tolist() == np.array(start, np.float32).tolist(), "the start was changed"
        return x.tolist()
    active = from_bits(model.layout, np.array(mask, np.bool_))
    x = descend(packed.of(model, active), active.pack(begin), batches(), Sgd(**(plain | settings)), round_, pull=pull)
    return active.unpack(x).tolist()


def test_a_quadratic_shrinks_by_its_closed_form() -> None:
    assert train(lambda w, i: 2 * w, [1.0, -3.0], 10) == pytest.approx([0.8**10, -3 * 0.8**10])


def test_the_learning_rate_decays_with_the_round_and_not_with_the_step() -> None:
    assert train([[1.0]] * 3, [0.0], 3, round_=2, lr_decay=0.5) == pytest.approx([-0.1 * 0.25 * 3])


def test_momentum_adds_up_velocity() -> None:
    walked = [0.0, *(train([[1.0]] * n, [0.0], n, momentum=0.9)[0] for n in range(1, 5))]
    assert -np.diff(walked) == pytest.approx([0.1, 0.19, 0.271, 0.3439])


def test_weight_decay_pulls_towards_zero_and_a_pull_wherever_it_says() -> None:
    assert train([[0.0]], [2.0], 1, weight_decay=0.5) == pytest.approx([1.9])
    assert train([[0.0]], [2.0], 1, pull=lambda x: x - 5) == pytest.approx([2.3])


def test_a_long_gradient_is_clipped_and_a_short_one_is_not() -> None:
    assert train([[3.0, 4.0]], [0.0, 0.0], 1, clip_norm=1.0) == pytest.approx([-0.06, -0.08])
    assert train([[0.3, 0.4]], [0.0, 0.0], 1, clip_norm=1.0) == pytest.approx([-0.03, -0.04])


def test_a_gradient_is_masked_before_it_is_clipped() -> None:
    x = train([[3.0, 4.0]], [0.0, 0.0], 1, mask=[1, 0], clip_norm=1.0)  # FedSpa's trap 4: .6 if clipped first
    assert x == pytest.approx([-0.1, 0.0])


def test_epochs_go_through_all_batches() -> None:
    model = Model(Layout(("w",), ((1,),)), Slopes([[1.0]] * 6))
    sgd = Sgd(lr=1.0, local_epochs=2, clip_norm=0, weight_decay=0)
    assert descend(model, np.zeros(1, np.float32), batches(per_epoch=3), sgd, 0).tolist() == [-6]


def reference(matrix: Any, start: Any, mask: Any, steps: int, momentum: float, decay: float) -> Any:
    """Mask the weights after every step instead of the gradient before it."""
    x, velocity = start * mask, np.zeros_like(start)
    for _ in range(steps):
        velocity = momentum * velocity + matrix @ x + decay * x
        x = (x - 0.1 * velocity) * mask
    return x, velocity


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_masking_gradients_equals_masking_weights_while_the_mask_stays(momentum: float, decay: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(0, 1, (6, 6))
    matrix, start, mask = root @ root.T / 6, rng.normal(0, 1, 6), np.array([1, 0, 1, 1, 0, 1])
    x = train(lambda w, i: matrix @ w, start.tolist(), 8, mask=mask, momentum=momentum, weight_decay=decay)
    wanted, velocity = reference(matrix, start, mask, 8, momentum, decay)
    assert x == pytest.approx(wanted, rel=1e-5, abs=1e-6)  # float32 over eight steps
    assert [x[1], x[4]] == [0, 0]
    assert np.abs(velocity[mask == 0]).min() > 1e-3  # which would move what grows next by old gradients


def test_a_coordinate_that_grows_starts_without_the_velocity_of_rounds_in_which_it_was_not_there() -> None:
    first = train([[1.0, 1.0]] * 3, [0.0, 0.0], 3, mask=[1, 0], momentum=0.9)
    second = train([[1.0, 1.0]], first, 1, mask=[1, 1], momentum=0.9)
    assert second[1] - first[1] == pytest.approx(-0.1)  # FedSpa's trap 5: -.3439 with velocity kept and not masked


def test_a_masked_coordinate_stays_zero_under_a_pull() -> None:
    assert train([[1.0, 1.0]], [1.0, 1.0], 1, mask=[1, 0], pull=lambda x: x - 7)[1] == 0


def test_training_that_diverges_is_told_in_one_line() -> None:
    with pytest.raises(DeviceError, match=r"diverged in round 0: lower lr \(0.1\)"):
        train(lambda w, i: -1e6 * w, [1.0], 20)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"lr_decay": 1.5}, "lr-decay must be above 0 and at most 1, not 1.5"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, not 1.0"),
        ({"weight_decay": -0.1}, "weight-decay must be at least 0, not -0.1"),
        ({"clip_norm": float("inf")}, "clip-norm must be at least 0, not inf"),
        ({"local_epochs": 0}, "local-epochs must be at least 1, not 0"),
        ({"local_steps": -1}, "local-steps must be at least 0, not -1"),
        ({"batch_size": 0}, "batch-size must be at least 1, not 0"),
    ],
)
def test_a_setting_out_of_range_is_named_as_it_was_written(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sgd(**setting)
    assert str(error.value) == f"algorithm: {message}"
