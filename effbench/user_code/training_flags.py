"""Record which modules of a network are in training mode, and detect a forward pass that changes it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class TrainingFlags:
    """The training mode of each module of a network at the time of creation.

    A module returned by torch.jit.freeze has none.
    """

    def __init__(self, network: nn.Module) -> None:
        self._before = [
            (weakref.ref(module), module.training) for module in network.modules() if hasattr(module, "training")
        ]

    def changes_text(self) -> str:
        """Describe what a forward pass has changed since, to follow "its forward"; "" if nothing."""
        for reference, training in self._before:
            module = reference()
            if module is not None and module.training != training:
                which = "into training mode, where dropout and batch norm compute otherwise"
                which = which if module.training else "out of training mode"
                return f"puts {type(module).__name__} {which}; take train() and eval() out of it"
        return ""
