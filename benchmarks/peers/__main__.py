"""Command line of the comparison with peers: python -m benchmarks.peers [PART ...] [--machine NAME] [--smoke DIR], or
page

Runs the parts (all by default) and writes docs/benchmarks.md. Each task's rows are on disk under
results/benchmarks/NAME before the next task starts. What is there already is not measured again. --smoke runs every
part for seconds and writes only to DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.peers import page
from benchmarks.peers.session import RESULTS, Report, begin, carry_out, left_to_do, machine_name


def main(arguments: list[str]) -> int:
    names = [part.name for part in page.PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n\n")[2])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"page, or any of {', '.join(names)}")
    parser.add_argument("--machine", metavar="NAME", help="folder of the results; default: after the processor")
    parser.add_argument(
        "--smoke", metavar="DIR", type=Path, help="a few seconds per part, to test it; results go to DIR"
    )
    options = parser.parse_args(arguments)
    if options.parts == ["page"]:
        page.write()
        return 0
    if unknown := [name for name in options.parts if name not in names]:
        parser.error(f"there is no part {unknown[0]}; known: page, {', '.join(names)}")
    parts = [part for part in page.PARTS if part.name in options.parts or not options.parts]
    is_smoke = options.smoke is not None
    folder = options.smoke or RESULTS / (options.machine or machine_name())
    planned = {part.name: left_to_do(part, folder, is_smoke) for part in parts}
    total = sum(part.seconds(task) for part in parts for task in planned[part.name])
    tasks = sum(len(items) for items in planned.values())
    print(f"{tasks} tasks, about {total / 60:.0f} minutes on a quiet machine, into {folder.name}/", file=sys.stderr)
    for part in parts:
        minutes = sum(map(part.seconds, planned[part.name])) / 60
        print(f"  {part.name:18}{len(planned[part.name]):4} tasks{minutes:6.1f} min", file=sys.stderr)
    if tasks:
        command = [
            "python -m benchmarks.peers",
            *options.parts,
            *(["--machine", options.machine] if options.machine else []),
        ]
        begin(folder, " ".join(command), [part.name for part in parts])
    report, failed = Report(total), []
    for part in parts:
        try:
            carry_out(part, folder, is_smoke, report)
        except Exception as error:  # a failing peer must not stop the other parts
            failed.append(part.name)
            print(f"\n{part.name}: {type(error).__name__}: {error}", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if not is_smoke:
        page.write()
    if failed:
        print(f"\nnot finished: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
