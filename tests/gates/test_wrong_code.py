"""Gates never pass on code from outside the project or on a baseline that does not run.

With real repositories and real processes.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from projects import commit, git
from shell import Done, effbench, refusal
from torch import nn

import effbench as effbench_package
from effbench.core.errors import ForeignCode
from effbench.core.inputs import Input
from effbench.gates import ab_gate, config, instruction_gate

pytestmark = pytest.mark.usefixtures("forked_launches")

FAKE = ("--device", "fake", "--launches", "1")

NET = """
import torch
from .blocks import COUNT

def build():
    return torch.nn.Sequential(*[torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(COUNT)])
"""


def begun(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q", ".")
    return folder


def found(done: Done) -> dict[str, tuple[str, str]]:
    return {item["id"]: (item["verdict"], item["reason"]) for item in done.json["cells"]}


# --- a copy from elsewhere --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project whose package was installed, and a commit since then that does three times the work."""
    project = begun(tmp_path_factory.mktemp("user") / "project")
    package = project / "python" / "foo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NET)
    (package / "blocks.py").write_text("COUNT = 2\n")
    (project / "nets.py").write_text("import foo.nets\n\ndef build():\n    return foo.nets.build()\n")
    (project / "pyproject.toml").write_text('[project]\nname = "foo"\n')
    commit(project, "begin")
    site = project.parent / "site"
    shutil.copytree(package, site / "foo")
    (package / "blocks.py").write_text("COUNT = 6\n")
    commit(project, "three times the work")
    return project, site


def test_an_installed_copy_is_refused_by_name_with_what_to_do(installed: tuple[Path, Path]) -> None:
    project, site = installed
    path = os.pathsep.join((str(site), str(Path(effbench_package.__file__).parents[1])))
    words = ("check", "foo.nets:build", "--input", "4x8x8", "--against", "HEAD~1", *FAKE, "--json")
    said = refusal(effbench(*words, cwd=project, variables={"PYTHONPATH": path}, fresh=True))
    assert "'foo.nets' comes from" in said and "both sides would run the same code" in said
    assert 'add "python" to `paths` under [check] in effbench.toml' in said


@pytest.mark.parametrize("how", ["timed", "counted"])
def test_an_installed_copy_that_a_file_imports_is_refused_too(
    installed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    project, site = installed
    monkeypatch.syspath_prepend(site)
    subject = config.Subject("net", "nets.py:build", (Input((4, 8, 8)),))
    asked = config.Config((subject,), project, device="fake")
    with pytest.raises(
        ForeignCode, match=r"'foo.blocks' was imported from .*the project has it in python/foo/blocks.py"
    ):
        if how == "timed":
            ab_gate.check(asked, "HEAD~1", tmp_path / "out", watch=lambda step: None)
        else:
            instruction_gate.check(asked, "HEAD~1", watch=lambda step: None)


def test_named_under_paths_the_same_commit_is_a_regression(installed: tuple[Path, Path]) -> None:
    project, _ = installed
    file = project / "effbench.toml"
    file.write_text('[check]\npaths = ["python"]\n[models.net]\nmodel = "foo.nets:build"\ninput = "4x8x8"\n')
    try:
        words = ("check", "--against", "HEAD~1", "--count", "instructions", *FAKE, "--json")
        done = effbench(*words, "--max-madds", "1k", cwd=project)
        assert done.code == 1, done.err
        gates = {item["gate"]: item["reason"] for item in done.json["cells"]}
        assert "instructions" in gates["instructions"] and "madds" in gates["costs"], "`paths` hold for both gates"
    finally:
        file.unlink()


# --- a baseline that does not run -------------------------------------------------------------------

BEFORE = """
import torch
try:
    import helper
    def conditional():
        return torch.nn.ReLU()
except ImportError:
    pass
def weights():
    net = torch.nn.Conv2d(4, 4, 1)
    net.load_state_dict(torch.load("weights.pt"))
    return net
def broken():
    raise ValueError("not yet")
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = begun(tmp_path_factory.mktemp("user") / "project")
    (project / "nets.py").write_text(BEFORE)
    (project / ".gitignore").write_text("weights.pt\nhelper.py\nresults/\n")
    commit(project, "begin")
    (project / "helper.py").write_text("")
    torch.save(nn.Conv2d(4, 4, 1).state_dict(), project / "weights.pt")
    text = BEFORE.replace('raise ValueError("not yet")', "return torch.nn.ReLU()")
    (project / "nets.py").write_text(text + "def fresh():\n    return torch.nn.ReLU()\n")
    (project / "other.py").write_text("from nets import fresh\n")
    return project


def test_new_is_only_what_the_revision_does_not_have(changed: Path) -> None:
    names = ("conditional", "weights", "broken", "fresh")
    models = [*(f"nets.py:{name}" for name in names), "other:fresh"]
    done = effbench("check", *models, "--input", "4x8x8", "--against", "HEAD", *FAKE, "--json", cwd=changed)
    said = found(done)
    assert done.code == 3 and [verdict for verdict, _ in said.values()] == [*["INCONCLUSIVE"] * 3, "NEW", "NEW"], said
    assert "weights.pt lies in the other side's tree only (git-ignored?)" in said["nets.py:weights"][1]
    assert all("nothing to compare with" in said[f"nets.py:{name}"][1] for name in names[:3])


@pytest.mark.parametrize("options", [(), ("--count", "instructions")], ids=["timed", "counted"])
def test_an_environment_that_cannot_start_is_no_new_network(
    changed: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """As that of an old revision, which has no effbench. A budget that holds does not make it pass."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S -m effbench.runs.worker\n')
    python.chmod(0o755)
    words = ("check", "nets.py:fresh", "--input", "4x8x8", "--max-madds", "1M", "--against", "HEAD", *FAKE, *options)
    done = effbench(*words, "--against-python", python, "--json", cwd=changed)
    assert done.code == 4 and [item["verdict"] for item in done.json["cells"]] == ["PASS", "ENVIRONMENT"], done.err
    assert "needs the same effbench, and torch" in done.json["cells"][1]["reason"]


# --- files that are called like other modules -------------------------------------------------------


def test_files_called_like_modules_of_python_and_torch_change_nothing(tmp_path: Path) -> None:
    """torch imports much only when it needs it, and must not find these. No fork: a new process imports it all."""
    project = begun(tmp_path / "project")
    names = "logging numbers numpy queue random types copy profile statistics sympy networkx psutil torch timeit uuid"
    for name in names.split():
        (project / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    (project / "http").mkdir()
    (project / "http" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    (project / "code.py").write_text("import torch\ndef net():\n    return torch.nn.Conv2d(4, 4, 1)\n")
    (project / "nets.py").write_text("import numpy, logging.handlers\nfrom own import net\n")
    (project / "own.py").write_text("import torch\ndef net():\n    return torch.nn.Conv2d(4, 4, 1)\n")
    commit(project, "begin")
    words = ("check", "nets:net", "code:net", "--input", "4x8x8", "--max-madds", "2k", "--against", "HEAD", *FAKE)
    done = effbench(*words, "--json", cwd=project, variables={"PYTHONSAFEPATH": "1"}, fresh=True)
    verdicts = {(item["gate"], item["verdict"]) for item in done.json["cells"]}
    assert verdicts == {("costs", "PASS"), ("against", "INCONCLUSIVE")}, done.out
    assert {item["launches"] for item in done.json["cells"] if item["gate"] == "against"} == {1}, "it was measured"
