"""Run: python -m benchmarks.decision_rules DIR [--suites N] [--sitting N] [--seed N] [--json]

The gate of `effbench check --against` and the rules of eleven other tools, side by side, on the blocks that `effbench
aa` recorded in DIR: how often each says "slower" where nothing is, and how often it calls a real slowdown. Measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.decision_rules.outcome import as_markdown, document
from benchmarks.decision_rules.replay import SUITES, replay
from effbench.core.errors import EffbenchError
from effbench.gates import ab_pairs, same_code
from effbench.gates.decision_rule import Rule


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decision_rules", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="what `effbench aa` recorded")
    parser.add_argument("--suites", metavar="N", type=int, default=SUITES, help=f"suites to resample; default {SUITES}")
    parser.add_argument(
        "--sitting", metavar="N", type=int, default=1, help="launches a side that a tool sees; default 1"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args(arguments)
    try:
        pair = ab_pairs.load(asked.directory)
        same_code.require_same_code(pair, Rule())
        found = replay(pair, suites=asked.suites, sitting=asked.sitting, seed=asked.seed)
    except EffbenchError as error:
        parser.error(str(error))
    print(json.dumps(document(found), indent=2) if asked.json else as_markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
