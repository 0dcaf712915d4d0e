"""Decide after each launch whether a run that stops by itself ends here, and record why."""

from __future__ import annotations

from dataclasses import asdict

from effbench.analysis import decision, sequential
from effbench.core.run import Run, Stop
from effbench.core.study import Sampling
from effbench.runs import run_file
from effbench.runs.run_file import RunWriter


def ends_here(writer: RunWriter, sampling: Sampling, finished: int, used_s: float) -> bool:
    """Return whether the run ends after `finished` launches, which took `used_s` of the budget. Records the reason.

    A run of a fixed number of launches never does. The answer depends on the stored blocks only, so a run that is
    resumed stops where it would have stopped. Raises StorageError.
    """
    if not _is_judged(sampling, finished, used_s):
        return False
    if (found := find_stop(run_file.load(writer.path), finished, used_s)) is None:
        return False
    writer.append("stop", **asdict(found))
    return True


def _is_judged(sampling: Sampling, finished: int, used_s: float) -> bool:
    """Return whether the run may end after `finished` launches: at a look, or once its budget is used up."""
    if finished >= sampling.launches:
        return False
    return sequential.is_look(sampling, finished) or sequential.is_budget_used(sampling, finished, used_s)


def find_stop(run: Run, finished: int, used_s: float) -> Stop | None:
    """Return why the run ends after `finished` launches; None to go on. It is judged at looks only, and once more when
    its budget is used up.
    """
    if not _is_judged(run.sampling, finished, used_s):
        return None
    found = decision.decide(run)
    if found is not None and found.is_decided:
        return Stop("decided", finished)
    if found is not None and found.is_futile and finished >= sequential.looks(run.sampling.launches)[1]:
        return Stop("futile", finished)
    return Stop("budget", finished) if sequential.is_budget_used(run.sampling, finished, used_s) else None


def launches_left(sampling: Sampling, finished: int) -> int:
    """Return how many launches share what is left of the budget: those that the run carries out whatever it shows.

    At least 1, the launch that begins now. A run that stops by itself limits its rounds (`sequential.rounds_s`) and
    ends when the budget does, so it needs no smaller shares.
    """
    return max(1, sequential.least_launches(sampling) - finished)
