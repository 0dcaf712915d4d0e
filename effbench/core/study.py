"""The description of a measurement, as data types: study, cases, claims, sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from effbench.core import inputs as core_inputs
from effbench.core.errors import InvalidValue
from effbench.core.inputs import Input

Until = Literal["launches", "faster", "precision"]
"""When a run ends: after a number of launches, once it is decided which network is faster, or once every ratio is known
to a precision."""

Label = str | int | float | bool
"""The value of one label of a case, such as ``groups=8`` or ``scale="x2"``."""


@dataclass(frozen=True)
class Case:
    """One row of a study: a network, its arguments, and its inputs.

    Parameters
    ----------
    model
        Name of the network: of the zoo, ``"package.module:factory"`` or ``"path/file.py:factory"``.
    input_shape
        Shape of the input without the batch, such as ``(3, 224, 224)``; of several inputs, that of the first.
    arguments
        Keyword arguments of the network's factory.
    dtype
        Dtype of weights and inputs. ``"int8"`` stands for float32 that the runtime quantises.
    labels
        Values on the axes of the study, such as ``{"scale": "x2", "groups": 8}``. They name the case in tables.
    inputs
        All inputs, where there are several or one has a name or a dtype of its own; () for one float tensor.
    batch
        Images per call, in studies that vary it. None leaves the choice to the run.
    """

    model: str
    input_shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    labels: Mapping[str, Label] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    batch: int | None = None

    def __post_init__(self) -> None:
        # A run is stored as JSON, which cannot hold the integers of NumPy.
        object.__setattr__(self, "input_shape", core_inputs.as_int_tuple(self.input_shape))

    @property
    def all_inputs(self) -> tuple[Input, ...]:
        """All inputs in order: `inputs`, or the one that `input_shape` describes."""
        return self.inputs or (Input(self.input_shape),)

    @property
    def id(self) -> str:
        """Readable key, unique and stable within a study: the labels, or the model's name. It pairs two runs."""
        if self.labels:
            return ",".join(f"{key}={value}" for key, value in self.labels.items())
        return self.model


@dataclass(frozen=True)
class Cell:
    """A case on one device and runtime, with a thread count and a batch: the unit of measurement.

    Parameters
    ----------
    case
        The network and its inputs.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"fake"``.
    runtime
        Name of the runtime, such as ``"eager"`` or ``"onnxruntime"``.
    threads
        Threads of the runtime; 0 where that has no meaning.
    batch
        Images per call.
    memory_format
        ``"contiguous"`` or ``"channels_last"``.
    mode
        ``"infer"`` (a call is a forward pass) or ``"train"`` (forward, backward and a step of the optimiser).
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
        """The key of its case."""
        return self.case.id


@dataclass(frozen=True)
class Claim:
    """An ordering of levels that a guideline predicts. It holds where every pair holds.

    Parameters
    ----------
    name
        Short name, such as ``"groups are slower"``.
    text
        The claim as one sentence.
    pairs
        Pairs of levels of the study's factor: (predicted slower, predicted faster).
    headline
        The pair whose ratio is printed beside the paper's.

    Raises
    ------
    InvalidValue
        Where `pairs` is empty.
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
    """How long and how often to measure.

    Parameters
    ----------
    launches
        Fresh processes, which are the replicates of every interval.
    min_rounds, max_rounds
        Rounds per launch. A round visits every cell once.
    precision
        Relative half-width of the interval at which a launch stops early.
    budget_s
        Seconds for the whole run.
    block_s, max_block_s
        Shortest and longest time of a block, in seconds.
    warmup_s, max_warmup_s
        Shortest and longest warm-up of a cell, in seconds.
    silence_s
        Seconds without a message after which a worker counts as hung.
    spread_s
        Seconds from the begin of the first launch to that of the last; 0 for one after the other.
    until
        ``"launches"``: the run has exactly `launches` launches. ``"faster"`` or ``"precision"``: it has so many at
        most, and stops at one of `analysis.sequential.looks` once the order of the networks is decided, or every ratio
        is known to `precision`.
    """

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
    spread_s: float = 0.0
    until: Until = "launches"


@dataclass(frozen=True)
class Experiment:
    """A study: its claim, its cases, and how to read its results.

    Parameters
    ----------
    name
        Identifier, as on the command line.
    title
        Title of tables and figures.
    claim
        The question or claim as one sentence.
    factor
        The label that the study varies. Every case has it.
    levels
        Values of `factor` in the predicted order from fast to slow.
    reference
        The level that every ratio is taken to, among cases that share all other labels. If none of them has it, the
        first of them is the reference.
    cases
        The rows of the study.
    claims
        Orderings to judge; () for a study that only compares.
    defaults
        By label, the values that run when nothing is selected. A mapping of device kinds, such as
        ``{"cuda": "GPU", "cpu": "ARM"}``, makes them depend on the device.
    sampling
        How long and how often to measure.
    paper
        Name of the table that holds the paper's figures; None without one.
    notes
        Remarks printed below the tables, such as why a default was chosen.
    batch
        Images per call by device kind; 1 for kinds that are not named.
    absent
        Cells of the paper that this study cannot measure, each with the reason.
    runtime
        The runtimes that it runs under by default: one name, several with commas between them, or ``"all"``.
    breakdown
        ``"merged"`` to also split the run time by kind of operator, with `torch.profiler` at the end of a launch;
        ``"depthwise"`` to show depthwise convolutions separately, too; ``""`` for neither.

    Raises
    ------
    InvalidValue
        For a case without the label `factor`.
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

    def __post_init__(self) -> None:
        for case in self.cases:
            if self.factor not in case.labels:
                raise InvalidValue(
                    f"case '{case.id}' of {self.name} has no label '{self.factor}', which the study varies"
                )

    def label_values(self) -> dict[str, tuple[Label, ...]]:
        """All labels of the study with the values that they take, in order of appearance.

        Returns
        -------
        dict of str to tuple
            Values by label.
        """
        values: dict[str, dict[Label, None]] = {}
        for case in self.cases:
            for key, value in case.labels.items():
                values.setdefault(key, {})[value] = None
        return {key: tuple(seen) for key, seen in values.items()}

    def group_of(self, case: Case) -> dict[str, Label]:
        """The labels of a case without the factor. Cases that share them are compared with each other.

        Parameters
        ----------
        case
            A case with the label `factor` or without.

        Returns
        -------
        dict of str to Label
            Values by label.
        """
        return {key: value for key, value in case.labels.items() if key != self.factor}

    def reference_of(self, case: Case) -> Case | None:
        """The case that the ratios of this case are taken to.

        Parameters
        ----------
        case
            The case to look up.

        Returns
        -------
        Case or None
            None for a case whose group is not in the study.
        """
        group = self.group_of(case)
        same = [other for other in self.cases if self.group_of(other) == group]
        at_reference = (other for other in same if other.labels.get(self.factor) == self.reference)
        return next(at_reference, same[0] if same else None)

    def with_cases(self, cases: Iterable[Case]) -> Experiment:
        """The same study with other cases.

        Parameters
        ----------
        cases
            The cases to take instead. Each needs the label `factor`.

        Returns
        -------
        Experiment
            A copy.
        """
        return replace(self, cases=tuple(cases))


ReportProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class Analysis:
    """A study without measurements, which answers a question from stored or published data.

    A file in ``experiments/`` ends in ``ANALYSIS = Analysis(…)``.

    Parameters
    ----------
    name
        Identifier, as on the command line.
    title
        Title of tables and figures.
    claim
        The question as one sentence.
    analyse
        Called with the values that ``--select LABEL=VALUE[,VALUE]`` chose, by label, and with a function that reports
        progress (a share of 1, and what is being done). Returns a `report.analysis_outcome.Outcome`.
    options
        Labels that `analyse` accepts, each with its meaning.
    """

    name: str
    title: str
    claim: str
    analyse: Callable[[Mapping[str, Sequence[str]], ReportProgress], Any]
    options: Mapping[str, str] = field(default_factory=dict)
