"""The A/B gate and `effbench aa` on a small repository with real processes: every exit code."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from measuring import UNTIMED_LAUNCHES
from nursery import HANGS_S
from projects import CONFIG, commit, git, repository, write
from schemas import validate
from shell import Done, effbench, refusal, started, wait_until

from effbench.devices.fake import seconds_of
from effbench.gates import ab_pairs

FAKE = ("--device", "fake")


def verdicts(done: Done) -> dict[str, str]:
    return {item["id"]: item["verdict"] for item in done.json["cells"]}


def finding(done: Done, cell: str) -> dict[str, object]:
    return next(item for item in done.json["cells"] if item["id"] == cell)


# --- commits on a scripted clock, whose truth is known -----------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("user") / "project")


def truth(project: Path, done: Done, cell: str) -> float:
    """What the scripted clock takes for the candidate over the baseline, from the counts of both sides."""
    run = ab_pairs.load(project / done.json["run_dir"])
    costs = [side.result(f"model={cell}").cost for side in (run.candidate, run.baseline)]
    after, before = (
        seconds_of({"madds": cost.madds, "memory_access_bytes": cost.memory_access_bytes}) for cost in costs if cost
    )
    return after / before


def test_a_block_that_is_five_percent_slower_is_a_regression(project: Path, tmp_path: Path) -> None:
    """Told to a script, to CI's test report and to the step summary alike."""
    write(project, extra=1)
    step, junit = tmp_path / "step.md", tmp_path / "out" / "junit.xml"
    words, variables = ["--json", "--junit", junit], {"GITHUB_STEP_SUMMARY": str(step)}
    found = effbench("check", "--against", "HEAD", *FAKE, *words, cwd=project, variables=variables)
    assert found.code == 1 and found.json["verdict"] == "REGRESSION", found.err
    validate(found.json, "check")
    slower = truth(project, found, "wide")
    assert 1.04 < slower < 1.07, "one more addition in one of four blocks"
    assert verdicts(found) == {"small": "PASS", "wide": "REGRESSION"}
    change = finding(found, "wide")["ratio"]
    assert isinstance(change, dict) and change["low"] < slower < change["high"]
    assert finding(found, "wide")["launches"] == 4, "the first look was enough"
    cases = {case.get("name"): [child.tag for child in case] for case in ElementTree.parse(junit).iter("testcase")}
    assert cases["wide"] == ["failure"] and "failure" not in cases["small"]
    assert step.read_text().startswith("## ❌ REGRESSION: 1 of 2 cells")
    assert "working tree" in step.read_text() and "HEAD" in step.read_text()


def test_a_commit_that_changes_nothing_passes(project: Path) -> None:
    write(project, comment="# a comment\n")
    commit(project, "comment")
    done = effbench("check", "--against", "HEAD~1", *FAKE, "--json", cwd=project)
    assert (done.code, verdicts(done)) == (0, {"small": "PASS", "wide": "PASS"}), done.err
    assert done.json["baseline"].startswith("HEAD~1 (") and "uncommitted" not in done.json["candidate"]


def test_a_commit_that_changes_the_multiply_adds_is_shown_with_its_counts(project: Path) -> None:
    """Kernels of 3 for those of 1: nine times the work, and another network."""
    write(project, kernel=3)
    done = effbench("check", "--against", "HEAD", "--same-costs", *FAKE, "--json", cwd=project)
    assert done.code == 1 and verdicts(done) == {"small": "PASS", "wide": "REGRESSION"}, done.err
    wide = finding(done, "wide")
    assert "madds" in str(wide["reason"])
    changed = {item["name"]: (item["wanted"], item["found"]) for item in wide["costs"]}  # type: ignore[attr-defined]
    assert changed["madds"] == (4 * 32 * 32 * 16 * 16, 4 * 9 * 32 * 32 * 16 * 16)


def test_the_costs_gate_sees_the_same_commit_without_a_clock(project: Path, tmp_path: Path) -> None:
    stored = tmp_path / "costs.json"
    write(project)
    assert effbench("check", "--save-costs", stored, "--max-madds", "5M", cwd=project).code == 0
    write(project, kernel=3)
    done = effbench("check", "--baseline", stored, "--max-madds", "5M", "--json", cwd=project)
    assert done.code == 1 and verdicts(done) == {"small": "PASS", "wide": "REGRESSION"}
    broken = [item["name"] for item in finding(done, "wide")["costs"] if not item["kept"]]  # type: ignore[attr-defined]
    assert {"madds", "params"} <= set(broken)


def test_too_few_launches_decide_nothing_and_leave_nothing_behind(project: Path, tmp_path: Path) -> None:
    """One launch a side: no scatter between launches is known, and what is not shown does not pass."""
    git(project, "checkout", "-q", ".")
    before, out = set(project.rglob("*")), tmp_path / "out"
    done = effbench("check", "--against", "HEAD", "--launches", "1", "--out", out, *FAKE, cwd=project)
    assert done.code == 3 and done.out.rstrip().splitlines()[-1].startswith("INCONCLUSIVE: 2 cells")
    assert {path for path in set(project.rglob("*")) - before if ".git" not in path.parts} == set()
    assert len(git(project, "worktree", "list").splitlines()) == 1 and git(project, "status", "--porcelain") == ""
    assert json.loads((out / "check.json").read_text())["exit_code"] == 3
    assert (out / "check.md").read_text().startswith("## ❔ INCONCLUSIVE")
    assert len(ab_pairs.load(out / "against").candidate.launches) == 1


def test_a_budget_ends_it_between_looks(project: Path) -> None:
    done = effbench("check", "--against", "HEAD", "--tolerance", "0.1%", "--budget", "1s", *FAKE, "--json", cwd=project)
    assert any("budget of 1 s" in note for note in done.json["notes"])
    assert {item["launches"] for item in done.json["cells"]} == {4} and done.code == 3


def test_new_and_broken_models(project: Path) -> None:
    config = project / "effbench.toml"
    config.write_text(CONFIG + '\n[models.fresh]\nmodel = "nets.py:fresh"\ninput = "16x16x16"\n')
    nets = (project / "nets.py").read_text()
    (project / "nets.py").write_text(nets.replace("def wide", "def fresh():\n    return small()\n\ndef gone"))
    done = effbench("check", "--against", "HEAD", *FAKE, "--json", cwd=project)
    assert verdicts(done) == {"small": "PASS", "wide": "REGRESSION", "fresh": "NEW"} and done.code == 1
    assert "has no 'wide'" in str(finding(done, "wide")["reason"])
    config.write_text(CONFIG)
    write(project)


def test_networks_that_are_not_the_projects_are_said_to_be_the_same(project: Path) -> None:
    done = effbench("check", "shufflenet_v2_x0_5", "--against", "HEAD", "--launches", "1", *FAKE, "--json", cwd=project)
    assert any("both sides ran the same" in note for note in done.json["notes"])


def test_a_project_in_a_folder_of_its_repository(tmp_path: Path) -> None:
    top = tmp_path / "mono"
    repository(top)
    (top / "ml").mkdir()
    for name in ("nets.py", "effbench.toml"):
        git(top, "mv", name, f"ml/{name}")
    commit(top, "move")
    write(top / "ml", extra=1)
    done = effbench("check", "--config", "ml/effbench.toml", "--against", "HEAD", *FAKE, "--json", cwd=top)
    assert verdicts(done) == {"small": "PASS", "wide": "REGRESSION"}, done.err
    before = effbench("check", "--config", "ml/effbench.toml", "--against", "HEAD~1", *FAKE, cwd=top)
    assert "has no folder ml" in refusal(before)


# --- what can be put right ----------------------------------------------------------------------------


def test_one_line_each(project: Path, tmp_path: Path) -> None:
    assert "there is no revision named 'mian'" in refusal(effbench("check", "--against", "mian", *FAKE, cwd=project))
    python = effbench("check", "--against", "HEAD", "--against-python", "nope", *FAKE, cwd=project)
    assert "is no program" in refusal(python)
    (tmp_path / "effbench.toml").write_text(CONFIG)
    (tmp_path / "nets.py").write_text((project / "nets.py").read_text())
    assert "needs a git repository" in refusal(effbench("check", "--against", "HEAD", *FAKE, cwd=tmp_path))
    outside = effbench("check", tmp_path / "nets.py:small", "--against", "HEAD", *FAKE, cwd=project)
    assert "outside of the repository" in refusal(outside)


def test_an_interrupt_keeps_what_was_measured(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    raw = out / "against" / "candidate" / "run.jsonl"
    with started("check", "--against", "HEAD", "--tolerance", "0.01%", *FAKE, "--out", out, cwd=project) as ours:
        wait_until(lambda: raw.exists() and raw.read_bytes().count(b'"kind":"block"') > 100, ours)
        ours.send_signal(signal.SIGINT)
        said, complaint = ours.communicate(timeout=HANGS_S)
    assert ours.returncode == 130 and said == "", complaint
    assert (
        complaint.strip().splitlines()[-1]
        == f"effbench: interrupted; nothing is decided, what was measured is in {out / 'against'}"
    )
    assert len(git(project, "worktree", "list").splitlines()) == 1
    kept = ab_pairs.load(out / "against")
    assert len(ab_pairs.rounds(kept, "model=wide")) > 40
    assert effbench("aa", "--replay", out / "against", "--suites", "5", cwd=project).code == 0


def test_a_clone_without_its_submodule_is_the_same_on_both_sides(tmp_path: Path) -> None:
    """What the baseline lacks is told beside the verdict. No hook runs, and nothing is registered."""
    top = repository(tmp_path / "origin")
    library = repository(tmp_path / "library")
    git(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "third party")
    commit(top, "library")
    git(tmp_path, "clone", "-q", str(top), str(tmp_path / "clone"))
    hook = tmp_path / "clone" / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho git-lfs is missing; exit 2\n")
    hook.chmod(0o755)
    words = ("check", "small", "--against", "HEAD", "--launches", "4", *FAKE, "--json")
    done = effbench(*words, cwd=tmp_path / "clone")
    assert done.code == 0 and verdicts(done) == {"small": "PASS"}, (done.out, done.err)
    assert any("submodule third party is not checked out here" in note for note in done.json["notes"])
    assert len(git(tmp_path / "clone", "worktree", "list").splitlines()) == 1


# --- on the real clock --------------------------------------------------------------------------------


def test_more_work_is_called_and_the_same_work_is_not_on_the_real_clock(tmp_path: Path) -> None:
    """On a machine as busy as it may be: a network many times as slow is called, an unchanged one is no regression."""
    project = repository(tmp_path / "project")
    write(project, extra=200)
    launches = ("--launches", "4", "--budget", "12s")
    done = effbench("check", "--against", "HEAD", *launches, "--json", cwd=project, variables={UNTIMED_LAUNCHES: "1"})
    found = verdicts(done)
    assert found["wide"] in ("REGRESSION", "ENVIRONMENT"), done.out
    assert found["small"] in ("PASS", "INCONCLUSIVE", "ENVIRONMENT"), done.out
    slow, same = (finding(done, cell)["ratio"] for cell in ("wide", "small"))
    assert isinstance(slow, dict) and isinstance(same, dict) and slow["point"] > 1.3 * same["point"]
    assert {item["clock"] for item in done.json["cells"]} == {"cpu"}


# --- aa -----------------------------------------------------------------------------------------------


def test_aa_tells_what_a_gate_sees_here(project: Path, tmp_path: Path) -> None:
    done = effbench("aa", "--launches", "6", "--suites", "40", *FAKE, "--out", tmp_path / "aa", "--json", cwd=project)
    assert done.code == 0, done.err
    document = done.json
    validate(document, "aa")
    assert {cell["id"] for cell in document["cells"]} == {"model=small", "model=wide"}
    assert document["launches"]["recorded"] == 6 and document["suites"] == 40
    none = next(item for item in document["gate"] if item["slowdown"] == 0)
    assert none["suite_regression"]["point"] == 0, "an alarm where both sides are the same"
    again = effbench("aa", "--replay", tmp_path / "aa", "--suites", "40", "--json", cwd=tmp_path)
    assert again.json == {**document, "run_dir": again.json["run_dir"]}, (
        "a replay computes the same from the raw blocks"
    )
    assert (tmp_path / "aa" / "table.md").read_text().count("### ") == 2


def test_aa_refusals(project: Path, tmp_path: Path) -> None:
    assert "no pair of runs" in refusal(effbench("aa", "--replay", tmp_path, cwd=project))
    assert "--replay measures nothing; leave out launches" in refusal(
        effbench("aa", "--replay", tmp_path, "--launches", "4", cwd=project)
    )
    assert "suites (=0)" in refusal(effbench("aa", "--suites", "0", cwd=project))
