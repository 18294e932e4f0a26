"""Which channels matter, against models whose answer is known."""

import numpy as np
import torch
from torch import nn

from edge_runtime.compression import submodel
from edge_runtime.data import Split
from edge_runtime.export import channels, importance


def split(x: np.ndarray, y: np.ndarray) -> Split:
    return Split(x, y, x, y, 2, ("no", "yes"))


def flat(module: nn.Module) -> np.ndarray:
    return np.concatenate([value.detach().numpy().ravel() for value in module.parameters()])


def test_taylor_is_the_square_of_gradient_times_value_of_each_batch_in_the_mean() -> None:
    torch.manual_seed(0)
    module, rng = nn.Sequential(nn.Linear(3, 2, bias=False)), np.random.default_rng(0)
    x, y = rng.standard_normal((64, 3)).astype(np.float32), rng.integers(0, 2, 64)
    found = importance.taylor(module, flat(module), split(x, y))
    weight, order, expected = flat(module).reshape(2, 3), np.random.default_rng(0).permutation(64), 0.0
    for some in np.split(order, 8):
        scores = np.exp(x[some] @ weight.T)
        likely = scores / scores.sum(axis=1, keepdims=True)
        gradient = (likely - np.eye(2)[y[some]]).T @ x[some] / 8
        expected = expected + (weight * gradient) ** 2 / 8
    np.testing.assert_allclose(found.reshape(2, 3), expected, rtol=1e-4)


def test_of_channels_that_a_devices_data_use_and_others_that_they_do_not_the_former_are_kept() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(8))
        module[0].bias.zero_()
        module[0].weight[:4] *= 5  # larger, but of inputs that this device's samples do not have
    rng = np.random.default_rng(0)
    x = np.zeros((200, 8), np.float32)
    x[:, 4:] = rng.random((200, 4))
    y = (x[:, 4:6].sum(axis=1) > x[:, 6:].sum(axis=1)).astype(np.int64)
    structure = channels.find(module, torch.zeros(2, 8)).structure
    by_size = submodel.chosen(structure, 0.5, importance.magnitude(flat(module)))
    scores = importance.taylor(module, flat(module), split(x, y))
    by_loss = submodel.chosen(structure, 0.5, scores)
    assert by_size.kept[0].tolist() == [True] * 4 + [False] * 4
    assert by_loss.kept[0].tolist() == [False] * 4 + [True] * 4


def test_the_same_samples_give_the_same_scores_and_a_device_with_others_gets_others() -> None:
    torch.manual_seed(2)
    module, rng = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), np.random.default_rng(3)
    sets = [(rng.standard_normal((40, 4)).astype(np.float32), rng.integers(0, 2, 40)) for _ in range(2)]
    first, again, other = (importance.taylor(module, flat(module), split(*sets[i])) for i in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 0.1 * first.max()
