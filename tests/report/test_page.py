"""The report page: complete, safe for any text in a run, and with several runs side by side."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pages import HARM, REFERENCE, STUDIES, Page, poisoned, reference, store
from shell import Done, refusal

from effbench import report
from effbench.cli import app
from effbench.core.estimate import Estimate
from effbench.core.run import Conditions, Environment, Run
from effbench.host import facts as host_facts
from effbench.report import multi_run, page
from effbench.report import text as report_text
from effbench.report.figures import inline_svg
from effbench.results import Results
from effbench.runs import run_file

G2 = {"scale=x1,groups=1": 1e-3, "scale=x1,groups=2": 2e-3, "scale=x1,groups=4": 4e-3}


def made_up(threads: int = 1, times: dict[str, float] = G2, **facts: object) -> Results:
    run = runs.run_of(times, facts={"run.threads": threads, **facts})
    cells = tuple(replace(result, cell=replace(result.cell, threads=threads)) for result in run.results)
    return Results(replace(run, results=cells))


@pytest.fixture(scope="module", params=["g2_groups", "g4_elementwise", "compare"])
def shown(request: pytest.FixtureRequest) -> tuple[Results, Page]:
    results = reference(request.param)
    return results, Page(page.html([results]))


# --- one run -----------------------------------------------------------------------------------------


def test_every_table_of_a_run_is_on_its_page_with_its_raw_numbers(shown: tuple[Results, Page]) -> None:
    results, read = shown
    bodies = [[row.all("td") for row in table.all("tbody")[0].all("tr")] for table in read.all("table")]
    for table in report.run_tables(results.run, results.cells, results.verdicts).values():
        texts = [[value.text for value in row] for row in table.rows]
        body = next(rows for rows in bodies if [[cell.text for cell in row] for row in rows] == texts)
        for values, cells in zip(table.rows, body, strict=True):
            for value, cell in zip(values, cells, strict=True):
                raw = value.raw.point if isinstance(value.raw, Estimate) else value.raw
                if isinstance(raw, (int, float)) and not isinstance(raw, bool):
                    assert float(cell.attributes["data-value"] or "") == raw
                else:
                    assert "data-value" not in cell.attributes
                assert ("data-missing" in cell.attributes) == (raw is None)


def test_the_launches_of_a_run_that_recorded_them_are_a_table(tmp_path: Path) -> None:
    run = made_up().run
    at = {"overhead_s": 2.5, "used_s": 60.0, "at_start": Conditions(load_1m=0.75), "at_end": Conditions(cpu_mhz=2900.0)}
    first = replace(run.launches[0], start="2026-11-22T10:00:00+00:00", end="2026-11-22T10:01:00+00:00", **at)
    second = replace(run.launches[1], start="2026-11-22T15:01:00+00:00", end="2026-11-22T15:02:00+00:00", **at)
    resumed = replace(second, changed={f"host.kernel{HARM}": ("6.1", HARM)})
    results = Results(replace(run, launches=(first, resumed)))
    shown, text = page.html([results]), page.markdown([results], tmp_path)
    for form in (shown, text):
        assert "2026-11-22 15:01:00" in form and "start and warm-up" in form and "5.0 hours passed" in form
        assert "<script>alert" not in form
    assert "start and warm-up" not in page.html([made_up()]) + page.markdown([made_up()], tmp_path)


def test_a_page_says_what_was_claimed_found_and_how_to_repeat_it(shown: tuple[Results, Page]) -> None:
    results, read = shown
    text = read.root.text
    run = results.run
    sentences = report_text.verdict_sentences(results.verdicts, factor=run.experiment.factor)
    for expected in (run.experiment.claim, run.command, str(run.environment.facts["effbench.commit"]), *sentences):
        assert expected in text
    words = [item.text for item in read.all("b") if "word" in (item.attributes["class"] or "")]
    assert words[: len(results.verdicts)] == [item.verdict for item in results.verdicts]
    assert len(read.all("svg")) == len(report.run_figures(run, results.cells, results.verdicts))
    for name in run.environment.facts:
        assert name in text


def test_the_method_counts_what_the_file_holds() -> None:
    """Against the records themselves, parsed without effbench."""
    lines = [json.loads(line) for line in (REFERENCE / "g2_groups" / "run.jsonl").read_text().splitlines()]
    blocks = [line for line in lines if line["kind"] == "block"]
    disturbed = sum(bool(line["timing"].get("flags")) for line in blocks)
    launches = {line["launch"] for line in blocks}
    rounds = [len({line["round"] for line in blocks if line["launch"] == launch}) for launch in launches]
    method = {item.all("dt")[0].text: item.all("dd")[0].text for item in _divs(page.html([reference("g2_groups")]))}
    assert method["Blocks"].startswith(f"{len(blocks)} of at least 5 ms")
    assert method["Set aside"].startswith(f"{disturbed} of {len(blocks)} blocks")
    assert method["Launches"].startswith(
        f"{len(launches)} of {lines[0]['sampling']['launches']} planned fresh processes"
    )
    assert method["Rounds"].startswith(f"{min(rounds)} to {max(rounds)} in each launch")
    assert method["seed"] == str(lines[0]["seed"]) and "thread CPU time" in method["Clock"]


def _divs(html: str) -> list:
    return [item for facts in Page(html).all("dl") for item in facts.children]


def test_a_page_stands_alone_and_its_names_are_unique() -> None:
    text = page.html([reference(name) for name in STUDIES])
    assert len(text.encode()) < 1_500_000
    read = Page(text)
    ids = [item.attributes["id"] for item in read.all() if "id" in item.attributes]
    assert len(ids) == len(set(ids))
    for item in read.all():
        for name in ("href", "src", "xlink:href", "clip-path", "action"):
            target = item.attributes.get(name)
            if target is not None:
                assert target.removeprefix("url(").rstrip(")").removeprefix("#") in ids, (item.tag, name, target)
    assert not re.search(r"@import|url\((?!#)|@font-face", text)
    assert [item.attributes.get("lang") for item in read.all("html")] == ["en"]
    assert len(read.all("h1")) == len(read.all("main")) == len(read.all("title")) == 1
    levels = [int(item.tag[1]) for item in read.all() if re.fullmatch("h[1-6]", item.tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_run_that_measured_nothing_still_has_a_page() -> None:
    empty = replace(runs.run_of(G2), results=(), launches=(), complete=False)
    for text in (page.html([Results(empty)]), page.markdown([Results(empty)], Path())):
        assert "not complete" in text.lower()
    skipped = runs.run_of(G2)
    skipped = replace(skipped, results=tuple(replace(item, blocks=(), skipped="no room") for item in skipped.results))
    assert "skipped: no room" in page.html([Results(skipped)])


# --- harm --------------------------------------------------------------------------------------------


def test_a_run_file_cannot_act_in_the_page(tmp_path: Path) -> None:
    folder = store(poisoned(runs.run_of(G2)), tmp_path / "run")
    results = Results(run_file.load(folder))
    text = page.html([results, made_up()])
    read = Page(text)
    assert len(read.all("script")) == 1 and not read.all("img")
    assert not [name for item in read.all() for name in item.attributes if name.startswith("on")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    assert "alert(1)" in read.root.text.replace(read.all("script")[0].text, "")
    assert "{{ 7*7 }}" in read.root.text
    digest = re.search(r"script-src 'sha256-([^']+)'", text)
    assert digest and digest[1] == _sha256(read.all("script")[0].text)


def _sha256(text: str) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_a_run_file_cannot_act_in_markdown(tmp_path: Path) -> None:
    folder = store(poisoned(runs.run_of(G2)), tmp_path / "run")
    text = page.markdown([Results(run_file.load(folder)), made_up()], tmp_path)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    markup = [
        child.content
        for token in MarkdownIt("commonmark").enable("table").parse(text)
        for child in [token, *(token.children or [])]
        if child.type in ("html_block", "html_inline", "image", "link_open")
    ]
    assert {line for block in markup for line in block.splitlines()} <= {
        "</details>",
        *re.findall(r"<details><summary>[\w ,]+</summary>", text),
    }


@pytest.mark.parametrize("several", [False, True])
def test_markdown_holds_the_same_tables(several: bool, tmp_path: Path) -> None:
    results = reference("g2_groups")
    text = page.markdown([results, reference("g2_groups_again")] if several else [results], REFERENCE)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    expected = sum(
        len(table.rows) for table in report.run_tables(results.run, results.cells, results.verdicts).values()
    )
    rows = sum(token.type == "tr_open" for token in tokens)
    assert rows > expected + len(results.run.environment.facts)
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert images == ["g2_groups/figure.png", "g2_groups_again/figure.png"][: 1 + several]
    for address in images:
        assert (REFERENCE / address).is_file()
    code = [token.content.strip() for token in tokens if token.type == "code_block"]
    assert code[0] == results.run.command
    elsewhere = store(results.run, tmp_path / "run")
    assert "![" not in page.markdown([Results(run_file.load(elsewhere))], tmp_path)


# --- several runs ------------------------------------------------------------------------------------


def test_the_same_cells_stand_side_by_side() -> None:
    fewer = {name: time / 2 for name, time in G2.items() if not name.endswith("=2")}
    first, second = made_up(1), made_up(2, fewer)
    verdicts, ratios, latencies = multi_run.tables({1: first, 2: second})
    assert [column.heading for column in ratios.columns] == ["groups", "1: 1 thread", "2: 2 threads"]
    assert [row[0].raw for row in ratios.rows] == [1, 2, 4]
    assert [row[1].raw.point for row in ratios.rows] == pytest.approx([1, 2, 4], rel=0.01)
    assert ratios.rows[1][2].raw is None
    assert ratios.rows[2][2].raw.point == pytest.approx(4, rel=0.01)
    assert [latencies.rows[at][2].raw.point for at in (0, 2)] == pytest.approx([5e-4, 2e-3], rel=0.01)
    assert latencies.rows[1][2].raw is None
    words = {(row[0].text, *(value.text for value in row[1:])) for row in verdicts.rows}
    assert {(item.claim, item.verdict) for item in first.verdicts} == {(claim, one) for claim, one, _ in words}


def test_labels_that_go_with_the_device_do_not_keep_cells_apart() -> None:
    """The paper's widths differ by platform: ratios can be read beside each other, and a note says what is unlike."""
    study = runs.study(scales=("x1",))

    def on(channels: str) -> Results:
        cases = tuple(replace(case, labels={"channels": channels, **case.labels}) for case in study.cases)
        experiment = replace(study, cases=cases)
        times = {case.id: 1e-3 * case.labels["groups"] for case in cases}
        return Results(runs.run_of(times, experiment=experiment))

    arm, gpu = on("ARM"), on("GPU")
    _, ratios, latencies = multi_run.tables({1: arm, 4: gpu})
    assert len(ratios.rows) == 3 and all(value.raw is not None for row in ratios.rows for value in row)
    assert "channels is ARM in run 1, GPU in run 4" in " ".join(ratios.notes)
    assert "unlike networks" in " ".join(latencies.notes)
    assert [column.heading for column in ratios.columns[-2:]] == ["1: channels ARM", "4: channels GPU"]


def test_unlike_clocks_are_named() -> None:
    first = made_up()
    second = Results(replace(first.run, clock="wall"))
    _, ratios, _ = multi_run.tables({1: first, 2: second})
    assert "unlike clocks (thread CPU time in run 1, wall-clock time in run 2)" in ratios.notes[0]


FACTS = st.dictionaries(
    st.sampled_from([*host_facts.MUST_AGREE[2:], "host.load_1m", "cpu.mhz_now", "effbench.commit"]),
    st.sampled_from([None, 1, 2, "3.11.7", "3.11.9", "3.12.0", True]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(FACTS, min_size=1, max_size=4))
def test_conditions_that_forbid_a_comparison_are_the_ones_that_diff_refuses(facts: list[dict[str, object]]) -> None:
    environments = [Environment("cpu", "eager", each) for each in facts]
    found = multi_run.conditions(environments)
    refused = {item.field for other in environments for item in host_facts.differences(environments[0], other)}
    assert {item.name for item in found if item.mark == "unlike"} == refused
    assert all(len(set(item.values)) == 1 for item in found if not item.mark)
    assert {item.name for item in found} == {"device", "runtime"}.union(*facts)


def test_conditions_that_differ_are_marked_in_words_and_not_by_colour_alone() -> None:
    text = page.html([made_up(1, **{"host.load_1m": 0.5}), made_up(2, **{"host.load_1m": 0.7})])
    rows = {row.all("th")[0].text: row for row in Page(text).all("tr") if row.all("td") and row.all("th")}
    assert rows["run.threads"].attributes["class"] == "unlike" and "≠ differs" in rows["run.threads"].text
    assert rows["host.load_1m"].attributes["class"] == "varies" and rows["host.load_1m"].text.endswith("varies")
    assert rows["cpu.model"].text.endswith("same")
    assert "≠ differs" not in page.html([made_up(1), made_up(1)])
    markdown = page.markdown([made_up(1), made_up(2)], Path())
    assert "| run.threads | 1 | 2 | **≠ differs** |" in markdown


# --- figures -----------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@settings(deadline=None)
@given(st.integers(0, 0xFFFFFF))
def test_a_colour_that_reads_on_white_reads_on_the_dark_page(number: int) -> None:
    colour = f"{number:06x}"
    (dark,) = inline_svg.dark_colours([f"fill: var(--f-{colour}, #{colour})"]).values()
    wanted = min(_contrast(f"#{colour}", "#ffffff"), 14.0)
    assert _contrast(dark, "#16181b") >= 0.97 * wanted


def test_white_becomes_the_dark_page_and_black_its_text() -> None:
    css = (Path(page.__file__).parent / "templates" / "page.css.j2").read_text(encoding="utf-8")
    paper, ink = re.findall(r"--paper: (#\w+); --ink: (#\w+)", css)[1]
    used = "var(--f-ffffff, #ffffff) var(--f-000000, #000000)"
    assert inline_svg.dark_colours([used]) == {"000000": ink, "ffffff": paper}


def test_a_drawing_keeps_its_marks_and_brings_nothing_along() -> None:
    from effbench.report.figures import style

    results = reference("g2_groups")
    figure = report.run_figures(results.run, results.cells, results.verdicts)["figure"]
    alone, inside = style.svg_text(figure), inline_svg.inline(figure, "r1-", 'say "so"')
    for tag in ("<path", "<use", "<text"):
        assert inside.count(tag) == alone.count(tag) > 0
    assert "<style" not in inside and "<metadata" not in inside and "font-family" not in inside
    assert "xmlns" not in inside and "http" not in inside
    assert 'aria-label="say &quot;so&quot;"' in inside


# --- the command -------------------------------------------------------------------------------------


@pytest.fixture
def say(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """One command in this process, from the folder of the runs."""
    monkeypatch.chdir(home)

    def run(*words: str) -> Done:
        code = app.main(words)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one of them a copy with other conditions, and two folders without one yet."""
    folder = tmp_path_factory.mktemp("home")
    store(runs.run_of(G2), folder / "one")
    store(runs.run_of(G2, facts={"run.threads": 2}), folder / "two")
    (folder / "empty").mkdir()
    (folder / "stopped").mkdir()
    (folder / "stopped" / "run.jsonl").write_text('{"kind":"header","sch')
    return folder


def test_the_page_is_written_beside_the_first_run(home: Path, say: Callable[..., Done]) -> None:
    done = say("report", "one", "two")
    assert (done.code, done.err, done.out) == (0, "", "html    one/report.html\n")
    assert "Side by side" in (home / "one" / "report.html").read_text(encoding="utf-8")


def test_out_decides_the_format_and_json_names_the_files(home: Path, say: Callable[..., Done]) -> None:
    assert say("report", "one", "--out", "new/page.md", "--json").json == {
        "files": {"md": "new/page.md"},
        "without_run": [],
    }
    assert (home / "new" / "page.md").read_text().startswith("# Made up\n")
    printed = say("report", "one/run.jsonl", "--out", "-")
    assert (printed.code, printed.err) == (0, "") and Page(printed.out).all("main")
    markdown = say("report", "one", "--format", "md", "--out", "-")
    assert markdown.out.startswith("# Made up\n")


def test_folders_without_a_run_yet_are_named_and_the_others_shown(home: Path, say: Callable[..., Done]) -> None:
    """As of a fleet whose machines have not all begun, reported a second time into its folder."""
    (home / "fleet.html").write_text("<!doctype html>")
    done = say("report", "empty", "fleet.html", "one", "stopped", "two", "--out", "fleet.html")
    assert (done.code, done.out) == (0, "html    fleet.html\n")
    assert "no run yet in empty, stopped" in done.err and "passed over fleet.html" in done.err
    page = Page((home / "fleet.html").read_text(encoding="utf-8"))
    assert [item.text for item in page.all("p") if "no run yet" in item.text] == ["no run yet empty, stopped"]
    assert [item.text for item in page.all("nav")[0].all("a")] == ["1: one", "2: two"]
    alone = say("report", "one", "empty", "--out", "-", "--format", "md")
    assert alone.code == 0 and "**No run yet**: empty\n" in alone.out and "# Made up\n" in alone.out
    told = say("report", "one", "empty", "--out", "new/one.html", "--json")
    assert told.json["without_run"] == ["empty"]


WRONG: dict[str, tuple[str, ...]] = {
    "report": ("effbench report --help",),
    "report nowhere": ("no run at nowhere", "run.jsonl"),
    "report one nowhere": ("no run at nowhere",),
    "report empty": ("no run at empty", "run.jsonl"),
    "report empty stopped": ("no run at empty",),
    "report stopped": ("is empty", "begin it again"),
    "report empty one nowhere": ("no run at nowhere",),
    "report one broken": ("line 2", "restore the file"),
    "report broken": ("line 2", "restore the file"),
    "report one --format htm": ("no format named 'htm'", "Did you mean 'html'"),
    "report one --out two": ("it is a folder", "two/report.html"),
    "report one --out - --json": ("leave one of them out",),
    "report one --out one/run.jsonl/page.html": ("cannot write",),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_shown_gets_one_line(line: str, home: Path, say: Callable[..., Done]) -> None:
    broken = home / "broken"
    if not broken.exists():
        shutil.copytree(home / "one", broken)
        lines = (broken / "run.jsonl").read_text().splitlines()
        (broken / "run.jsonl").write_text("\n".join([lines[0], "{nonsense", *lines[2:], ""]))
    said = refusal(say(*line.split()))
    for part in WRONG[line]:
        assert part in said


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys, effbench.cli as cli, effbench.cli.runs, effbench.report.page;"
        "early = [name for name in ('matplotlib', 'jinja2', 'torch') if name in sys.modules];"
        f"code = cli.main(['report', {str(REFERENCE / 'compare')!r}, '--out', '-']);"
        "print(early, code, [name for name in ('torch', 'pandas', 'rich') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0 []"


def test_a_page_is_the_same_every_time() -> None:
    assert _without_path(page.html) == _without_path(page.html)


def _without_path(write: Callable[[list[Results]], str]) -> str:
    return write([Results(runs.run_of(G2))])


def test_verdicts_stand_by_machine_above_the_tables_of_several_runs(tmp_path: Path) -> None:
    once = reference("g2_groups")
    other = replace(once.run.environment, facts={**once.run.environment.facts, "cpu.model": "Another CPU"})
    boards = [stored_as(tmp_path / name, replace(once.run, environment=other)) for name in ("pi5-a", "pi5-b")]
    shown = page.html([once, *boards])
    drawn = shown.partition('id="side-by-side"')[2].partition("</figure>")[0]
    assert "<svg" in drawn and drawn.count(">Another CPU (cpu)<") == 2 and drawn.count(">holds<") == 18
    assert all(f">{name}<" in drawn for name in ("1: g2_groups", "2: pi5-a", "3: pi5-b"))
    assert 'aria-label="Verdicts:' not in page.html([once]), "one run has its figure in its own section"


def stored_as(folder: Path, run: Run) -> Results:
    return Results(replace(run, path=str(folder / "run.jsonl")))


def test_two_boards_of_one_model_differ_wherever_the_page_names_them(tmp_path: Path) -> None:
    run = runs.run_of(G2)
    boards = [stored_as(tmp_path / name, run) for name in ("pi5-a", "pi5-b")]
    read = Page(page.html(boards))
    for tag in ("a", "h2", "figcaption"):
        said = [item.text for item in read.all(tag)]
        assert all(said.count(name) == 1 for name in ("1: pi5-a", "2: pi5-b")), tag
    named = [item.attributes.get("aria-label") for item in read.all() if item.attributes.get("role") == "region"]
    own = [name for name in named if name and name.endswith((" of 1: pi5-a", " of 2: pi5-b"))]
    assert len(own) == len(set(own)) >= 4, "captions of tables and figures of each run"
    headings = [[cell.text for cell in table.all("th")] for table in read.all("table")]
    beside = [row for row in headings if "1: pi5-a" in row]
    assert len(beside) == 4 and all("2: pi5-b" in row for row in beside), "verdicts, ratios, latencies, environment"
    for heading in ("## 1: pi5-a\n", "## 2: pi5-b\n"):
        assert heading in page.markdown(boards, tmp_path)


def test_a_page_says_how_far_each_run_is(tmp_path: Path) -> None:
    whole, part = runs.run_of(G2), runs.run_of(G2, launches=2)
    part = replace(part, sampling=whole.sampling, complete=False)
    empty = replace(whole, results=tuple(replace(item, blocks=()) for item in whole.results), launches=())
    empty = replace(empty, complete=False, environment=replace(empty.environment, facts={"effbench.version": "9.9"}))
    names = ("pi5-a", "pi5-b", "pi5-c")
    found = [stored_as(tmp_path / name, run) for name, run in zip(names, (whole, part, empty), strict=True)]
    read = Page(page.html(found))
    assert [item.text for item in read.all("nav")[0].all("b")] == ["2 of 5 launches done", "not begun"]
    warnings = [item.text for item in read.all("p") if item.attributes.get("class") == "warning"]
    assert [text.partition(".")[0] for text in warnings] == [
        "not complete 2 of 5 launches done",
        "not complete Not begun",
    ]
    verdicts, *_ = multi_run.tables(dict(enumerate(found, start=1)))
    assert {row[-1].raw for row in verdicts.rows} == {None} and {row[-2].text for row in verdicts.rows} == {"unsure"}
    assert verdicts.notes == ("2: pi5-b is not complete: 2 of 5 launches done.", "3: pi5-c has not begun.")
    text = page.markdown(found, tmp_path)
    assert "(**2 of 5 launches done**)" in text and "(**not begun**)" in text
