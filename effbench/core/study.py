"""What is measured: a study, its cases, the claims that it makes, and how long to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from effbench.core import inputs as core_inputs
from effbench.core.errors import InvalidValue
from effbench.core.inputs import Input

Label = str | int | float | bool
"""The value of one label of a case, such as ``groups=8`` or ``scale="x2"``."""


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
        object.__setattr__(self, "input_shape", core_inputs.plain_sides(self.input_shape))

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
    by device kind, 1 where it says nothing; `runtime` the runtimes that it is carried out under (`studies.plan.make`).
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


Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Analysis:
    """A question that stored or published data answer. A file in ``experiments/`` ends in ``ANALYSIS = Analysis(…)``.

    `analyse` gets what ``--select LABEL=VALUE[,VALUE]`` chose, by label, and a function to tell how far it has come (a
    share of 1, and what it is doing); it returns a `report.analysis_outcome.Outcome`. `options` are the labels that it
    understands, each with what it means.
    """

    name: str
    title: str
    claim: str
    analyse: Callable[[Mapping[str, Sequence[str]], Tell], Any]
    options: Mapping[str, str] = field(default_factory=dict)
