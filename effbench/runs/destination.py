"""Options of the Python API for storing a run, showing its progress, and carrying out a part of it."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.measure_options import MeasureKeywords, option_metadata
from effbench.core.run import Run
from effbench.host import temporary_folders
from effbench.runs import progress_bar, run_file, runner
from effbench.runs.runner import Watch


class _Ending(TypedDict):
    launches_now: int | None
    stops_if_disturbed: bool
    can_resume: bool


@dataclass(frozen=True)
class Destination:
    """Where a run is stored, how its progress is shown, and how much of it is carried out now."""

    out: str | Path | None = field(
        default=None, metadata=option_metadata("Folder of the run. Default: a new one under results/runs/.")
    )
    save: bool = field(
        default=True,
        metadata=option_metadata("False keeps nothing on disk: the results hold everything that was measured."),
    )
    progress: bool | None = field(
        default=None,
        metadata=option_metadata(
            "Whether to show a progress bar. Default: in a notebook, and where standard error is a terminal."
        ),
    )
    watch: Watch | None = field(
        default=None, metadata=option_metadata("Called with each `runs.runner.Progress`, instead of the bar.")
    )
    command: str = field(default="", metadata=option_metadata("Command line to record in the run."))
    launches_now: int | None = field(
        default=None,
        metadata=option_metadata(
            "Carry out so many launches now and leave the others to `resume`; `Run.complete` of the returned run is "
            "False while any is left. Default: all of them, each at its time."
        ),
    )

    @property
    def ending(self) -> _Ending:
        """The arguments of `runner.execute` that say whether a run may end before its last launch and go on later.

        A run that is not saved cannot go on later. Raises InvalidValue if `launches_now` contradicts that.
        """
        if self.launches_now is not None and not self.save:
            raise InvalidValue("save=False keeps no folder to go on with later; leave launches_now out")
        return {"launches_now": self.launches_now, "stops_if_disturbed": self.save, "can_resume": self.save}

    @contextmanager
    def folder(self, name: str, device: str) -> Iterator[Path]:
        """Yield the run's folder, a temporary one if it is not saved. Raises InvalidValue if `out` contradicts that."""
        if self.save:
            yield Path(self.out) if self.out is not None else new_directory(name, device)
            return
        if self.out is not None:
            raise InvalidValue(f"save=False keeps no folder, and out names {self.out}; leave one of them out")
        with temporary_folders.folder() as scratch:
            try:
                yield scratch / "run"
            except runner.Interrupted:
                raise KeyboardInterrupt("interrupted; nothing is kept, since save=False") from None

    @contextmanager
    def progress_watch(self) -> Iterator[Watch]:
        """Yield the `Watch` that shows progress until the block ends."""
        if self.watch is not None:
            yield self.watch
            return
        with progress_bar.bar_watch(self.progress) as shown:
            yield shown

    def without_temporary_path(self, run: Run) -> Run:
        """Return the run, without its path if the folder was temporary."""
        return run if self.save else dataclasses.replace(run, path=None)


class WatchKeywords(TypedDict, total=False):
    """The keyword arguments of calls that measure without storing a run."""

    progress: bool | None
    watch: Watch | None


class RunKeywords(WatchKeywords, total=False):
    """Every field of `Destination` as a typed keyword argument (PEP 692)."""

    out: str | Path | None
    save: bool
    command: str
    launches_now: int | None


def split_keywords(given: Mapping[str, object]) -> tuple[Destination, dict[str, object]]:
    """Split keyword arguments into a `Destination` and the measuring options (`MeasureKeywords`).

    Raises TypeError for any other, as Python does, with the nearest option.
    """
    names, options = RunKeywords.__annotations__, MeasureKeywords.__annotations__
    for name in given:
        if name not in names and name not in options:
            raise TypeError(str(UnknownName("option", name, (*options, *names))))
    own: dict[str, Any] = {name: value for name, value in given.items() if name in names}
    return Destination(**own), {name: value for name, value in given.items() if name not in names}


def new_directory(name: str, device: str) -> Path:
    """Return a folder under results/runs that does not exist yet, named after time, study and device."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    # A study's name may contain any character; a folder's name is restricted to safe ones.
    stem = f"{stamp}-{re.sub(r'[^A-Za-z0-9_]+', '-', name)[:60]}-{device.replace(':', '')}"
    number, path = 1, run_file.RUNS / stem
    while path.exists():
        number += 1
        path = run_file.RUNS / f"{stem}-{number}"
    return path
