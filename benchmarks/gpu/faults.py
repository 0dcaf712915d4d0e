"""Check that faults of users' networks on a real device affect only their own row, and that the run continues."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.gpu.context import Context

MODELS = ("fits", "synchronises", "uncapturable", "too_big", "out_of_bounds", "fits_too")

# By network and runtime: text that the reason for skipping must contain, or "" for a time. The scripted clock runs
# nothing, so every network has a time there.
EXPECTED = {
    "cuda": {
        "too_big": ("out of memory", "out of memory"),
        "out_of_bounds": ("CUDA", "CUDA"),
        "synchronises": ("", "captur"),
        "uncapturable": ("", "captur"),
    },
    "cpu": {"too_big": ("out of memory", ""), "out_of_bounds": ("index", "")},
    "fake": {},
}


def faults(context: Context) -> None:
    file = context.folder / "user_models.py"
    shutil.copy(Path(__file__).with_name("user_models.py"), file)
    runtimes = ("eager", "cudagraph") if context.kind == "cuda" else ("eager",)
    arguments = ["compare", *(f"{file.name}:{model}" for model in MODELS), "--input", "3x64x64"]
    document = context.study("user_models", [*arguments, "--runtime", ",".join(runtimes)], launches=2)
    if not document:
        return
    context.outcome.check("the run went on to its end", bool(document["complete"]), document["complete"], "True")
    for place, runtime in enumerate(runtimes):
        for model in MODELS:
            # The document names a network of a file by path and factory.
            cells = [
                cell
                for cell in document["cells"]
                if cell["runtime"] == runtime and str(cell["model"]).rpartition(":")[2] == model
            ]
            wanted = EXPECTED[context.kind].get(model, ("", ""))[place]
            what = f"{model}, {runtime}"
            if len(cells) != 1:
                context.outcome.check(what, False, f"{len(cells)} rows", "one row")
                continue
            (cell,) = cells
            reason = cell["skipped"] or ""
            if wanted:
                context.outcome.check(
                    what, wanted.lower() in reason.lower() if reason else False, reason or "a time", wanted
                )
            else:
                context.outcome.check(what, bool(cell["latency_s"]), reason or "a time", "a time")
