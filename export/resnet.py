"""A ResNet-20 with GroupNorm, as a torch module to measure with: `edge_runtime.export.resnet:resnet20`.

He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2, with n = 3: three stages of three
blocks with 16, 32 and 64 channels, the second and third of which begin with stride 2. GroupNorm (Wu and He, 2018) with
8 groups stands where batch normalisation was, which would keep running statistics; a shortcut that changes shape is a
1x1 convolution without a norm. For images of one channel and 10 classes: 271,994 parameters.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

_GROUPS = 8
_BLOCKS = 3
_CHANNELS = (16, 32, 64)


def resnet20() -> nn.Module:
    """Make the module: [batch, 1, height, width] to [batch, 10]."""
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(1, _CHANNELS[0], 3, padding=1, bias=False),
        "norm": nn.GroupNorm(_GROUPS, _CHANNELS[0]),
        "relu": nn.ReLU(),
        "blocks": nn.Sequential(*_blocks()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "linear": nn.Linear(_CHANNELS[-1], 10),
    }
    return nn.Sequential(OrderedDict(parts))


def _blocks() -> Iterator[nn.Module]:
    inputs = _CHANNELS[0]
    for outputs in _CHANNELS:
        for _ in range(_BLOCKS):
            yield _Block(inputs, outputs)
            inputs = outputs


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))
