"""Detect side effects of a network's forward: writing into its input, keeping state, drawing random numbers.

The network is called several times on copies of one input, from the same state. Everything it changes is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from effbench.core.errors import Unsupported
from effbench.timing import output_check
from effbench.user_code.module_state import Snapshot, gradient_of, same
from effbench.user_code.random_state import RandomState
from effbench.user_code.training_flags import TrainingFlags

if TYPE_CHECKING:
    from torch import nn

SAME = 1e-4
"""Outputs that differ by less than this share of the largest value count as the same: sums on a GPU vary in order."""

MOST_NAMED = 3

WRITES = "it writes into its input"
RESTORED = f"{WRITES}, which is put back before each block of calls"
"""Within a block the writes accumulate: restoring the input between calls would be part of the time."""
RESHAPES = "it changes the shape of its input, so that each call is given a copy, whose time is part of the call's"
RANDOM = "its output is random: it draws random numbers in each call"
DRAWS = "it draws random numbers in each call"
GRADIENT = "its input's .grad"
UNREAD = ", so it is not checked"
UNSTABLE = "its output differs from call to call on the same input, for an unknown reason"


@dataclass(frozen=True)
class SideEffects:
    """Side effects of a network, and its outputs.

    - `outputs`: those of consecutive calls, from the state in which it was built: one, or several where they differ.
    - `other_notes`: texts for the user, on all but what it does to its input.
    - `writes_input`: it writes into its input. `reshapes_input`: it changes the layout of an input, which then cannot
      be passed again. `changes_state`: it changes its own state.
    - `is_checkable`: another run from the same state returns the same.
    - `is_readable`: its outputs can be read as numbers and compared.
    - `training_flag_changes`: it switches modules to training or eval mode (`TrainingFlags.changes_text`).
    - `changed_state`: names of the state that changes from call to call.
    """

    outputs: tuple[Any, ...]
    other_notes: tuple[str, ...] = ()
    writes_input: bool = False
    reshapes_input: bool = False
    changes_state: bool = False
    is_checkable: bool = True
    is_readable: bool = True
    training_flag_changes: str = ""
    changed_state: tuple[str, ...] = ()

    def notes(self, *, restored: bool = False) -> tuple[str, ...]:
        """Return the side effects as texts for the user. `restored` says whether the input is put back."""
        about = input_note(writes=self.writes_input, reshapes=self.reshapes_input, restored=restored)
        return (about, *self.other_notes) if about else self.other_notes


def input_note(*, writes: bool, reshapes: bool, restored: bool = False) -> str:
    """Return what a network does to its input as a text for the user; "" if nothing."""
    if reshapes:
        return RESHAPES
    return (RESTORED if restored else WRITES) if writes else ""


def detect(network: nn.Module, arguments: Sequence[Any]) -> SideEffects:
    """Call the network two to four times on copies of `arguments`, outside of inference mode and without gradients.

    Outside of inference mode, a tensor that the first call creates and caches can be used in either mode later.
    Afterwards the network, the globals of the user's code and the random state are restored. Raises what the network
    raises.
    """
    import torch

    state, random, modes = Snapshot(network), RandomState(), TrainingFlags(network)
    with torch.inference_mode(False), torch.no_grad():
        try:
            return replace(_detect(network, arguments, state, random), training_flag_changes=modes.changes_text())
        finally:
            state.restore()
            random.restore()


def _detect(network: nn.Module, arguments: Sequence[Any], state: Snapshot, random: RandomState) -> SideEffects:
    def call() -> Any:
        """Call the network with the same random state each time."""
        random.restore()
        state.restore_generators()
        return _detached_copy(network(*clone_tensors(arguments)))

    given = clone_tensors(arguments)
    first = _detached_copy(network(*given))
    writes, reshapes = not same(list(given), list(arguments)), layout_of(given) != layout_of(arguments)
    # The second call is representative of later ones: the first may fill a cache.
    after = Snapshot(network)
    second = call()
    draws, kept = random.has_drawn() or state.has_drawn(), after.changed()
    kept += [GRADIENT] if any(gradient_of(tensor) is not None for tensor in _tensors(list(given))) else []
    changes = bool(kept or state.changed())
    if unread := _why_unreadable(first) or _why_unreadable(second):
        notes = [DRAWS] if draws else []
        notes += [f"it keeps state between calls ({first_names(kept)})"] if kept else []
        notes.append(f"{unread}{UNREAD}")
        return SideEffects(
            (first,),
            tuple(notes),
            writes,
            reshapes,
            changes,
            is_checkable=False,
            is_readable=False,
            changed_state=tuple(kept),
        )
    differs = _differ(first, second)
    outputs = (first, second, call()) if differs else (first,)
    is_random = draws and _differ(second, _detached_copy(network(*clone_tensors(arguments))))
    notes = [RANDOM if is_random else DRAWS] if draws else []
    is_checkable = not is_random
    if differs:
        state.restore()
        is_checkable = is_checkable and not _differ(first, call())
    if kept:
        said = ": its output differs from call to call on the same input" if differs else ""
        notes.append(f"it keeps state between calls{said} ({first_names(kept)})")
    elif differs and not is_random:
        notes.append(UNSTABLE)
    return SideEffects(outputs, tuple(notes), writes, reshapes, changes, is_checkable, changed_state=tuple(kept))


def compare_output(seen: SideEffects, output: Any, dtype: str, *, tf32: bool) -> tuple[Any, dict[str, float]]:
    """Return the expected output and the error of this one (`output_check.check`). Raises Unsupported.

    Some runtimes call the network while preparing it. If it keeps state, any of its first outputs is accepted.
    """
    if not seen.is_readable:
        return seen.outputs[0], {}
    if not seen.is_checkable:
        output_check.require_shapes(seen.outputs[0], output)
        return seen.outputs[0], {}
    refusal: Unsupported | None = None
    for expected in seen.outputs:
        try:
            return expected, output_check.check(expected, output, dtype, tf32=tf32)
        except Unsupported as error:
            refusal = refusal or error
    assert refusal is not None, "there is at least one output"
    raise refusal


def seeds_itself(network: nn.Module, arguments: Sequence[Any]) -> bool:
    """Return whether the output depends on random numbers from a seed that the network sets itself.

    Such a network returns the same in each call, but other random numbers would change its output. Restores everything,
    as `detect` does.
    """
    import torch
    from torch.utils import _python_dispatch

    base: Any = _python_dispatch.TorchDispatchMode  # which carries no types

    class OtherNumbers(base):  # type: ignore[misc]
        seed = 1_000

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if torch.Tag.nondeterministic_seeded in func.tags:
                self.seed += 1
                torch.manual_seed(self.seed)
                kwargs |= {"generator": None} if "generator" in kwargs else {}
            return func(*args, **kwargs)

    state, random = Snapshot(network), RandomState()
    with torch.inference_mode(False), torch.no_grad():
        try:
            plain = _detached_copy(network(*clone_tensors(arguments)))
            state.restore()
            random.restore()
            with OtherNumbers():
                return _differ(plain, _detached_copy(network(*clone_tensors(arguments))))
        except Exception:  # not callable under the dispatch mode: unknown
            return False
        finally:
            state.restore()
            random.restore()


def first_names(kept: Sequence[str]) -> str:
    """Return the first few names as a text."""
    return ", ".join(kept[:MOST_NAMED]) + (" and more" if len(kept) > MOST_NAMED else "")


def _why_unreadable(output: Any) -> str:
    """Return why this output cannot be compared with others; "" if it can."""
    try:
        list(output_check.output_arrays(output))
    except output_check.Incomparable as error:
        return str(error)
    return ""


def layout_of(arguments: Sequence[Any]) -> list[Any]:
    """Return shapes and strides of the tensors in `arguments`."""
    return [(tensor.shape, tensor.stride()) for tensor in _tensors(list(arguments))]


def clone_tensors(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arguments with cloned tensors. Raises what torch raises."""
    return tuple(_map_tensors(arguments, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad)))


def with_restorable_inputs(
    call: Callable[[], object], inputs: Sequence[tuple[Any, ...]], originals: Sequence[tuple[Any, ...]]
) -> Any:
    """Wrap a call and give it a function `restore_inputs`, which copies `originals` back. Devices call it before timing
    (`devices.base.restore_inputs`).
    """
    pairs = list(zip(_tensors(list(inputs)), _tensors(list(originals)), strict=True))

    def restore_inputs() -> None:
        import torch

        with torch.inference_mode():
            for tensor, original in pairs:
                if tensor.shape == original.shape and tensor.stride() == original.stride():
                    tensor.copy_(original)  # in its place, where a captured graph reads it
                else:
                    tensor.data = original.clone()

    def wrapped() -> object:
        return call()

    wrapped.restore_inputs = restore_inputs  # type: ignore[attr-defined]
    return wrapped


def with_cloned_inputs(network: nn.Module) -> nn.Module:
    """Wrap the network in a module that passes it copies of its inputs.

    Exporters would turn an input that is written to into an output.
    """
    from torch import nn

    class WithClonedInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *arguments: Any) -> Any:
            return self.network(*(item.clone() if hasattr(item, "clone") else item for item in arguments))

    return WithClonedInputs().train(getattr(network, "training", False))


def _differ(one: Any, other: Any) -> bool:
    pairs = list(output_check.output_arrays(one)), list(output_check.output_arrays(other))
    if [array.shape for array in pairs[0]] != [array.shape for array in pairs[1]]:
        return True
    return any(not output_check.output_error(*pair) <= SAME for pair in zip(*pairs, strict=True))


def _detached_copy(value: Any) -> Any:
    """Copy the tensors of an output, since some networks return views of their state."""

    def copy(tensor: Any) -> Any:
        try:
            return tensor.detach().clone()
        except Exception:  # a tensor type that cannot be copied
            return tensor

    return _map_tensors(value, copy, others=False)


def _map_tensors(value: Any, function: Callable[[Any], Any], *, others: bool = True) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function, others=others) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_tensors(item, function, others=others) for item in value]
    return value if others else None


def _tensors(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in inner for tensor in _tensors(item)]
