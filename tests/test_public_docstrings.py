"""Every public name documents its parameters, attributes and results in numpy style."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import pytest
from numpydoc.docscrape import FunctionDoc, NumpyDocString

import effbench
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.time_shares import Split
from effbench.bundles.bundle import Bundle, Model
from effbench.core.cost import Cost, Traffic
from effbench.core.estimate import Comparison, Estimate, PairEvidence, Verdict
from effbench.core.inputs import Input
from effbench.core.run import Block, Environment, Launch, Metric, Result, Run, Timing, Warmup
from effbench.core.study import Analysis, Case, Cell, Claim, Experiment, Sampling
from effbench.cost import profile as count_costs
from effbench.cost.costs import ModuleCost, OpCost, Profile
from effbench.cost.roofline import Kernel
from effbench.pytest_plugin import Speed, assert_cost
from effbench.report.analysis_outcome import Outcome
from effbench.results import Results

TO_DO: set[str] = set()
"""Public names that are not documented like this yet. Remove a name once it is; the test fails for one too many."""

HELD = (
    *(Block, Case, Cell, Claim, Comparison, Environment, Estimate, Experiment, Input, Launch, PairEvidence, Metric),
    *(Result, Results, Run, Sampling, Timing, Verdict, Warmup),
    *(Analysis, CellSummary, Split),
    *(Bundle, Model, Outcome, Speed),
    *(Cost, Kernel, ModuleCost, OpCost, Profile, Traffic),
)
"""What public functions take and return, whether exported or not."""

NAMED = {
    **{f"effbench.{name}": getattr(effbench, name) for name in effbench.__all__ if name != "__version__"},
    **{item.__qualname__: item for item in HELD},
    "cost.profile": count_costs,
    "pytest_plugin.assert_cost": assert_cost,
}


def described(lines: list[Any]) -> set[str]:
    """The names of a section that have a text; one entry may describe several."""
    return {
        name.strip().lstrip("*") for entry in lines if "".join(entry.desc).strip() for name in entry.name.split(",")
    }


def faults_of_function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """What the docstring of a function or method lacks, or has too much."""
    text = inspect.getdoc(function)
    if not text:
        yield f"{name} has no docstring"
        return
    parts = FunctionDoc(function)
    signature = inspect.signature(function)
    taken = set(signature.parameters) - {"self", "cls"}
    told = described(parts["Parameters"])
    yield from (f"{name} does not describe its parameter {item}" for item in sorted(taken - told))
    yield from (f"{name} describes {item}, which it does not take" for item in sorted(told - taken))
    if signature.return_annotation not in (None, "None") and not any("".join(item.desc) for item in parts["Returns"]):
        yield f"{name} does not describe what it returns"
    yield from (
        f"{name} raises {item.type or item.name} without saying when" for item in parts["Raises"] if not item.desc
    )


def faults_of_class(name: str, kind: type) -> Iterator[str]:
    """What the docstrings of a class, its properties and its methods lack."""
    parts = NumpyDocString(inspect.getdoc(kind) or "")
    if not parts["Summary"]:
        yield f"{name} has no summary"
    if dataclasses.is_dataclass(kind):
        fields = {field.name for field in dataclasses.fields(kind)}
        told = [*described(parts["Parameters"]), *described(parts["Attributes"])]
        yield from (f"{name} does not describe {item}" for item in sorted(fields - set(told)))
        yield from (f"{name} describes {item}, which it does not have" for item in sorted(set(told) - fields))
        yield from (
            f"{name} describes {item} twice" for item in sorted({item for item in told if told.count(item) > 1})
        )
    for attribute, item in vars(kind).items():
        if attribute.startswith("_"):
            continue
        function = item.__func__ if isinstance(item, (classmethod, staticmethod)) else item
        if inspect.isfunction(function):
            yield from faults_of_function(f"{name}.{attribute}", function)
        elif isinstance(item, (property, cached_property)) and not item.__doc__:
            yield f"{name}.{attribute} has no docstring"


def faults(name: str, item: Any) -> list[str]:
    if inspect.isclass(item) and issubclass(item, BaseException):
        return [] if inspect.getdoc(item) else [f"{name} has no docstring"]
    return list(faults_of_class(name, item) if inspect.isclass(item) else faults_of_function(name, item))


@pytest.mark.parametrize("name", NAMED)
def test_each_public_name_describes_its_parameters_and_attributes(name: str) -> None:
    found = faults(name, NAMED[name])
    if name.removeprefix("effbench.") in TO_DO:
        assert found, f"{name} is documented: remove it from TO_DO"
    else:
        assert not found, "\n".join(found)


def test_what_is_to_do_is_public() -> None:
    assert set(effbench.__all__) >= TO_DO


@dataclasses.dataclass
class Sample:
    """A thing.

    Attributes
    ----------
    known
        Described.
    gone
        Not a field.
    """

    known: int
    new: int

    def made(self, size: int) -> int:
        """Make it."""
        return size

    @property
    def bare(self) -> int:
        return 1


def test_the_check_finds_what_is_missing_and_what_is_stale() -> None:
    assert faults("Sample", Sample) == [
        "Sample does not describe new",
        "Sample describes gone, which it does not have",
        "Sample.made does not describe its parameter size",
        "Sample.made does not describe what it returns",
        "Sample.bare has no docstring",
    ]
