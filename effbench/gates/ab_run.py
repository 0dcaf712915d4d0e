"""Measure two sides interleaved, block by block (an A/B run). Each side writes an ordinary run of its own.

Each side has a worker process. While one times a block the other waits, so the two blocks of a pair are only
milliseconds apart. The order within a pair of rounds is ABBA or BAAB, at random, so that a linear drift cancels. As in
`runner`, the parent process only reads events and appends records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from effbench._version import __version__
from effbench.core.errors import CannotStart, EffbenchError, ForeignCode, NotComparable, Reason, StorageError
from effbench.gates import ab_pairs
from effbench.gates.ab_pairs import SIDES, Pair, SideWriter
from effbench.host import facts, temporary_folders
from effbench.host.emulation import EMULATED, is_emulated
from effbench.host.noise import Observation
from effbench.host.worker_process import Site, Worker, WorkerFailed, worker_environment
from effbench.runs.launch import MAX_FAILED_STARTS, UNRECORDED
from effbench.runs.recorder import Recording
from effbench.runs.runner import CostOf, Interrupted, Progress, Watch
from effbench.studies.plan import Plan
from effbench.timing.least_duration import Forecast
from effbench.timing.sampling import first_side, round_order

MIN_ROUNDS = 8
"""The fewest rounds of a launch, where the budget has no time for those planned. A median of fewer is too noisy."""

OWN_ENVIRONMENT = (
    "python.version",
    "torch.version",
    "torch.cpu_capability",
    "runtime.version",
    "gpu.cuda",
    "gpu.cudnn",
)
"""Conditions that may differ where a side has an interpreter of its own."""


class _Side:
    """One side of an A/B run: the site of its code, the run it writes, and the worker of the current launch."""

    def __init__(self, name: str, site: Site, record: Recording) -> None:
        self.name, self.site, self.record = name, site, record
        self.working = ""
        """The cell that the worker is at."""
        self._worker: Worker | None = None
        self._events: Iterator[dict[str, Any]] = iter(())
        self._launch, self._observed, self._at_s, self._is_recorded = 0, Observation(), 0.0, False
        self.on_event: Callable[[Mapping[str, Any]], None] = lambda event: None
        """Called with every event of the worker."""

    def start(self, stack: ExitStack, launch: int, cells: Collection[str]) -> None:
        """Start a worker. It prepares the cells and waits for orders."""
        plan = self.record.plan
        job = self.record.job(launch, 0, 0.0) | {"obeys": True}
        job["cells"] = [spec for spec in job["cells"] if spec["id"] in cells]
        if plan.device == "fake":
            # Each side needs its own seed: with the same noise both would have equal times.
            job["device_options"] |= {"seed": len(SIDES) * launch + SIDES.index(self.name)}
        variables = worker_environment(plan.threads, plan.allocator)
        self._launch, self.working = launch, ""
        self._observed, self._at_s, self._is_recorded = Observation(), 0.0, False
        self._worker = stack.enter_context(Worker(job, variables, plan.sampling.silence_s, self.site))
        self._events = self._worker.events()

    def wait_for(self, *kinds: str) -> str:
        """Record the worker's events until one of these kinds arrives. Raises WorkerFailed if it ends before."""
        for event in self._events:
            kind = str(event["event"])
            self.on_event(event)
            if kind == "working":
                self.working = event["cell"]
            elif kind not in UNRECORDED:
                self.record.record_event(self._launch, event)
            if kind == "ready":
                self._require_same_effbench(event)
                self.record.begin_launch(self._launch, self._launch, self._observed)
                self._is_recorded = True
            self._at_s = max(self._at_s, event.get("at_s", 0.0))
            if kind in kinds:
                return kind
        raise WorkerFailed("it ended the process without an error")

    def end(self) -> None:
        """Record the end of the worker, if one had started to measure."""
        if self._is_recorded:
            self._is_recorded = False
            self.record.end_launch(self._launch, self._observed, self._at_s)

    def send(self, **order: Any) -> None:
        assert self._worker is not None, "started in every launch"
        self._worker.send(order)

    def _require_same_effbench(self, ready: Mapping[str, Any]) -> None:
        if ready.get("effbench") != __version__:
            raise NotComparable(
                f"the {self.name}'s environment has effbench {ready.get('effbench', 'of an earlier version')} and this "
                f"one {__version__}; install the same in both"
            )


class AbRun:
    """Measures the two sides of one plan interleaved, one `launch` at a time. Use as a context manager.

    `sites` and `costs` are the baseline's and the candidate's. `planned` is the largest number of launches, for the
    progress bar. Blocks are written under `directory` (see `ab_pairs`) as soon as they are measured. A `forecast` gets
    the times of the first calls; a launch measures fewer rounds where its share of the budget has no room for all.
    `rounds` holds the number of each launch.
    """

    def __init__(
        self,
        plan: Plan,
        sites: Sequence[Site],
        directory: Path,
        costs: Sequence[CostOf],
        *,
        planned: int,
        command: str = "",
        watch: Watch = lambda progress: None,
        forecast: Forecast | None = None,
    ) -> None:
        self._forecast = forecast
        self.rounds: list[int] = []
        self.plan, self.directory, self.launches = plan, directory, 0
        self._planned, self._watch = planned, watch
        self._sites, self._costs, self._command = sites, costs, command
        self._stack = ExitStack()
        self._writers: list[SideWriter] = []
        self._next = self._failed_starts = 0

    def __enter__(self) -> AbRun:
        with ExitStack() as stack:
            self._writers = []
            for name in SIDES:
                self._writers.append(SideWriter(self.directory / name))
                stack.enter_context(self._writers[-1])
            records = [
                Recording(
                    self.plan, writer, stack.enter_context(temporary_folders.folder()), self._command, can_resume=False
                )
                for writer in self._writers
            ]
            self._sides = [_Side(*each) for each in zip(SIDES, self._sites, records, strict=True)]
            for side, cost_of in zip(self._sides, self._costs, strict=True):
                self._watch(Progress(0.0, f"counting costs of the {side.name}"))
                _count(side.record, cost_of)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def skipped(self) -> dict[str, dict[str, str]]:
        """The reasons why cells cannot be measured, by side and cell."""
        return {side.name: dict(side.record.skipped) for side in self._sides}

    def pair(self) -> Pair:
        """Both runs as measured so far. Needs at least one launch."""
        return Pair(*[writer.run() for writer in self._writers])

    def launch(self, cells: Collection[str]) -> bool:
        """Measure these cells in one fresh process a side, without the cells that a side cannot run.

        If a cell ends or hangs a process, that cell is left out and the launch repeated. Returns False when no cell is
        left. Raises NotComparable, StorageError, ForeignCode, CannotStart when a side's process cannot start, and
        Interrupted on Ctrl-C.
        """
        while able := [cell for cell in cells if not any(cell in side.record.skipped for side in self._sides)]:
            try:
                if self._try_launch(able):
                    self.launches += 1
                    return True
            except KeyboardInterrupt:
                raise Interrupted(self.directory) from None
            except StorageError as error:
                raise StorageError(f"{error}; what was measured before is kept in {self.directory}") from error
        return False

    def finish(self) -> Pair:
        """Mark both runs as complete and return the pair, read back from disk."""
        for side in self._sides:
            if side.record.stored is not None:
                side.record.writer.append("complete")
        self._watch(Progress(1.0, "done"))
        return ab_pairs.load(self.directory)

    def _try_launch(self, cells: Sequence[str]) -> bool:
        """Measure one launch of both sides; False if a process ended early. The side that starts first alternates."""
        number, side = self._next, self._sides[0]
        self._next += 1
        in_start_order = self._sides if number % 2 == 0 else self._sides[::-1]
        with ExitStack() as stack:
            for side in self._sides:
                stack.callback(side.end)  # after the workers are gone
            try:
                for side in in_start_order:
                    side.start(stack, number, cells)
                if self._forecast is not None:
                    self._forecast.begin_launch()
                    for side in self._sides:
                        side.on_event = lambda event: None
                    in_start_order[0].on_event = (
                        self._forecast.note_first_call if self.launches else self._update_forecast
                    )
                for side in in_start_order:
                    self._report_progress(0.0, f"starting the {side.name}")
                    side.wait_for("prepared")
                self._require_same_conditions()
                # The calls per block may be known from one side alone, if an earlier launch stopped early.
                known = {cell: number for side in self._sides for cell, number in side.record.calls.items()}
                calls = {cell: known[cell] for cell in cells if cell in known}
                for side in in_start_order:
                    self._report_progress(0.0, f"warming up the {side.name}")
                    # Blocks of both sides have the same number of calls: a different number would bias the ratio.
                    side.send(calls=calls)
                    side.wait_for("null")
                    warm = {cell: side.record.calls[cell] for cell in cells if cell in side.record.calls}
                    _require_same_calls(calls, warm)
                    calls = warm
                    self._failed_starts = 0
                total = self.plan.sampling.max_rounds
                if self._forecast is not None:
                    total = self._forecast.rounds(total)
                for side in self._order_blocks(number, cells, total):
                    side.wait_for("block", "skip")
                for side in in_start_order:
                    side.send(cell=None)
                    side.wait_for("facts")
            except WorkerFailed as failure:
                self._skip_working_cell(side, str(failure))
                return False
        self.rounds.append(total)
        return True

    def _order_blocks(self, launch: int, cells: Sequence[str], total: int) -> Iterator[_Side]:
        """Order one block after the other for `total` rounds, and yield the side that measures it."""
        for number in range(total):
            self._report_progress(number / total, f"round {number + 1}/{total}")
            order = round_order(cells, seed=self.plan.seed, launch=launch, round=number)
            for place, cell in enumerate(order):
                first = first_side(cell, seed=self.plan.seed, launch=launch, round=number)
                for turn, index in enumerate((first, 1 - first)):
                    if not any(cell in side.record.skipped for side in self._sides):
                        side = self._sides[index]
                        side.send(cell=cell, round=number, position=2 * place + turn)
                        yield side

    def _update_forecast(self, event: Mapping[str, Any]) -> None:
        assert self._forecast is not None, "only then is this a listener"
        if note := self._forecast.handle_event(event):
            self._report_progress(0.0, "warming up", note)

    def _report_progress(self, share: float, doing: str, note: str = "") -> None:
        done = min((self.launches + share) / max(self._planned, 1), 1.0)
        self._watch(Progress(done, f"launch {self.launches + 1} of at most {self._planned}: {doing}", note))

    def _require_same_conditions(self) -> None:
        stored = [side.record.stored for side in self._sides]
        if stored[0] is None or stored[1] is None:
            return
        if is_emulated(stored[0]):
            raise NotComparable(f"{EMULATED}, so nothing can be judged by them; measure on the hardware itself")
        ignored = OWN_ENVIRONMENT if any(site.python for site in self._sites) else ()
        different = [found for found in facts.differences(stored[0], stored[1]) if found.field not in ignored]
        if different:
            raise NotComparable(f"the two sides run under different conditions: {', '.join(map(str, different))}")

    def _skip_working_cell(self, side: _Side, ending: str) -> None:
        """Leave out the cell that the worker was at: it may have ended the process, or hung."""
        if side.working in side.record.skipped:
            return  # the worker has reported the reason itself
        if side.working:
            side.record.skip(side.working, ending)
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            needs = "" if side.site.python is None else "; its environment needs the same effbench, and torch"
            raise CannotStart(f"the {side.name}'s measuring process could not start: {ending}{needs}")


def _require_same_calls(sent: Mapping[str, int], received: Mapping[str, int]) -> None:
    """Raise EffbenchError where a side uses another number of calls per block than it was ordered to."""
    for cell, number in received.items():
        if sent.get(cell, number) != number:
            raise EffbenchError(
                f"the sides make blocks of {sent[cell]} and {number} calls of {cell}, which cannot be compared; "
                "measure again, and report this"
            )


def _count(record: Recording, cost_of: CostOf) -> None:
    for cell in record.plan.cells:
        try:
            record.costs[cell.id] = cost_of(cell)
        except ForeignCode:
            raise
        except EffbenchError as error:
            record.costs[cell.id] = None
            record.skipped[cell.id] = Reason.of(error)
