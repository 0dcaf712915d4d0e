"""Define networks as users write them, each with one fault that effbench must confine to its own row."""

from __future__ import annotations

import torch
from torch import nn

TOO_MANY_BYTES = 1 << 46


class Stem(nn.Module):
    """A plain network. The faults of its subclasses occur after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layers(image).mean((2, 3)))
        return found


class TooBig(Stem):
    """Runs out of memory in its forward pass."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wanted = torch.empty(TOO_MANY_BYTES, dtype=torch.uint8, device=image.device)
        return super().forward(image) + wanted[:1]


class OutOfBounds(Stem):
    """Reads rows that a table does not have: a device-side assertion, after which the CUDA context is unusable."""

    table: torch.Tensor
    rows: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(4, 10))
        self.register_buffer("rows", torch.full((1,), 1_000_000))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) + torch.index_select(self.table, 0, self.rows)


class Synchronises(Stem):
    """Reads a value in its forward pass, so that the host waits for the device in every call."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = super().forward(image)
        return found * 2 if found.abs().sum().item() > 1e30 else found


class Uncapturable(Stem):
    """Works eagerly but cannot be captured, because it synchronises the whole device."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = super().forward(image)
        if image.is_cuda:
            torch.cuda.synchronize()
        return found


def fits() -> nn.Module:
    return Stem()


def fits_too() -> nn.Module:
    return Stem()


def too_big() -> nn.Module:
    return TooBig()


def out_of_bounds() -> nn.Module:
    return OutOfBounds()


def synchronises() -> nn.Module:
    return Synchronises()


def uncapturable() -> nn.Module:
    return Uncapturable()
