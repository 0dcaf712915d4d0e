"""Storage failures: a disk that fills at any byte, read-only folders, symbolic links out of the folder."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forks import CELLS, RESUME, WORDS, Ended, Forks
from shell import kinds

from effbench.runs import run_file

SEED = 20261122


pytestmark = pytest.mark.usefixtures("fresh_forks")


def one_line(ended: Ended) -> str:
    """What a fork that was refused said: one line."""
    assert ended.code == 2, ended
    line = ended.said.splitlines()[-1]
    assert line.startswith("effbench: ") and not re.search(r"Traceback|[\x00-\x08\x0b-\x1f]", ended.said), ended
    return line


# --- a disk that fills -------------------------------------------------------------------------------


def test_a_disk_that_fills_at_any_byte_loses_nothing(forks: Forks) -> None:
    """No file may grow beyond a size drawn from those of a whole run: records first, then tables, then figures."""
    assert forks.carry_out(*WORDS, figures=True).code == 0
    whole = {path.name: path.stat().st_size for path in (forks.work / "run").iterdir()}
    records, largest = whole["run.jsonl"], max(whole.values())
    draw, outside, seen = random.Random(SEED), forks.outside(), set()
    limits = [700, *(draw.randint(700, records) for _ in range(8)), records - 1, records, largest - 1]
    for number, limit in enumerate(limits):
        forks.empty()
        ended = forks.carry_out(*WORDS, file_limit=limit, figures=limit >= records - 1)
        line, data = one_line(ended), (forks.work / "run" / "run.jsonl")
        held = data.read_bytes() if data.exists() else b""
        assert forks.outside() == outside
        assert len(held) <= limit and held[-1:] in (b"", b"\n"), "half a line is taken back"
        assert [kind for kind in ended.acknowledged if kind != "over"] == (kinds(forks.work / "run") if held else [])
        if not held:
            assert "cannot write" in line
            seen.add("nothing")
            continue
        run = run_file.load(forks.work / "run")
        assert "kept in run" in line
        if len(run.results) < CELLS:
            seen.add("header")
            continue
        seen.add("complete" if run.complete else "blocks")
        if number % 3 == 0:
            assert forks.carry_out(*RESUME).code == 0
            assert data.read_bytes().startswith(held) and run_file.load(data).complete
    assert seen == {"nothing", "blocks", "complete"} or seen == {"nothing", "header", "blocks", "complete"}


# --- read-only places --------------------------------------------------------------------------------


@contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """The folder read-only by the strongest means that this system permits; how. Skips where there is none."""
    for how, begin, end in (
        ("mount", ["mount", "--bind", "-o", "ro", folder, folder], ["umount", folder]),
        ("chattr", ["chattr", "-R", "+i", folder], ["chattr", "-R", "-i", folder]),
    ):
        try:
            subprocess.run(list(map(str, begin)), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        try:
            if not os.access(folder, os.W_OK) or how == "chattr":
                yield how
                return
        finally:
            subprocess.run(list(map(str, end)), check=True, capture_output=True)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere, and neither a mount nor an attribute can forbid it here")
    folder.chmod(0o500)
    try:
        yield "mode"
    finally:
        folder.chmod(0o700)


def test_read_only_results_are_read_and_refused_in_one_line(forks: Forks) -> None:
    assert forks.carry_out(*WORDS).code == 0
    run, outside = forks.work / "run", forks.outside()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with read_only(run):
        assert forks.carry_out("diff", "run", "run").code == 0
        assert "cannot write" in one_line(forks.carry_out("report", "run"))
        assert forks.carry_out("report", "run", "--out", "-").code == 0
        assert "cannot write" in one_line(forks.carry_out("run", "tiny.py", "--device", "fake", "--out", "run/deeper"))
        assert "kept in run/run.jsonl" in one_line(forks.carry_out(*RESUME)), "the result is shown all the same"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before and forks.outside() == outside


def test_an_interrupted_run_in_a_read_only_folder_is_not_gone_on_with(forks: Forks) -> None:
    forks.carry_out(*WORDS, in_line=14)
    before = (forks.work / "run" / "run.jsonl").read_bytes()
    with read_only(forks.work / "run"):
        assert "cannot write to run" in one_line(forks.carry_out(*RESUME))
    assert (forks.work / "run" / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize("out", ["tiny.py/run", "/dev/null/run", "/proc/run", "x" * 300, "a\x00b"])
def test_a_folder_that_cannot_be_is_one_line(forks: Forks, out: str) -> None:
    outside = forks.outside()
    line = one_line(forks.carry_out("run", "tiny.py", "--device", "fake", "--out", out))
    assert "cannot write" in line or "--out" in line, line
    assert forks.outside() == outside


# --- names and links that lead elsewhere -------------------------------------------------------------


def test_a_link_in_the_output_folder_is_not_followed(forks: Forks) -> None:
    """A folder from elsewhere may hold links in place of what effbench writes."""
    target, outside = forks.home / "tmp" / "theirs", forks.outside()
    run = forks.work / "run"
    run.mkdir(exist_ok=True)
    (run / "run.jsonl").symlink_to(target)
    assert "cannot write" in one_line(forks.carry_out(*WORDS))
    assert forks.outside() == outside
    forks.empty()
    for name in ("table.md", "table.csv", "figure.png", "figure.svg", "verdicts.md", "report.html"):
        (run / name).symlink_to(target)
    assert "is kept in run/run.jsonl" in one_line(forks.carry_out(*WORDS)).replace("are kept", "is kept")
    assert run_file.load(run).complete
    assert "is a link" in one_line(forks.carry_out("report", "run"))
    assert forks.outside() == outside


def test_a_folder_that_is_a_link_is_where_it_leads(forks: Forks) -> None:
    """The user said so; the name is kept in what is said."""
    (forks.work / "run").mkdir(exist_ok=True)
    (forks.work / "link").symlink_to(forks.work / "run")
    try:
        ended = forks.carry_out("run", "tiny.py", "--device", "fake", "--out", "link")
        assert ended.code == 0 and "link/run.jsonl" in ended.said
        assert run_file.load(forks.work / "run").complete
    finally:
        (forks.work / "link").unlink()


def test_climbing_names_stay_inside(forks: Forks) -> None:
    """A study and a model may be called what they like: no file is called by it."""
    study = (forks.work / "tiny.py").read_text()
    (forks.work / "climbs.py").write_text(
        study.replace("'tiny'", "'../../../climbs'")
        .replace('{"groups": groups})', '{"groups": f"../../{groups}"})')
        .replace("levels=(1, 2), reference=1", 'levels=("../../1", "../../2"), reference="../../1"')
        .replace("((2, 1),), headline=(2, 1)", '(("../../2", "../../1"),), headline=("../../2", "../../1")')
    )
    outside = forks.outside()
    assert forks.carry_out("run", "climbs.py", "--device", "fake", "--out", "run").code == 0
    assert forks.outside() == outside
    assert {path.name for path in (forks.work / "run").iterdir()} >= {"run.jsonl", "table.md", "figure.png"}
