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
    """Seconds per model call that `operator` takes inside `called`, the operator that the model's code calls.

    A convolution (`called`) runs several internal operators, whose times add up to that of the convolution. `kind` is
    derived from shapes: "dense", "grouped" or "depthwise" for a convolution, "shuffle" for the views and the copy of a
    channel shuffle, "" otherwise. `times` is the number of executions in one model call.
    """

    called: str
    operator: str
    kind: str
    seconds: float
    times: float


@dataclass(frozen=True)
class Breakdown:
    """The operators of one cell in one launch. All times are medians over `calls` calls of the network, in seconds.

    `watched_s` is the wall time of a profiled call. `alone_s` and `alone_device_s` (None if the device has no such
    clock) are the times of calls without the profiler, interleaved with the profiled ones. `missing` is the reason why
    there are no operators.
    """

    calls: int = 0
    watched_s: float = 0.0
    alone_s: float = 0.0
    alone_device_s: float | None = None
    operators: tuple[OperatorTime, ...] = ()
    missing: str | None = None
