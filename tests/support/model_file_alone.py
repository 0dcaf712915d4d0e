"""Run exported models in a process without torch, as a board does: ``python model_file_alone.py RUNTIME FOLDER``.

FOLDER holds a folder of each model, with an input and what eager returns for it in ``io.npz``. Prints as JSON the
errors by model, how many threads computed the model ``stack``, how many the runtime reports, and what else it did.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = 2


def busy_threads(call: Callable[[], object], calls: int = 200) -> list[int]:
    """The threads of this process that take part in so many calls, each with a twentieth of their time or more.

    Others may wake up now and then, to look at a clock.
    """
    for _ in range(20):
        call()
    before = processor_times()
    for _ in range(calls):
        call()
    spent = {thread: time - before.get(thread, 0) for thread, time in processor_times().items()}
    return [thread for thread, time in spent.items() if time > 0.05 * sum(spent.values())]


def most_busy_threads(call: Callable[[], object]) -> int:
    """How many threads take part, in the best of a few tries."""
    # Fewer calls: where neighbours take the processors, two threads wait for each other most of the time.
    tries = (len(busy_threads(call, 60)) for _ in range(5))
    return next((found for found in tries if found > 1), 1)


def processor_times() -> dict[int, int]:
    """Nanoseconds by thread."""
    tasks = Path("/proc/self/task")
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    for barred in ("torch", "onnx", "onnxscript", "pnnx"):
        sys.modules[barred] = None  # type: ignore[assignment]
    asked: list[str] = []
    sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)

    import numpy as np

    from effbench import runtimes
    from effbench.timing import output_check

    told: dict[str, Any] = {"errors": {}}
    for model in sorted(path for path in folder.iterdir() if (path / "io.npz").exists()):
        with np.load(model / "io.npz") as stored:
            inputs = tuple(stored[key] for key in stored if key.startswith("input"))
            expected = [stored[key] for key in stored if key.startswith("output")]
        prepared = runtimes.get(name).load([inputs], runtimes.Setting(model, threads=THREADS))
        told["errors"][model.name] = output_check.check(expected, prepared.call(), "float32")["output_error"]
        if model.name == "stack" and Path("/proc/self/task").exists():
            told |= {"busy": most_busy_threads(prepared.call), "threads": prepared.facts["threads"]}
    told["python_threads"], told["sockets"] = threading.active_count(), asked
    told["telemetry"] = [module for module in sys.modules if module.startswith("openvino_telemetry")]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
