"""Launches that were recorded: a real run's file, cut into what each of its launches wrote."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.session import ROOT
from effbench.fleet.machine_folder import MachineFolder, Standing
from effbench.fleet.orders import Order
from effbench.runs import run_file

RUN = ROOT / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores" / "g2_groups" / run_file.RUN_FILE


def launches(path: Path = RUN, most: int | None = None) -> list[bytes]:
    """Return what each launch of a complete run wrote; the first with the header, the last with the end of the run."""
    pieces, rest = [b""], b""
    for line in path.read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        if record["kind"] == "launch" and record["launch"] and record["launch"] == len(pieces):
            pieces.append(b"")
        if record["kind"] in ("complete", "verdicts"):
            rest += line
        else:
            pieces[-1] += line
    pieces = pieces[:most]
    pieces[-1] += rest
    return pieces


class RecordedLaunches:
    """Carry out launches for one machine as they were recorded: wait, append the records, and answer as a step does.

    `launch` takes the place of `Machine.launch`. `ended_s` holds the times (monotonic) at which launches ended, by the
    size of the file then, and `order` the launches that were carried out.
    """

    def __init__(self, folder: Path, pieces: list[bytes], launch_s: float) -> None:
        self._folder, self._pieces, self._launch_s = MachineFolder(folder), pieces, launch_s
        self.ended_s: dict[int, float] = {}
        self.slots: list[int] = []
        self.most_at_once, self._now = 0, 0
        self._lock = threading.Lock()

    def launch(self, order: Order) -> Mapping[str, Any]:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        slot = len(self.slots)
        self.slots.append(slot)
        time.sleep(self._launch_s)
        path = self._folder.run(order) / run_file.RUN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(self._pieces[slot])
            size = file.tell()
        self._now -= 1
        is_complete = slot + 1 == len(self._pieces)
        self.ended_s[size] = time.monotonic()
        standing = asdict(Standing(size, slot + 1, len(self._pieces), is_complete))
        return {"event": "end", "state": "complete" if is_complete else "more", "why": "", **standing}


Launch = Callable[[Order], Mapping[str, Any]]
