"""Run: python -m benchmarks.fleet [PART ...] [--out DIR] [--windows N] [--window-s S] [--quick]

Measures what a fleet costs: an idle worker (idle), a hundred machines at once (hundred), a step beside its launch
(step), a bundle on its way (bundle), and what a worker does to blocks measured beside it (disturbance, which needs a
quiet machine and takes five minutes). Each part writes DIR/PART.json with every raw value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.fleet import bundle_time, disturbance, hundred, idle, record, step_cost
from benchmarks.fleet.record import Outcome, Target

PARTS: Mapping[str, tuple[Callable[..., Outcome], Mapping[str, Any]]] = {
    "idle": (idle.measure, {"seconds": 1.0, "settle_s": 0.2}),
    "hundred": (hundred.measure, {"machines": 5, "launches": 2, "launch_s": 0.1, "trips": 5, "idle_s": 0.2}),
    "step": (step_cost.measure, {"launches": 1}),
    "bundle": (bundle_time.measure, {"megabytes": 0.1, "repeats": 1}),
    "disturbance": (disturbance.measure, {"windows": 1, "window_s": 0.2, "settle_s": 0.0, "placements": ["one core"]}),
}
"""The parts, and what --quick measures of each, which shows only that it works."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the results; default: after the processor")
    parser.add_argument("--windows", metavar="N", type=int, help="disturbance: windows of each condition; default 45")
    parser.add_argument("--window-s", metavar="S", type=float, help="disturbance: length of a window; default 0.8 s")
    parser.add_argument("--quick", action="store_true", help="a second or so each, to see that it works; needs --out")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; known: {', '.join(PARTS)}")
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping; give it a folder with --out")
    chosen = {key: value for key in ("windows", "window_s") if (value := getattr(options, key)) is not None}
    folder = options.out or record.default_folder()
    words = [*options.parts, *(f"--{key.replace('_', '-')} {value:g}" for key, value in chosen.items())]
    command = " ".join(["python -m benchmarks.fleet", *words, *(["--quick"] if options.quick else [])])
    is_met = True
    for name in options.parts or PARTS:
        part, quick = PARTS[name]
        begun = record.conditions()
        outcome = part(**{**(quick if options.quick else {}), **(chosen if name == "disturbance" else {})})
        path = record.keep(folder, name, command, begun, outcome)
        print(f"\n{name}: load {begun['load_1m']}, {path}")
        for target in outcome.targets:
            print(_line(target))
        is_met = is_met and all(target.is_met is not False for target in outcome.targets)
    return 0 if is_met else 1


def _line(target: Target) -> str:
    mark = {None: " ", True: "+", False: "-"}[target.is_met]
    return f"{mark} {target.what}: {target.found}" + (f" (target {target.wanted})" if target.wanted else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
