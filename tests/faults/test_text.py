"""Malicious text in every text field of a run, and extreme numbers: effbench shows them safely."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import runs
from markdown_it import MarkdownIt
from pages import HARM, poisoned, store
from prometheus_client.openmetrics import parser
from shell import EFFBENCH, Done, effbench, environment

from effbench import export
from effbench.cli import app
from effbench.core.estimate import Estimate
from effbench.results import Results
from effbench.runs.run_file import load

TIMES = {cell: 1e-3 * number for number, cell in enumerate(runs.CELLS, start=1)}

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys, a browser refuses or reorders, a file cannot hold; all but tab and line feed."""


OURS = re.compile(r"\x1b\[(0|1|2|32|33|35|36|38;5;\d+|1;\d+)?m|\x1b\[\?25[hl]|\x1b\[2K|\x1b\[1A|\r")
"""What rich's tables and bar send: colours other than the red of `HARM`, and a line written anew."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that holds harm wherever a run holds a text."""
    home = tmp_path_factory.mktemp("text")
    run = poisoned(runs.run_of(TIMES))
    cases = {case.id: replace(case, model=f"{HARM}.py:net") for case in run.experiment.cases}
    results = [replace(result, cell=replace(result.cell, case=cases[result.cell.id])) for result in run.results]
    results = [replace(result, skipped=None) if at else result for at, result in enumerate(results)]
    study = replace(run.experiment, cases=tuple(cases.values()), absent={HARM: HARM})
    store(replace(run, experiment=study, results=tuple(results), complete=True), home / "run")
    return home


@pytest.fixture
def say(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    monkeypatch.chdir(home)
    return lambda *words: Done(app.main(words), *capsys.readouterr())


def is_plain(text: str) -> bool:
    return not CONTROL.search(text)


def marked_up(text: str) -> list[str]:
    """Everything in a Markdown text that is more than text, tables and our figures."""
    return [
        child.content or str(child.attrs)
        for token in MarkdownIt("commonmark").enable("table").parse(text)
        for child in [token, *(token.children or [])]
        if child.type in ("html_block", "html_inline", "image", "link_open")
        and not re.fullmatch(r"run/\w+\.png", str(child.attrs.get("src", child.attrs.get("href"))))
    ]


def test_the_files_beside_a_run_show_harm_as_text(home: Path, tmp_path: Path) -> None:
    written = Results(load(home / "run")).write(tmp_path / "deep" / "out")
    assert {path.parent for path in written.values()} == {tmp_path / "deep" / "out"}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path not in written.values()] == []
    assert {path.suffix for path in written.values()} == {".md", ".csv", ".png", ".svg"}
    for path in written.values():
        if path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8")
        assert is_plain(text), path
        if path.suffix == ".md":
            assert marked_up(text) == [] and "alert(1)" in text
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1
        else:
            elements = list(ElementTree.fromstring(text).iter())
            assert not {element.tag.rpartition("}")[2] for element in elements} & {"script", "foreignObject", "image"}
            for name, value in (item for element in elements for item in element.attrib.items()):
                name = name.rpartition("}")[2]
                assert not name.startswith("on") and (name != "href" or value.startswith("#")), (name, value)


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_export_shows_harm_as_text(name: str, home: Path, say: Callable[..., Done]) -> None:
    for direction, text in export.export(load(home / "run"), name).texts.items():
        assert is_plain(text)
        if name == "openmetrics":
            assert list(parser.text_string_to_metric_families(text))
        elif name == "csv":
            assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1
        else:
            json.loads(text)
        more = ["--direction", direction] if direction else []
        done = say("export", "run", "--format", name, *more)
        assert done.code == 0 and is_plain(done.out + done.err)


PRINTING = ("diff run run", "run --resume run", "report run", "list studies")


@pytest.mark.parametrize("words", [*PRINTING, *(f"{words} --json" for words in PRINTING), "report run --out -"])
def test_what_is_printed_of_a_run_is_plain(words: str, say: Callable[..., Done]) -> None:
    done = say(*words.split(), *(["--format", "md"] if words.endswith("-") else []))
    assert done.code == 0, done.err
    assert is_plain(done.out + done.err)
    if words.endswith("json"):
        assert done.out.isascii() and json.loads(done.out)
    elif words != "report run":
        assert marked_up(re.sub(r"</?(details|summary)>", "", done.out)) == []


@pytest.mark.parametrize("words", ["diff run run", "run --resume run", "run --resume run --json"])
def test_a_terminal_gets_colours_of_ours_and_no_code_of_theirs(words: str, home: Path) -> None:
    """In a real terminal, where rich draws the tables."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*EFFBENCH, *words.split()],
        cwd=home,
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "200"},
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the end, on Linux
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert process.wait() == 0
    text = OURS.sub("", shown.decode())
    assert is_plain(text) and "alert(1)" in text


def test_check_shows_harm_as_text(tmp_path: Path) -> None:
    """Names in effbench.toml, in the message of an error, in JUnit and in the summary of a step."""
    name = json.dumps(HARM.replace("\ud800", "").replace("\x00", "\x07"))
    (tmp_path / "effbench.toml").write_text(
        f'[models.{name}]\nmodel = "nets.py:net"\ninput = "3x8x8"\nmax_madds = 1\n'
        f'[models."raises {name[1:-1]}"]\nmodel = "nets.py:raises"\ninput = "3x8x8"\nmax_madds = 1\n'
    )
    (tmp_path / "nets.py").write_text(
        f"from torch import nn\ndef net(): return nn.Conv2d(3, 4, 1)\ndef raises(): raise ValueError({name})\n"
    )
    done = effbench("check", "--junit", "junit.xml", "--summary", "summary.md", cwd=tmp_path)
    assert is_plain(done.out + done.err) and "Traceback" not in done.err
    assert done.code == 1, done
    summary, junit = (tmp_path / "summary.md").read_text(), (tmp_path / "junit.xml").read_text()
    assert is_plain(summary) and is_plain(junit) and "alert(1)" in summary
    assert [line for block in marked_up(summary) for line in block.splitlines() if "details" not in line] == []
    assert not {item.tag for item in ElementTree.fromstring(junit).iter()} & {"script", "img"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        *("effbench.toml", "nets.py", "junit.xml", "summary.md"),
    }


# --- numbers at both ends ----------------------------------------------------------------------------

EXTREMES = {
    "a nanosecond for ever so many calls": (1, 2**62, 1, 1),
    "a century for one call": (2**62, 1, 10**18, 10**18),
    "no time at all": (0, 1, 0, 0),
}


@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("name", EXTREMES)
def test_huge_and_tiny_numbers_are_shown_and_stay_finite(name: str, unlike: bool, tmp_path: Path) -> None:
    """Nanoseconds, calls, multiply-adds and elements at the ends of what a file may hold, in all cells or in one."""
    wall, calls, madds, elements = EXTREMES[name]
    run = runs.run_of(TIMES, launches=5, rounds=3)
    for cell in runs.CELLS[: 1 if unlike else 3]:
        run = runs.with_blocks(run, cell, lambda timing: replace(timing, calls=calls, wall_ns=wall, cpu_ns=wall))
    traffic = {level: replace(each, activations=elements) for level, each in runs.COST.memory_access_levels.items()}
    cost = replace(runs.COST, madds=madds, params=elements, memory_access_levels=traffic)
    bounds = dict.fromkeys(traffic, 1e-300)
    run = replace(run, results=tuple(replace(item, cost=cost, calls=calls, bounds_s=bounds) for item in run.results))
    results = Results(load(store(run, tmp_path / "run")))
    for path in results.write().values():
        assert path.stat().st_size > 0
        if path.suffix in (".md", ".csv"):
            assert not re.search(r"(?i)\b(nan|inf)\b", path.read_text())
    text = json.dumps(results.to_dict(), allow_nan=False)
    assert json.loads(text)["cells"]
    for table in results.tables():
        for row in table.all_rows:
            for value in row:
                raw = value.raw.point if isinstance(value.raw, Estimate) else value.raw
                assert not isinstance(raw, float) or abs(raw) < 1e308
    assert len(results.to_frame()) == 3
    for kind in export.FORMATS:
        export_or_refusal(results, kind)


def export_or_refusal(results: Results, kind: str) -> None:
    from effbench.core.errors import InvalidValue

    try:
        texts = export.export(results.run, kind).texts
    except InvalidValue as error:
        assert "\n" not in str(error)
        return
    assert not any(re.search(r"\b(NaN|Infinity|nan|inf)\b", text) for text in texts.values())
