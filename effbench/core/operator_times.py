"""The times of a model's operators under a profiler, as data types. Standard library only.

They are called operator times, since a *profile* in effbench consists of counts and has no times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OperatorEvent:
    """One executed operator; events are in order of start. `parent` is the index of the calling operator, or None.

    `own_s` is its time without that of the operators it called, in seconds: CPU time on a CPU, the time of its kernels
    on a GPU. `shapes` are those of its arguments by position, () for non-tensors. `values` are its other arguments.
    """

    name: str
    parent: int | None
    own_s: float
    shapes: Sequence[Sequence[int]] = ()
    values: Sequence[Any] = ()


@dataclass(frozen=True)
class WatchedCall:
    """One call of a model under a profiler: its operators and its wall time, including the wait for the device."""

    wall_s: float
    events: Sequence[OperatorEvent]


@dataclass(frozen=True)
class OperatorTime:
    """The time that one operator takes inside the operator that the model's code calls.

    A convolution runs several internal operators, whose times add up to that of the convolution.

    Attributes
    ----------
    called
        The operator that the model's code calls.
    operator
        The operator that is executed inside `called`, which may be `called` itself.
    kind
        Derived from shapes: ``"dense"``, ``"grouped"`` or ``"depthwise"`` for a convolution, ``"shuffle"`` for the
        views and the copy of a channel shuffle, ``""`` otherwise.
    seconds
        Seconds per call of the model, the median over calls: CPU time on a CPU, the time of its kernels on a GPU.
    times
        Mean number of executions in one call of the model.
    """

    called: str
    operator: str
    kind: str
    seconds: float
    times: float


@dataclass(frozen=True)
class Breakdown:
    """The operators of one cell in one launch, under a profiler. All times are medians over calls of the network.

    Attributes
    ----------
    calls
        Number of calls under the profiler.
    watched_s
        Wall seconds of a call under the profiler.
    alone_s
        Wall seconds of a call without the profiler. Such calls alternate with those under it.
    alone_device_s
        The same between device events; None where the device has no such clock.
    operators
        Times by operator.
    missing
        Why there are no operators; None where there are.
    """

    calls: int = 0
    watched_s: float = 0.0
    alone_s: float = 0.0
    alone_device_s: float | None = None
    operators: tuple[OperatorTime, ...] = ()
    missing: str | None = None
