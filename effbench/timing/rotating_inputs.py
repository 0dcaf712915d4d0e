"""Make the different inputs that the calls of a cell rotate through, so that no call finds its input in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effbench.core.inputs import Input
from effbench.cost import example_inputs
from effbench.devices import Device
from effbench.timing import dtype_cast


@dataclass(frozen=True)
class RotatingInputs:
    """Inputs of consecutive calls, made anew with the same values as often as they are asked for.

    - `described`, `batch`, `dtype`, `seed` and `tensors` are those of `example_inputs.make`.
    - `device` holds the inputs.
    """

    described: Sequence[Input]
    batch: int
    dtype: str
    seed: int
    device: Device
    tensors: Sequence[Any] = ()

    def number(self, read_as: str = "") -> int:
        """Return how many inputs exceed the device's caches, where the network reads them in the dtype `read_as`."""
        args, named = example_inputs.make(self.described, self.batch, self.dtype, "meta")
        tensors = [*args, *named.values()]
        if read_as:
            tensors = [dtype_cast.cast_any(tensor, dtype_cast.torch_dtype(read_as)) for tensor in tensors]
        return self.device.rotations(sum(tensor.nbytes for tensor in tensors))

    def make(self, network: Any, number: int) -> list[tuple[Any, ...]]:
        """Make `number` different inputs, by position. Only the signature of the network's forward is used, to order
        named inputs.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for _ in range(number):
            args, named = example_inputs.make(
                self.described, self.batch, self.dtype, seed=generator, tensors=self.tensors
            )
            passed = example_inputs.positional(network, args, named) if named else args
            found.append(tuple(self.device.place(item) if isinstance(item, torch.Tensor) else item for item in passed))
        return found
