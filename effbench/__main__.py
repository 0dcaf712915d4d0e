"""Where ``effbench`` and ``python -m effbench`` begin: the command line, and Ctrl-C while it is still loading."""

from __future__ import annotations

import sys


def start() -> int:
    """Run the command that was typed and return its exit code."""
    try:
        from effbench.cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
