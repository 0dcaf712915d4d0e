"""`effbench check` as CI runs it: real processes in a user's folder that holds an effbench.toml beside their code."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from shell import effbench, kinds

from effbench.cli import main, output
from effbench.gates import run_gates
from effbench.runs.runner import Interrupted

pytestmark = pytest.mark.usefixtures("forked_launches")

NETS = """
import torch
from torch import nn

def small(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 1, bias=False), nn.Flatten())

def large(width=16):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3))

class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x)

class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no luck")
"""
CONFIG = """
[check]
device = "fake"
launches = 3
budget = "20s"
tolerance = "10%"

[models.small]
model = "nets.py:small"
input = "3x8x8"
max_madds = 1536

[models."<b>large</b>"]
model = "nets.py:large"
input = "3x8x8"
"""
LARGE = "<b>large</b>"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a user's. What is in the environment of whoever runs the tests is not theirs."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "effbench.toml").write_text(CONFIG)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_costs_are_held_to_budgets_and_to_what_was_stored(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 1x1 convolution on 8x8 costs 64·3·8 = 1536 multiply-adds, one of 9 channels 1728; two of 3x3 without padding
    36·27·16 + 16·144·16 = 52,416.
    """
    steps = project / "steps.md"
    steps.write_text("# before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(steps))
    before = files(project)
    outputs = ("--save-costs", "c.json", "--junit", "ci/j.xml", "--summary", "s.md")
    done = effbench("check", *outputs, "--json", cwd=project)
    assert (done.code, done.json["verdict"], done.json["exit_code"], done.err) == (0, "PASS", 0, "")
    assert [(cost["id"], cost["madds"]) for cost in done.json["costs"]] == [("small", 1536), (LARGE, 52_416)]
    assert files(project) - before == {"c.json", "ci/j.xml", "s.md"}, "and nothing else is written"
    assert steps.read_text() == "# before\n" + (project / "s.md").read_text()
    assert len(list(ElementTree.parse(project / "ci/j.xml").iter("testcase"))) == 1
    assert stat.S_IMODE((project / "c.json").stat().st_mode) == 0o666 & ~umask()

    (project / "nets.py").write_text(NETS.replace("width=8", "width=9"))
    # A file that cannot be written does not turn a regression into anything else.
    done = effbench("check", "--baseline", "c.json", "--junit", "nets.py/j.xml", cwd=project)
    assert (
        done.code == 1 and done.err.startswith("effbench: cannot write nets.py/j.xml (") and done.err.count("\n") == 1
    )
    assert done.out.splitlines()[-1] == "REGRESSION: 1 of 2 cells"
    assert "madds 1.73 k (+12.5 %), at most 1.54 k" in done.out and "stored 1.54 k" in done.out
    assert "&lt;b&gt;large&lt;/b&gt;" in done.out and "<b>" not in done.out


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_does_not_run_fails_and_what_is_not_counted_does_not_pass(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "effbench.toml").write_text(
        '[models.odd]\nmodel = "nets.py:Odd"\ninput = "3x8x8"\n[models.broken]\nmodel = "nets.py:Broken"\n'
    )
    assert main(["check", "--max-madds", "1T", "--json"]) == 1
    found = {cell["id"]: cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    assert found["broken"]["verdict"] == "REGRESSION"
    assert found["broken"]["reason"].startswith("it does not run: ") and "no luck" in found["broken"]["reason"]
    assert found["odd"]["verdict"] == "INCONCLUSIVE" and "inv" in found["odd"]["reason"]
    assert main(["check", "odd", "--max-madds", "1T", "--inconclusive", "pass"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "INCONCLUSIVE: 1 cell"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a stored baseline, made by a real process on the scripted clock, which takes time by cost."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "nets.py").write_text(NETS)
    (folder / "effbench.toml").write_text(CONFIG.replace("max_madds = 1536", ""))
    done = effbench("check", "--save-baseline", "main", cwd=folder)
    assert done.code == 0 and done.out == "baseline main\n", done.err
    assert {name for name in files(folder) if ".lock" not in name} == {"nets.py", "effbench.toml", "main/run.jsonl"}
    return folder


@pytest.fixture
def later(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project."""
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def test_the_network_that_got_slower_is_called_and_no_other(later: Path) -> None:
    (later / "nets.py").write_text(NETS.replace("width=16", "width=512"))
    done = effbench("check", "--baseline", "main", "--out", "now", "--json", cwd=later)
    found = {cell["id"]: cell for cell in done.json["cells"]}
    assert done.code == 1, done.err
    assert {cell["gate"] for cell in done.json["cells"]} == {"baseline"}
    assert found["small"]["verdict"] == "PASS" and found["small"]["costs"] == []
    assert found[LARGE]["verdict"] == "REGRESSION" and found[LARGE]["ratio"]["low"] > 1.01
    assert found[LARGE]["launches"] == 3 and "madds" in [cost["name"] for cost in found[LARGE]["costs"]]
    assert done.json["run_dir"] == "now/candidate" and "now/candidate/run.jsonl" in files(later)
    assert any("yardstick" in note for note in done.json["notes"])


def test_another_machine_is_told_before_anything_is_measured(later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_machine(later / "main/run.jsonl", "host.machine")
    assert main(["check", "--baseline", "main", "--out", "now"]) == 4
    told = capsys.readouterr().out
    assert "host.machine (made up / " in told and told.splitlines()[-1] == "ENVIRONMENT: 2 cells"
    assert not (later / "now").exists()


def test_a_difference_that_only_a_worker_knows_ends_the_run_at_once(
    later: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_machine(later / "main/run.jsonl", "torch.version")
    assert main(["check", "small", "--baseline", "main", "--out", "now"]) == 4
    told = capsys.readouterr().out
    assert "torch.version (made up / " in told and told.splitlines()[-1] == "ENVIRONMENT: 1 cell"
    assert not {"block", "complete"} & set(kinds(later / "now/candidate"))


def test_a_baseline_says_how_it_is_to_be_compared_with(later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--baseline", "main", "--threads", "2"], "measured with threads 0, not 2: leave threads out"),
        (["--baseline", "main", "--device", "cpu"], "measured with device fake, not cpu: leave device out"),
        (["--save-baseline", "main"], "main already holds a run; remove it"),
    ):
        assert main(["check", *words]) == 2
        assert said in capsys.readouterr().err
    # Another input is another cell; a network that is not there is new, and alone decides nothing.
    assert main(["check", "small", "--baseline", "main", "--input", "3x9x9"]) == 3
    assert "the baseline is of input 3x8x8, batch 1, float32, this is input 3x9x9" in capsys.readouterr().out
    assert main(["check", "mobilenet_v2", "--baseline", "main"]) == 3
    assert "it is not in the baseline" in capsys.readouterr().out
    assert not (later / "results").exists()


def test_without_a_configuration_every_cell_of_the_stored_run_is_measured(
    later: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (later / "effbench.toml").unlink()
    other_machine(later / "main/run.jsonl", "cpu.model")
    assert main(["check", "--baseline", "main"]) == 4
    told = capsys.readouterr().out
    assert "| small | baseline |" in told and "large" in told and "yardstick |" not in told

    def interrupted(*arguments: object, **options: object) -> None:
        raise Interrupted(Path("now"))

    monkeypatch.setattr(run_gates, "compare_with_run", interrupted)
    monkeypatch.setattr(output, "ignore_signals", lambda: None)
    assert main(["check", "--baseline", "main"]) == 130
    assert capsys.readouterr().err == "effbench: interrupted; nothing is decided, what was measured is in now\n"


def test_a_baseline_of_a_device_that_is_not_here(later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (later / "effbench.toml").unlink()
    run = later / "main/run.jsonl"
    run.write_text(run.read_text().replace('"device":"fake"', '"device":"cuda:9"'))
    assert main(["check", "--baseline", "main"]) == 4
    assert "device (" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["no cell", "no allocator", "odd options"])
def test_a_run_that_does_not_say_how_it_was_measured(
    change: str, later: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = later / "main/run.jsonl"
    header, *rest = run.read_text().splitlines(keepends=True)
    told = json.loads(header)
    if change == "no allocator":
        del told["environment"]["facts"]["run.allocator"]
    elif change == "odd options":
        told["environment"]["facts"]["run.device_options"] = "abc"
    run.write_text(json.dumps(told) + "\n" + ("" if change == "no cell" else "".join(rest)))
    assert main(["check", "--baseline", "main"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "does not hold its measuring options" in said


def other_machine(file: Path, fact: str) -> None:
    header, *rest = file.read_text().splitlines(keepends=True)
    changed = json.loads(header)
    changed["environment"]["facts"][fact] = "made up"
    file.write_text(json.dumps(changed) + "\n" + "".join(rest))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no MODEL and no effbench.toml here"),
        (["mobilenet_v2"], "nothing to check: give budgets (--max-madds 300M), a stored run or profile"),
        (["mobilenet_v2", "--max-madds", "many"], "--max-madds: 'many' is no count"),
        (["mobilenet_v2", "--max-params", "1", "--tolerance", "3"], "--tolerance 3: expected a share"),
        (["mobilenet_v2", "--max-params", "1", "--inconclusive", "maybe"], "Known: fail, pass"),
        (["mobilenet_v2", "--max-params", "1", "--dtype", "int4"], "there is no dtype named 'int4'"),
        (["mobilenet_v2", "--max-params", "1", "--batch", "0"], "batch (=0) must be 1 or more"),
        (["mobilenet_v2", "--baseline", "absent"], "cannot read absent"),
        (["mobilenet_v22", "--max-params", "1"], "Did you mean 'mobilenet_v2'?"),
        (["gone.py:net", "--max-params", "1"], "there is no file gone.py"),
        (["yardstick", "--max-params", "1"], "effbench reserves"),
        (["--config", "absent.toml"], "cannot read absent.toml"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("effbench: ") and said in told.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"params": 3}', '{"kind": "block"}', "\x00" * 40])
def test_what_is_no_baseline_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "b.jsonl"):
        (tmp_path / name).write_text(text)
        assert main(["check", "mobilenet_v2", "--baseline", name]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and name in told.err, told.err


def test_a_pass_whose_report_cannot_be_written_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """3,504,872 parameters are published of mobilenet_v2; 3.5049 M is the budget that a person would write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    words = ["check", "mobilenet_v2", "--max-params", "3.5049M", "--input", "3x32x32"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "PASS: 1 cell" and told.err.startswith("effbench: cannot add to $GITHUB_STEP")
    assert main([*words, "--summary", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "PASS: 1 cell" in told.out and f"cannot write {tmp_path} (" in told.err
    assert not any(tmp_path.iterdir())
