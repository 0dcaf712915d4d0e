"""One step of training as a call: forward, backward, an optimiser's step. Eager and compiled networks share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import text_of
from effbench.devices.base import Call
from effbench.runtimes.base import Unsupported, in_turn

if TYPE_CHECKING:
    from torch import Tensor

LEARNING_RATE, MOMENTUM = 1e-8, 0.9
"""SGD, as the networks here were trained with. The rate is so small that a million steps leave values where they are:
a network that diverges, or whose outputs decay to denormals, would be another one to measure. In half precision most
updates are lost to rounding; they are computed all the same."""


def step(network: Callable[..., Any], inputs: Sequence[tuple[Any, ...]]) -> Call:
    """A call that takes one training step on the next of `inputs`, and returns the loss it started from.

    `network` is a module, or what a compiler made of one, in train mode. The loss is the mean of squares of every
    output of floats, summed over outputs: any network has one, and it needs no labels. Gradients are set to None
    before each step. Raises Unsupported for a network that has nothing to train, or that cannot be trained on batches
    of this size.
    """
    import torch

    parameters = [weight for weight in _parameters(network) if weight.requires_grad]
    if not parameters:
        raise Unsupported("it has no parameters to train; use --mode infer")
    optimiser = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)
    _require_trainable(network, inputs[0])

    def on(arguments: tuple[Any, ...]) -> Call:
        def call() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(network(*arguments))
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            return loss.detach()

        return call

    return in_turn([on(arguments) for arguments in inputs])


def loss_of(output: Any) -> Tensor:
    """The mean of squares of each tensor of floats in an output, summed. Raises Unsupported where there is none."""
    terms = [tensor.square().mean() for tensor in _tensors(output) if tensor.requires_grad]
    if not terms:
        raise Unsupported("no output of it depends on a parameter, so there is nothing to train; use --mode infer")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _require_trainable(network: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """One forward pass, for what only shows when it runs. Raises Unsupported."""
    try:
        loss_of(network(*arguments))
    except ValueError as error:
        # A batch norm refuses one value a channel: one image whose map is 1x1 there.
        if "more than 1 value per channel" not in text_of(error):
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
