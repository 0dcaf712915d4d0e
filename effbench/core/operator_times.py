"""What a profiler says of the operators that a network runs: the nouns, standard library only.

Called "operator times" and not a profile, because a *profile* here is counts without a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OperatorEvent:
    """One operator that ran, in order of its start. `parent` is the place of the operator that called it, else None.

    `own_s` is its time without that of the operators it called, in seconds: CPU time on a CPU, the time of its kernels
    on a GPU. `shapes` are those of its tensors by position, () for what is no tensor; `values` its other arguments.
    """

    name: str
    parent: int | None
    own_s: float
    shapes: Sequence[Sequence[int]] = ()
    values: Sequence[Any] = ()


@dataclass(frozen=True)
class WatchedCall:
    """One call of a network under a profiler: its wall time, waiting for the device included, and its operators."""

    wall_s: float
    events: Sequence[OperatorEvent]


@dataclass(frozen=True)
class OperatorTime:
    """Seconds per call of the network that `operator` itself takes inside `called`, which the network's code calls.

    A convolution (`called`) runs several operators of the library; the time of all of them is the convolution's.
    `kind` tells what the shapes tell: "dense", "grouped" or "depthwise" for a convolution, "shuffle" for the views and
    the copy that interleave channels, "" for anything else. `times` is how often it runs in one call of the network.
    """

    called: str
    operator: str
    kind: str
    seconds: float
    times: float


@dataclass(frozen=True)
class Breakdown:
    """The operators of one cell in one launch. All times are medians over `calls` calls of the network, in seconds.

    `watched_s` is the wall time of a call while the profiler watched, `alone_s` and `alone_device_s` (None where the
    device has no such clock) that of calls without it, timed in turn with the watched ones. Without operators `missing`
    says why.
    """

    calls: int = 0
    watched_s: float = 0.0
    alone_s: float = 0.0
    alone_device_s: float | None = None
    operators: tuple[OperatorTime, ...] = ()
    missing: str | None = None
