"""Render stored runs as one HTML or Markdown page: claims, results, conditions, and how to repeat the measurement.

The HTML file is self-contained: styles, the sorting script and the figures are inline. Texts of a run are untrusted, so
they are escaped, and a content security policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from effbench import report
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.host.emulation import is_emulated
from effbench.report import multi_run, text
from effbench.report.figures import failures
from effbench.report.multi_run import SummarisedRun
from effbench.report.run_names import RunName, run_names
from effbench.report.tables import launches as launches_table
from effbench.report.tables.table_model import Table, Value, escape_markdown, one_line, render_markdown

if TYPE_CHECKING:
    import jinja2

FORMATS = ("html", "md")
TONES = {
    "holds": "good",
    "faster": "good",
    "fails": "bad",
    "slower": "bad",
    "unsure": "open",
    "missing": "open",
}
"""The colour of a verdict, which is always shown as a word, too."""

_ALLOCATORS = {
    "retain": "retain: glibc keeps freed pages mapped, so that timings exclude page faults",
    "system": "system: glibc's defaults",
}


@dataclass(frozen=True)
class Section:
    """One run on the page, by its name and, in captions, by the shorter `title`.

    `figures` are SVG elements in HTML, and URLs of images in Markdown.
    """

    number: int
    name: str
    title: str
    measured: SummarisedRun
    sentences: tuple[tuple[str, str], ...]
    tables: Mapping[str, Table]
    figures: Mapping[str, str]
    method: Mapping[str, str]
    origin: Mapping[str, str]

    @property
    def setting(self) -> str:
        return text.subtitle(self.measured.run, self.measured.cells)

    @property
    def unfinished(self) -> str:
        return text.unfinished(self.measured.run)


def html(runs: Sequence[SummarisedRun], waiting: Sequence[str] = ()) -> str:
    """Render the runs as one self-contained HTML page, which also names folders that wait for a run of theirs."""
    from effbench.report.figures import inline_svg

    figures = [failures.draw_or_warn(partial(_drawings, number, item)) for number, item in enumerate(runs, start=1)]
    environment = _templates()
    script = environment.get_template("sort.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    matrices = failures.draw_or_warn(partial(_matrices, runs))
    dark = inline_svg.dark_colours([found for each in (*figures, matrices) for found in each.values()])
    return environment.get_template("page.html.j2").render(
        **_content(runs, figures, waiting), matrices=matrices, dark=dark, script=script, digest=digest
    )


def markdown(runs: Sequence[SummarisedRun], folder: Path, waiting: Sequence[str] = ()) -> str:
    """Render the runs as GitHub-flavoured Markdown for a file in `folder`.

    Figures are links to the images in each run's folder, if there are any. The page also names folders that wait for a
    run of theirs.
    """
    figures = [_images(item, folder) for item in runs]
    return _templates().get_template("page.md.j2").render(**_content(runs, figures, waiting))


def _templates() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("effbench.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": escape_markdown, "table": render_markdown, "line": one_line}
    environment.filters |= {"sort_key": _sort_key, "called": _alternative_text}
    environment.globals["tones"] = TONES
    return environment


def _printable(value: Any) -> Any:
    """Remove control characters from a text, which browsers reject and terminals interpret."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "\n".join(map(one_line, value.split("\n")))
    return value


def _content(
    runs: Sequence[SummarisedRun], figures: Sequence[Mapping[str, str]], waiting: Sequence[str]
) -> dict[str, Any]:
    numbered = dict(enumerate(runs, start=1))
    names = run_names(numbered)
    titles = list(dict.fromkeys(item.run.experiment.title for item in runs))
    conditions = multi_run.conditions([item.run.environment for item in runs])
    return {
        "title": titles[0] if len(titles) == 1 else f"{len(runs)} runs",
        "sections": [
            _section(number, names[number], item, found)
            for (number, item), found in zip(numbered.items(), figures, strict=True)
        ],
        "shared": multi_run.tables(numbered),
        "conditions": conditions,
        "waiting": waiting,
        "unlike": [item.name for item in conditions if item.mark == "unlike"],
    }


def _section(number: int, name: RunName, measured: SummarisedRun, figures: Mapping[str, str]) -> Section:
    run, verdicts = measured.run, measured.verdicts
    sentences = text.verdict_sentences(verdicts, factor=run.experiment.factor)
    tables, launches = measured.named_tables, launches_table.launch_rows(run)
    return Section(
        number,
        str(name),
        name.title,
        measured,
        tuple(zip((item.verdict for item in verdicts), sentences, strict=True)),
        tables if launches is None else {**tables, "launches": launches},
        figures,
        _method(measured),
        _origin(measured),
    )


def _drawings(number: int, measured: SummarisedRun) -> dict[str, str]:
    from effbench.report.figures import inline_svg

    title = one_line(measured.run.experiment.title)
    return {
        name: inline_svg.inline(
            figure, f"r{number}-{name}-", f"{_alternative_text(title, name)}; the tables hold its numbers"
        )
        for name, figure in report.run_figures(measured.run, measured.cells, measured.verdicts).items()
    }


def _matrices(runs: Sequence[SummarisedRun]) -> dict[str, str]:
    """Draw the verdict matrix of each study that several of the runs have in common, by its title."""
    from effbench.report.figures import inline_svg, matrix

    found = {}
    for place, group in enumerate(multi_run.of_one_study(dict(enumerate(runs, start=1)))):
        names = run_names(group)
        seen = [
            matrix.RunColumns(item.run, item.cells, item.verdicts, names[number].title, names[number].setting)
            for number, item in group.items()
        ]
        if any(item.verdicts for item in seen):
            title = one_line(seen[0].run.experiment.title)
            figure = matrix.matrix_figure(seen)
            found[title] = inline_svg.inline(figure, f"m{place}-", f"{title}: verdicts; the tables hold its numbers")
    return found


def _alternative_text(title: str, name: str) -> str:
    """Return the alternative text of a figure."""
    return title if name == "figure" else f"{title}: {name}"


def _images(measured: SummarisedRun, folder: Path) -> dict[str, str]:
    if measured.run.path is None:
        return {}
    beside = Path(measured.run.path).parent
    names = failures.draw_or_warn(partial(report.run_figures, measured.run, measured.cells, measured.verdicts))
    found = {name: beside / f"{name}.png" for name in names}
    return {
        name: quote(Path(os.path.relpath(path, folder)).as_posix()) for name, path in found.items() if path.is_file()
    }


# --- method and origin ------------------------------------------------------------------------------


def _method(measured: SummarisedRun) -> dict[str, str]:
    """Describe how the run was measured, in a sentence per topic."""
    run, cells, sampling = measured.run, measured.cells, measured.run.sampling
    blocks = [block for result in run.results for block in result.blocks]
    rounds = Counter(launch for launch, _ in {(block.launch, block.round) for block in blocks})
    stops = Counter(launch.stopped for launch in run.launches)
    warmups = [warmup for launch in run.launches for warmup in launch.warmups.values()]
    nulls = sorted(launch.null_call_ns for launch in run.launches if launch.null_call_ns is not None)
    if is_emulated(run.environment):
        nulls = []
    aside = sum(cell.set_aside for cell in cells)
    allocator = str(run.environment.facts.get("run.allocator", "not recorded"))
    seconds = sum(launch.seconds for launch in run.launches)
    found = {
        "Launches": f"{len(run.launches)} of {sampling.launches} planned fresh processes, {units.digits(seconds)} s "
        f"altogether; ended by {_counted(stops) or 'nothing yet'}.",
        "Rounds": f"{_span(list(rounds.values()))} in each launch; each visits every cell once in random order "
        f"(seed {run.seed}). A ratio is taken within a round.",
        "Blocks": f"{len(blocks)} of at least {1e3 * sampling.block_s:g} ms, "
        f"{_span([result.calls for result in run.results if result.calls])} calls in each, the same in every launch.",
        "Stopping": f"when every ratio is known to ±{100 * sampling.precision:g} %, or after {sampling.budget_s:g} s "
        f"or {sampling.max_rounds} rounds.",
        "Clock": f"Ratios are of {text.clock(run)}; latency is wall-clock time a call.",
        "Allocator": f"{_ALLOCATORS.get(allocator, allocator)}.",
        "Set aside": f"{aside} of {len(blocks)} blocks, for an outside cause and never for their value"
        f"{text.disturbed_text(cells)}.",
    }
    if warmups:
        steady = sum(warmup.steady for warmup in warmups)
        found["Warm-up"] = f"{steady} of {len(warmups)} cells and launches reached a steady state."
    if nulls:
        found["Harness"] = f"An empty call takes {nulls[len(nulls) // 2]:.0f} ns and is part of every call timed."
    return found


def _origin(measured: SummarisedRun) -> dict[str, str]:
    """Return what is needed to repeat the run: versions, commit, command."""
    run, facts = measured.run, measured.run.environment.facts
    commit, state = facts.get("effbench.commit"), facts.get("effbench.dirty")
    source = "" if commit is None else f", commit {commit}{' with uncommitted changes' if state else ''}"
    return {
        "effbench": f"{facts.get('effbench.version') or 'version not recorded'}{source}",
        "seed": str(run.seed),
        "measured": run.created or "not recorded",
        "raw blocks": run.path or "not stored",
    }


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _sort_key(value: Value) -> float | None:
    """Return the number that a column is sorted by; None for texts and missing values."""
    raw = value.raw.point if isinstance(value.raw, Estimate) else value.raw
    return raw if isinstance(raw, (int, float)) and not isinstance(raw, bool) else None
