"""Print an unfinished run as `--json` would, and write its tables and figures."""

from __future__ import annotations

import json
import sys


def main(run: str) -> int:
    import effbench

    found = effbench.load(run)
    found.write()
    print(json.dumps(found.to_dict(), allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
