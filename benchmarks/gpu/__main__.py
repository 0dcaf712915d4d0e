"""Command line of a GPU session: python -m benchmarks.gpu --minutes 12 --out DIR, or: python -m benchmarks.gpu collect
DIR

Runs all checks of a first quarter of an hour on a GPU, unattended, and ends with a summary page. The results of a step
are on disk before the next step starts. A session with the same --out continues with the missing steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu.collect import collect
from benchmarks.gpu.session import Refused, Session, listed
from benchmarks.gpu.steps import STEPS
from effbench import devices
from effbench.core.errors import EffbenchError


class _Parser(argparse.ArgumentParser):
    """Report a wrong option in one line, as effbench does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["collect"]:
        return _collect(arguments[1:])
    parser = _Parser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n\n")[2])
    parser.add_argument(
        "--out", type=Path, default=Path("results/runs/gpu"), metavar="DIR", help="folder of the session"
    )
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="time for the whole session, the page included; default 12"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or for a trial: cpu, fake")
    parser.add_argument("--only", type=_steps, default=(), metavar="STEP,STEP", help="run only these steps")
    parser.add_argument(
        "--again",
        type=_steps,
        default=(),
        metavar="STEP,STEP",
        help="delete the results of these steps and run them again",
    )
    parser.add_argument("--step-limit", type=float, metavar="SECONDS", help="time limit of each step")
    parser.add_argument("--tiny", action="store_true", help="smallest possible work: tests the script only")
    parser.add_argument("--list", action="store_true", help="list the steps with their state under --out; runs nothing")
    options = parser.parse_args(arguments)
    if options.list:
        print(listed(options.out if options.out.exists() else None))
        return 0
    if not options.minutes > 0:
        parser.error(f"--minutes (={options.minutes:g}) must be more than 0")
    try:
        if devices.kind_of(options.device) == "cuda":
            devices.require_cuda(options.device)
    except EffbenchError as error:
        parser.error(str(error))
    session = Session(
        options.out,
        options.device,
        options.minutes,
        options.tiny,
        tuple(dict.fromkeys((*options.only, *(options.again if options.only else ())))),
        options.again,
        options.step_limit,
    )
    try:
        return session.carry_out()
    except Refused as error:
        parser.error(str(error))


def _steps(text: str) -> Sequence[str]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"there is no step {unknown[0]}; known: {', '.join(STEPS)}")
    return names


def _collect(arguments: list[str]) -> int:
    parser = _Parser(prog="python -m benchmarks.gpu collect", description="Copy complete runs.")
    parser.add_argument("session", type=Path)
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: results/reference/<the card's name>")
    options = parser.parse_args(arguments)
    try:
        written, left_out = collect(options.session, options.to)
    except Refused as error:
        parser.error(str(error))
    for place in written:
        print(place)
    for name, why in left_out.items():
        print(f"{name}: left out, {why}", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
