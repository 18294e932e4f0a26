"""Which channels of torch modules can go, against modules whose answer is known, and against their own outputs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.compression import submodel
from edge_runtime.errors import ConfigError
from edge_runtime.export import channels
from edge_runtime.export.resnet import resnet20


class Separable(nn.Module):
    """A depthwise convolution, a grouped one, and two branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.norm = nn.BatchNorm2d(12, track_running_stats=False)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.left = nn.Linear(12 * 9, 10)
        self.right = nn.Linear(64, 6)
        self.out = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.pointwise(self.depthwise(self.first(x)))))
        features = torch.nn.functional.max_pool2d(torch.relu(self.grouped(features)), 2)[:, :, :3, :3]
        left, right = torch.relu(self.left(features.flatten(1))), torch.relu(self.right(x.flatten(1)))
        output: torch.Tensor = self.out(torch.cat([left, right], 1))
        return output


def transformer() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(("make", "shape"), [(resnet20, (1, 28, 28)), (Separable, (1, 8, 8)), (transformer, (5, 16))])
@pytest.mark.parametrize("how", ["first", "drawn"])
def test_a_module_without_some_channels_computes_what_it_does_where_these_are_zero(
    make: Callable[[], nn.Module], shape: tuple[int, ...], how: str
) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    module, x = make().eval(), torch.rand(4, *shape)
    found = channels.find(module, x)
    flat = np.concatenate([value.detach().numpy().ravel() for value in module.parameters()])
    structure = found.structure
    cut = submodel.nested(structure, 0.5) if how == "first" else submodel.chosen(structure, 0.4, rng.random(len(flat)))
    part = channels.narrow(module, cut)
    kept = np.concatenate([value.detach().numpy().ravel() for value in part.parameters()])
    assert np.array_equal(kept, flat[cut.bits])
    start = 0
    with torch.no_grad():
        for value in module.parameters():
            here = slice(start, start := start + value.numel())
            value.mul_(torch.from_numpy(cut.bits[here]).reshape(value.shape))
        assert torch.allclose(part(x), module(x), atol=1e-5)


def test_a_residual_network_is_cut_stage_by_stage() -> None:
    structure = channels.find(resnet20().eval(), torch.rand(2, 1, 28, 28)).structure
    assert [(group.name, group.channels, group.unit) for group in structure.groups if "blocks" not in group.name] == [
        ("conv", 16, 2)
    ]
    assert len(structure.groups) == 3 + 9
    half = submodel.nested(structure, 0.5)
    assert sum(int(np.prod(shape)) for shape in half.shapes) < 0.27 * 271_994


def test_what_cannot_be_cut_is_named_with_the_reason() -> None:
    found = channels.find(Separable().eval(), torch.rand(2, 1, 8, 8))
    assert {group.name for group in found.structure.groups} == {"first", "left", "right"}
    assert found.whole["pointwise"] == "it goes through grouped (grouped convolution)"
    assert found.whole["out"] == "it is what the model gives"
    attention = channels.find(transformer(), torch.rand(2, 5, 16))
    assert {group.name for group in attention.structure.groups} == {"0.linear1"}
    assert "it goes through 0.self_attn (MultiheadAttention)" in attention.whole.values()


class Unusual(nn.Module):
    """A parameter of its own, tied weights, a slope for all channels, and a parametrised layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 8), nn.Linear(8, 7, bias=False)
        self.out.weight = self.embed.weight
        self.first, self.second, self.third = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8)
        self.scale, self.slope = nn.Parameter(torch.ones(8)), nn.PReLU()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.second(self.slope(self.first(self.embed(x).mean(1))))
        output: torch.Tensor = self.out(self.normed(self.third(inner * self.scale)))
        return output


def test_of_an_unusual_module_what_can_be_followed_is_cut() -> None:
    module, x = Unusual().eval(), torch.zeros(2, 4, dtype=torch.int64)
    found = channels.find(module, x)
    assert [group.name for group in found.structure.groups] == ["first"]
    assert found.whole["second"] == "it goes through a parameter that is no layer's"
    part = channels.narrow(module, submodel.nested(found.structure, 0.5))
    assert part(x).shape == (2, 7)


def test_a_module_that_cannot_be_followed_is_refused_in_one_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no\nsuch thing")

    with pytest.raises(ConfigError, match="its channels cannot be followed: no such thing"):
        channels.find(Odd(), torch.rand(2, 4))
