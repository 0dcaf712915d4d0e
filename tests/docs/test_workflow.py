"""The workflow and the action for GitHub: valid by the published schemas, and their shell steps run in a repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import measuring
import pytest
import yaml
from nursery import HANGS_S
from shell import environment, forked_pytest

import effbench
from effbench.gates import config

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "effbench.yml"

CONFIG = """
[check]
device = "fake"

[models.small]
model = "my nets.py:build"
input = "3x32x32"
max_madds = "200k"
"""
NETS = "from torch import nn\n\ndef build(width=8):\n    return nn.Conv2d(3, width, 3)\n"


@pytest.mark.parametrize(("schema", "path"), [("workflows", WORKFLOW), ("actions", ACTION)])
def test_valid_by_the_published_schema(schema: str, path: Path) -> None:
    words = ("--builtin-schema", f"vendor.github-{schema}", str(path))
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Stepped:
    """How a step's script ended, what it printed, and the outputs it set."""

    code: int
    text: str
    outputs: dict[str, str]


def step(action: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in action["runs"]["steps"] if item["name"] == name)


def run_check(folder: Path, variables: Mapping[str, str] | None = None, **inputs: str) -> Stepped:
    """The action's own script, with its inputs filled in as the runner fills them in."""
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    given = {name: item.get("default", "") for name, item in action["inputs"].items()}
    given |= {"python": sys.executable} | {name.replace("_", "-"): value for name, value in inputs.items()}
    check = step(action, "Check")

    assert "${{" not in check["run"], "an expression in a script would be executed"
    return run_step("Check", folder / given["working-directory"], given, variables or {})


def run_step(name: str, folder: Path, given: dict[str, str], more: Mapping[str, str] | None = None) -> Stepped:
    """One step's script as the runner runs it, with these inputs."""
    wanted = step(yaml.safe_load(ACTION.read_text(encoding="utf-8")), name)
    summary, outputs = folder / "step-summary", folder / "step-outputs"
    outputs.write_text("")
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
        for name, value in wanted["env"].items()
    }
    variables |= {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", wanted["run"]],
        cwd=folder, env={**environment(), **variables, **(more or {})}, capture_output=True, text=True, timeout=HANGS_S,
    )  # fmt: skip
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return Stepped(done.returncode, done.stdout + done.stderr, told)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's: a network, what it is held to, one commit."""
    (tmp_path / "effbench.toml").write_text(CONFIG)
    (tmp_path / "my nets.py").write_text(NETS)
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "one")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_pull_request_that_costs_less_passes(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a pull request: budgets, and the base interleaved, on the scripted clock. 170,100 is below 200,000."""
    nets = repository / "my nets.py"
    nets.write_text(nets.read_text().replace("width=8", "width=7"))
    done = run_check(repository, measuring.forking(tmp_path_factory.mktemp("site")), against="HEAD", launches="4")
    assert done.outputs == {"verdict": "PASS", "exit-code": "0"} and done.code == 0, done.text
    summary = (repository / "step-summary").read_text()
    assert "against HEAD" in summary and "at most" in summary
    kept = repository / "effbench-check"
    assert summary == (kept / "summary.md").read_text()
    cases = ElementTree.parse(kept / "junit.xml").getroot().iter("testcase")
    assert sorted((case.attrib["classname"], case.attrib["name"]) for case in cases) == [
        ("effbench.against", "small"),
        ("effbench.costs", "small"),
    ]
    assert list(kept.glob("run/**/run.jsonl")), "raw blocks are kept"


def test_a_budget_overstepped_fails(repository: Path) -> None:
    """Names with spaces arrive whole, and words of the inputs are never executed."""
    (repository / "effbench.toml").rename(repository / "my own.toml")
    done = run_check(repository, config="my own.toml", models="small", max_madds="100k", out="some where")
    assert done.outputs == {"verdict": "REGRESSION", "exit-code": "1"} and done.code == 1, done.text
    assert "small" in (repository / "some where" / "summary.md").read_text()
    done = run_check(repository, models="$(touch${IFS}harm) `touch harm`")
    assert done.outputs["verdict"] == "USAGE" and done.code == 2
    assert not (repository / "harm").exists()


PASSES = """#!/bin/sh
echo '## ✅ PASS: 1 cell' > 'a b/summary.md'
"""


def test_twice_in_one_workspace(repository: Path) -> None:
    """Each into a folder of its own; both artefacts have a name of their own.

    The second, which is no stand-in, finds files in the workspace that are called as Python's own modules.
    """
    python = repository / "python"
    python.write_text(PASSES)
    python.chmod(0o755)
    for number, program in (("", str(python)), ("-2", sys.executable)):
        done = run_check(repository, models="small", out="a b", python=program)
        assert done.outputs == {"verdict": "PASS", "exit-code": "0"}, done.text
        kept = run_step("Find what was measured", repository, {"out": "a b"})
        assert kept.outputs == {"folder": f"{repository}/a b", "number": number}
        for name in ("random", "types", "runpy", "contextlib"):
            (repository / f"{name}.py").write_text("raise ImportError('not this one')\n")
    assert run_step("Find what was measured", repository, {"out": "/else"}).outputs["folder"] == "/else"


SAYS = """#!/bin/sh
echo '## ❔ INCONCLUSIVE: 1 cell' > effbench-check/summary.md
exit {code}
"""


@pytest.mark.parametrize(
    ("script", "verdict", "code"),
    [
        ("#!/bin/sh\necho No module named effbench; exit 1", "CRASH", "70"),
        ("#!/bin/sh\nexit 0", "CRASH", "70"),
        ("#!/bin/sh\nexit 2", "USAGE", "2"),
        ("#!/bin/sh\nkill -TERM $$", "CRASH", "143"),
        (SAYS.format(code=3), "INCONCLUSIVE", "3"),
        (SAYS.format(code=0), "INCONCLUSIVE", "0"),
        (SAYS.format(code=129), "CRASH", "129"),
        (SAYS.format(code=1), "CRASH", "70"),
    ],
)
def test_a_verdict_is_what_effbench_has_decided(repository: Path, script: str, verdict: str, code: str) -> None:
    """Not what a Python said that never came so far, nor one that was ended on its way out."""
    python = repository / "python"
    python.write_text(script)
    python.chmod(0o755)
    (repository / "effbench-check").mkdir()
    (repository / "effbench-check" / "summary.md").write_text("## ✅ PASS: of an earlier run\n")
    done = run_check(repository, python=str(python))
    assert done.outputs == {"verdict": verdict, "exit-code": code} and done.code == int(code), done.text


def test_every_input_of_the_action_reaches_an_option() -> None:
    """And every option is one that the command has."""
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    text = "".join(str(item) for item in action["runs"]["steps"])
    assert {name for name in action["inputs"] if f"inputs.{name}" not in text} == set()
    script = step(action, "Check")["run"]
    names = re.search(r"for name in (.*?);", script.replace("\\\n", ""), re.S)
    assert names is not None
    options = {name.lower().replace("_", "-") for name in names[1].split()}
    assert options == set(action["inputs"]) & options and set(names[1].split()) < set(step(action, "Check")["env"])
    words = [sys.executable, "-m", "effbench", "check", "--help"]
    help_text = subprocess.run(
        words, env={**environment(), "COLUMNS": "200"}, capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"--([a-z-]+)", help_text))
    written = set(re.findall(r"--([a-z-]+)", script + WORKFLOW.read_text().partition("run: >-")[2]))
    assert (options | written) <= known, (options | written) - known


def test_the_workflow_sees_the_base_and_gets_no_write_token() -> None:
    flow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = flow["jobs"]["check"]["steps"]
    assert steps[0]["with"] == {"fetch-depth": 0, "persist-credentials": False}
    assert flow["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    assert set(flow[True]) == {"pull_request", "workflow_call"}
    for item in steps:
        assert "${{" not in item.get("run", ""), "an expression in a script would be executed"
    check = next(item for item in steps if item.get("name") == "Check")
    assert check["env"]["AGAINST"] == "${{ inputs.against || format('origin/{0}', github.base_ref) }}"
    assert check["run"].startswith('effbench check --against "$AGAINST" --out ')


# --- what docs/ci.md shows --------------------------------------------------------------------------

DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def shown(language: str) -> list[str]:
    """The examples in this language."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.S)


def test_the_configuration_shown_is_one(tmp_path: Path) -> None:
    (tmp_path / "effbench.toml").write_text(shown("toml")[0])
    found = config.load(tmp_path / "effbench.toml")
    assert [subject.name for subject in found.subjects] == ["backbone", "text"]
    assert found.subjects[0].budgets == {"madds": 300_000_000, "params": 4_000_000, "memory_access": 20_000_000}
    assert found.tolerance_of("backbone") == 0.03 and found.tolerance_of("text") == 0.05


def test_the_steps_shown_use_inputs_that_are_there() -> None:
    called, stepped = (yaml.safe_load(text)["jobs"]["speed"] for text in shown("yaml"))
    flow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert set(called["with"]) <= set(flow[True]["workflow_call"]["inputs"])
    action = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    assert set(stepped["steps"][1]["with"]) <= set(action["inputs"])
    assert set(re.findall(r"outputs\.([\w-]+)", str(stepped))) == set(action["outputs"])


def test_the_tests_shown_run(tmp_path: Path) -> None:
    """Where benchmarks are disabled, which calls each network once."""
    (tmp_path / "nets.py").write_text(NETS.replace("build", "backbone"))
    (tmp_path / "test_shown.py").write_text(shown("python")[0])
    profile = effbench.profile(f"{tmp_path}/nets.py:backbone", (3, 9, 9)).to_dict()
    (tmp_path / "backbone.json").write_text(json.dumps(profile))
    ran = forked_pytest("--benchmark-disable", cwd=tmp_path)
    assert ran.code == 0 and "5 passed" in ran.out, ran
