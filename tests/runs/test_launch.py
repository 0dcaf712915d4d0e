"""The process of a first launch, which is started while costs are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from runs import study

from effbench.runs import launch
from effbench.runs.launch import LaunchState
from effbench.studies import plan
from effbench.studies.plan import Bundled, Plan


class _Told:
    """A worker that keeps what it is told."""

    def __init__(self, job: Mapping[str, Any], *_: object) -> None:
        self.told = [job]
        self.has_ended = False

    def send(self, job: Mapping[str, Any]) -> None:
        self.told.append(job)

    def __exit__(self, *_: object) -> None:
        self.has_ended = True


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "Worker", _Told)


def planned(until: str, device: str = "cpu") -> Plan:
    return plan.make(study(), device=device, sampling={"until": until})


def test_the_early_process_carries_out_the_first_launch_and_no_other() -> None:
    state, made = LaunchState(), planned("faster")
    with state.first_worker_early(made):
        early = state.early_worker
        first, second = (state.worker_for({"launch": number}, made) for number in range(2))
    assert first is early and first.told == [{"imports": "torch"}, {"launch": 0}]
    assert second is not early and second.told == [{"launch": 1}]
    assert not first.has_ended, "it ends with its launch"


def test_an_early_process_without_a_launch_ends() -> None:
    """As where a network cannot be counted, and nothing is left to measure."""
    state = LaunchState()
    with pytest.raises(ValueError, match="nothing left"), state.first_worker_early(planned("precision")):
        early = state.early_worker
        raise ValueError("nothing left")
    assert isinstance(early, _Told) and early.has_ended


@pytest.mark.parametrize(
    "made",
    [planned("launches"), planned("faster", "fake"), replace(planned("faster"), bundled=Bundled("phone", "sha256"))],
    ids=["nobody waits", "fake", "bundle"],
)
def test_no_process_is_early_where_nobody_waits_for_an_answer_or_torch_is_not_needed(made: Plan) -> None:
    """In a bundle's first launch torch would be loaded, and in the others not: their memory would differ."""
    state = LaunchState()
    with state.first_worker_early(made):
        assert state.early_worker is None
