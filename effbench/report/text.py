"""Texts that tables and figures share: labels, groups, the setting of a run, notes, verdict sentences. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.intervals import half_width
from effbench.analysis.run_sittings import sitting_of_launches, source
from effbench.core import units
from effbench.core.cost import DEFAULT_LEVEL
from effbench.core.estimate import PairEvidence, Verdict
from effbench.core.peaks import from_facts
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.host.emulation import EMULATED, is_emulated
from effbench.runs import launch_history, schedule

_CLOCKS = {"wall": "wall-clock time", "cpu": "thread CPU time", "device": "device time"}
_PLATFORMS = {"GPU": "GTX 1080 Ti", "ARM": "Snapdragon 810"}
_HARDWARE = {"cpu": "cpu.model", "cuda": "gpu.name", "fake": "device.note"}
"""The environment fact with the device's name, by kind of device."""


def clock(run: Run) -> str:
    """Return the clock of the run's ratios. With runtimes other than eager, CPU time is that of all threads."""
    options = run.environment.facts.get("run.device_options")
    if run.clock == "cpu" and isinstance(options, Mapping) and options.get("whole_process"):
        return "process CPU time"
    return _CLOCKS.get(run.clock, run.clock)


def label_text(value: Label) -> str:
    """Format a label: True and False as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def shape_text(shape: Iterable[Any]) -> str:
    """Format a shape as ``3×224×224``; several shapes are joined by commas."""
    parts = list(shape)
    if any(isinstance(part, (list, tuple)) for part in parts):
        return ", ".join(shape_text(part) if isinstance(part, (list, tuple)) else str(part) for part in parts)
    return "×".join(map(str, parts))


def group_text(group: Mapping[str, Label]) -> str:
    """Format the labels of a group: ``scale x2, block conv``."""
    return ", ".join(f"{key} {label_text(value)}" for key, value in group.items())


def varying_labels(groups: Iterable[Mapping[str, Label]]) -> tuple[str, ...]:
    """Return the labels with more than one value (absence counts as a value), in order of appearance."""
    groups = list(groups)
    keys = dict.fromkeys(key for group in groups for key in group)
    return tuple(key for key in keys if len({repr(group.get(key)) for group in groups}) > 1)


def grouping(run: Run, cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return the varying labels other than the factor. Each combination of their values is a group."""
    return tuple(key for key in varying_labels(cell.cell.case.labels for cell in cells) if key != run.experiment.factor)


def is_comparison(run: Run) -> bool:
    """Return whether the run compares models, rather than varying the factor of a guideline."""
    return run.experiment.factor in ("", "model")


def model_name(cell: CellSummary) -> str:
    """Return a cell's name in a comparison: its label, since a module passed by the user has no registered name."""
    return str(cell.cell.case.labels.get("model", cell.cell.case.model))


def is_reference(cell: CellSummary) -> bool:
    """Return whether the cell is its own reference. Its ratio is 1 by definition, without an interval."""
    return cell.ratio is not None and cell.ratio.low is None and cell.reference in (None, cell.cell.id)


def percent(share: float) -> str:
    """Format a confidence as ``95 %`` or ``98.3 %``."""
    return f"{100 * share:.3g} %"


def launches_text(cells: Sequence[CellSummary]) -> str:
    """Format the number of launches, the largest of any cell: ``5 launches``."""
    return count_of_launches(max((cell.launches for cell in cells), default=0))


def count_of_launches(number: int) -> str:
    """Format a number of launches: ``1 launch``, ``5 launches``."""
    return "1 launch" if number == 1 else f"{number} launches"


def unfinished(run: Run) -> str:
    """Return how far an incomplete run is, ``2 of 5 launches done`` or ``not begun``; "" for a complete one."""
    if run.complete:
        return ""
    return (
        f"{len(schedule.finished_slots(run))} of {run.sampling.launches} launches done" if run.launches else "not begun"
    )


def hardware(run: Run, cells: Sequence[CellSummary]) -> str:
    """Return the hardware of the run: ``AMD EPYC (cpu)``; the kind of device alone if its name is not known."""
    device = cells[0].cell.device if cells else run.environment.device
    name = run.environment.facts.get(_HARDWARE.get(device.partition(":")[0], "device.name"))
    return f"{name} ({device})" if name and name != device else device


def setting(run: Run, cells: Sequence[CellSummary]) -> str:
    """Format hardware, threads, runtime, batch, dtype and input of the run; differing values are joined by a slash."""
    parts = [hardware(run, cells)]
    threads = sorted({cell.cell.threads for cell in cells} - {0})
    if threads:
        parts.append("/".join(map(str, threads)) + (" thread" if threads == [1] else " threads"))
    parts.append("/".join(dict.fromkeys(cell.cell.runtime for cell in cells)) or run.environment.runtime)
    if cells:
        parts.append("batch " + "/".join(map(str, sorted({cell.cell.batch for cell in cells}))))
        parts.append("/".join(dict.fromkeys(cell.cell.case.dtype for cell in cells)))
        parts += [word for word, usual in ((cells[0].cell.memory_format, "contiguous"),) if word != usual]
        parts += ["forward, backward and step"] if cells[0].cell.mode == "train" else []
        shapes = {cell.cell.case.input_shape for cell in cells}
        if len(shapes) == 1:
            parts.append(f"input {shape_text(shapes.pop())}")
    return ", ".join(parts)


def shared_labels(run: Run, cells: Sequence[CellSummary]) -> dict[str, Label]:
    """Return the labels that all cells share, such as the interpretation of a paper where it is ambiguous."""
    if not cells:
        return {}
    changing = varying_labels(cell.cell.case.labels for cell in cells)
    labels = cells[0].cell.case.labels
    return {key: value for key, value in labels.items() if key not in changing and key != run.experiment.factor}


def subtitle(run: Run, cells: Sequence[CellSummary]) -> str:
    """Return the line under a figure's title: setting, launches, fixed labels, and whether times are shown."""
    parts = [f"{setting(run, cells)}, {launches_text(cells)}", group_text(shared_labels(run, cells))]
    return "; ".join(filter(None, [*parts, EMULATED if is_emulated(run.environment) else ""]))


def platform_text(platform: str) -> str:
    """Return the hardware that the paper calls "GPU" or "ARM"."""
    return _PLATFORMS[platform]


def platforms(cells: Sequence[CellSummary]) -> str | None:
    """Return the hardware of the paper's figures for these cells; None where no cell has one."""
    with_paper = [cell for cell in cells if cell.paper_ratio is not None or cell.paper_speed is not None]
    if not with_paper:
        return None
    names = []
    for cell in with_paper:
        default = "GPU" if cell.cell.device.startswith("cuda") else "ARM"
        names.append(_PLATFORMS.get(str(cell.cell.case.labels.get("channels", default))))
    return " and ".join(dict.fromkeys(name for name in names if name)) or None


def notes(run: Run, cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return the notes of a table: the ratio and its clock, the sample, the setting, the paper."""
    lines = []
    if any(cell.ratio is not None for cell in cells):
        lines.append(
            f"Time ratio: {clock(run)}{_per_image(cells)} over that of {_reference(run, cells)} "
            "in the same round; above 1 is slower."
        )
    residual = None if is_comparison(run) else residual_madds(cells)
    if residual is not None:
        equal = "equal" if residual == 0 else f"within {units.rounded(100 * residual)} % of the reference's"
        lines.append(f"Multiply-adds{_per_image(cells)} are {equal} in every row.")
    same = shared_labels(run, cells)
    everywhere = f" In every row: {group_text(same)}." if same else ""
    lines.append(f"{_sample(cells)} Measured on {setting(run, cells)}.{everywhere}")
    lines += between_sittings_notes(run, cells)
    lines += _roofline(run, cells)
    if any(cell.cell.mode == "train" for cell in cells):
        lines.append(
            "A call is one step of training: forward, backward, SGD with momentum. Costs are of the forward pass; a "
            "step multiplies and adds about three times that, since each product has two in the backward pass "
            "(Kaplan et al., arXiv 2001.08361, section 2.1)."
        )
    if any(cell.ratio_wall is not None or cell.speedup_wall is not None for cell in cells):
        lines.append(
            "Where CPU time misses work of a cell, its ratios are given by both clocks, and no claim is decided by "
            "them. Latency is wall-clock time."
        )
    paper = platforms(cells)
    if paper is not None:
        lines.append(f"Paper: ShuffleNet V2 (arXiv 1807.11164), measured on a {paper}.")
    if run.clock == "device" and any(cell.bound == "host" for cell in cells):
        lines.append(
            "Where a cell is host-bound, the GPU waits for the host. Its time ratio and the verdicts are of device "
            "time; its latency is the time of the host. Under cudagraph the GPU does not wait."
        )
    if any(cell.flags for cell in cells):
        lines.append("A flagged cell cannot confirm a claim.")
    lines += launch_history.remarks(run)
    if not run.complete:
        lines.append(f"The run is not complete: {schedule.standing(run)}.")
        lines += [f"It {run.disturbance}."] if run.disturbance else []
    return tuple(lines)


def split_ids(ids: Sequence[str]) -> tuple[list[str], str]:
    """Split cell ids (``scale=x1,groups=8``) into the parts that differ, and the labels that all share."""
    parts = [cell.split(",") for cell in ids]
    shared = [part for part in parts[0] if all(part in other for other in parts)] if len(parts) > 1 else []
    names = [", ".join(part for part in own if part not in shared) for own in parts]
    return names, ", ".join(shared)


def residual_madds(cells: Sequence[CellSummary]) -> float | None:
    """Return the largest relative difference between a cell's madds per image and its reference's.

    It shows how equal the study's "equal" costs are. None where no cell and its reference both have a cost.
    """
    costs = {cell.cell.id: cell.cost.madds / cell.cell.batch for cell in cells if cell.cost is not None}
    differences = [
        abs(costs[cell.cell.id] / costs[cell.reference] - 1)
        for cell in cells
        if cell.cell.id in costs and cell.reference in costs and costs[cell.reference]
    ]
    return max(differences, default=None)


def pair_text(pair: PairEvidence, factor: str) -> str:
    """Format a pair: ``groups 8 runs 2.87× slower than groups 1 (95 % interval 2.71–3.05; the paper: 10.67×)``."""
    name = f"{factor} " if factor else ""
    slower, faster = (
        f"{name}{label_text(pair.slower)}",
        f"{name}{label_text(pair.faster)}",
    )
    paper = [] if pair.paper_ratio is None else [f"the paper: {pair.paper_ratio:.2f}×"]
    if pair.ratio is None:
        return f"{slower} against {faster} was not measured" + (f" ({paper[0]})" if paper else "")
    ratio = pair.ratio
    details = [*([] if pair.wall is None else [f"by the wall clock {pair.wall.point:.2f}×"]), *paper]
    if ratio.low is not None and ratio.high is not None:
        details.insert(0, f"{percent(ratio.confidence)} interval {ratio.low:.2f}–{ratio.high:.2f}")
    # The interval is that of the ratio as the claim states it, so a ratio below 1 is not inverted.
    verb = f"runs {ratio.point:.2f}× slower than" if ratio.point >= 1 else f"takes {ratio.point:.2f}× the time of"
    return f"{slower} {verb} {faster}" + (f" ({'; '.join(details)})" if details else "")


def verdict_sentence(verdict: Verdict, *, factor: str = "") -> str:
    """Format a verdict as two sentences: the headline ratio with its interval and the paper's, then the verdict.

    `factor` is the study's factor (``"groups"``), so that levels are written as ``groups 8``.
    """
    where = group_text(verdict.group)
    pair = pair_text(verdict.headline, factor)
    reason = verdict.reason or verdict.headline.reason
    # Claims that are phrases need quotes inside a sentence.
    claim = f"“{verdict.claim}”" if " " in verdict.claim else verdict.claim
    word = f"{claim} is unsure" if verdict.verdict == "unsure" else f"{claim} {verdict.verdict}"
    # "holds in device time; …", but "fails: not slower …".
    between = " " if verdict.verdict == "holds" else ": "
    end = f"{word}{between}{reason.rstrip('.')}." if reason else f"{word}."
    return f"{where}: {pair}. {end}" if where else f"{pair[0].upper()}{pair[1:]}. {end}"


def verdict_sentences(verdicts: Sequence[Verdict], *, factor: str = "") -> tuple[str, ...]:
    """Format each verdict (`verdict_sentence`), without labels that are the same in all groups."""
    keys = varying_labels(verdict.group for verdict in verdicts)
    if len(verdicts) == 1:
        keys = tuple(verdicts[0].group)
    trimmed = (replace(item, group={key: item.group[key] for key in keys if key in item.group}) for item in verdicts)
    return tuple(verdict_sentence(item, factor=factor) for item in trimmed)


def between_sittings_notes(run: Run, cells: Sequence[CellSummary]) -> list[str]:
    """Return the note on the scatter between sittings that intervals include; none where they include none."""
    between = run.between_sittings
    shown = {figure: [cell for cell in cells if _has_interval(cell, figure)] for figure in ("ratio", "latency")}
    if not any(shown.values()):
        return []
    if between is None:
        old = "Intervals hold within the sitting of this run, which did not record how far sittings differ."
        return [] if run.environment.device == "fake" else [old]
    parts = []
    for figure, name in (("ratio", "ratios"), ("latency", "times")):
        widths = [half_width(between.of(cell.cell.id, figure)) for cell in shown[figure]]
        if widths:
            parts.append(f"±{_percent_range(min(widths), max(widths))} ({name})")
    sittings = len(set(sitting_of_launches(run).values()))
    if sittings > 1:
        return [
            f"The launches are of {sittings} sittings, and intervals include what these differ by. In one sitting it "
            f"would be {' and '.join(parts)}: {source(between)}."
        ]
    return [f"Intervals include {' and '.join(parts)} between sittings: {source(between)}."]


def _has_interval(cell: CellSummary, figure: str) -> bool:
    found = cell.ratio if figure == "ratio" else cell.latency
    return found is not None and found.low is not None


def _percent_range(low: float, high: float) -> str:
    least, most = f"{100 * low:.1f}", f"{100 * high:.1f}"
    return f"{least} %" if least == most else f"{least} to {most} %"


def _roofline(run: Run, cells: Sequence[CellSummary]) -> list[str]:
    """Return the notes on the roofline column, or why there is none."""
    facts = run.environment.facts
    found = {cell.cell.case.dtype: from_facts(facts, cell.cell.case.dtype) for cell in cells}
    rates = " or ".join(
        f"{units.digits(peaks.flops_per_s / 1e9)} Gflop/s and {units.digits(peaks.bytes_per_s / 1e9)} GB/s in {dtype}"
        for dtype, peaks in found.items()
        if peaks is not None
    )
    lines = [f"No roofline: {facts[name]}." for dtype in found if (name := f"peaks.{dtype}.missing") in facts]
    if rates and any(cell.bounds_s is not None for cell in cells):
        lines.append(
            f"Roofline, {DEFAULT_LEVEL}: the least time for each operator's arithmetic (2 flops a multiply-add) or its "
            f"memory traffic, whichever is longer, summed; at the peaks measured here, {rates}."
        )
        if any((cell.over_bound() or 1) < 1 for cell in cells):
            lines.append(
                "Faster than the roofline: operators find the output of the previous one in a cache, "
                "so that memory bandwidth is not the limit."
            )
    return lines


def _per_image(cells: Sequence[CellSummary]) -> str:
    return " per image" if len({cell.cell.batch for cell in cells}) > 1 else ""


def _reference(run: Run, cells: Sequence[CellSummary]) -> str:
    experiment = run.experiment
    if not is_comparison(run):
        return f"{experiment.factor} {label_text(experiment.reference)}"
    names = {cell.cell.id: model_name(cell) for cell in cells}
    found = {names.get(cell.reference, cell.reference) for cell in cells if cell.reference}
    groups = " and ".join(grouping(run, cells))
    return found.pop() if len(found) == 1 else f"the first network of the same {groups}"


def _sample(cells: Sequence[CellSummary]) -> str:
    blocks, aside = (
        sum(cell.blocks for cell in cells),
        sum(cell.set_aside for cell in cells),
    )
    if any(EMULATED in cell.flags for cell in cells):
        return (
            f"{EMULATED.capitalize()}, since another processor translated the code: {launches_text(cells)}, {blocks} "
            "blocks are kept and nothing is computed from them; costs are those of any machine."
        )
    estimates = [item for cell in cells for item in (cell.ratio, cell.latency) if item and item.low is not None]
    brackets = f" Brackets and ± are {percent(estimates[0].confidence)} intervals." if estimates else ""
    excluded = f", {f'{aside} of them' if aside else 'none'} set aside{disturbed_text(cells)}"
    return f"Medians over {launches_text(cells)}, {blocks} blocks{excluded}.{brackets}"


def disturbed_text(cells: Sequence[CellSummary]) -> str:
    """Format the causes of disturbed blocks that were set aside, `` (disturbed: steal 3)``, and of those that
    contaminated cells keep.
    """
    causes: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for cell in cells:
        causes["contaminated" in cell.flags].update(cell.disturbed)
    set_aside, kept = (", ".join(f"{cause} {n}" for cause, n in found.most_common()) for found in causes.values())
    found = f" (disturbed: {set_aside})" if set_aside else ""
    return f"{found}; contaminated cells keep all blocks (disturbed: {kept})" if kept else found
