"""Check energy, percentiles and peak memory of four networks against NVML's power and torch's allocator."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import processes
from benchmarks.gpu.context import Context
from benchmarks.gpu.studies import NETWORKS, SMALL, TINY_NETWORKS

MAX_ENERGY_DIFFERENCE, MAX_MEMORY_DIFFERENCE = 0.10, 0.01
WINDOW_S = 5.0
SAMPLE_INTERVAL_S = 0.02
"""Seconds between two power samples; NVML updates its power every 0.1 s or less."""


def secondary_metrics(context: Context) -> None:
    batch = 8 if context.kind == "cuda" else 1
    models = TINY_NETWORKS if context.is_tiny else NETWORKS
    arguments = ["compare", *models, "--batch", str(batch), "--percentiles", "--peak-memory", "--energy"]
    # Most of the time goes into these metrics, which have no budget, so one launch must do.
    document = context.study("compare_secondary_metrics", arguments, share=0.2, launches=1, tiny=SMALL)
    if not document:
        return
    for cell in document["cells"]:
        if cell["skipped"]:
            context.outcome.check(f"{cell['model']}", False, cell["skipped"], "a time")
            continue
        _percentiles(context, cell)
        _energy(context, cell, batch)
        _memory(context, cell, batch)


def _percentiles(context: Context, cell: dict[str, Any]) -> None:
    what, found = f"{cell['model']}: percentiles", cell.get("percentiles", {})
    if "p50_s" not in found:
        context.outcome.check(what, False, found.get("missing", "none"), "p50, p90, p99")
        return
    values = [found[name] for name in ("p50_s", "p90_s", "p99_s")]
    found_text = ", ".join(f"{1e3 * value:.4g}" for value in values) + " ms"
    context.outcome.check(what, 0 < values[0] <= values[1] <= values[2], found_text, "p50 <= p90 <= p99")


def _energy(context: Context, cell: dict[str, Any], batch: int) -> None:
    """Compare joules per call from the energy counter with NVML's mean power times the time of a plain loop."""
    what, found = f"{cell['model']}: energy", cell.get("energy", {})
    if "energy_j_per_call" not in found:
        reason = found.get("missing", "none")
        if context.kind == "cpu":
            context.outcome.skip(what, reason)
        else:
            context.outcome.check(what, False, reason, "joules")
        return
    ours = found["energy_j_per_call"]
    found_text = f"{1e3 * ours:.4g} mJ a call, {found['power_w']:.4g} W at work, {found['idle_w']:.4g} W at rest"
    if context.kind == "fake":
        # The scripted device takes 20 W whatever it does.
        context.outcome.check(what, abs(found["power_w"] / 20 - 1) <= MAX_ENERGY_DIFFERENCE, found_text, "20 W")
    elif context.kind == "cpu":
        context.outcome.check(what, "note", found_text)
    else:
        theirs = power_times_time(context.device, cell["model"], batch)
        if isinstance(theirs, str):
            context.outcome.skip(what, theirs)
            return
        context.outcome.check(
            what,
            abs(ours / theirs - 1) <= MAX_ENERGY_DIFFERENCE,
            f"{found_text}; NVML's power times time {1e3 * theirs:.4g} mJ a call, ratio {ours / theirs:.3f}",
            f"<= {100 * MAX_ENERGY_DIFFERENCE:.0f} % apart",
        )


def _memory(context: Context, cell: dict[str, Any], batch: int) -> None:
    """Compare the bytes above those before the network with torch's own peak for one call in a fresh process."""
    what, found = f"{cell['model']}: peak memory", cell.get("peak_memory", {})
    if "peak_memory_bytes" not in found:
        context.outcome.check(what, False, found.get("missing", "none"), "bytes")
        return
    ours = found["peak_memory_bytes"]
    found_text = f"{ours / 1e6:.5g} MB ({found['source']})"
    if context.kind != "cuda":
        context.outcome.check(what, ours > 0, found_text, "more than nothing")
        return
    printed = context.folder / f"peak_{cell['model']}.json"
    theirs = _in_a_process(context, cell["model"], batch, printed)
    if theirs is None:
        context.outcome.check(what, False, f"{found_text}; torch's own could not be read", "torch's own")
        return
    context.outcome.check(
        what,
        abs(ours / theirs - 1) <= MAX_MEMORY_DIFFERENCE,
        f"{found_text}; torch's own {theirs / 1e6:.5g} MB, ratio {ours / theirs:.4f}",
        f"<= {100 * MAX_MEMORY_DIFFERENCE:.0f} % apart",
    )


def _in_a_process(context: Context, model: str, batch: int, printed: Path) -> int | None:
    printed.unlink(missing_ok=True)
    child = processes.start(
        "benchmarks.gpu.secondary_metrics",
        [context.device, model, str(batch)],
        out=printed,
        errors=printed.with_suffix(".log"),
        folder=context.folder,
    )
    if child.wait(max(1.0, context.left_s())) is None:
        child.end(signal.SIGTERM, 1.0)
    text = printed.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else None


def _placed(device: str, model: str, batch: int) -> Any:
    """Return torch, and a call of the network on the device."""
    torch = importlib.import_module("torch")
    zoo = importlib.import_module("effbench.zoo")
    torch.manual_seed(0)
    network = zoo.build(model).to(device).eval()
    image = torch.randn(batch, 3, 224, 224).to(device)
    return torch, lambda: network(image)


def peak_of_one_call(device: str, model: str, batch: int) -> int:
    """Return the peak of torch's allocator in bytes: weights, one input and one call. Needs a process of its own."""
    torch = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch, call = _placed(device, model, batch)
    with torch.inference_mode():
        call()
        torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def power_times_time(device: str, model: str, batch: int) -> float | str:
    """Return joules per call: NVML's mean power over `WINDOW_S` of calls, times their time; or the reason why not."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed"
    torch, call = _placed(device, model, batch)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        nvml.nvmlInit()
        found = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}")
        nvml.nvmlDeviceGetPowerUsage(handle)
    except Exception as error:  # drivers raise different errors
        return f"NVML tells no power: {error}"
    watts: list[float] = []
    is_over = threading.Event()

    def sample_power() -> None:
        while not is_over.wait(SAMPLE_INTERVAL_S):
            watts.append(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)

    with torch.inference_mode():
        for _ in range(20):
            call()
        torch.cuda.synchronize(device)
        # The first second is not sampled: on some GPUs the power is an average over up to a second.
        chunk, calls, start = 10, 0, time.perf_counter()
        watcher = threading.Thread(target=sample_power, daemon=True)
        while (spent := time.perf_counter() - start) < WINDOW_S:
            if spent > 1.0 and not watcher.is_alive() and not watts:
                watcher.start()
            for _ in range(chunk):
                call()
            torch.cuda.synchronize(device)
            calls += chunk
        is_over.set()
    return sum(watts) / len(watts) * spent / calls if watts else "NVML's power could not be read during the calls"


if __name__ == "__main__":
    print(peak_of_one_call(sys.argv[1], sys.argv[2], int(sys.argv[3])))
