"""Define the stacks of layers that the G1-G4 studies time: one property varies while multiply-adds stay the same.

Section 2 of arXiv:1807.11164. All stacks keep h and w. `block` says what replaces one 1x1 convolution: "conv" is the
bare convolution without bias, "conv_bn_relu" adds batch norm and ReLU. Only fresh outputs are activated in place, so no
tensor is overwritten that is still needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from effbench.core.errors import InvalidValue
from effbench.zoo._blocks import conv_norm_act, init_for_timing
from effbench.zoo._registry import register
from effbench.zoo.equal_cost import check_groups

BLOCKS = ("conv", "conv_bn_relu")
ARRANGEMENTS = ("single", "series", "parallel")
MERGES = ("add", "concat")
NORMS = ("none", "batch")


class Parallel(nn.Module):
    """Branches that read the same input; their outputs are summed or concatenated."""

    def __init__(self, branches: list[nn.Module], merge: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if self.merge == "concat":
            return torch.cat(outputs, dim=1)
        total: Tensor = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


class Bottleneck(nn.Module):
    """A ResNet bottleneck (1x1, 3x3, 1x1) with optional ReLUs, the last one after the optional shortcut."""

    def __init__(self, channels: int, inner: int, relu: bool, shortcut: bool, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for last, (in_channels, out_channels, kernel) in enumerate(
            ((channels, inner, 1), (inner, inner, 3), (inner, channels, 1)), start=-2
        ):
            layers.append(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(out_channels))
            if relu and last != 0:
                layers.append(nn.ReLU(inplace=True))
        self.branch = nn.Sequential(*layers)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        if self.shortcut:
            y = y + x
        if self.relu is not None:
            y = self.relu(y)
        return y


@register("probe_channel_ratio", kind="probe", input_shape=(), paper="arXiv:1807.11164, Table 1")
def probe_channel_ratio(c1: int, c2: int, blocks: int = 10, block: str = "conv") -> nn.Module:
    """Build the G1 stack: blocks of two 1x1 convolutions, c1 to c2 and c2 to c1.

    (n, c1, h, w) to the same shape. Raises InvalidValue.
    """
    _check("block", block, BLOCKS)
    return _stack(
        [_conv(c1, c2, block=block) if at % 2 == 0 else _conv(c2, c1, block=block) for at in range(2 * blocks)]
    )


@register("probe_groups", kind="probe", input_shape=(), paper="arXiv:1807.11164, Table 2")
def probe_groups(channels: int, groups: int, blocks: int = 10, block: str = "conv") -> nn.Module:
    """Build the G2 stack: grouped 1x1 convolutions.

    (n, channels, h, w) to the same shape. Raises InvalidValue unless `groups` divides `channels`.
    """
    _check("block", block, BLOCKS)
    check_groups(channels, groups)
    return _stack([_conv(channels, channels, groups, block) for _ in range(blocks)])


@register("probe_fragments", kind="probe", input_shape=(), paper="arXiv:1807.11164, Table 3 and appendix Figure 1")
def probe_fragments(
    channels: int,
    fragments: int,
    arrangement: str = "single",
    merge: str = "add",
    blocks: int = 10,
    block: str = "conv",
) -> nn.Module:
    """Build the G3 stack: blocks of `fragments` 1x1 convolutions in series, or in parallel and merged.

    (n, channels, h, w) to the same shape. A summed branch is as wide as the block; a concatenated one has ``channels /
    fragments`` outputs. Raises InvalidValue.
    """
    _check("arrangement", arrangement, ARRANGEMENTS)
    _check("merge", merge, MERGES)
    _check("block", block, BLOCKS)
    if fragments < 1 or (arrangement == "single" and fragments != 1):
        raise InvalidValue(f"`fragments` (={fragments}) must be 1 when `arrangement` is single: use series or parallel")
    if arrangement != "parallel" or fragments == 1:
        return _stack([_conv(channels, channels, block=block) for _ in range(blocks * fragments)])
    width = channels
    if merge == "concat":
        check_groups(channels, fragments)
        width = channels // fragments
    return _stack(
        [Parallel([_conv(channels, width, block=block) for _ in range(fragments)], merge) for _ in range(blocks)]
    )


@register("probe_bottleneck", kind="probe", input_shape=(), paper="arXiv:1807.11164, Table 4")
def probe_bottleneck(
    channels: int, inner: int, relu: bool, shortcut: bool, blocks: int = 10, norm: str = "none"
) -> nn.Module:
    """Build the G4 stack: ResNet bottleneck units with or without ReLU and shortcut. (n, channels, h, w) to the same
    shape.
    """
    _check("norm", norm, NORMS)
    return _stack([Bottleneck(channels, inner, relu, shortcut, norm) for _ in range(blocks)])


def _conv(in_channels: int, out_channels: int, groups: int = 1, block: str = "conv") -> nn.Module:
    if block == "conv":
        return nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
    return conv_norm_act(in_channels, out_channels, groups=groups)


def _stack(layers: list[nn.Module]) -> nn.Module:
    network = nn.Sequential(*layers)
    init_for_timing(network, rectified=any(isinstance(layer, nn.ReLU) for layer in network.modules()))
    return network


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidValue(f"`{name}` (={value}) must be one of these: use {' or '.join(choices)}")
