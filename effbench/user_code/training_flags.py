"""Which modules of a network train, and whether its forward changes that."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Modes:
    """Which modules of a network are in training mode, as it is when this is made.

    One that torch.jit.freeze has returned has no mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._before = [
            (weakref.ref(module), module.training) for module in network.modules() if hasattr(module, "training")
        ]

    def told(self) -> str:
        """What a forward has done to them since, after "its forward"; "" where each is as it was."""
        for reference, training in self._before:
            module = reference()
            if module is not None and module.training != training:
                which = "into training mode, where dropout and batch norm compute otherwise"
                which = which if module.training else "out of training mode"
                return f"puts {type(module).__name__} {which}; take train() and eval() out of it"
        return ""
