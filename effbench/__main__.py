"""``python -m effbench`` is the command ``effbench``."""

import sys

from effbench.cli import main

sys.exit(main())
