"""Choose the tensors that a network is traced with: meta tensors where shapes suffice, else fake, else real ones.

=========  =======================================================================================================
``meta``   tensors of the meta device: nothing is allocated or computed; the fastest by far
``fake``   fake tensors, which are on the network's device for torch itself too: for autocast, …
``real``   real tensors: for control flow that depends on values
=========  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from effbench.core.errors import ModelError, NeedsValues
from effbench.cost import explain_failure
from effbench.cost.trace import Tensors

if TYPE_CHECKING:
    from effbench.cost.costs import Profile
    from effbench.cost.profiler import ModelInputs

Device = Literal["meta", "real", "auto"]

SMALL_BYTES = 64 << 20
"""Up to this size of its weights, a network that failed is also run on real tensors, for its own error message."""

_NO_GRADIENT = ("does not require grad", "does not have a grad_fn", "Inference tensors cannot be saved for backward")
_NO_VALUES = ("meta", "fake", "data-dependent", "dynamic", "data pointer", "numpy", "storage")


@dataclass(frozen=True)
class TraceMode:
    """How to trace a pass: on which tensors, with or without autograd, and whether upper bounds are acceptable.

    Without values a mask counts as if it selected everything.
    """

    tensors: Tensors
    grad: bool = False
    bounds: bool = False


@dataclass(frozen=True)
class FailedAttempt:
    """Why a network could not be counted in one mode: a doubt of the tracer, or the network's error.

    `reason` is the error's first line, and `message` that for the user.
    """

    doubt: str
    kind: str
    reason: str
    message: str

    @classmethod
    def of(cls, error: Exception, model: nn.Module, model_inputs: ModelInputs) -> FailedAttempt:
        message = explain_failure.explain(
            error, explain_failure.facts_of(model), model_inputs.inputs, model_inputs.batch
        )
        doubt = getattr(error, "doubt", "")
        # An operator's error that the network did not catch is its own error, not a doubt.
        return cls("" if doubt == "refused" else doubt, type(error).__name__, explain_failure.one_line(error), message)

    @property
    def wants_gradients(self) -> bool:
        return any(words in self.reason for words in _NO_GRADIENT)

    @property
    def wants_values(self) -> bool:
        """Whether the failure may be due to missing values only."""
        if self.doubt == "values" or self.kind in ("NotImplementedError", "NeedsValuesError"):
            return True
        return any(words in self.reason.lower() for words in _NO_VALUES)


def count_in_cheapest_mode(
    modules: Sequence[nn.Module], device: Device, attempt: Callable[[TraceMode], Profile | FailedAttempt]
) -> Profile:
    """Count a network, the first of its `modules`, in the cheapest mode without doubts.

    Raises ModelError where there is none.
    """
    model = modules[0]
    failures: list[FailedAttempt] = []
    for tensors in _modes(modules, device, failures):
        found = attempt(TraceMode(tensors, bounds=device == "meta"))
        if isinstance(found, FailedAttempt) and found.wants_gradients:
            found = attempt(TraceMode(tensors, grad=True, bounds=device == "meta"))
        if not isinstance(found, FailedAttempt):
            return found
        failures.append(found)
    raise _error(model, failures)


def _modes(modules: Sequence[nn.Module], device: Device, failures: list[FailedAttempt]) -> Iterator[Tensors]:
    model = modules[0]
    if device != "real" and not is_scripted(modules):
        yield "meta"
        if failures[-1].doubt != "values" and failures[-1].kind != "NotImplementedError":
            yield "fake"
    if device == "meta" or "meta" in _device_types(model):
        return
    if not failures or _is_worth_running(model, failures):
        yield "real"


def _is_worth_running(model: nn.Module, failures: list[FailedAttempt]) -> bool:
    """Return whether real tensors may help, or the network is small enough to try."""
    return _lacks_values(failures) or _is_small(model)


def _lacks_values(failures: list[FailedAttempt]) -> bool:
    """Return whether the failures may be due to missing values only."""
    last = failures[-1]
    return last.wants_values or bool(last.doubt) or not _are_equal(failures)


def _are_equal(failures: list[FailedAttempt]) -> bool:
    """Return whether the errors on meta and on fake tensors are the same, so that the input is at fault."""
    return len({(item.kind, item.reason) for item in failures}) == 1


def _is_small(model: nn.Module) -> bool:
    return sum(item.numel() * item.element_size() for item in model.parameters()) <= SMALL_BYTES


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network's weights; the CPU where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return the parameters of a network from all its modules, faster than ``parameters()``, which builds names."""
    if is_scripted(modules):
        return list(modules[0].parameters())
    found = {id(item): item for module in modules for item in module._parameters.values() if item is not None}
    return list(found.values())


def is_scripted(modules: Iterable[nn.Module]) -> bool:
    """Return whether any of the modules is TorchScript."""
    return any([isinstance(module, torch.jit.ScriptModule) for module in modules])


def _device_types(model: nn.Module) -> list[str]:
    return sorted({item.device.type for item in (*model.parameters(), *model.buffers())})


def _error(model: nn.Module, failures: list[FailedAttempt]) -> ModelError:
    name, devices = type(model).__name__, _device_types(model)
    if not failures:
        return NeedsValues(
            f"{name} has no values in its weights (meta device); use device 'meta', or build it on the CPU"
        )
    # A failure on meta only is not the network's.
    failure = next((item for item in failures if "meta" not in item.reason.lower()), failures[-1])
    if len(devices) > 1:
        return ModelError(
            f"{name} has weights on {' and '.join(devices)} and does not run there: {failure.reason}; "
            "move it to one device"
        )
    if "meta" in devices and _lacks_values(failures):
        return NeedsValues(
            f"{name} looks at values ({failures[-1].reason}), and its weights have none (meta device); "
            "build it on the CPU"
        )
    return ModelError(failure.message)
