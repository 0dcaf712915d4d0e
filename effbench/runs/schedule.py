"""When the launches of a run begin, when it stops before all of them are done, and what is left of a stored run."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from effbench.core.inputs import whole_number
from effbench.core.run import Run
from effbench.core.study import Cell, Sampling
from effbench.runs.progress import Progress, Watch, launch_text
from effbench.runs.recorder import resume_command
from effbench.studies.plan import Bundled

DISTURBED_LAUNCHES = 2
"""A run stops after this many disturbed launches."""

WORTH_SAVING_S = 10.0
"""With less than this left of its budget, a disturbed run goes on to its end."""

POLL_S = 10.0
"""While waiting, look at the clock this often: it may be set, and the machine may have been suspended."""


@dataclass(frozen=True)
class Timer:
    """Tells the time, in seconds since the epoch, and waits, at most `poll_s` before the time is read again."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    poll_s: float = POLL_S


def scripted_timer() -> Timer:
    """Return the timer of the fake device, on which waiting takes no time."""
    slept: list[float] = []
    return Timer(lambda: time.time() + sum(slept), slept.append, math.inf)


class Schedule:
    """The launches that one process carries out, and when each begins.

    Parameters
    ----------
    sampling
        Its launches are spread evenly over `Sampling.spread_s`.
    timer
        Tells the time and waits.
    begun_s
        Start of the run's first launch, in seconds since the epoch; None where it has not begun.
    launches_now
        Carry out so many launches without waiting, and no more; None for all of them, each at its time.
    stops_if_disturbed
        Whether `DISTURBED_LAUNCHES` disturbed launches end the run.

    Raises
    ------
    InvalidValue
        If `launches_now` is no whole number of 1 or more.
    """

    def __init__(
        self,
        sampling: Sampling,
        timer: Timer,
        *,
        begun_s: float | None = None,
        launches_now: int | None = None,
        stops_if_disturbed: bool = False,
    ) -> None:
        self._sampling, self._timer, self._begun_s = sampling, timer, begun_s
        self._now = None if launches_now is None else require_launches_now(launches_now)
        self._stops_if_disturbed = stops_if_disturbed
        self._done, self._disturbed = 0, 0
        self.stop_reason = ""
        """Why the run stops before its last launch; "" while nothing forbids to go on."""

    @property
    def is_over(self) -> bool:
        """Whether this process carries out no further launch."""
        return bool(self.stop_reason) or (self._now is not None and self._done >= self._now)

    def wait_for(self, slot: int, watch: Watch) -> None:
        """Wait until the launch of this slot shall begin. Returns at once if its time has passed."""
        if self._begun_s is None:
            self._begun_s = self._timer.now()
        at_s = planned_start_s(self._sampling, self._begun_s, slot)
        if self._now is not None or self._timer.now() >= at_s:
            return
        doing = f"{launch_text(self._sampling, slot + 1)} begins at {_clock_time(at_s, self._timer.now())}"
        note = doing
        while (left_s := at_s - self._timer.now()) > 0:
            watch(Progress(slot / self._sampling.launches, doing, note))
            note = ""
            self._timer.sleep(min(left_s, self._timer.poll_s))

    def end_launch(self, slot: int, disturbance: str, watch: Watch, resume: str) -> None:
        """Count a finished launch. `disturbance` says what disturbed it; "" if nothing did.

        `resume` is the command that finishes the run; "" where nothing can.
        """
        self._done += 1
        if not disturbance:
            return
        self._disturbed += 1
        launch, launches = slot + 1, self._sampling.launches
        is_last = launch == launches
        left_s = self._sampling.budget_s * (launches - launch) / launches
        if self._stops_if_disturbed and self._disturbed >= DISTURBED_LAUNCHES and left_s >= WORTH_SAVING_S:
            self.stop_reason = (
                f"stopped after launch {launch} of {launches}, the second that was disturbed: {disturbance}"
            )
            return
        later = "" if is_last or not resume else f", or Ctrl-C and finish later with: {resume}"
        advice = "" if is_last else f"; stop other work{later}"
        said = f"{disturbance} in launch {launch}; the result may be flagged contaminated{advice}"
        watch(Progress(launch / launches, f"{launch_text(self._sampling, launch)}: done", said))


def require_launches_now(number: int, name: str = "launches_now") -> int:
    """Return the number of launches to carry out now. Raises InvalidValue unless it is a whole number of 1 or more."""
    return whole_number(number, name)


def planned_start_s(sampling: Sampling, begun_s: float, slot: int) -> float:
    """Return when the launch of this slot is planned to begin, on the clock of `begun_s`."""
    return begun_s + slot * sampling.spread_s / max(sampling.launches - 1, 1)


def _clock_time(at_s: float, now_s: float) -> str:
    """Return the local time, with the date unless it is today's."""
    at, now = datetime.datetime.fromtimestamp(at_s), datetime.datetime.fromtimestamp(now_s)
    return at.strftime("%H:%M" if at.date() == now.date() else "%Y-%m-%d %H:%M")


# --- stored runs --------------------------------------------------------------------------------------


def why_no_resume(cells: Iterable[Cell], is_bundled: bool) -> str:
    """Return why no later process can finish a run of these cells; "" where one can.

    The run of a bundle (`is_bundled`) finds the values of inputs there.
    """
    for cell in cells:
        if cell.case.model.startswith("pickle:"):
            return f"{cell.id} is a module of a Python session"
        if given := [] if is_bundled else [item for item in cell.case.all_inputs if item.sha256]:
            return f"input {given[0]} of {cell.id} is a tensor of a Python session (SHA-256 {given[0].sha256[:12]}…)"
    return ""


def begun_s(run: Run) -> float | None:
    """Return when the first launch began, in seconds since the epoch; None where that is not recorded."""
    start = run.launches[0].start if run.launches else ""
    return datetime.datetime.fromisoformat(start).timestamp() if start else None


def finished_slots(run: Run) -> set[int]:
    """Return the slots of the plan whose rounds have ended."""
    return {launch.slot for launch in run.launches if launch.stopped != "interrupted"}


def next_launch_at(run: Run) -> str | None:
    """Return when the next launch of a spread run is planned, in UTC (ISO 8601); None if nothing is planned."""
    left = set(range(run.sampling.launches)) - finished_slots(run)
    begun = begun_s(run)
    if run.complete or not left or begun is None or not run.sampling.spread_s:
        return None
    at_s = planned_start_s(run.sampling, begun, min(left))
    try:
        at = datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):  # a file may hold any number
        return None
    return at.isoformat(timespec="seconds")


def standing(run: Run, bundle: Path | None = None) -> str:
    """Return a line such as "2 of 5 launches done; go on with: effbench run --resume DIR"; "" for a complete run.

    `bundle` is the folder of the bundle that the run measures, where it is known.
    """
    if run.complete:
        return ""
    said = f"{len(finished_slots(run))} of {run.sampling.launches} launches done"
    is_bundled = bundle is not None or bool(run.environment.facts.get("run.bundle"))
    if run.path is None or why_no_resume((result.cell for result in run.results), is_bundled):
        return said
    bundled = Bundled(str(bundle or "BUNDLE"), "") if is_bundled else None
    return f"{said}; go on with: {resume_command(Path(run.path).parent, bundled)}"
