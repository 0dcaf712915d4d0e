"""Measure two sides in alternation: launch after launch, block by block, each side an ordinary run of its own.

Both sides have a process. While one times a block the other waits for its turn, so what drifts between them is what
drifts within some milliseconds. The order within a pair of rounds is ABBA or BAAB, at random, in which a linear drift
cancels. As in `runner`, this process only reads events and appends records.
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
from effbench.runs.recorder import Recording
from effbench.runs.runner import STARTS, UNRECORDED, CostOf, Interrupted, Progress, Watch
from effbench.studies.plan import Plan
from effbench.timing.least_duration import Forecast
from effbench.timing.sampling import first_side, round_order

LEAST_ROUNDS = 8
"""Of a launch, where the budget has no time for those planned: a median of fewer says little of the launch."""

OWN_ENVIRONMENT = (
    "python.version",
    "torch.version",
    "torch.cpu_capability",
    "runtime.version",
    "gpu.cuda",
    "gpu.cudnn",
)
"""Conditions that differ on purpose where a side has an interpreter of its own."""


class _Party:
    """One side: where its code lies, the run it writes, and in a launch its worker."""

    def __init__(self, name: str, site: Site, record: Recording) -> None:
        self.name, self.site, self.record = name, site, record
        self.working = ""
        """The cell that its worker works on."""
        self._worker: Worker | None = None
        self._events: Iterator[dict[str, Any]] = iter(())
        self._launch, self._observed, self._at_s, self._is_recorded = 0, Observation(), 0.0, False
        self.overheard: Callable[[Mapping[str, Any]], None] = lambda event: None
        """Hears every event too."""

    def start(self, stack: ExitStack, launch: int, cells: Collection[str]) -> None:
        """Start its worker, which prepares the cells and waits."""
        plan = self.record.plan
        job = self.record.job(launch, 0, 0.0) | {"obeys": True}
        job["cells"] = [spec for spec in job["cells"] if spec["id"] in cells]
        if plan.device == "fake":
            # Two sides with the same noise would agree to the last digit.
            job["device_options"] |= {"seed": len(SIDES) * launch + SIDES.index(self.name)}
        variables = worker_environment(plan.threads, plan.allocator)
        self._launch, self.working = launch, ""
        self._observed, self._at_s, self._is_recorded = Observation(), 0.0, False
        self._worker = stack.enter_context(Worker(job, variables, plan.sampling.silence_s, self.site))
        self._events = self._worker.events()

    def hear(self, *kinds: str) -> str:
        """Write down what its worker says until it says one of these. Raises WorkerFailed when it ends instead."""
        for event in self._events:
            kind = str(event["event"])
            self.overheard(event)
            if kind == "working":
                self.working = event["cell"]
            elif kind not in UNRECORDED:
                self.record.take(self._launch, event)
            if kind == "ready":
                self._require_same_effbench(event)
                self.record.begin_launch(self._launch, self._launch, self._observed)
                self._is_recorded = True
            self._at_s = max(self._at_s, event.get("at_s", 0.0))
            if kind in kinds:
                return kind
        raise WorkerFailed("it ended the process without an error")

    def end(self) -> None:
        """Write when its worker was gone, where there was one."""
        if self._is_recorded:
            self._is_recorded = False
            self.record.end_launch(self._launch, self._observed, self._at_s)

    def tell(self, **order: Any) -> None:
        assert self._worker is not None, "started in every launch"
        self._worker.send(order)

    def _require_same_effbench(self, ready: Mapping[str, Any]) -> None:
        if ready.get("effbench") != __version__:
            raise NotComparable(
                f"the {self.name}'s environment has effbench {ready.get('effbench', 'of an earlier version')} and this "
                f"one {__version__}; install the same in both"
            )


class Duel:
    """Two sides of one plan, measured in alternation as many launches as are asked for. Use as a context manager.

    `sites` and `costs` are the baseline's and the candidate's; `planned` is how many launches there may be, for the
    progress. Everything is under `directory` (`pairs`) as soon as it is measured. A `forecast` is told of the first
    calls; where fewer rounds fit into its budget, each launch measures so many (`rounds`).
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
        self._forecast, self.rounds = forecast, plan.sampling.max_rounds
        self.plan, self.directory, self.launches = plan, directory, 0
        self._planned, self._watch = planned, watch
        self._sites, self._costs, self._command = sites, costs, command
        self._stack = ExitStack()
        self._writers: list[SideWriter] = []
        self._next = self._failed_starts = 0

    def __enter__(self) -> Duel:
        with ExitStack() as stack:
            self._writers = []
            for side in SIDES:
                self._writers.append(SideWriter(self.directory / side))
                stack.enter_context(self._writers[-1])
            records = [
                Recording(
                    self.plan, writer, stack.enter_context(temporary_folders.folder()), self._command, can_resume=False
                )
                for writer in self._writers
            ]
            self._parties = [_Party(*each) for each in zip(SIDES, self._sites, records, strict=True)]
            for party, cost_of in zip(self._parties, self._costs, strict=True):
                self._watch(Progress(0.0, f"counting costs of the {party.name}"))
                _count(party.record, cost_of)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def skipped(self) -> dict[str, dict[str, str]]:
        """Why cells cannot be measured: by side, by cell."""
        return {party.name: dict(party.record.skipped) for party in self._parties}

    def pair(self) -> Pair:
        """What is measured so far, after the first launch."""
        return Pair(*[writer.run() for writer in self._writers])

    def launch(self, cells: Collection[str]) -> bool:
        """Measure these cells, but those that a side cannot run, in a fresh process of each side.

        A cell that ends or hangs a process is left out, and the launch made again. False when no cell is left. Raises
        NotComparable, StorageError, CannotStart when a side's process cannot, ForeignCode, Interrupted on Ctrl-C.
        """
        while able := [cell for cell in cells if not any(cell in party.record.skipped for party in self._parties)]:
            try:
                if self._try(able):
                    self.launches += 1
                    return True
            except KeyboardInterrupt:
                raise Interrupted(self.directory) from None
            except StorageError as error:
                raise StorageError(f"{error}; what was measured before is kept in {self.directory}") from error
        return False

    def finish(self) -> Pair:
        """Mark both runs as complete; the whole pair, read back from the disk."""
        for party in self._parties:
            if party.record.stored is not None:
                party.record.writer.append("complete")
        self._watch(Progress(1.0, "done"))
        return ab_pairs.load(self.directory)

    def _try(self, cells: Sequence[str]) -> bool:
        """One launch of both sides; False when a process ended in it. Each side starts first in every other launch."""
        number, party = self._next, self._parties[0]
        self._next += 1
        starters = self._parties if number % 2 == 0 else self._parties[::-1]
        with ExitStack() as stack:
            for party in self._parties:
                stack.callback(party.end)  # after the workers are gone
            try:
                for party in starters:
                    party.start(stack, number, cells)
                if self._forecast is not None and not self.launches:
                    starters[0].overheard = self._overhear
                for party in starters:
                    self._say(0.0, f"starting the {party.name}")
                    party.hear("prepared")
                self._require_alike()
                # Also what one side alone has found, in a launch that came no further.
                known = {cell: number for party in self._parties for cell, number in party.record.calls.items()}
                calls = {cell: known[cell] for cell in cells if cell in known}
                for party in starters:
                    self._say(0.0, f"warming up the {party.name}")
                    # The same number of calls in every block of either side: another one is a bias of its own.
                    party.tell(calls=calls)
                    party.hear("null")
                    warm = {cell: party.record.calls[cell] for cell in cells if cell in party.record.calls}
                    _require_same_calls(calls, warm)
                    calls = warm
                    self._failed_starts = 0
                if self._forecast is not None and not self.launches:
                    self.rounds = self._forecast.rounds(self.rounds)
                for party in self._alternate(number, cells):
                    party.hear("block", "skip")
                for party in starters:
                    party.tell(cell=None)
                    party.hear("facts")
            except WorkerFailed as failure:
                self._blame(party, str(failure))
                return False
        return True

    def _alternate(self, launch: int, cells: Sequence[str]) -> Iterator[_Party]:
        """Give one order after the other, and yield whose it is."""
        total = self.rounds
        for number in range(total):
            self._say(number / total, f"round {number + 1}/{total}")
            order = round_order(cells, seed=self.plan.seed, launch=launch, round=number)
            for place, cell in enumerate(order):
                first = first_side(cell, seed=self.plan.seed, launch=launch, round=number)
                for turn, side in enumerate((first, 1 - first)):
                    if not any(cell in party.record.skipped for party in self._parties):
                        party = self._parties[side]
                        party.tell(cell=cell, round=number, position=2 * place + turn)
                        yield party

    def _overhear(self, event: Mapping[str, Any]) -> None:
        assert self._forecast is not None, "only then is anything overheard"
        if note := self._forecast.take(event):
            self._say(0.0, "warming up", note)

    def _say(self, share: float, doing: str, note: str = "") -> None:
        done = min((self.launches + share) / max(self._planned, 1), 1.0)
        self._watch(Progress(done, f"launch {self.launches + 1} of at most {self._planned}: {doing}", note))

    def _require_alike(self) -> None:
        stored = [party.record.stored for party in self._parties]
        if stored[0] is None or stored[1] is None:
            return
        if is_emulated(stored[0]):
            raise NotComparable(f"{EMULATED}, so nothing can be judged by them; measure on the hardware itself")
        ignored = OWN_ENVIRONMENT if any(site.python for site in self._sites) else ()
        unlike = [found for found in facts.differences(stored[0], stored[1]) if found.field not in ignored]
        if unlike:
            raise NotComparable(f"the two sides run under unlike conditions: {', '.join(map(str, unlike))}")

    def _blame(self, party: _Party, ending: str) -> None:
        """Whichever cell was at work is left out from now on: it may have ended the process, or hung."""
        if party.working in party.record.skipped:
            return  # it has said why itself
        if party.working:
            party.record.skip(party.working, ending)
            return
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            needs = "" if party.site.python is None else "; its environment needs the same effbench, and torch"
            raise CannotStart(f"the {party.name}'s measuring process could not start: {ending}{needs}")


def _require_same_calls(told: Mapping[str, int], heard: Mapping[str, int]) -> None:
    """Raise EffbenchError where a side makes blocks of another number of calls than it was told."""
    for cell, number in heard.items():
        if told.get(cell, number) != number:
            raise EffbenchError(
                f"the sides make blocks of {told[cell]} and {number} calls of {cell}, which cannot be compared; "
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
