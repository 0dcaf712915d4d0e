"""Define building blocks that several network families share: convolutions with norm and activation, gates,
shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effbench.core.errors import InvalidValue


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
    padded: bool = True,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Return a convolution without bias, batch norm and, unless `activation` is None, an in-place activation.

    At stride 1 it keeps h and w if `padded`. `eps` is that of the norm.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if padded else 0
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps),
    ]
    if activation is not None:
        # Safe in place: nothing else uses the norm's output.
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scale each channel with a gate computed from the means of all channels: 1x1 to `squeezed`, activation, 1x1 back,
    gate.

    Keeps the shape (n, c, h, w). Figure 2 of arXiv:1709.01507.
    """

    def __init__(
        self,
        channels: int,
        squeezed: int,
        activation: type[nn.Module] = nn.ReLU,
        gate: type[nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()
        # An untrained gate is near 0.5 and would halve the signal in every block.
        nn.init.constant_(self.expand.bias, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(x, 1)
        scale: Tensor = self.gate(self.expand(self.activation(self.reduce(means))))
        return x * scale


class InvertedResidual(nn.Module):
    """1x1 to `inner` (omitted if equal to the input), depthwise, `gate`, linear 1x1; a shortcut if the shape is
    unchanged.

    (n, c, h, w) to (n, out, h / stride, w / stride). Figure 4 of arXiv:1905.02244. `gate` may be None.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        gate: nn.Module | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if inner != in_channels:
            layers.append(conv_norm_act(in_channels, inner, activation=activation, eps=eps))
        layers.append(conv_norm_act(inner, inner, kernel, stride, inner, activation, eps=eps))
        if gate is not None:
            layers.append(gate)
        layers.append(conv_norm_act(inner, out_channels, activation=None, eps=eps))
        self.branch = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y if self.has_shortcut else y


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave `groups` equal parts of the channels. Keeps the shape (n, c, h, w) and makes one copy.

    Figure 1 of arXiv:1707.01083.
    """
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor` (half up), at least `divisor`, never more than 10 % below `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def check_choice(name: str, value: float, choices: Sequence[float]) -> None:
    """Raise InvalidValue, naming the nearest choices, unless `value` is one of them."""
    if value not in choices:
        near = sorted(sorted(choices, key=lambda choice: abs(choice - value))[:2])
        listed = ", ".join(str(choice) for choice in choices)
        advice = " or ".join(str(choice) for choice in near)
        raise InvalidValue(f"`{name}` (={value}) must be one of {listed}: use {advice}")


def check_width(value: float, published: Sequence[float]) -> None:
    """Raise InvalidValue unless `value` is a valid width multiplier: above 0, and at most 16 to keep a typo from
    filling memory.
    """
    if not 0 < value <= 16:
        near = min(published, key=lambda choice: abs(choice - value))
        raise InvalidValue(f"`width` (={value}) must be above 0 and at most 16: use {near}, the nearest published one")


def init_for_timing(network: nn.Module, rectified: bool = True) -> None:
    """Scale random convolution weights so that activations keep their magnitude in a network without trained norms.

    Untrained norms in eval mode do not scale, so PyTorch's default weights shrink the signal by about 0.4 per layer.
    Deep plain networks then compute on denormals or, in half precision, on zeros, which run at another speed than real
    data. `rectified` says whether activations follow the convolutions and halve their variance.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if rectified else "linear")


def global_pool(x: Tensor) -> Tensor:
    """Average over h and w: (n, c, h, w) to (n, c)."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


class PooledClassifier(nn.Module):
    """A sequence of layers, global average pooling and a linear classifier: (n, c, h, w) to logits (n, num_classes)."""

    def __init__(self, layers: Sequence[nn.Module], channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        init_for_timing(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(global_pool(self.features(x)))
        return x
