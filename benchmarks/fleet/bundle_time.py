"""How long a bundle takes to two machines."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from benchmarks.fleet import hundred
from benchmarks.fleet.record import Outcome, Target
from effbench.bundles import bundle as stored_bundle
from effbench.bundles.bundle import BUNDLE_FILE, Bundle, Model
from effbench.core.study import Case, Cell, Experiment
from effbench.fleet import mirror
from effbench.fleet.conductor import Conductor, Progress
from effbench.fleet.mirror import Mirror, StoredOrder
from effbench.fleet.orders import Order

MODEL = Path("models") / "model.onnx"
SENT_S = 10.0


def measure(megabytes: float = 12.0, machines: int = 2, repeats: int = 3) -> Outcome:
    """Send a bundle of this size to machines that lack it, a few times."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="effbench-fleet-") as folder:
            times.append(asyncio.run(_send(Path(folder), int(megabytes * 1e6), machines)))
    found = statistics.median(times)
    targets = [
        Target(
            f"a bundle of {megabytes:g} MB to {machines} machines",
            f"<= {SENT_S:g} s",
            f"{found:.2f} s (of {repeats}: {min(times):.2f} to {max(times):.2f})",
            found <= SENT_S,
        )
    ]
    return Outcome(targets, {"megabytes": megabytes, "machines": machines}, {"seconds": times})


async def _send(folder: Path, size: int, machines: int) -> float:
    """Return the seconds from the first file to the first launch on the last machine."""
    bundle = _make_bundle(folder / "bundle", size)
    async with AsyncExitStack() as stack:
        fleet = await hundred.build(stack, folder, machines, [b"{}\n"], 0.0)
        address = str(fleet.connection.address)
        orders = {
            name: StoredOrder(Order(hundred.RUN, name, bundle=bundle.digest), address, "", str(bundle.directory))
            for name in fleet.launches
        }
        mirror.store(folder / "out", orders)
        queued_s: dict[str, float] = {}

        def watch(progress: Progress) -> None:
            if progress.state == "queued":
                queued_s.setdefault(progress.machine, time.monotonic())

        with ExitStack() as locks:
            copies = [locks.enter_context(Mirror(folder / "out", stored)) for stored in orders.values()]
            begun_s = time.monotonic()
            progress = await Conductor(fleet.connection, copies, dict.fromkeys(orders, bundle), watch=watch).run()
        for name, item in progress.items():
            there = fleet.folder / name / "bundles" / bundle.digest / MODEL
            is_same = there.exists() and stored_bundle.sha256(there) == stored_bundle.sha256(bundle.directory / MODEL)
            if item.state != "complete" or not is_same:
                raise RuntimeError(f"the bundle did not arrive at {name}: {item}")
        return max(queued_s.values()) - begun_s


def _make_bundle(folder: Path, size: int) -> Bundle:
    """Make a bundle of one large file, which no machine reads."""
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).write_bytes(os.urandom(size))
    (folder / BUNDLE_FILE).write_text("{}\n")
    case = Case("probe", (3, 8, 8), labels={"groups": 1})
    files = {MODEL.name: stored_bundle.sha256(folder / MODEL)}
    model = Model(Cell(case, runtime="onnxruntime"), folder=str(MODEL.parent), files=files)
    study = Experiment("one_file", "", "", "groups", levels=(1,), reference=1, cases=(case,))
    return Bundle(folder, study, (model,), {}, stored_bundle.sha256(folder / BUNDLE_FILE))
