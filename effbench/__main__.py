"""Entry point of ``effbench`` and ``python -m effbench``. Answers Ctrl-C while the command line is being imported."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from effbench.host import streams

STOPPED = (129, 130, 143)
"""What a shell reports for a program that SIGHUP, Ctrl-C or SIGTERM ended."""
INTERRUPTED = 130
UNUSABLE = 2


def start() -> int:
    """Run the command that was typed and return its exit code."""
    streams.make_safe()
    try:
        from effbench import cli

        code = cli.main()
    except KeyboardInterrupt:  # while the command line was being imported; a command answers its own
        return INTERRUPTED
    except ModuleNotFoundError as error:
        from effbench.host import optional_packages

        said = optional_packages.lacking(error)
        if said is None:
            raise
        print(f"effbench: {said}", file=sys.stderr)
        return UNUSABLE
    if code in STOPPED:
        # All is saved and said. Where Ctrl-C fell into an exec, Python would still end itself by the signal, and an
        # object that was just being made would be complained of after our last line.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(start())
