"""What a run holds that is not finished yet, as `--json` would say it; its tables and figures are written beside it."""

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
