"""Compare the GPU's peaks as effbench measures them with its data sheet."""

from __future__ import annotations

import json
from contextlib import suppress

from benchmarks.gpu import datasheets
from benchmarks.gpu.context import Context

WAYS = {
    "fp32": (),
    "tf32": ("--cuda-precision", "tf32"),
    "bf16": ("--dtype", "bfloat16"),
}


def peaks(context: Context) -> None:
    """Measure the arithmetic peak of each precision, and the memory bandwidth with the first."""
    sheet = datasheets.sheet_of(card(context)) if context.kind == "cuda" else None
    for precision, options in WAYS.items():
        if precision == "tf32" and context.kind != "cuda":
            context.outcome.skip("tf32 arithmetic", "a precision of NVIDIA's GPUs")
            continue
        if context.is_tiny and precision == "bf16":
            context.outcome.skip("bf16 arithmetic", "left out of a tiny session")
            continue
        printed = context.folder / f"peaks_{precision}.json"
        code, message = context.command(["doctor", "--peaks", "--device", context.device, *options, "--json"], printed)
        found = None
        with suppress(OSError, ValueError, KeyError):
            found = json.loads(printed.read_text(encoding="utf-8"))["peaks"]
        if code is None:
            context.cut_short(f"{precision} arithmetic", "its time was up")
            return
        if not found:
            context.outcome.check(f"{precision} arithmetic", False, message or f"exit code {code}", "a peak")
            continue
        tflops, gigabytes = found["flops_per_s"] / 1e12, found["bytes_per_s"] / 1e9
        context.outcome.number(precision, {"tflops": tflops, "gb_per_s": gigabytes})
        against(context, f"{precision} arithmetic", tflops, sheet.tflops(precision) if sheet else None, "TFLOP/s")
        if precision == "fp32":
            against(context, "memory traffic", gigabytes, sheet.gb_per_s if sheet else None, "GB/s")


def against(context: Context, what: str, measured: float, promised: float | None, unit: str) -> None:
    """Add a check if the data sheet has a figure, else a note."""
    found_text = f"{measured:.4g} {unit}"
    if promised is None:
        context.outcome.check(what, "note", found_text, reason="no data sheet at hand for this card")
        return
    context.outcome.check(
        what,
        datasheets.is_believable(measured, promised),
        f"{found_text}, {100 * measured / promised:.0f} % of the sheet's {promised:g}",
        f"{100 * datasheets.LEAST:.0f} to {100 * datasheets.MOST:.0f} %",
    )


def card(context: Context) -> str | None:
    environment = context.other("environment")
    return environment.numbers.get("gpu.name") if environment else None
