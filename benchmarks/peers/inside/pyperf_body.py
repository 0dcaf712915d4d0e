"""Time one body with pyperf, together with the bare loop in the same worker process.

Usage: pyperf_body.py BODY [pyperf options]
"""

from __future__ import annotations

import sys

import bodies
import pyperf

if __name__ == "__main__":
    body = sys.argv.pop(1)
    runner = pyperf.Runner(program_args=(sys.argv[0], body))
    runner.parse_args()
    call = bodies.get(body)
    if runner.args.worker:
        runner.metadata["bare_ns"] = bodies.bare_ns(call)
    runner.bench_func(body, call)
