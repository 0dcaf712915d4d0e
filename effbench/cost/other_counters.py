"""Compare our multiply-adds with other counters (fvcore, torch), and explain every difference.

fvcore counts on a jit trace, and includes normalisation, pooling and interpolation in its "flops". torch's counter sees
ATen operators, as ours does. Neither counts memory access. A counter that is not installed or fails gives a row with
the reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effbench.core import inputs as core_inputs
from effbench.core.errors import first_line
from effbench.core.inputs import InputsLike
from effbench.cost import example_inputs
from effbench.cost.costs import OpCost, Profile
from effbench.cost.formulas import PRODUCTS
from effbench.cost.profiler import ModelInputs, profile
from effbench.cost.sandbox import meta_twin, quiet_torch, replace_tensors


@dataclass(frozen=True)
class Check:
    """The result of another counter on the same network and input.

    `madds` is its result in multiply-adds, None where it did not run; `difference` is `madds` - `ours`. `parts` splits
    the difference by cause, `unexplained` is the rest, and `reason` is a summary in one line. `activations` are its
    output elements of convolutions and matrix products, to compare with `ours_activations`, where it counts them.
    """

    counter: str
    madds: int | None
    ours: int
    difference: int | None
    reason: str
    parts: tuple[tuple[str, int], ...] = ()
    unexplained: int = 0
    activations: int | None = None
    ours_activations: int | None = None


_FVCORE_PRODUCTS = frozenset({"conv", "linear", "matmul", "einsum", "bmm"})
_FVCORE_SKIPS = (
    "scaled_dot_product_attention _convolution_mode lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell "
    "rnn_relu_cell baddbmm addbmm addmv mv dot bilinear _native_multi_head_attention PythonOp"
)
FVCORE_BLIND = frozenset(_FVCORE_SKIPS.split())
"""Operators with multiply-adds that fvcore skips; PythonOp is a `torch.autograd.Function`."""


def crosscheck(
    model: nn.Module,
    input_shape: InputsLike,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    inputs: tuple[Any, ...] | None = None,
) -> tuple[Check, ...]:
    """Count with fvcore and with torch's own counter. The model is not changed. Raises what `profile` raises."""
    ours = profile(model, input_shape, batch=batch, dtype=dtype, inputs=inputs)
    kind: torch.dtype = getattr(torch, ours.dtype)
    model = getattr(model, "_orig_mod", model)
    given = core_inputs.normalise(input_shape)
    model_inputs = ModelInputs(given.inputs, ours.batch, ours.dtype, inputs, tensors=example_inputs.values_of(given))

    def attempt(counter: str, run: Callable[..., Check], device: str, twin: Callable[[Tensor], Tensor]) -> Check:
        try:
            with quiet_torch(), replace_tensors(model.modules(), twin):
                args, named = model_inputs.arguments(torch.device(device))
                return run(model, example_inputs.positional(model, args, named) if named else args, ours)
        except ImportError:
            why = f"{counter} is not installed; pip install {counter}"
        except Exception as error:
            why = f"{counter} fails: {first_line(error)}"
        return Check(counter, None, ours.cost.madds, None, why)

    return (
        attempt("fvcore", _fvcore, "cpu", cpu_twin(kind)),
        attempt("torch", _torch_counter, "meta", meta_twin(kind)),
    )


def cpu_twin(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function that copies tensors to the CPU for fvcore, which cannot trace on meta. Meta becomes zeros."""

    def twin(tensor: Tensor) -> Tensor:
        real = torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().cpu().clone()
        return real.to(dtype) if real.is_floating_point() else real

    return twin


# --- fvcore -----------------------------------------------------------------------------------------


def _fvcore(model: nn.Module, inputs: tuple[Any, ...], ours: Profile) -> Check:
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

    with _quiet_logs("fvcore"):
        flops = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops.tracer_warnings("none")
        total = int(flops.total())
        counted = {path: Counter(found) for path, found in flops.by_module_and_operator().items()}
        skipped = {path: Counter(flops.unsupported_ops(path)) for path in counted}
        activations = ActivationCountAnalysis(model, inputs).unsupported_ops_warnings(False)
        outputs = int(activations.uncalled_modules_warnings(False).tracer_warnings("none").total())
    parts: Counter[str] = Counter()
    for op, amount in counted[""].items():
        if op not in _FVCORE_PRODUCTS:
            parts[f"counts {op}"] += int(amount)
    theirs = _without_children({path: sum(found[op] for op in _FVCORE_PRODUCTS) for path, found in counted.items()})
    mine = Counter[str]()
    for op in ours.ops:
        mine[op.module if op.module in counted else ""] += op.madds
    blind = {
        name: _without_children({path: found[name] for path, found in skipped.items()}) for name in _names(skipped)
    }
    for path in counted:
        gap = int(theirs[path] - mine[path])
        causes = sorted(name for name in blind if blind[name][path] > 0)
        if gap and causes:
            parts[f"does not see {' or '.join(causes)}"] += gap
    return _check("fvcore", total, ours, parts, activations=outputs)


def _names(skipped: Mapping[str, Counter[str]]) -> dict[str, None]:
    """Return the skipped operators that have multiply-adds, by fvcore's names."""
    found = {name for counter in skipped.values() for name in counter}
    return {name: None for name in sorted(found) if name.split("::")[-1].split(".")[0] in FVCORE_BLIND}


def _without_children(inclusive: Mapping[str, int]) -> dict[str, int]:
    """Subtract the sums of children: return the count of each module path without them."""
    own = dict(inclusive)
    for path, amount in inclusive.items():
        if path:
            parent = path.rpartition(".")[0]
            while parent and parent not in own:
                parent = parent.rpartition(".")[0]
            own[parent] -= amount
    return own


@contextmanager
def _quiet_logs(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- torch.utils.flop_counter -----------------------------------------------------------------------


def _torch_counter(model: nn.Module, inputs: tuple[Any, ...], ours: Profile) -> Check:
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    known = {str(packet).split(".")[-1] for packet in flop_registry}
    parts: Counter[str] = Counter()
    for op in _products(ours.ops):
        if op.kind in ("conv", "matmul") and op.op not in known:
            parts[f"does not see {op.op}"] -= op.madds
    return _check("torch", counter.get_total_flops() // 2, ours, parts)


def _products(ops: Sequence[OpCost]) -> list[OpCost]:
    return [op for op in ops if op.kind in PRODUCTS]


# --- the row ----------------------------------------------------------------------------------------


def _check(counter: str, madds: int, ours: Profile, parts: Mapping[str, int], activations: int | None = None) -> Check:
    difference = madds - ours.cost.madds
    causes = tuple((cause, amount) for cause, amount in parts.items() if amount)
    unexplained = difference - sum(amount for _, amount in causes)
    texts = [f"{cause} ({_signed(amount)})" for cause, amount in causes]
    if unexplained:
        texts.append(f"unexplained ({_signed(unexplained)})")
    mine = None if activations is None else ours.cost.activations
    if activations is not None and activations != mine:
        texts.append(f"activations {activations:,} against {mine:,}")
    reason = "; ".join(texts) or "equal"
    return Check(counter, madds, ours.cost.madds, difference, reason, causes, unexplained, activations, mine)


def _signed(amount: int) -> str:
    return f"{'+' if amount > 0 else '−'}{abs(amount):,}"
