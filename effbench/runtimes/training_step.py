"""Make one training step a call: forward, backward and optimiser step, for eager and compiled networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import message_of
from effbench.devices.base import Call
from effbench.runtimes.base import Unsupported, round_robin

if TYPE_CHECKING:
    from torch import Tensor

LEARNING_RATE, MOMENTUM = 1e-8, 0.9
"""SGD, which the networks here were trained with. The rate is so small that a million steps leave the weights where
they are: a network that diverges, or whose outputs decay to denormals, would run at another speed. In half precision
most updates are lost to rounding, but they are computed.
"""


def training_call(network: Callable[..., Any], inputs: Sequence[tuple[Any, ...]]) -> Call:
    """Return a call that takes one training step on the next of `inputs` and returns its loss.

    Parameters
    ----------
    network : callable
        A module in train mode, or its compiled version.
    inputs : sequence of tuple
        Inputs to rotate through.

    Returns
    -------
    callable
        Takes one step. The loss is the mean square of each floating-point output, summed over the outputs: every
        network has it, and it needs no labels. Gradients are set to None before each step.

    Raises
    ------
    Unsupported
        If the network has nothing to train, or cannot be trained on batches of this size.
    """
    import torch

    parameters = [weight for weight in _parameters(network) if weight.requires_grad]
    if not parameters:
        raise Unsupported("it has no parameters to train; use --mode infer")
    optimiser = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)
    _require_trainable(network, inputs[0])

    def call_on(arguments: tuple[Any, ...]) -> Call:
        def call() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(network(*arguments))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return loss.detach()

        return call

    return round_robin([call_on(arguments) for arguments in inputs])


def loss_of(output: Any) -> Tensor:
    """Return the mean square of each trainable output tensor, summed. Raises Unsupported if there is none."""
    terms = [tensor.square().mean() for tensor in _tensors(output) if tensor.requires_grad]
    if not terms:
        raise Unsupported("no output of it depends on a parameter, so there is nothing to train; use --mode infer")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _require_trainable(network: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Run one forward pass, because some networks only fail then. Raises Unsupported."""
    try:
        loss_of(network(*arguments))
    except ValueError as error:
        # Batch norm needs more than one value per channel, which one image with a 1x1 map does not have.
        if "more than 1 value per channel" not in message_of(error):
            raise
        raise Unsupported(
            "a batch norm in it sees one value a channel and cannot train on that; use --batch 8"
        ) from None


def _parameters(network: Any) -> Iterator[Tensor]:
    found: Iterator[Tensor] = network.parameters()
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if hasattr(value, "requires_grad"):
        yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for item in inner:
        yield from _tensors(item)
