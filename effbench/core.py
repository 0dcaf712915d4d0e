"""The nouns of effbench: frozen dataclasses, no dependencies. Read this file first.

A *study* (an `Experiment`) holds `Case`s. A case on one device, runtime, thread count and batch is a
`Cell`. Carrying a study out once on one machine gives a `Run`: raw `Block`s, launch by launch,
and the `Environment` they were measured in. Everything else (estimates, verdicts, tables) is computed
from these when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from effbench import feeding
from effbench.conditions import Conditions
from effbench.counts import DEFAULT_LEVEL as DEFAULT_LEVEL
from effbench.counts import LEVELS as LEVELS
from effbench.counts import Cost as Cost
from effbench.counts import Traffic as Traffic
from effbench.errors import InvalidValue
from effbench.feeding import Input
from effbench.operator_times import Breakdown

Label = str | int | float | bool
"""The value of one label of a case, such as ``groups=8`` or ``scale="x2"``."""

CLOCKS = ("wall", "cpu", "device")
"""Which clock a ratio is computed from: host wall clock, thread CPU time, device events."""


# --- what is measured -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row of a study: a network, its arguments, and what it is fed.

    `input_shape` excludes the batch: ``(3, 224, 224)``. `labels` are the axes of the study
    (``{"scale": "x2", "groups": 8}``) and name the case in tables. `inputs` is () where the network takes one tensor
    of floats of that shape; where it says more, `input_shape` is the shape of the first. `batch` is given by studies
    that vary it; everywhere else the run decides. A `dtype` of int8 is float32 that the runtime quantises.
    """

    model: str
    input_shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    labels: Mapping[str, Label] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    batch: int | None = None

    def __post_init__(self) -> None:
        # A run is stored as JSON, which does not know the whole numbers of NumPy.
        object.__setattr__(self, "input_shape", feeding.plain_sides(self.input_shape))

    @property
    def fed(self) -> tuple[Input, ...]:
        """Every input, also the one that `input_shape` stands for alone."""
        return self.inputs or (Input(self.input_shape),)

    @property
    def id(self) -> str:
        """Readable, stable and unique within a study: the key that pairs two runs."""
        if self.labels:
            return ",".join(f"{key}={value}" for key, value in self.labels.items())
        return self.model


@dataclass(frozen=True)
class Cell:
    """A case on one device, runtime, thread count and batch. `threads` is 0 where it has no meaning.

    `memory_format` is "contiguous" or "channels_last"; `mode` "infer" (one forward pass a call) or "train" (forward,
    backward and an optimiser's step).
    """

    case: Case
    device: str = "cpu"
    runtime: str = "eager"
    threads: int = 1
    batch: int = 1
    memory_format: str = "contiguous"
    mode: str = "infer"

    @property
    def id(self) -> str:
        return self.case.id


@dataclass(frozen=True)
class Claim:
    """An ordering that a guideline predicts. Each pair is (slower level, faster level) of the study's factor.

    Every pair must hold for the claim to hold; `headline` is the pair whose ratio is printed beside the paper's.
    """

    name: str
    text: str
    pairs: tuple[tuple[Label, Label], ...]
    headline: tuple[Label, Label]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InvalidValue(f"claim '{self.name}' compares nothing: it needs at least one pair of levels")


@dataclass(frozen=True)
class Sampling:
    """How long and how often to measure. Times in seconds, `precision` a relative half-width."""

    launches: int = 5
    min_rounds: int = 10
    max_rounds: int = 60
    precision: float = 0.01
    budget_s: float = 120.0
    block_s: float = 0.005
    max_block_s: float = 0.1
    warmup_s: float = 0.1
    max_warmup_s: float = 1.5
    silence_s: float = 300.0
    """A worker that says nothing for this long is taken for hung."""


@dataclass(frozen=True)
class Experiment:
    """A study: a claim, its cases, and how its results are to be read.

    `factor` is the label that the study varies, `levels` its values in the predicted order from fast to slow,
    `reference` the level that every ratio is taken to, within the same values of all other labels; a group without it
    takes its first case.
    `defaults` narrows each remaining label to the values that run when nothing is selected; a mapping
    from device kind (``{"cuda": …, "cpu": …}``) makes that choice depend on the device. `batch` is the images per call
    by device kind, 1 where it says nothing; `runtime` the runtimes that it is carried out under (`plan.make`).
    `absent` names what the paper compares and this study cannot measure, each with the reason. Raises InvalidValue
    for a case without the factor.
    """

    name: str
    title: str
    claim: str
    factor: str
    levels: tuple[Label, ...]
    reference: Label
    cases: tuple[Case, ...]
    claims: tuple[Claim, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    paper: str | None = None
    notes: tuple[str, ...] = ()
    batch: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    runtime: str = "eager"
    breakdown: Literal["", "merged", "depthwise"] = ""
    """Whether launches end with `torch.profiler`, and whether depthwise convolutions are shown as their own part."""

    def __post_init__(self) -> None:
        for case in self.cases:
            if self.factor not in case.labels:
                raise InvalidValue(
                    f"case '{case.id}' of {self.name} has no label '{self.factor}', which the study varies"
                )

    def label_values(self) -> dict[str, tuple[Label, ...]]:
        """Every label of the study with the values it takes, in order of appearance."""
        values: dict[str, dict[Label, None]] = {}
        for case in self.cases:
            for key, value in case.labels.items():
                values.setdefault(key, {})[value] = None
        return {key: tuple(seen) for key, seen in values.items()}

    def group_of(self, case: Case) -> dict[str, Label]:
        """The case's labels without the factor: cases that share them are compared with each other."""
        return {key: value for key, value in case.labels.items() if key != self.factor}

    def reference_of(self, case: Case) -> Case | None:
        """The case that ratios of this case's group are taken to, or None for a case that is not of the study."""
        group = self.group_of(case)
        same = [other for other in self.cases if self.group_of(other) == group]
        at_reference = (other for other in same if other.labels.get(self.factor) == self.reference)
        return next(at_reference, same[0] if same else None)

    def with_cases(self, cases: Iterable[Case]) -> Experiment:
        return replace(self, cases=tuple(cases))


# --- what the clock said ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """What a device reports about one timed block of `calls` back-to-back calls. Times in nanoseconds, whole block.

    `cpu_ns` is the calling thread's CPU time, `process_ns` that of all threads of its process, `device_ns` the time
    between device events; each is None where the device has no such clock. `flags` name outside causes that disturbed
    the block, never its value.
    """

    calls: int
    wall_ns: int
    cpu_ns: int | None = None
    device_ns: int | None = None
    minor_faults: int = 0
    switches: int = 0
    run_delay_ns: int = 0
    steal_ns: int = 0
    clocks: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    process_ns: int | None = None


@dataclass(frozen=True)
class Block:
    """A timed block in its place: which launch, which round, at which position of the round, of which cell.

    `at_s` is when it ended, in seconds since its launch began; None in runs that did not record it.
    """

    launch: int
    round: int
    position: int
    cell: str
    timing: Timing
    at_s: float | None = None

    def per_call_s(self, clock: str = "wall") -> float | None:
        """Seconds per call on the given clock, or None where that clock was absent."""
        spent = {
            "wall": self.timing.wall_ns,
            "cpu": self.timing.cpu_ns,
            "device": self.timing.device_ns,
        }[clock]
        return None if spent is None else spent / self.timing.calls * 1e-9


@dataclass(frozen=True)
class Warmup:
    """How one cell warmed up in one launch: `steady` says whether it reached a steady state before the cap.

    `call_s` is what a call took at its end, in wall seconds; 0 in runs that did not record it.
    """

    cell: str
    calls: int
    seconds: float
    steady: bool
    call_s: float = 0.0


@dataclass(frozen=True)
class Launch:
    """One fresh process. `slot` is its place in the plan; a resumed slot has several launches.

    `stopped` says why it ended: "precision", "budget", "rounds" or "interrupted". `probes` holds what was read once
    per cell: device against host time, graph replay, peak memory, what its runtime made of the network.

    `start` and `end` are UTC times (ISO 8601); "" where they are not recorded, and `end` also where the whole run was
    killed. Of the run's budget the launch used `used_s`: `overhead_s` before its first round, `seconds` of rounds, and
    what came after. `budget_s` is the time it was given for rounds, 0 where nothing was left. `changed` are facts of
    the environment that were others when this launch resumed the run: name to (then, now).
    """

    number: int
    slot: int
    stopped: str = "interrupted"
    seconds: float = 0.0
    warmups: Mapping[str, Warmup] = field(default_factory=dict)
    null_call_ns: float | None = None
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)
    start: str = ""
    end: str = ""
    overhead_s: float | None = None
    used_s: float | None = None
    budget_s: float | None = None
    at_start: Conditions | None = None
    at_end: Conditions | None = None
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The conditions of a run: device and runtime by name, and every fact that could be read."""

    device: str
    runtime: str
    facts: Mapping[str, Any] = field(default_factory=dict)


READINGS = ("percentiles", "peak_memory", "energy", "instructions")
"""What can be read of a cell beside its rounds, each in processes of its own."""


@dataclass(frozen=True)
class Reading:
    """One of `READINGS` of one cell. Units stand in the names of its `values`; `missing` is why there are none."""

    what: str
    values: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """One cell of a run with its cost, its frozen calls per block, its blocks; or the reason it was skipped.

    `bounds_s` are the seconds that a call takes at the least at each level, from the device's peaks; None without them.
    """

    cell: Cell
    cost: Cost | None = None
    calls: int | None = None
    blocks: tuple[Block, ...] = ()
    skipped: str | None = None
    bounds_s: Mapping[str, float] | None = None
    readings: tuple[Reading, ...] = ()

    def reading(self, what: str) -> Reading | None:
        """The reading of this name, where it was asked for."""
        return next((item for item in self.readings if item.what == what), None)


@dataclass(frozen=True)
class Run:
    """A study carried out once on one machine: the unit of storage."""

    experiment: Experiment
    environment: Environment
    sampling: Sampling
    results: tuple[Result, ...]
    launches: tuple[Launch, ...] = ()
    clock: str = "wall"
    seed: int = 0
    created: str = ""
    command: str = ""
    path: str | None = None
    complete: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    """The files that the networks consist of, with their SHA-256; empty in runs that did not record them."""

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def result(self, cell: str) -> Result:
        """The result of the cell with this id. Raises KeyError."""
        for item in self.results:
            if item.cell.id == cell:
                return item
        raise KeyError(cell)


# --- what it means ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. `low` and `high` are None where the data cannot give an interval."""

    point: float
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    n: int = 0

    @property
    def half_width(self) -> float | None:
        """Relative half-width of the interval."""
        if self.low is None or self.high is None or self.point == 0:
            return None
        return (self.high - self.low) / 2 / abs(self.point)


@dataclass(frozen=True)
class PairEvidence:
    """One pair of a claim: how much slower the first level ran than the second, and whether that is shown."""

    slower: Label
    faster: Label
    ratio: Estimate | None
    verdict: Literal["holds", "fails", "unsure"]
    reason: str = ""
    paper_ratio: float | None = None
    wall: Estimate | None = None
    """The ratio of wall times, where CPU time misses work of one of the two."""


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds within one group of the study (one scale, say), and the evidence for it."""

    claim: str
    text: str
    group: Mapping[str, Label]
    verdict: Literal["holds", "fails", "unsure"]
    headline: PairEvidence
    evidence: tuple[PairEvidence, ...]
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One cell in two runs: `change` is candidate time over baseline time.

    `wall` is the same of wall times, where CPU time misses work of one of the two. `costs` are the counts that differ,
    baseline and candidate by quantity.
    """

    cell: str
    verdict: Literal["faster", "slower", "same", "unsure", "missing"]
    change: Estimate | None
    reason: str = ""
    wall: Estimate | None = None
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
