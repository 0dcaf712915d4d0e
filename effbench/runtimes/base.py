"""What every runtime can do: turn a network and its inputs into a call that a device can time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from effbench.devices.base import Call

if TYPE_CHECKING:
    from torch import Tensor, nn


class Unsupported(Exception):
    """This runtime cannot take this network; the message is the reason that the skipped row shows."""


class Runtime(ABC):
    """How a network is executed. Adapters are final; heavy imports belong inside `prepare`."""

    name: str

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Version and settings under dotted names, for the environment record. Asked in the process that measures."""

    @abstractmethod
    def prepare(self, network: nn.Module, inputs: list[tuple[Tensor, ...]]) -> Call:
        """A call that runs one forward pass, each time on the next of `inputs`. The network is in eval mode.

        `network` and `inputs` are already on their device. Raises Unsupported.
        """
