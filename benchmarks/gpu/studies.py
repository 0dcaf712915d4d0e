"""Run the steps that are effbench studies, with effbench's own commands, and check their documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu.context import Context, Document, skipped_by_reason
from benchmarks.gpu.outcome import median

NETWORKS = ("shufflenet_v2", "mobilenet_v2", "mobilenet_v1", "resnet50")
"""Four different networks: channel shuffles, depthwise convolutions with and without shortcuts, dense convolutions."""

TINY_NETWORKS = ("squeezenet1_1", "squeezenet1_0")
"""Networks of few layers for a tiny session, since percentiles take 500 calls."""

G2 = ("run", "g2_groups")
G2_TINY = ("--scale", "x1", "--select", "groups=1,8")
SMALL = ("--input", "3x32x32")
"""Small images for a tiny session."""

MAX_DIFFERENCE = 0.01
"""Largest median difference between the ratios of two runs of the same study."""


def first_command(context: Context) -> None:
    """Run the command that a user types first."""
    document = context.study("g2_groups", G2, tiny=G2_TINY)
    if document:
        _check_document(context, document)


def repeat(context: Context) -> None:
    """Run the same study again: no verdict may flip, and the ratios must agree."""
    first = context.other_run("first_command", "g2_groups")
    first = first or context.study("g2_groups", G2, share=0.5, tiny=G2_TINY)
    again = context.study("g2_groups_again", G2, share=0.5, tiny=G2_TINY)
    if not first or not again:
        return
    before, after = _verdict_words(first), _verdict_words(again)
    flips = [name for name, word in after.items() if {word, before.get(name)} == {"holds", "fails"}]
    context.outcome.check(
        "verdicts that flipped", not flips, f"{len(flips)} of {len(after)} {flips or ''}".strip(), "0"
    )
    apart = ratios_apart(first, again)
    if not apart:
        context.outcome.check("ratios of both runs", False, "no cell has a ratio in both", "ratios")
        return
    context.outcome.number("ratios_apart", apart)
    middle = median(list(apart.values()))
    judged = not (context.is_tiny and context.kind == "cpu")
    context.outcome.check(
        "ratios of two runs, median difference",
        middle <= MAX_DIFFERENCE if judged else "note",
        f"{100 * middle:.2f} %, at most {100 * max(apart.values()):.2f} %",
        f"<= {100 * MAX_DIFFERENCE:.0f} %" if judged else "",
    )


def ratios_apart(first: Document, again: Document) -> dict[str, float]:
    """Return by cell the relative difference between the ratios of the two runs."""
    known = {cell["id"]: cell["ratio"]["point"] for cell in first["cells"] if cell["ratio"]}
    return {
        cell["id"]: abs(cell["ratio"]["point"] / known[cell["id"]] - 1)
        for cell in again["cells"]
        # The reference's ratio is 1 in every run.
        if cell["ratio"] and cell["id"] in known and cell["id"] != cell["reference"]
    }


def guidelines(context: Context) -> None:
    _guidelines(context, ("eager", "cudagraph"), 1)


def guidelines_saturated(context: Context) -> None:
    _guidelines(context, ("eager", "cudagraph"), context.saturating_batch())


def runtimes(context: Context) -> None:
    _guidelines(context, RUNTIMES, 1)


def runtimes_saturated(context: Context) -> None:
    _guidelines(context, RUNTIMES, context.saturating_batch())


RUNTIMES = ("eager", "compile", "cudagraph", "onnxruntime")


def _guidelines(context: Context, wanted: Sequence[str], batch: int) -> None:
    """Run G1 to G4 under these runtimes, as far as the device supports them."""
    if context.kind == "cpu":
        # Compiling for a CPU takes a minute per network, too long for trying the script out.
        absent = ("cudagraph", "compile") if context.is_tiny else ("cudagraph",)
        for name in set(wanted) & set(absent):
            context.outcome.skip(f"under {name}", "not carried out on a CPU")
        wanted = [name for name in wanted if name not in absent]
    name = "guidelines_by_runtime" + ("_all" if len(wanted) > 2 else "") + (f"_batch_{batch}" if batch > 1 else "")
    arguments = ["run", "guidelines_by_runtime", "--runtime", ",".join(wanted), "--batch", str(batch)]
    document = context.study(name, arguments, tiny=("--select", "guideline=G2", "--select", "variant=1,8"))
    if not document:
        return
    context.outcome.number("batch", batch)
    for runtime in wanted:
        cells = [cell for cell in document["cells"] if cell["runtime"] == runtime]
        done = sum(1 for cell in cells if cell["latency_s"])
        reasons = list(skipped_by_reason(cells))
        if cells and not done and len(reasons) == 1 and runtime != "eager":
            context.outcome.skip(f"under {runtime}", reasons[0])
        else:
            context.outcome.check(
                f"under {runtime}", done == len(cells) > 0, f"{done} of {len(cells)} cells", "all", "; ".join(reasons)
            )
    _check_document(context, document)


def full_models(context: Context) -> None:
    _models(context, {"cuda": 8}.get(context.kind, 1))


def full_models_saturated(context: Context) -> None:
    _models(context, context.saturating_batch())


def _models(context: Context, batch: int) -> None:
    """Run Table 8 at this batch."""
    usual = {"cuda": 8}.get(context.kind, 1)
    name = "full_models" + (f"_batch_{batch}" if batch != usual else "")
    tiny = ("--select", "model=shufflenet_v2_x0_5,mobilenet_v1_x0_25")
    document = context.study(name, ["run", "full_models", "--batch", str(batch)], launches=3, tiny=tiny)
    if document:
        context.outcome.number("batch", batch)
        _check_document(context, document)
        _all_measured(context, document)


def batch_sweep(context: Context) -> None:
    """Measure images per second against images per call; later steps use the saturating batch."""
    tiny = ("--select", "model=shufflenet_v2", "--select", "batch=1,2")
    complete = context.study("batch_sweep", ["run", "batch_sweep"], tiny=tiny)
    # Later steps need a batch, even the most likely one of a sweep that was cut short.
    document = complete or context.so_far("batch_sweep")
    if not document:
        return
    found = {str(item["group"].get("model")): item for item in document["saturation"]}
    batches = {model: item["batch"] for model, item in found.items() if item["batch"]}
    if batches:
        context.outcome.number("saturating_batch", max(batches.values()))
    found_text = ", ".join(f"{model} {item['batch']} ({item['verdict']})" for model, item in found.items())
    is_found = len(batches) == len(found) > 0
    context.outcome.check(
        "a saturating batch for every network", is_found if complete else "note", found_text, "a batch"
    )
    context.outcome.number(
        "images_per_s",
        {cell["id"]: cell["batch"] / cell["latency_s"]["median"] for cell in document["cells"] if cell["latency_s"]},
    )


def breakdown(context: Context) -> None:
    """Measure the run time by kind of operation."""
    tiny = ("--model", "shufflenet_v2_x0_5")
    document = context.study("runtime_breakdown", ["run", "runtime_breakdown"], tiny=tiny)
    for item in document["breakdown"] if document else ():
        what = f"breakdown of {item['cell']}"
        if item["missing"]:
            context.outcome.check(what, False, item["missing"], "shares of the time")
            continue
        shares = {name: share["point"] for name, share in item["shares"].items() if share}
        shares["unattributed"] = (item["unattributed"] or {}).get("point", 0.0)
        context.outcome.number(what, shares)
        found_text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        adds_up = abs(sum(shares.values()) - 1) < 1e-6 and shares.get("Conv", 0.0) > 0
        context.outcome.check(what, adds_up, found_text, "convolutions, and shares that add up to 1")
    if document and not document["breakdown"]:
        context.outcome.check("breakdown", False, "no network has one", "shares of the time")


def half_precision(context: Context) -> None:
    """Compare bfloat16, channels_last and both with float32 and contiguous, at the saturating batch."""
    batch, models = context.saturating_batch(), TINY_NETWORKS if context.is_tiny else NETWORKS
    ways = {
        "float32": (),
        "bfloat16": ("--dtype", "bfloat16"),
        "channels_last": ("--memory-format", "channels_last"),
        "bfloat16_channels_last": ("--dtype", "bfloat16", "--memory-format", "channels_last"),
    }
    base: dict[str, float] = {}
    for number, (way, words) in enumerate(ways.items()):
        if context.is_tiny and number in (1, 2):
            context.outcome.skip(f"{way}, all measured", "left out of a tiny session")
            continue
        arguments = ["compare", *models, "--batch", str(batch), *words]
        name = f"compare_{way}_batch_{batch}"
        document = context.study(name, arguments, share=1 / len(ways), launches=3, tiny=SMALL)
        if not document:
            continue
        times = {cell["model"]: cell["latency_s"]["median"] for cell in document["cells"] if cell["latency_s"]}
        context.outcome.check(
            f"{way}, all measured", len(times) == len(models), f"{len(times)} of {len(models)}", "all"
        )
        base = base or times
        faster = {model: base[model] / seconds for model, seconds in times.items() if model in base}
        if number and faster:
            found_text = ", ".join(f"{model} {speed:.2f}" for model, speed in faster.items())
            context.outcome.check(f"{way}, speed-up over float32", "note", found_text)
            context.outcome.number(way, faster)


# --- what every document must hold ---------------------------------------------------------------------


def _check_document(context: Context, document: Document) -> None:
    """Check the clock of the ratios, and report verdicts, what limits the cells, and disturbances."""
    wanted = "device" if context.kind == "cuda" else "cpu"
    context.outcome.check("ratios are of this clock", document["clock"] == wanted, document["clock"], wanted)
    verdicts = [
        {
            "claim": item["claim"],
            "group": item["group"],
            "verdict": item["verdict"],
            "ratio": (item["headline"]["ratio"] or {}).get("point"),
            "reason": item["reason"],
        }
        for item in document["verdicts"]
    ]
    if verdicts:
        context.outcome.number("verdicts", verdicts)
        words = [item["verdict"] for item in verdicts]
        found_text = ", ".join(f"{words.count(word)} {word}" for word in ("holds", "fails", "unsure") if word in words)
        unsure = dict.fromkeys(item["reason"] for item in verdicts if item["verdict"] == "unsure")
        context.outcome.check("verdicts", "note", found_text, reason="; ".join(unsure)[:300])
    bounds = [cell["bound"] for cell in document["cells"] if cell["bound"]]
    if bounds:
        context.outcome.check("bound by", "note", ", ".join(f"{bounds.count(b)} {b}" for b in dict.fromkeys(bounds)))
    disturbed: dict[str, int] = {}
    for cell in document["cells"]:
        for flag in cell["flags"]:
            disturbed[flag] = disturbed.get(flag, 0) + 1
    if disturbed:
        context.outcome.check("flags", "note", ", ".join(f"{flag} {times}" for flag, times in disturbed.items()))
    for reason, times in skipped_by_reason(document["cells"]).items():
        context.outcome.check(f"skipped {times} cells", "note", reason=reason)


def _all_measured(context: Context, document: Document) -> None:
    cells = document["cells"]
    done = sum(1 for cell in cells if cell["latency_s"])
    reasons = "; ".join(skipped_by_reason(cells))
    context.outcome.check("every network measured", done == len(cells), f"{done} of {len(cells)}", "all", reasons)


def _verdict_words(document: Document) -> Mapping[str, str]:
    return {f"{item['claim']} {item['group']}": item["verdict"] for item in document["verdicts"]}
