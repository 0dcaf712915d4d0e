"""What the forward pass of a count runs on: shapes alone where they suffice, else fake tensors, else real ones.

=========  =======================================================================================================
``meta``   tensors of the meta device: nothing is allocated and nothing computed; the fastest by far
``fake``   fake tensors, which are on the network's own device for torch itself too: where it uses autocast, …
``real``   real tensors: where it looks at values
=========  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from effbench.core.errors import ModelError, NeedsValues
from effbench.cost import refusal
from effbench.cost.trace import Tensors

if TYPE_CHECKING:
    from effbench.cost.costs import Profile
    from effbench.cost.profiler import Feed

Device = Literal["meta", "real", "auto"]

SMALL_BYTES = 64 << 20
"""Weights up to which a network that has refused its input is asked again on real tensors, for its own words."""

_NO_GRADIENT = ("does not require grad", "does not have a grad_fn", "Inference tensors cannot be saved for backward")
_NO_VALUES = ("meta", "fake", "data-dependent", "dynamic", "data pointer", "numpy", "storage")


@dataclass(frozen=True)
class TraceMode:
    """What a pass runs on, whether torch keeps track of gradients meanwhile, and whether upper bounds will do.

    Without values a mask counts as if it selected everything.
    """

    tensors: Tensors
    grad: bool = False
    bounds: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a network could not be counted in one mode: a doubt of the tracer, or an error of its own.

    `reason` is the error's first line, and `told` what to say of it to a person.
    """

    doubt: str
    kind: str
    reason: str
    told: str

    @classmethod
    def of(cls, error: Exception, model: nn.Module, feed: Feed) -> Refusal:
        told = refusal.explain(error, refusal.facts_of(model), feed.inputs, feed.batch)
        doubt = getattr(error, "doubt", "")
        # An operator's error that the network did not catch is what it says, and raises no doubt.
        return cls("" if doubt == "refused" else doubt, type(error).__name__, refusal.first_reason(error), told)

    @property
    def wants_gradients(self) -> bool:
        return any(words in self.reason for words in _NO_GRADIENT)

    @property
    def wants_values(self) -> bool:
        """Whether values may be all that was missing."""
        if self.doubt == "values" or self.kind in ("NotImplementedError", "NeedsValuesError"):
            return True
        return any(words in self.reason.lower() for words in _NO_VALUES)


def first_that_holds(
    modules: Sequence[nn.Module], device: Device, attempt: Callable[[TraceMode], Profile | Refusal]
) -> Profile:
    """The count of a network, of whose `modules` it is the first, in the cheapest mode that can be trusted.

    Raises ModelError where there is none.
    """
    model = modules[0]
    refusals: list[Refusal] = []
    for tensors in _modes(modules, device, refusals):
        found = attempt(TraceMode(tensors, bounds=device == "meta"))
        if isinstance(found, Refusal) and found.wants_gradients:
            found = attempt(TraceMode(tensors, grad=True, bounds=device == "meta"))
        if not isinstance(found, Refusal):
            return found
        refusals.append(found)
    raise _error(model, refusals)


def _modes(modules: Sequence[nn.Module], device: Device, refusals: list[Refusal]) -> Iterator[Tensors]:
    model = modules[0]
    if device != "real" and not is_scripted(modules):
        yield "meta"
        if refusals[-1].doubt != "values" and refusals[-1].kind != "NotImplementedError":
            yield "fake"
    if device == "meta" or "meta" in _places(model):
        return
    if not refusals or _may_run(model, refusals):
        yield "real"


def _may_run(model: nn.Module, refusals: list[Refusal]) -> bool:
    """Whether the network may run on real tensors though it did not on others, or is small enough to find out."""
    return _lacks_values(refusals) or _is_small(model)


def _lacks_values(refusals: list[Refusal]) -> bool:
    """Whether values may be all that was missing, by what the refusals say."""
    last = refusals[-1]
    return last.wants_values or bool(last.doubt) or not _agree(refusals)


def _agree(refusals: list[Refusal]) -> bool:
    """Whether the network said the same on meta and on fake tensors: then it is the input that it refuses."""
    return len({(item.kind, item.reason) for item in refusals}) == 1


def _is_small(model: nn.Module) -> bool:
    return sum(item.numel() * item.element_size() for item in model.parameters()) <= SMALL_BYTES


def home_of(model: nn.Module) -> torch.device:
    """Where the network's weights are; the CPU where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    """As ``parameters()`` of the first of all modules of a network, in a fraction of its time: that works out names."""
    if is_scripted(modules):
        return list(modules[0].parameters())
    found = {id(item): item for module in modules for item in module._parameters.values() if item is not None}
    return list(found.values())


def is_scripted(modules: Iterable[nn.Module]) -> bool:
    """Whether there is TorchScript among the modules."""
    return any([isinstance(module, torch.jit.ScriptModule) for module in modules])


def _places(model: nn.Module) -> list[str]:
    return sorted({item.device.type for item in (*model.parameters(), *model.buffers())})


def _error(model: nn.Module, refusals: list[Refusal]) -> ModelError:
    name, places = type(model).__name__, _places(model)
    if not refusals:
        return NeedsValues(
            f"{name} has no values in its weights (meta device); use device 'meta', or build it on the CPU"
        )
    # What fails on meta alone is no failure of the network.
    told = next((item for item in refusals if "meta" not in item.reason.lower()), refusals[-1])
    if len(places) > 1:
        return ModelError(
            f"{name} has weights on {' and '.join(places)} and does not run there: {told.reason}; move it to one device"
        )
    if "meta" in places and _lacks_values(refusals):
        return NeedsValues(
            f"{name} looks at values ({refusals[-1].reason}), and its weights have none (meta device); "
            "build it on the CPU"
        )
    return ModelError(told.told)
