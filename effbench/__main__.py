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

        said = optional_packages.missing_package_message(error)
        if said is None:
            raise
        print(f"effbench: {said}", file=sys.stderr)
        return UNUSABLE
    if code in STOPPED:
        # Everything is saved and reported. A normal exit could still be ended by the signal, or print tracebacks of
        # half-made objects, so leave at once.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(start())
