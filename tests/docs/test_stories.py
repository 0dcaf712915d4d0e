"""The walkthroughs of docs/ci.md and docs/bundles.md: every command runs, in order, in a user's folder.

Arguments that are added to a command to make it short are listed here. pip, ssh and scp are replaced by stand-ins.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import measuring
import pytest
import yaml
from nursery import HANGS_S
from packaging.requirements import Requirement
from projects import commit, git
from shell import Done, effbench, environment, forked_pytest
from torchless import effbench as torchless

ROOT = Path(__file__).parents[2]
CI = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BUNDLES = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
WORKFLOW = ROOT / ".github" / "workflows" / "effbench.yml"

NETS = """
from torch import nn

def backbone(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.ReLU())

class Text(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.table = nn.Embedding(100, 8)
        self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])

    def forward(self, ids, mask):
        return self.layers(self.table(ids) * mask[..., None])

def text(layers=1):
    return Text(layers)
"""


def shown(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.S | re.M)


def lines(page: str) -> list[str]:
    """The commands that stand by themselves, without their comments, in order."""
    unfenced = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    found = [line.strip() for line in re.findall(r"^ {4}(\S.*)$", unfenced, re.M)]
    return [re.split(r"\s{2,}# ", line)[0].strip() for line in found]


# --- docs/ci.md ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the page: its effbench.toml as it stands there, but for the clock, and a remote with `main`."""
    folder = tmp_path_factory.mktemp("ci") / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", ".")
    (folder / "nets.py").write_text(NETS)
    (config,) = shown(CI, "toml")
    assert 'device = "cpu"' in config
    (folder / "effbench.toml").write_text(config.replace('device = "cpu"', 'device = "fake"'))
    (folder / ".gitignore").write_text("results\nbaselines\ncosts.json\n__pycache__\n")
    commit(folder, "begin")
    git(folder, "tag", "v1.2")
    git(folder, "clone", "-q", "--bare", ".", str(folder.parent / "remote"))
    git(folder, "remote", "add", "origin", str(folder.parent / "remote"))
    git(folder, "fetch", "-q", "origin")
    return folder


def test_every_command_of_the_ci_page_runs(project: Path) -> None:
    within = [words for words in re.findall(r"`(effbench [^`]+)`", CI.replace("\n", " ")) if "nets.py" in words]
    told = [line for line in lines(CI) if line.startswith("effbench ")]
    assert len(within) == 1 and len(told) == 9, "a command was added, or is not found any more"
    for line in [*within, *told]:
        words = [sys.executable if word.startswith("/opt/") else word for word in shlex.split(line)[1:]]
        done = effbench(*words, cwd=project, timeout=HANGS_S)
        assert done.code == 0, (line, done.out, done.err)
    assert git(project, "status", "--porcelain") == "" and len(git(project, "worktree", "list").splitlines()) == 1


def test_the_tests_of_the_ci_page_are_timed_saved_and_compared(project: Path) -> None:
    """What a comparison of times says is the machine's: either way is right, and its error ends pytest.

    One of the tests is enough here: tests/docs/test_workflow.py runs them all.
    """
    (text,) = shown(CI, "python")
    (project / "test_shown.py").write_text(text)
    told = [line for line in lines(CI) if line.startswith("pytest ")]
    assert len(told) == 3
    runs = [forked_pytest(*shlex.split(line)[1:], *SHORT_TIMES, cwd=project) for line in told]
    assert runs[0].code == runs[2].code == 0 and runs[1].code in (0, 1), runs
    assert runs[1].code == 0 or "Performance has regressed" in runs[1].err, runs[1]
    assert list(project.glob(".benchmarks/*/*_main.json")) and '"effbench"' in (project / "out.json").read_text()


SHORT_TIMES = ("-k", "test_speed and not batches", "--benchmark-max-time=0.1")


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """The workflow as the page says to copy it, beside programs that write down how they were called."""
    folder = tmp_path / "copy"
    (folder / ".github" / "workflows").mkdir(parents=True)
    shutil.copy(WORKFLOW, folder / ".github" / "workflows")
    for name in ("python", "effbench"):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> "{folder}/called"\necho >> "{folder}/called"\n')
        program.chmod(0o755)
    return folder


def called(folder: Path, name: str, **given: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """How a step of the workflow calls programs, with these inputs."""
    flow = yaml.safe_load((folder / ".github" / "workflows" / "effbench.yml").read_text(encoding="utf-8"))
    wanted = next(item for item in flow["jobs"]["check"]["steps"] if item.get("name") == name)
    known = {f"inputs.{key} || env.EFFBENCH": value or flow["env"]["EFFBENCH"] for key, value in given.items()}
    known |= {f"inputs.{key}": value for key, value in given.items()}
    known["inputs.against || format('origin/{0}', github.base_ref)"] = given.get("against") or "origin/main"
    variables = {
        key: re.sub(r"\$\{\{ (.*?) \}\}", lambda found: known[found[1]], str(value))
        for key, value in wanted["env"].items()
    }
    path = f"{folder / 'bin'}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", wanted["run"]],
        cwd=folder, env={**environment(), **variables, "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    kept = folder / "called"
    told = kept.read_text() if kept.exists() else ""
    kept.unlink(missing_ok=True)
    return done, [call.splitlines() for call in told.split("\n\n") if call]


def test_the_workflow_says_what_to_fill_in_and_takes_a_revision_or_a_wheel(copied: Path) -> None:
    """effbench is on no index, so that its bare name is never what pip gets."""
    done, calls = called(copied, "Install", effbench="", requirements="")
    assert done.returncode == 2 and "::error::fill in whose effbench: OWNER" in done.stdout and not calls
    revision = "effbench @ git+https://github.com/someone/effbench@v1"
    wheel = copied / "wheels" / "effbench-0.4.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    for asked, wanted in (
        (revision, revision),
        ("wheels/effbench-*.whl", "./wheels/effbench-0.4.0-py3-none-any.whl"),
        (str(wheel.relative_to(copied)), "./wheels/effbench-0.4.0-py3-none-any.whl"),
        ("https://example.org/effbench-0.4.0-py3-none-any.whl", "https://example.org/effbench-0.4.0-py3-none-any.whl"),
    ):
        done, calls = called(copied, "Install", effbench=asked, requirements="requirements.txt")
        assert done.returncode == 0, done.stderr
        assert calls[1:] == [
            ["python", "-m", "pip", "install", wanted],
            ["python", "-m", "pip", "install", "-r", "requirements.txt"],
        ]
    # Filled in, where the page says.
    file = copied / ".github" / "workflows" / "effbench.yml"
    file.write_text(re.sub("(EFFBENCH: .*)OWNER", r"\1someone", file.read_text()))
    _, calls = called(copied, "Install", effbench="", requirements="")
    assert calls[1][-1] == "effbench @ git+https://github.com/someone/effbench@main"


def test_the_check_of_the_workflow_runs(copied: Path, project: Path, tmp_path: Path) -> None:
    _, (words,) = called(copied, "Check")
    done = effbench(*words[1:], "--launches", "4", cwd=project, variables={"GITHUB_STEP_SUMMARY": str(tmp_path / "s")})
    assert done.code == 0, done.err
    kept = project / "effbench-check"
    assert (kept / "junit.xml").exists() and (kept / "summary.md").read_text() == (tmp_path / "s").read_text()
    # A second time says what to do, before anything is measured.
    again = effbench(*words[1:], cwd=project)
    assert again.code == 2 and "effbench-check/run already holds what was measured; choose another --out" in again.err
    shutil.rmtree(kept)


# --- docs/bundles.md ----------------------------------------------------------------------------------

SHORT = {
    "bundle nin_cifar": ("--input", "3x32x32"),
    "bundle --study g2_groups": ("--select", "groups=1"),
    "run-bundle g2 --percentiles": ("--quick", "--launches", "1", "--budget", "1s", "--runtime", "ncnn"),
    "run-bundle": ("--quick", "--launches", "1", "--budget", "1s"),
}
SMALL = {"mobilenet_v2 shufflenet_v2": "nin_cifar path/to/net.py:build"}
"""Networks of fewer layers, which take a fraction of the time to export."""
HERE = "pi@raspberrypi.local:"


class Machines:
    """The machine with torch and the other one, between which the page's commands go."""

    def __init__(self, folder: Path) -> None:
        self.with_torch, self.board = folder / "here", folder / "board"
        self.place = self.with_torch
        self.with_torch.mkdir()
        self.board.mkdir()

    def pip(self, words: list[str]) -> None:
        """As pip would: what it is to install is there. effbench itself is on no index."""
        names = [word for word in words[1:] if not word.startswith("-")]
        if words[0] == "wheel":
            assert names == ["wheels", "."] and (ROOT / "pyproject.toml").is_file()
            (self.place / "wheels").mkdir()
            (self.place / "wheels" / f"effbench-{version('effbench')}-py3-none-any.whl").touch()
        elif "-r" in words:
            for line in (self.place / names[0]).read_text().splitlines():
                if not line.startswith("#"):
                    needed = Requirement(line)
                    assert needed.specifier.contains(version(needed.name).partition("+")[0])
        elif names[0].startswith("."):
            extras = Requirement(f"effbench{names[0][1:]}").extras
            assert extras and all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
        else:
            (wheel,) = self.place.glob(names[0])
            assert wheel.name.startswith("effbench-")

    def run(self, line: str) -> Done:
        for names, fewer in SMALL.items():
            line = line.replace(names, fewer)
        program, *words = shlex.split(line)
        if program == "effbench":
            if "--resume" not in words:  # which takes the options of the run
                words += next((extra for begin, extra in SHORT.items() if shlex.join(words).startswith(begin)), ())
            if self.place == self.board and words[0] in ("doctor", "run-bundle"):
                return torchless(*words, cwd=self.board, timeout=HANGS_S)
            return effbench(*words, cwd=self.place, timeout=HANGS_S, variables={measuring.UNTIMED_LAUNCHES: "1"})
        if program == "pip":
            self.pip(words)
        elif program == "scp":
            self.place = self.with_torch
            *sources, target = words[1:]
            into = self.board if target == HERE else self.place / target
            for name in sources:
                source = self.board / name.removeprefix(HERE) if name.startswith(HERE) else self.place / name
                shutil.copytree(source, into / source.name)
        elif program == "ssh":
            self.place = self.board
        else:
            assert line == "python3 -m venv env && . env/bin/activate"
        return Done(0, "", "")


@pytest.mark.bulk
def test_every_command_of_the_bundle_page_runs(tmp_path: Path) -> None:
    for needed in ("onnxruntime", "onnxscript", "ncnn", "pnnx"):
        pytest.importorskip(needed)
    machines = Machines(tmp_path)
    net = machines.with_torch / "path" / "to" / "net.py"
    net.parent.mkdir(parents=True)
    net.write_text("from torch import nn\n\ndef build():\n    return nn.Conv2d(3, 8, 3)\n")
    told = lines(BUNDLES)
    assert len(told) == 22, "a command was added, or is not found any more"
    for line in told:
        if "another-day" in line:
            shutil.copytree(machines.with_torch / "g2-on-the-pi", machines.with_torch / "another-day")
        done = machines.run(line)
        if "--cluster" in line and done.code == 2:
            assert "cluster" in done.err, "a machine of one kind of core says so"
            continue
        assert done.code == 0, (line, done.out, done.err)
    readme = (machines.with_torch / "g2" / "README.txt").read_text()
    wheel = next((machines.board / "wheels").iterdir()).name
    assert f"pip install --no-deps ./{wheel}\n" in readme
    assert not re.search(r"pip (install|download)( --no-deps)? effbench\b", readme + BUNDLES + CI)
    assert (machines.with_torch / "pi.html").exists()
