"""What the tests of the report page share: runs to show, files that mean harm, and a strict reader of HTML."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from effbench import api
from effbench.core.run import Run
from effbench.results import Results
from effbench.runs.run_file import RunWriter

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores"
STUDIES = ("g1_channel_ratio", "g2_groups", "g3_fragmentation", "g4_elementwise")

HARM = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`|{{ 7*7 }}\x1b[31m\u202e\x00\ud800"
"""Markup, quotes, a table's border, a template, terminal and direction codes, half a character."""

VOID = {"meta", "br", "img", "link", "input", "hr"}


@cache
def reference(name: str) -> Results:
    return api.load(REFERENCE / name)


def store(run: Run, folder: Path) -> Path:
    """The run as a file."""
    with RunWriter(folder) as writer:
        writer.header(run, "0")
        for result in run.results:
            writer.cell(result)
        for launch in run.launches:
            writer.append("launch", launch=launch.number, slot=launch.slot)
            for result in run.results:
                for block in result.blocks:
                    if block.launch == launch.number:
                        writer.block(block)
            writer.append("end", launch=launch.number, stopped=launch.stopped, seconds=launch.seconds)
        writer.append("complete")
    return folder


def poisoned(run: Run) -> Run:
    """The run with harm in every text that its file may hold, and a label that varies with harm for its name."""
    cases = tuple(replace(case, labels={HARM: n, **case.labels}) for n, case in enumerate(run.experiment.cases))
    cells = {old.id: new for old, new in zip(run.experiment.cases, cases, strict=True)}
    results = tuple(
        replace(
            result,
            cell=replace(result.cell, case=cells[result.cell.id]),
            skipped=HARM,
            blocks=tuple(replace(block, cell=cells[result.cell.id].id) for block in result.blocks),
        )
        for result in run.results
    )
    claims = tuple(replace(claim, name=f"claim {HARM}", text=HARM) for claim in run.experiment.claims)
    study = replace(
        run.experiment, title=f"title {HARM}", claim=HARM, name=HARM, cases=cases, claims=claims, notes=(HARM,)
    )
    facts = {**run.environment.facts, HARM: HARM, "cpu.model": HARM, "effbench.version": HARM, "run.allocator": HARM}
    environment = replace(run.environment, runtime=HARM, facts=facts)
    return replace(run, experiment=study, environment=environment, results=results, command=HARM, created=HARM)


@dataclass
class Element:
    """One element with its attributes, its children and the text directly or indirectly inside it."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str | None = None) -> list[Element]:
        found = [self] if tag in (None, self.tag) else []
        return found + [item for child in self.children for item in child.all(tag)]


class Page(HTMLParser):
    """The tree of a page. Fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [item.tag for item in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str | None = None) -> list[Element]:
        return self.root.all(tag)
