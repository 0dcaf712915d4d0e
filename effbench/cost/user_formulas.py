"""Formulas of users for operators that effbench has none for, such as those of `torch.library`.

They are registered where the operator is defined, in the model's file or a package that it imports, since user code is
counted in a process of its own, which imports that file; or by an entry point in the group ``effbench.operators``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from effbench.core import plugins
from effbench.core.errors import InvalidValue
from effbench.core.plugins import BrokenPlugin
from effbench.cost.formulas import FORMULAS, FREE, Formula

if TYPE_CHECKING:
    from torch import Tensor

    from effbench.cost.op_cost import CallCost


@dataclass(frozen=True)
class OperatorCost:
    """What one call of an operator costs.

    Parameters
    ----------
    madds
        Multiply-adds.
    elementwise
        Element-wise operations.
    reads
        Elements read of each tensor among the arguments, in their order. Default: each tensor once.
    writes
        Elements written of each tensor that is returned or mutated. Default: each tensor once.
    """

    madds: int = 0
    elementwise: int = 0
    reads: Sequence[int] | None = None
    writes: Sequence[int] | None = None


UserFormula = Callable[..., "OperatorCost | int"]
_F = TypeVar("_F", bound=UserFormula)

_registered: dict[str, UserFormula] = {}
_on_change: list[Callable[[], None]] = []


def register_operator_formula(op: Any, formula: UserFormula | None = None) -> Any:
    """Register a cost formula for an operator that effbench has none for.

    Call it where the operator is defined: in the file of the model, or in what that imports.

    Parameters
    ----------
    op
        The operator: ``"namespace::name"``, ``torch.ops.namespace.name``, or what `torch.library.custom_op` returns.
    formula
        Called with the arguments of the operator, in which each tensor is replaced by its shape (a tuple), and with
        ``out_shape``: the shape of the result, or a tuple of shapes of several. Returns the multiply-adds as a whole
        number, or an `OperatorCost`. It must depend on its arguments alone. Left out: the function that is decorated.

    Returns
    -------
    callable
        The formula.

    Raises
    ------
    InvalidValue
        If the operator has a formula already, or `op` is not an operator.
    """
    name = _name(op)
    if formula is None:

        def decorate(function: _F) -> _F:
            register_operator_formula(name, function)
            return function

        return decorate
    if not callable(formula):
        raise InvalidValue(f"the formula of {name} (={formula!r:.60}) must be a function")
    if name in FREE or name in FORMULAS:
        raise InvalidValue(f"effbench has a formula for {name} already; register operators that it has none for")
    known = _registered.get(name)
    # A file may be run again, as a cell of a notebook is.
    if known is not None and _qualified_name(known) != _qualified_name(formula):
        raise InvalidValue(f"{name} has a formula already, {_qualified_name(known)}; register one of the two")
    _registered[name] = formula
    for callback in _on_change:
        callback()
    return formula


def on_change(callback: Callable[[], None]) -> None:
    """Register a function to call whenever a formula is registered."""
    _on_change.append(callback)


def find(name: str) -> UserFormula | None:
    """Find the user's formula of an operator, "namespace::name"; None if there is none. Raises BrokenPlugin."""
    if name in _registered:
        return _registered[name]
    if "::" not in name or name not in plugins.names(plugins.OPERATOR_GROUP):
        return None
    found = plugins.load(plugins.OPERATOR_GROUP, name)
    if not callable(found):
        raise BrokenPlugin(
            f"the formula of {name} in the package {plugins.providing_package(plugins.OPERATOR_GROUP, name)} is none"
        )
    formula: UserFormula = found
    return formula


def cost_of(
    name: str, formula: UserFormula, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Any]
) -> OperatorCost:
    """Evaluate the formula for this call, with shapes instead of tensors. Raises BrokenPlugin."""
    shapes = tuple(tuple(shape) for shape in outputs)
    try:
        found = formula(*args, out_shape=shapes[0] if len(shapes) == 1 else shapes, **kwargs)
        cost = found if isinstance(found, OperatorCost) else OperatorCost(operator.index(found))
        counts = [cost.madds, cost.elementwise, *(cost.reads or ()), *(cost.writes or ())]
        if min(map(operator.index, counts)) < 0:
            raise ValueError("a count below zero")
    except Exception as error:
        said = plugins.failure_text(error, "correct it there")
        raise BrokenPlugin(f"the formula of {name}, {_qualified_name(formula)}, {said}") from error
    return cost


def to_formula(cost: OperatorCost) -> Formula:
    """Convert the counts of a user's formula to a `Formula` of this package."""
    kind = "matmul" if cost.madds else "elementwise" if cost.elementwise else "data"
    return Formula(kind, madds=lambda _: cost.madds, elementwise=lambda _: cost.elementwise)  # type: ignore[arg-type]


def with_traffic(
    call_cost: CallCost, cost: OperatorCost, name: str, read: Sequence[Tensor], written: Sequence[Tensor]
) -> CallCost:
    """Return the cost with the elements read and written that the formula gives. Raises BrokenPlugin."""
    for what, counts, tensors in (("reads", cost.reads, read), ("writes", cost.writes, written)):
        if counts is not None and len(counts) != len(tensors):
            raise BrokenPlugin(
                f"the formula of {name} gives {what} of {len(counts)} tensors, and there are {len(tensors)}; correct it"
            )
    if cost.reads is not None:
        layouts = {place: layout for place, _, _, layout in call_cost.reads}
        sizes = [tensor.element_size() for tensor in read]
        reads = tuple(
            (place, count, count * sizes[place], layouts.get(place)) for place, count in enumerate(cost.reads) if count
        )
        call_cost = replace(call_cost, reads=reads)
    if cost.writes is not None:
        each = zip(call_cost.writes, cost.writes, written, strict=True)
        call_cost = replace(
            call_cost, writes=tuple((place, n, n * item.element_size()) for (place, *_), n, item in each)
        )
    return call_cost


class WithFormulas:
    """A network to pickle for another process, together with the formulas that were registered in this one."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __reduce__(self) -> Any:
        return _restore, (self._network, dict(_registered))


def _restore(network: Any, formulas: Mapping[str, UserFormula]) -> Any:
    for name, formula in formulas.items():
        _registered.setdefault(name, formula)
    return network


def _name(op: Any) -> str:
    """ "namespace::name" of an operator, its name alone where it is one of ATen."""
    for attribute in ("_qualname", "_qualified_op_name"):  # custom_op, torch.ops.namespace.name
        if isinstance(getattr(op, attribute, None), str):
            op = getattr(op, attribute)
    if callable(getattr(op, "name", None)):  # torch.ops.namespace.name.overload
        op = op.name()
    if not isinstance(op, str) or not re.fullmatch(r"\w+::\w+(\.\w+)?", op):
        raise InvalidValue(f"operator (={op!r:.60}) must be 'namespace::name', or an operator of torch.ops")
    return op.partition(".")[0].removeprefix("aten::")


def _qualified_name(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
