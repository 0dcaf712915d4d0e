"""The ledger of a machine's sittings: a small file in the cache folder that says how far its results scatter.

One JSON line per run and sitting holds logarithms of times and ratios with their variances: of the yardstick, and of
the run's cells under a hash of everything that defines them. It holds no names, no paths and no code. The file is only
appended to, and cut to its last sittings where it grows beyond `MOST_BYTES`. A ledger that cannot be trusted is left as
it is, and one sentence says why; intervals then include the scatter of reference machines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from effbench.analysis import between_sittings, run_sittings, stats
from effbench.analysis.between_sittings import YARDSTICK_FIGURES, Sitting, Value
from effbench.analysis.run_sittings import span_s
from effbench.analysis.summary import clock_of, is_contaminated, undisturbed_rounds
from effbench.core import decoding
from effbench.core.cache_folder import cache_folder
from effbench.core.run import Launch, Result, Run, Timing
from effbench.core.sittings import BetweenSittings
from effbench.host import facts

FORMAT = 1

MOST_BYTES, KEPT_BYTES = 64_000, 32_000
"""Beyond the first size the file is cut to the second: 20 to 200 sittings, by the number of cells."""

LOCK_S = 5.0
"""Longest time to wait for another run that writes to the ledger."""

TOO_LARGE_BYTES = 4 * MOST_BYTES
"""No ledger of effbench grows so large, so one that has is not read."""

LARGEST_LOG, LARGEST_VARIANCE = 30.0, 100.0
"""No time or ratio of a network has a larger logarithm or variance: 30 is a factor of 10 billion."""

CLOCK_S = 120.0
"""A sitting may lie this far in the future, as on a machine whose clock is being corrected."""

_Series = Mapping[int, Sequence[float]]
"""Log values by launch."""


class UnusableLedger(Exception):
    """The ledger cannot be trusted. The message says why."""


def look_up(run: Run) -> BetweenSittings:
    """Estimate the scatter between sittings from the machine's ledger, as it is before this run.

    Never raises for a ledger that cannot be read: the scatter is then that of reference machines, and `problem` says
    why.
    """
    path, machine = _path(run)
    keys = {result.cell.id: cell_key(run, result) for result in run.results}
    ends = [span[1] for launch in run.launches if (span := span_s(launch)) is not None]
    try:
        known = read(path, machine, now_s=max([time.time(), *ends]))
    except UnusableLedger as error:
        shown = f"effbench/sittings/{path.name} in your cache folder"
        return between_sittings.estimate((), keys, f"{error}; delete {shown} to begin anew")
    except OSError as error:
        return between_sittings.estimate((), keys, f"the ledger of sittings cannot be read: {error.strerror or error}")
    if not known and any(other != path for other in path.parent.glob(f"{path.name.partition('-')[0]}-*.jsonl")):
        # As in a copied cache, or a home folder that several machines share.
        return between_sittings.estimate((), keys, "the ledgers of sittings in the cache are of other machines")
    if not known and (why := _why_not_writable(path.parent)):
        return between_sittings.estimate((), keys, f"the ledger of sittings cannot be written: {why}")
    torch = _torch(run)
    same = [item for item in known if item.torch == torch]
    if known and not same:
        other = ", ".join(dict.fromkeys(item.torch for item in known))
        problem = f"this machine's sittings were measured with torch {other}, not {torch}"
        return between_sittings.estimate((), keys, problem)
    return between_sittings.estimate(same, keys)


def add(run: Run) -> None:
    """Add the sittings of a run to the machine's ledger. Never raises: without a ledger, nothing measured is lost.

    A ledger that cannot be trusted is left as it is.
    """
    path, machine = _path(run)
    keys = {result.cell.id: cell_key(run, result) for result in run.results}
    new = sittings_of(run, keys, _torch(run))
    with suppress(UnusableLedger, OSError):
        read(path, machine, now_s=max([time.time(), *(item.end_s for item in new)]))
        _append(path, machine, new)


def _path(run: Run) -> tuple[Path, str]:
    """Return the path of the ledger for the machine, device and threads of a run, and the machine's id."""
    machine = facts.machine_id()
    return cache_folder() / "sittings" / f"{facts.ledger_key(run.environment)}-{machine}.jsonl", machine


# --- reading and writing ---------------------------------------------------------------------------------------------


def read(path: Path, machine: str, now_s: float) -> list[Sitting]:
    """Read the sittings of this machine; none without a file.

    Raises UnusableLedger for a file of another user or machine, of a newer effbench, with a damaged line, or with
    sittings after `now_s`. Raises OSError where it cannot be read.
    """
    try:
        about = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return []
    if not stat.S_ISREG(about.st_mode):
        raise UnusableLedger("the ledger of sittings is no plain file")
    if hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        raise UnusableLedger("the ledger of sittings belongs to another user")
    if about.st_size > TOO_LARGE_BYTES:
        raise UnusableLedger("the ledger of sittings is larger than effbench makes one")
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]  # a process that was killed may leave half a line
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            record = decoding.parse(line)
            if number == 1:
                _require_ours(record, machine)
                continue
            found.append(_decode(record))
        except (ValueError, TypeError, LookupError, RecursionError):
            raise UnusableLedger(f"line {number} of the ledger of sittings is damaged") from None
    if any(item.end_s > now_s + CLOCK_S for item in found):
        raise UnusableLedger("the ledger of sittings holds sittings of the future, so the clock was changed")
    return found


def _require_ours(header: Any, machine: str) -> None:
    """Raise UnusableLedger for the header of another machine's or a newer effbench's ledger, ValueError for none."""
    if not isinstance(header, dict) or not isinstance(header.get("effbench_sittings"), int):
        raise ValueError("no header")
    if header["effbench_sittings"] > FORMAT:
        raise UnusableLedger("the ledger of sittings was written by a newer effbench")
    if header.get("machine") != machine:
        raise UnusableLedger("the ledger of sittings was copied from another machine")


def _decode(record: Any) -> Sitting:
    """Decode one line. Raises ValueError for impossible values."""
    found = decoding.decode(record, Sitting)
    values = [*found.yardstick.values(), *(value for each in found.cells.values() for value in each.values())]
    are_possible = all(abs(value) <= LARGEST_LOG and 0 <= error <= LARGEST_VARIANCE for value, error in values)
    is_span = math.isfinite(found.start_s) and math.isfinite(found.end_s) and found.start_s <= found.end_s
    if not are_possible or not is_span or len(found.torch) > 20 or not found.torch.isprintable():
        raise ValueError("impossible values")
    return found


def _why_not_writable(folder: Path) -> str:
    """Return why no ledger can be written into this folder; "" where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return "" if os.access(folder, os.W_OK) else "its folder is read-only"


def _append(path: Path, machine: str, sittings: Iterable[Sitting]) -> None:
    """Append the sittings, and cut the file if it has grown too large.

    Raises OSError, and UnusableLedger if another run holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = _line({"effbench_sittings": FORMAT, "machine": machine})
    lines = [_line(dataclasses.asdict(item)) for item in sittings]
    try:
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_S):
            data = path.read_bytes() if path.exists() else b""
            size = data.rfind(b"\n") + 1  # a process that was killed may have left half a line
            if size + sum(map(len, lines)) <= MOST_BYTES:
                with path.open("ab") as file:
                    file.truncate(size)
                    file.write(b"".join(lines if size else [header, *lines]))
                return
            every = [*data[:size].splitlines(keepends=True)[1:], *lines]
            sizes = itertools.accumulate(len(line) for line in reversed(every))
            kept = sum(held <= KEPT_BYTES for held in sizes)
            half = path.with_suffix(".new")
            half.write_bytes(b"".join([header, *every[len(every) - max(kept, 1) :]]))
            half.replace(path)
    except Timeout:
        raise UnusableLedger("another run holds the ledger of sittings") from None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


# --- what a run adds -------------------------------------------------------------------------------------------------


def sittings_of(run: Run, keys: Mapping[str, str], torch: str) -> list[Sitting]:
    """Return what a run measured in each of its sittings. A launch without recorded times is left out."""
    of_launch = run_sittings.sitting_of_launches(run)
    groups: dict[int, list[Launch]] = {}
    for launch in run.launches:
        if span_s(launch) is not None:
            groups.setdefault(of_launch[launch.number], []).append(launch)
    found = []
    for launches in groups.values():
        spans = [span for launch in launches if (span := span_s(launch)) is not None]
        numbers = {launch.number for launch in launches}
        cells = {
            keys[result.cell.id]: values
            for result in run.results
            # A module of a Python session has another path each time, so it would never be recognised.
            if not is_contaminated(result)
            and not result.cell.case.model.startswith("pickle:")
            and (values := _cell_values(run, result, numbers))
        }
        found.append(
            Sitting(
                round(min(start for start, _ in spans), 1),
                round(max(end for _, end in spans), 1),
                torch,
                _yardstick_values(launches, run.clock),
                cells,
            )
        )
    return [item for item in found if item.yardstick or item.cells]


def _cell_values(run: Run, result: Result, launches: set[int]) -> dict[str, Value]:
    """Return the figures of one cell in these launches."""
    rounds = {place: block for place, block in undisturbed_rounds(result).items() if place[0] in launches}
    series: dict[str, _Series] = {
        "latency": _by_launch((launch, block.per_call_s()) for (launch, _), block in rounds.items()),
        "busy": _by_launch((launch, block.per_call_s(run.clock)) for (launch, _), block in rounds.items()),
    }
    case = run.experiment.reference_of(result.cell.case)
    reference = next((item for item in run.results if case is not None and item.cell.id == case.id), None)
    if reference is not None and reference is not result:
        others = undisturbed_rounds(reference)
        clock = clock_of(run.clock, rounds, others)
        pairs = ((place, block.per_call_s(clock)) for place, block in rounds.items() if place in others)
        series["ratio"] = _by_launch(
            (place[0], above / below) for place, above in pairs if above and (below := others[place].per_call_s(clock))
        )
    values = {figure: _value(each) for figure, each in series.items()}
    return {figure: value for figure, value in values.items() if value is not None}


def _yardstick_values(launches: Sequence[Launch], clock: str) -> dict[str, Value]:
    """Return the figures of the yardstick in these launches."""
    series: dict[str, dict[int, list[float]]] = {name: {} for name in YARDSTICK_FIGURES}
    for launch in launches:
        pairs = list(zip(*(launch.yardstick.get(name, ()) for name in ("dense", "depthwise")), strict=False))
        # A block that others disturbed does not show the sitting.
        pairs = [pair for pair in pairs if not any(timing.flags for timing in pair)]
        for timings in pairs:
            times = [_per_call_s(timing, "wall") for timing in timings]
            own = [_per_call_s(timing, clock) for timing in timings]
            if min(*times, *own) > 0:
                series["dense"].setdefault(launch.number, []).append(math.log(times[0]))
                series["depthwise"].setdefault(launch.number, []).append(math.log(times[1]))
                series["ratio"].setdefault(launch.number, []).append(math.log(own[1] / own[0]))
    values = {name: _value(each) for name, each in series.items()}
    return {name: value for name, value in values.items() if value is not None}


def _per_call_s(timing: Timing, clock: str) -> float:
    spent = {"wall": timing.wall_ns, "cpu": timing.cpu_ns, "device": timing.device_ns}[clock]
    return (timing.wall_ns if spent is None else spent) / timing.calls * 1e-9


def _by_launch(values: Iterable[tuple[int, float | None]]) -> _Series:
    found: dict[int, list[float]] = {}
    for launch, value in values:
        if value:
            found.setdefault(launch, []).append(math.log(value))
    return found


def _value(by_launch: _Series) -> Value | None:
    """Return the median of launch medians, as tables show it, and the variance of their mean. None below two launches:
    one shows no variance.
    """
    medians = [stats.median(values) for values in by_launch.values() if values]
    if len(medians) < 2:
        return None
    return round(stats.median(medians), 5), float(f"{stats.deviation(medians) ** 2 / len(medians):.3g}")


def cell_key(run: Run, result: Result) -> str:
    """Return a hash of everything that defines a cell: network, files, input, setting, reference, clock, versions.

    Files are those of the run's networks. A network of the zoo is defined by effbench's version.
    """
    known = run.environment.facts
    reference = run.experiment.reference_of(result.cell.case)
    defined = {
        "cell": dataclasses.asdict(result.cell),
        "reference": None if reference is None else reference.id,
        "clock": run.clock,
        "files": sorted(run.files.items()) if ":" in result.cell.case.model else [],
        "environment": facts.fingerprint(run.environment),
        "effbench": known.get("effbench.version"),
    }
    text = json.dumps(defined, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _torch(run: Run) -> str:
    """Return torch's version by major and minor number; "none" where the run did without."""
    version = run.environment.facts.get("torch.version")
    return ".".join(str(version).split(".")[:2]) if version else "none"
