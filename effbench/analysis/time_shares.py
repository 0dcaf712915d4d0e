"""Split a network's run time into the parts of the paper's Figure 2: Conv, Elemwise, Data, Shuffle, Other. No torch.

A run stores operators; this module assigns them to parts. The paper describes the parts beside the convolutions as data
I/O, data shuffle and element-wise operations (AddTensor, ReLU and the like). Where it leaves the assignment open, it
is:

=========  ===========================================================================================================
Conv       convolutions of every kind. The paper does not say where it counts depthwise ones; they can be shown apart
Elemwise   operators whose output elements depend on the inputs at the same place: ReLU, clamp, add, multiply, and batch
           norm with given statistics (a framework that fuses, as the paper's does, has no batch norm left)
Data       operators that move elements and compute nothing: copy, concatenate, pad, gather, change of layout, views
Shuffle    the views and the copy of a channel shuffle, recognised by their shapes
Other      everything else: linear, pooling, softmax, … Pooling is here and not in Data because ShuffleNet v1, with
           four pooling layers before its last, has 8 to 10 % of Other in the paper, and MobileNet v2, with none, 1 %
=========  ===========================================================================================================

In each launch

    parts under the profiler + time between operators = time under the profiler = overhead × latency
    shares are parts ÷ latency, and the unattributed share is 1 - their sum

where the latency is that of calls without the profiler, which alternate with those under it. Part of the profiler's
bookkeeping falls inside the operators, more of it the more and the smaller they are. Shares are therefore upper bounds,
by up to the overhead. The unattributed share (Python, dispatch, waiting) is a lower bound and can fall below zero.
Shares are not scaled to sum to 100 %: that would spread unattributed time over the parts. On a GPU, parts are kernel
times and the latency is device time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from effbench import paper
from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate
from effbench.core.operator_times import Breakdown, OperatorTime
from effbench.core.run import Result, Run
from effbench.core.study import Experiment
from effbench.host.emulation import EMULATED, is_emulated

PARTS = ("Conv", "Depthwise", "Elemwise", "Data", "Shuffle", "Other")
"""Parts in the order of the paper's figure. Depthwise is part of Conv unless it is shown apart."""

_CONVOLUTION = re.compile(r"conv(olution|_transpose|_tbc|\dd|$)")
_NAMES = {
    "Elemwise": """
        abs add addcdiv addcmul alpha_dropout batch_norm bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max
        clamp_min clip cos div divide dropout elu eq erf exp expm1 feature_dropout float_power floor floor_divide fmod
        ge gelu gt hardshrink hardsigmoid hardswish hardtanh le leaky_relu lerp log log1p log2 log_sigmoid logical_and
        logical_not logical_or lt masked_fill maximum minimum mish mul multiply nan_to_num native_batch_norm ne neg pow
        prelu reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sigmoid sign silu sin softplus softshrink
        sqrt square sub tanh threshold true_divide where
    """,
    "Data": """
        _to_copy _unsafe_view alias arange as_strided broadcast_to cat chunk clone concat concatenate constant_pad_nd
        contiguous copy detach embedding empty empty_like expand expand_as fill flatten flip full full_like gather
        hstack index index_put index_select lift_fresh linspace meshgrid moveaxis movedim narrow new_empty new_full
        new_zeros numpy_T ones ones_like pad permute ravel reflection_pad1d reflection_pad2d repeat repeat_interleave
        replication_pad2d reshape reshape_as resolve_conj resolve_neg roll scatter select slice slice_scatter split
        split_with_sizes squeeze stack swapaxes swapdims t take tensor_split tile to transpose type_as unbind unflatten
        unsafe_chunk unsafe_split unsqueeze view view_as vstack zero zeros zeros_like
    """,
}
_PART_OF = {name: part for part, names in _NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Split:
    """One cell's latency by kind of operator. Means over launches of `shares` and `unattributed` sum to exactly 1.

    Attributes
    ----------
    cell
        Id of the cell.
    shares
        Shares of `latency_s` by part, in the order of `PARTS`. Intervals are Student's t over launches.
    unattributed
        Share that belongs to no operator.
    between
        Share of the time under the profiler in which no operator ran (on a GPU, no kernel), by the wall clock.
    overhead
        Time under the profiler over the latency, by the wall clock.
    latency_s
        Seconds per call.
    operators
        The network's own calls with their shares, largest first.
    paper
        The paper's shares on `platform`; None where it has none.
    platform
        Platform of the paper, ``"GPU"`` or ``"ARM"``.
    missing
        Why there are no shares; None where there are.
    """

    cell: str
    shares: Mapping[str, Estimate] = field(default_factory=dict)
    unattributed: Estimate | None = None
    between: Estimate | None = None
    overhead: Estimate | None = None
    latency_s: Estimate | None = None
    operators: tuple[tuple[OperatorTime, float], ...] = ()
    paper: Mapping[str, float] | None = None
    platform: str = "ARM"
    missing: str | None = None


def part_of(called: str, kind: str = "", *, depthwise: bool = True) -> str:
    """Return the part of an operator, from the name the network called and its kind (see `OperatorTime`).

    ``"aten::relu_"`` is Elemwise; an operator of another library ("torchvision::nms") is Other. Without `depthwise` a
    depthwise convolution is Conv.
    """
    library, _, name = called.rpartition("::")
    if kind == "shuffle":
        return "Shuffle"
    if kind or _CONVOLUTION.search(name):
        return "Depthwise" if kind == "depthwise" and depthwise else "Conv"
    # An in-place operator has the name of the other one and an underscore.
    return _PART_OF.get(name, _PART_OF.get(name.rstrip("_"), "Other")) if library == "aten" else "Other"


def with_depthwise_part(study: Experiment) -> Experiment:
    """Return the study with depthwise convolutions as their own part. Raises InvalidValue without a breakdown."""
    if not study.breakdown:
        raise InvalidValue(
            f"{study.name} does not break the run time down, so it has no depthwise part; leave out --depthwise"
        )
    return replace(study, breakdown="depthwise")


def split(run: Run, *, depthwise: bool | None = None) -> tuple[Split, ...]:
    """Split the latency of every cell into parts, in study order; () for a run without a breakdown.

    `depthwise` shows depthwise convolutions apart; the default is what the run was started with.
    """
    if not run.experiment.breakdown:
        return ()
    apart = run.experiment.breakdown == "depthwise" if depthwise is None else depthwise
    return tuple(_split(run, result, apart) for result in run.results)


def _split(run: Run, result: Result, depthwise: bool) -> Split:
    cell, case = result.cell, result.cell.case
    platform = "GPU" if cell.device.startswith("cuda") else "ARM"
    published = paper.runtime_shares(case.model, platform)
    found = [launch.breakdowns[cell.id] for launch in run.launches if cell.id in launch.breakdowns]
    seen = [item for item in found if item.operators and not is_emulated(run.environment)]
    if not seen:
        reasons = [item.missing or "the profiler saw no operator" for item in found]
        if is_emulated(run.environment):
            reasons = [EMULATED]
        missing = result.skipped or next(iter(reasons), "no launch got as far as the profiler")
        return Split(cell.id, paper=published, platform=platform, missing=missing)
    sums = [_by_part(item, depthwise) for item in seen]
    latency = [_latency_s(item, run.clock) for item in seen]
    whole = [sum(by_part.values()) for by_part in sums]
    return Split(
        cell=cell.id,
        shares={
            name: stats.t_interval([by_part[name] / at for by_part, at in zip(sums, latency, strict=True)])
            for name in PARTS
            if depthwise or name != "Depthwise"
        },
        unattributed=stats.t_interval([1 - parts / at for parts, at in zip(whole, latency, strict=True)]),
        between=stats.t_interval([1 - parts / item.watched_s for parts, item in zip(whole, seen, strict=True)]),
        overhead=stats.t_interval([item.watched_s / item.alone_s for item in seen]),
        latency_s=stats.t_interval(latency),
        operators=_operators(seen, latency),
        paper=published,
        platform=platform,
    )


def _latency_s(found: Breakdown, clock: str) -> float:
    """Return the latency that shares refer to: on a GPU the device time, since parts are kernel times."""
    if clock == "device" and found.alone_device_s:
        return found.alone_device_s
    return found.alone_s


def _by_part(found: Breakdown, depthwise: bool) -> dict[str, float]:
    seconds = dict.fromkeys(PARTS, 0.0)
    for item in found.operators:
        seconds[part_of(item.called, item.kind, depthwise=depthwise)] += item.seconds
    return seconds


def _operators(found: Sequence[Breakdown], latency: Sequence[float]) -> tuple[tuple[OperatorTime, float], ...]:
    """Return each operator that the network calls, with all that runs inside it, and its share of the latency.

    Both are averaged over launches.
    """
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    times: dict[tuple[str, str], float] = defaultdict(float)
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for each, at in zip(found, latency, strict=True):
        for item in each.operators:
            key = (item.called, item.kind)
            seconds[key] += item.seconds / len(found)
            shares[key] += item.seconds / at / len(found)
            if item.operator == item.called:
                times[key] += item.times / len(found)
    ordered = sorted(seconds, key=lambda key: -seconds[key])
    return tuple(
        (OperatorTime(called, called, kind, seconds[called, kind], times[called, kind]), shares[called, kind])
        for called, kind in ordered
    )
