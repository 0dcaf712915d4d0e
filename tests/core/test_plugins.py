"""Plug-ins by entry points and registration in a model's file: operator formulas, metrics and runtimes.

The package is a folder on the path with metadata beside it, as pip would install it. `touched` holds what was imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nursery
import pytest
from measuring import UNTIMED_LAUNCHES
from shell import effbench as effbench_command
from shell import environment

import effbench
from effbench import api, runtimes
from effbench.cli import options as cli_options
from effbench.core import plugins
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.plugins import BrokenPlugin
from effbench.core.study import Case, Cell
from effbench.cost import count_in_subprocess, user_formulas

pytestmark = pytest.mark.usefixtures("forked_launches")

PACKAGE = {
    "outside/__init__.py": "",
    "outside/formulas.py": """
import effbench

def gate(x, weight, out_shape):
    return effbench.OperatorCost(madds=out_shape[0], elementwise=3 * out_shape[0] * out_shape[1])
""",
    "outside/metric.py": """
import pathlib
(pathlib.Path(__file__).parent.parent / "touched").write_text("metric")
from effbench.metrics import base

def measure(job, emit):
    with base.prepared_cell(job, emit) as (device, call, guard):
        emit("metric", values={"batch_squared": job["cell"]["batch"] ** 2, "source": "outside"})
""",
    "outside/runtime.py": """
import pathlib
(pathlib.Path(__file__).parent.parent / "touched").write_text("runtime")
from effbench.runtimes import Prepared, Runtime

class Mine(Runtime):
    name = "mine"
    summary = "the network as written, by another package"

    def facts(self):
        return {"mine.version": "7"}

    def prepare(self, network, inputs, setting):
        return Prepared(lambda: network(*inputs[0]), {"pieces": 3})
""",
    "outside/broken.py": "raise OSError('no licence\\nfound')\n",
    "outside-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n",
    "outside-1.0.dist-info/entry_points.txt": """
[effbench.operators]
outside::gate = outside.formulas:gate
[effbench.metrics]
squares = outside.metric
bad-metric = outside.broken
no-metric = outside.formulas
[effbench.runtimes]
mine = outside.runtime:Mine
bad = outside.broken:Nothing
none = outside.formulas:gate
other = outside.runtime:Mine
eager = outside.runtime:Mine
all = outside.runtime:Mine
with,comma = outside.runtime:Mine
""",
}

MODEL = """
import torch
from torch import nn

{imports}

@torch.library.custom_op("outside::gate", mutates_args=())
def gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) * weight

@gate.register_fake
def _(x, weight):
    return torch.empty_like(x)

{registration}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return gate(self.linear(x), self.linear.bias)
"""
REGISTERS = """
@effbench.register_operator_formula(gate)
def cost_of_gate(x, weight, out_shape):
    return effbench.OperatorCost(elementwise=5 * out_shape[0] * out_shape[1])
"""


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_formulas, "_registered", {})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that this process and those it starts search."""
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = tmp_path / "site"
    monkeypatch.syspath_prepend(found)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(found), *filter(None, [os.environ.get("PYTHONPATH")])]))
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        monkeypatch.delitem(sys.modules, name)
    plugins._entry_points.cache_clear()
    return found


def command(*words: str) -> subprocess.CompletedProcess[str]:
    done = effbench_command(*words, cwd=Path(tempfile.gettempdir()), paths=True, variables={UNTIMED_LAUNCHES: "1"})
    return subprocess.CompletedProcess(words, done.code, done.out, done.err)


def counted(model: str) -> Any:
    """What a model costs by the process that counts user code for a run."""
    cell = Cell(Case(model, (4,), labels={"model": "net"}), batch=2)
    found = count_in_subprocess.count_in_worker([cell], 300.0)[cell.id]
    assert not isinstance(found, str), found
    return found.cost


# --- operators ----------------------------------------------------------------------------------------


def test_an_operator_is_counted_by_the_formula_that_its_models_file_registers(tmp_path: Path):
    path = tmp_path / "net.py"
    path.write_text(MODEL.format(imports="import effbench", registration=REGISTERS))
    for cost in (effbench.profile(f"{path}:Net", (4,), batch=2).cost, counted(f"{path}:Net")):
        assert (cost.status, cost.madds, cost.elementwise) == ("complete", 2 * 4 * 4, 5 * 2 * 4)


def test_an_operator_is_counted_by_the_entry_point_of_a_package(site: Path, tmp_path: Path):
    path = tmp_path / "plain.py"
    path.write_text(MODEL.format(imports="", registration=""))
    found = command("profile", f"{path}:Net", "--input", "4", "--batch", "2", "--json")
    cost = json.loads(found.stdout)
    assert (cost["status"], cost["madds"], cost["elementwise"]) == ("complete", 2 * 4 * 4 + 2, 3 * 2 * 4)
    assert counted(f"{path}:Net").madds == 2 * 4 * 4 + 2


def test_without_a_formula_it_is_named_as_uncounted(tmp_path: Path):
    path = tmp_path / "plain.py"
    path.write_text(MODEL.format(imports="", registration="").replace("outside::gate", "nowhere::gate"))
    assert counted(f"{path}:Net").uncounted == {"nowhere::gate": 1}


def test_a_formula_of_a_session_goes_along_with_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gatednet.py").write_text(MODEL.format(imports="", registration=""))
    script = tmp_path / "session.py"
    script.write_text(
        "import effbench, torch\nfrom gatednet import Net, gate\n"
        + REGISTERS
        + "if __name__ == '__main__':\n"
        + "    found = effbench.measure(Net(), torch.zeros(2, 4), device='fake', launches=1, save=False)\n"
        + "    print(found.run.results[0].cost.elementwise, found.run.results[0].cost.status)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    if nursery.suits(environment(), paths=True):
        _, said, errors = nursery.nursery().run((), tmp_path, environment(), program="session")
    else:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
        said, errors = done.stdout, done.stderr
    assert said.split() == ["40", "complete"], errors


def test_what_a_formula_may_be_registered_for():
    def formula(*shapes: Any, out_shape: Any) -> int:
        return 1

    assert effbench.register_operator_formula("my::own", formula) is formula
    effbench.register_operator_formula("my::own.default", formula)  # as when a cell of a notebook is run again
    for op, given, message in (
        ("my::own", lambda *shapes, out_shape: 2, "has a formula already"),
        ("aten::mm", formula, "effbench has a formula for mm already"),
        ("own", formula, "must be 'namespace::name'"),
        ("my::other", 3, "must be a function"),
    ):
        with pytest.raises(InvalidValue, match=message) as caught:
            effbench.register_operator_formula(op, given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("-1", "a count below zero"),
        ("2.5", "TypeError"),
        ("effbench.OperatorCost(reads=[1])", "reads of 1 tensors, and there are 2"),
    ],
)
def test_a_formula_that_fails_is_named_in_one_line(tmp_path: Path, body: str, message: str):
    path = tmp_path / "net.py"
    registration = f"effbench.register_operator_formula('outside::gate', lambda *shapes, out_shape: {body})"
    path.write_text(MODEL.format(imports="import effbench", registration=registration))
    with pytest.raises(BrokenPlugin, match=rf"the formula of outside::gate.*{message}") as caught:
        effbench.profile(f"{path}:Net", (4,))
    assert "\n" not in str(caught.value)


def test_reads_and_writes_are_taken_by_tensor(tmp_path: Path):
    path = tmp_path / "net.py"
    registration = (
        "effbench.register_operator_formula('outside::gate', "
        "lambda *shapes, out_shape: effbench.OperatorCost(reads=[5, 3], writes=[2]))"
    )
    path.write_text(MODEL.format(imports="import effbench", registration=registration))
    op = effbench.profile(f"{path}:Net", (4,)).ops[-1]
    assert (op.op, op.kind, op.activations_read, op.weights_read, op.written) == ("outside::gate", "data", 5, 3, 2)


# --- metrics ------------------------------------------------------------------------------------------


def test_a_metric_of_a_package_is_measured_stored_and_shown(site: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = ("--device", "fake", "--batch", "3", "--metric", "squares", "--launches", "1", "--out", str(out), "--json")
    found = command("compare", "mobilenet_v1", "shufflenet_v2", *words)
    assert found.returncode == 0, found.stderr
    cell, _ = json.loads(found.stdout)["cells"]
    assert cell["metrics"] == {"squares": {"batch_squared": 9, "source": "outside"}}
    assert "squares batch_squared" in (out / "table.md").read_text()


def test_a_run_with_an_unknown_metric_and_runtime_is_read_elsewhere(site: Path, tmp_path: Path):
    out = tmp_path / "run"
    options: dict[str, Any] = {"device": "fake", "launches": 1, "metrics": ("squares",), "runtime": "mine", "out": out}
    effbench.measure("mobilenet_v1", (3, 32, 32), **options)
    (site / "outside-1.0.dist-info" / "entry_points.txt").unlink()
    plugins._entry_points.cache_clear()
    again = effbench.load(out)
    assert again.run.environment.runtime == "mine"
    assert "squares batch_squared" in str(again)
    assert again.write(tmp_path / "shown")
    with pytest.raises(UnknownName, match="no runtime named 'mine'"):
        effbench.measure("mobilenet_v1", device="fake", runtime="mine", out=tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "message"),
    [("bad-metric", "package outside fails .OSError: no licence.*"), ("no-metric", "outside has no function measure")],
)
def test_a_broken_metric_is_named_in_one_line(site: Path, tmp_path: Path, name: str, message: str):
    with pytest.raises(BrokenPlugin, match=message) as caught:
        effbench.measure("mobilenet_v1", (3, 32, 32), device="fake", launches=1, metrics=(name,), out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_lists_those_of_packages(site: Path):
    found = command("compare", "mobilenet_v1", "shufflenet_v2", "--metric", "square", "--device", "fake")
    assert found.returncode == 2
    assert "Did you mean 'squares'?" in found.stderr
    assert cli_options.complete_metric("sq") == ["squares"]


# --- runtimes -----------------------------------------------------------------------------------------


def test_a_runtime_of_a_package_measures_in_the_workers(site: Path, tmp_path: Path):
    words = ("--input", "3x32x32", "--launches", "1", "--budget", "1s", "--out", str(tmp_path / "run"), "--json")
    found = command("compare", "mobilenet_v1", "shufflenet_v2", "--runtime", "mine", *words)
    assert found.returncode == 0, found.stderr
    run = api.load(tmp_path / "run").run
    assert run.environment.facts["mine.version"] == "7"
    assert run.results[0].cell.runtime == "mine" and run.results[0].blocks
    assert run.launches[0].probes["model=mobilenet_v1"]["pieces"] == 3


def test_runtimes_of_packages_are_listed_and_completed(site: Path):
    assert {"mine", "bad", "none", "other"} == set(runtimes.names()) - set(runtimes.NAMES)
    assert cli_options.complete_runtime("eager,mi") == ["eager,mine"]
    found = command("list", "runtimes", "--json")
    assert found.returncode == 0, found.stderr
    listed = json.loads(found.stdout)["runtimes"]
    assert listed["mine"] == "the network as written, by another package (package outside)"
    assert "no licence" in listed["bad"] and "must be a class that implements" in listed["none"]
    assert "package outside, which must choose another name" in listed["eager"]
    assert "called 'other'" in listed["other"]


def test_a_broken_runtime_fails_whoever_uses_it_and_nobody_else(site: Path):
    found = command("compare", "mobilenet_v1", "shufflenet_v2", "--runtime", "bad", "--device", "fake")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert "runtime 'bad' of the package outside fails (OSError: no licence)" in found.stderr
    assert runtimes.why_unavailable("mine") is None
    assert set(runtimes.available_on("cpu")) & {"bad", "none", "other"} == set()
    found = command("compare", "mobilenet_v1", "shufflenet_v2", "--runtime", "min", "--device", "fake")
    assert "Did you mean 'mine'?" in found.stderr


def test_what_a_runtime_of_a_package_lacks_is_no_extra_of_effbench(site: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = runtimes.get("mine")
    for module in ("no_such_engine", "no_such_engine.inner"):
        monkeypatch.setattr(type(runtime), "modules", (module,))
        wanted = f"{module} is not installed; install the package that provides it"
        assert runtimes.get("mine").why_unavailable() == wanted


def test_a_name_that_two_packages_provide_is_refused(site: Path):
    second = site / "second-2.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 2.0\n")
    (second / "entry_points.txt").write_text("[effbench.runtimes]\nmine = outside.runtime:Mine\n")
    plugins._entry_points.cache_clear()
    with pytest.raises(BrokenPlugin, match="'mine' is provided by outside and second; uninstall all but one"):
        runtimes.get("mine")
    assert runtimes.get("eager").summary == "PyTorch as written"


def test_no_package_is_imported_before_its_name_is_used(site: Path):
    found = command("profile", "mobilenet_v1", "--json")
    assert found.returncode == 0
    assert cli_options.complete_runtime("mi") == ["mine"]
    assert not (site / "touched").exists()
    code = "import sys; from effbench.cli import main; print('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
