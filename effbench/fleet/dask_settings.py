"""The settings of dask under which a fleet runs. They are set in code, so that a user's own dask.yaml cannot undo them.

With dask's defaults an idle worker wakes up a hundred times a second, and makes measured blocks 3 to 5 % slower. With
these, and the few heartbeats of `fleet.serve`, it wakes up once a second (`python -m benchmarks.fleet idle`).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

WORKER_TTL_S = 60
"""A machine that has been silent for so long counts as gone. Found out after one to two times as long."""

_PREFIX = "distributed."

SETTINGS: dict[str, Any] = {
    f"{_PREFIX}{name}": value
    for name, value in {
        # What wakes an idle process up.
        "admin.tick.interval": "5s",
        "admin.tick.limit": "60s",
        "admin.tick.cycle": "60s",
        "admin.system-monitor.interval": "60s",
        "admin.system-monitor.disk": False,
        "admin.system-monitor.gil.enabled": False,
        "worker.profile.enabled": False,
        "worker.memory.target": False,
        "worker.memory.spill": False,
        "worker.memory.pause": False,
        "worker.memory.terminate": False,
        "scheduler.active-memory-manager.start": False,
        "scheduler.work-stealing": False,
        "diagnostics.nvml": False,
        # A death of a process is seen once, by the conductor. dask would try again by itself.
        "scheduler.allowed-failures": 0,
        "scheduler.worker-ttl": f"{WORKER_TTL_S}s",
        "scheduler.no-workers-timeout": None,
        # No pages of HTTP: they would be served without TLS.
        "scheduler.http.routes": [],
        "worker.http.routes": [],
        "comm.timeouts.connect": "10s",
        "comm.retry.count": 0,
        "comm.compression": False,
    }.items()
}
NO_HTTP = "127.0.0.1:0"
"""The address for dask's HTTP server, which cannot be left out. It is closed once it is there."""


def quieten_dask() -> None:
    """Keep dask's log and warnings out of the terminal: what users need to know is told in our words.

    Machines may have other versions of Python and of dask: they are called by names, with text and bytes.
    """
    from distributed.versions import VersionMismatchWarning

    warnings.filterwarnings("ignore", category=VersionMismatchWarning)
    for name in ("asyncio", *logging.root.manager.loggerDict):  # dask sets the level of several of its own
        if name.partition(".")[0] in ("asyncio", "distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
