"""Save and restore the random state of torch, Python and numpy."""

from __future__ import annotations

import random
import sys
from typing import Any

from effbench.user_code.module_state import same


class RandomState:
    """The random state of torch, Python and, if it is imported, numpy, at the time of creation."""

    def __init__(self) -> None:
        self._before = _random_state()

    def has_drawn(self) -> bool:
        """Whether any random number was drawn since."""
        return not same(self._before, _random_state())

    def restore(self) -> None:
        """Restore the state, so that the same numbers are drawn again."""
        import torch

        random.setstate(self._before["python"])
        torch.set_rng_state(self._before["torch"])
        if "cuda" in self._before:
            torch.cuda.set_rng_state_all(self._before["cuda"])
        if "numpy" in self._before:
            sys.modules["numpy"].random.set_state(self._before["numpy"])


def _random_state() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = tuple(torch.cuda.get_rng_state_all())
    if "numpy" in sys.modules:
        found["numpy"] = sys.modules["numpy"].random.get_state()
    return found
