"""The fixture `effbench` as its users run it: real pytest in real processes, beside and inside pytest-benchmark."""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nursery
import pytest
import torch
from nursery import HANGS_S
from scripted_gpu import Gpu as ScriptedGpu
from shell import environment
from torch import nn

from effbench import api
from effbench.cli import main
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.inputs import Input
from effbench.devices.cuda import Cuda
from effbench.devices.fake import Fake
from effbench.devices.torch_cuda import Policy, TorchCuda
from effbench.pytest_plugin import assert_cost
from effbench.timing import in_process

MADDS = 30 * 30 * 8 * 27
"""Of NET: every one of 30x30x8 outputs is a sum of 3x3x3 products."""
PARAMS = 8 * 27 + 8
NET = nn.Conv2d(3, 8, 3)

NETS = """
import itertools
import torch
from torch import nn

CALLS = itertools.count()  # which nobody can put back

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 8, 3), 0

    def forward(self, x):
        if not torch._C.TensorBase.is_meta.__get__(x):
            self.calls += 1
            next(CALLS)
            assert not self.training and torch.is_inference_mode_enabled()
        return self.conv(x)

def build(width=8):
    return nn.Conv2d(3, width, 3)
"""

SUITE = """
import pytest

def test_speed(effbench):
    import effbench as package
    import torch
    from nets import CALLS, Net

    net, threads = Net(), torch.get_num_threads()
    found = effbench.measure(net, (3, 32, 32))
    assert package.profile(net, (3, 32, 32)).cost == found.costs
    assert net.training and net.conv.training and torch.get_num_threads() == threads
    assert net.calls == 0
    made = next(CALLS)
    if found.median_s is None:
        # Two were no measurement, of its copy and of itself, and outside of inference mode, where it raises.
        assert made == 3 and found.blocks == ()
    else:
        assert made > found.calls * len(found.blocks)
    effbench.assert_cost(net, (3, 32, 32), max_madds=194_400)

@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.benchmark(group="mine", min_rounds=4, max_time=1e-9)
def test_scripted(effbench, width):
    effbench.measure(f"nets.py:build?width={width}", (3, 32, 32), batch=2, device="fake")
"""

OTHERS = """
import pytest
from nets import Net, build
from effbench.core.run import Timing
from effbench.pytest_plugin import assert_cost

def test_asserts_costs_alone(effbench):
    effbench.assert_cost(build(), (3, 32, 32), max_params=224)

def test_needs_no_fixture():
    assert_cost("nets.py:build", (3, 32, 32), max_params=224)

def test_twice(effbench):
    effbench.measure(build(), (3, 32, 32), device="fake")
    effbench.measure(build(), (3, 32, 32), device="fake")

def test_unknown(effbench):
    effbench.measure("resnet81")

def test_too_big(effbench):
    effbench.assert_cost(Net(), (3, 32, 32), max_madds="100k", max_params=300)

def test_late(benchmark, effbench):
    effbench.measure(build(), (3, 32, 32), device="fake")

def test_replayed(_effbench_block_clock, benchmark):
    called = []
    blocks = [Timing(calls=3, wall_ns=30), Timing(calls=3, wall_ns=60)]
    _effbench_block_clock.run_rounds(benchmark, lambda: called.append(1), blocks)
    assert benchmark.stats.stats.data == pytest.approx([1e-8, 2e-8]) and len(called) == 1
"""

STRANGERS = """
import sys
import pytest

@pytest.fixture
def effbench():
    return 42

def test_own_fixture_wins(effbench):
    assert effbench == 42

def test_nothing_is_loaded():
    assert "effbench.pytest_plugin" in sys.modules
    ours = {name for name in sys.modules if name.partition(".")[0] == "effbench"}
    assert ours == {"effbench", "effbench._version", "effbench.pytest_plugin"}
    assert not {"torch", "numpy", "pandas", "scipy", "rich", "typer", "jinja2"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Ran:
    """How a pytest process ended: exit code, what it printed, and each test's failure text ("" where it passed)."""

    code: int
    text: str
    tests: dict[str, str]


BARE = ("cacheprovider", "hypothesispytest", "nbmake", "hydra_pytest", "anyio")
"""Plugins that take seconds to load and that nobody asks here."""


def run_pytest(folder: Path, *words: str, fresh: bool = False) -> Ran:
    """In a folder of its own, warnings as errors, without what the outer pytest left in the environment.

    What looks at what is imported wants a `fresh` process.
    """
    clean = {key: value for key, value in environment().items() if not key.startswith("PYTEST_")}
    line = ["-q", "-W", "error", *(f"-pno:{name}" for name in BARE), "--rootdir=.", "-c", os.devnull]
    line += ["--junit-xml=junit.xml", *words]
    if fresh or not nursery.suits(clean):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *line],
            cwd=folder, env=clean, capture_output=True, text=True, timeout=HANGS_S,
        )  # fmt: skip
        code, text = done.returncode, done.stdout + done.stderr
    else:
        code, *said = nursery.nursery().run(line, folder, clean, program="pytest")
        text = "".join(said)
    report = ElementTree.parse(folder / "junit.xml")
    tests: dict[str, str] = {}
    for case in report.iter("testcase"):
        told = [*case.iter("failure"), *case.iter("error")]
        tests[case.attrib["name"]] = "\n".join((item.text or item.attrib.get("message", "")) for item in told)
    return Ran(code, text, tests)


def errors(text: str) -> list[str]:
    """The lines that pytest marks as the error itself."""
    return [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]


@dataclass(frozen=True)
class Folder:
    path: Path
    ran: Ran
    document: Any


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The suite once measured, its numbers stored under 0001_base and in out.json."""
    path = tmp_path_factory.mktemp("suite")
    for name, text in (("nets.py", NETS), ("test_suite.py", SUITE), ("test_others.py", OTHERS)):
        (path / name).write_text(text)
    ran = run_pytest(path, "--benchmark-max-time=0.3", "--benchmark-save=base", "--benchmark-json=out.json")
    return Folder(path, ran, json.loads((path / "out.json").read_text()))


def test_the_blocks_are_the_rounds(measured: Folder) -> None:
    """What pytest-benchmark stores is computed again from the blocks; counts are those of closed forms."""
    found = {item["name"]: item for item in measured.document["benchmarks"] if "effbench" in item["extra_info"]}
    assert set(found) == {"test_speed", "test_scripted[4]", "test_scripted[8]"}
    for item in found.values():
        told, stats = item["extra_info"]["effbench"], item["stats"]
        calls, wall = told["calls"], told["blocks"]["wall_ns"]
        assert stats["iterations"] == calls and stats["rounds"] == len(wall)
        assert stats["data"] == pytest.approx([spent / calls / 1e9 for spent in wall], rel=1e-12)
        assert stats["median"] == pytest.approx(statistics.median(wall) / calls / 1e9, rel=1e-12)
        cpu = statistics.median(told["blocks"]["cpu_ns"]) / calls / 1e9
        assert told["cpu_median_s"] == pytest.approx(cpu, rel=1e-12)
        assert sum(told["flags"].values()) <= 2 * len(wall) and isinstance(told["steady"], bool)
        assert len(told["environment"]["fingerprint"]) == 16
    costs = found["test_speed"]["extra_info"]["effbench"]["costs"]
    assert (costs["madds"], costs["params"], costs["status"]) == (MADDS, PARAMS, "complete")
    assert set(costs["memory_access_levels"]) == {"layer", "eager", "pointwise", "epilogue"}
    assert costs["memory_access_levels"]["layer"]["elements"] == 3 * 32 * 32 + PARAMS + 8 * 30 * 30
    scripted = found["test_scripted[4]"]
    assert scripted["group"] == "mine" and scripted["stats"]["rounds"] == 3
    assert scripted["extra_info"]["effbench"]["costs"]["madds"] == 2 * MADDS // 2


def test_what_is_wrong_is_one_line(measured: Folder) -> None:
    """The test's own line and one sentence; and a test that only asserts costs is no unused benchmark."""
    told = {name: errors(text) for name, text in measured.ran.tests.items()}
    assert measured.ran.tests["test_replayed"] == ""
    assert {name for name, lines in told.items() if lines} == {
        "test_twice",
        "test_unknown",
        "test_too_big",
        "test_late",
    }
    assert all(len(lines) == 1 for lines in told.values() if lines), told
    assert "was called twice in one test; parametrize" in told["test_twice"][0]
    assert "there is no model named 'resnet81'. Did you mean" in told["test_unknown"][0]
    assert "let this test take only effbench" in told["test_late"][0]
    line = told["test_too_big"][0]
    assert re.fullmatch(r"AssertionError: Net: madds 194 k \(\+94.4 ?%\), at most 100 k", line)
    for name in ("test_unknown", "test_too_big"):
        assert "pytest_plugin.py" not in measured.ran.tests[name]
    assert "warning" not in measured.ran.text.lower()


def test_comparison_with_stored_values(measured: Folder) -> None:
    """pytest-benchmark's own gate fails on the one test whose stored values say that it was twice as fast."""
    storage = next((measured.path / ".benchmarks").glob("*/0001_base.json"))
    document = json.loads(storage.read_text())
    for item in document["benchmarks"]:
        factor = {"test_scripted[4]": 0.5}.get(item["name"], 1.0)
        item["stats"] = {key: value * factor if key == "median" else value for key, value in item["stats"].items()}
    storage.write_text(json.dumps(document))
    words = ("--benchmark-compare", "--benchmark-compare-fail=median:10%", "-k", "scripted", "test_suite.py")
    ran = run_pytest(measured.path, *words)
    regressed = ran.text.partition("Performance has regressed:")[2]
    assert ran.code == 1 and not any(ran.tests.values()), ran.text
    assert "test_scripted[4]" in regressed and "test_scripted[8]" not in regressed


def test_workers_of_xdist_make_one_plain_call(measured: Folder) -> None:
    """The suite itself asserts that its network was called once; the counts are there all the same."""
    ran = run_pytest(measured.path, "-n", "1", "-k", "speed", "test_suite.py")
    assert ran.code == 0, ran.text
    assert set(ran.tests) == {"test_speed"} and "Rounds" not in ran.text


def test_without_pytest_benchmark_only_its_users_fail(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_speed(effbench): pass\n\ndef test_other(): pass\n")
    ran = run_pytest(tmp_path, "-p", "no:benchmark")
    assert ran.tests["test_other"] == "" and ran.code == 1
    assert ran.tests["test_speed"].startswith("the fixture effbench needs pytest-benchmark: leave out -p no:benchmark")
    assert "\n" not in ran.tests["test_speed"]


def test_a_suite_that_does_not_use_it_sees_nothing(tmp_path: Path) -> None:
    """Nothing is loaded, a fixture of the same name wins, and neither --help nor --markers knows of it."""
    (tmp_path / "test_it.py").write_text(STRANGERS)
    ran = run_pytest(tmp_path, fresh=True)
    assert ran.code == 0, ran.text
    assert ran.text.splitlines()[-1].startswith("2 passed") and "effbench" not in ran.text
    words = ("-m", "pytest", "--help", "--markers", *(f"-pno:{name}" for name in BARE), "-c", os.devnull)
    said = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "effbench" not in said.stdout and "--benchmark-save" in said.stdout and not said.stderr


def test_importing_effbench_before_pytest_warns_of_nothing(tmp_path: Path) -> None:
    """Installed from a wheel, pytest sees which files came with a plugin, and wants to be the first to load them."""
    wheel = tmp_path / "effbench-0.dist-info"
    wheel.mkdir()
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: effbench\nVersion: 0\n")
    (wheel / "entry_points.txt").write_text("[pytest11]\neffbench = effbench.pytest_plugin\n")
    (wheel / "RECORD").write_text("effbench/__init__.py,,\neffbench/pytest_plugin.py,,\n")
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    line = ["-q", *(f"-pno:{name}" for name in BARE), "-c", os.devnull, "."]
    code = f"import sys, effbench, pytest; sys.exit(pytest.main({line}))"
    clean = {key: value for key, value in environment().items() if not key.startswith("PYTEST_")}
    variables = {**clean, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in (done.stdout + done.stderr).lower(), done.stdout


# --- counts -----------------------------------------------------------------------------------------


def test_budgets_that_are_kept() -> None:
    cost = assert_cost(NET, (3, 32, 32), max_madds=MADDS, max_params="224", max_memory_access="1M")
    assert (cost.madds, cost.params) == (MADDS, PARAMS)
    assert assert_cost(NET, (3, 32, 32), batch=3, max_madds=3 * MADDS).madds == 3 * MADDS


@pytest.mark.parametrize("name", ["madds", "params", "memory_access", "memory_access_bytes", "activations"])
def test_each_budget_is_held_to_its_own_count(name: str) -> None:
    exact = getattr(assert_cost(NET, (3, 32, 32), max_madds="1G"), name)
    limits: dict[str, Any] = {f"max_{name}": exact}
    assert_cost(NET, (3, 32, 32), **limits)
    limits = {f"max_{name}": exact - 1}
    with pytest.raises(AssertionError, match=rf"^Conv2d: {name} [\d_.]+") as caught:
        assert_cost(NET, (3, 32, 32), **limits)
    assert "\n" not in str(caught.value)


def test_a_stored_profile_says_what_was_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Shape, batch and dtype come from the file; another width is no longer the same."""
    (tmp_path / "nets.py").write_text(NETS)
    model = f"{tmp_path / 'nets.py'}:build"
    assert main(["profile", model, "--input", "3x32x32", "--batch", "2", "--dtype", "float16", "--json"]) == 0
    (tmp_path / "profile.json").write_text(capfd.readouterr().out)
    assert assert_cost(NET, same_as=tmp_path / "profile.json").madds == 2 * MADDS
    with pytest.raises(AssertionError, match=r"madds 437 k \(\+12.5 ?%\), stored 389 k"):
        assert_cost(nn.Conv2d(3, 9, 3), same_as=tmp_path / "profile.json")
    with pytest.raises(AssertionError, match="the profile is of input 3x32x32"):
        assert_cost(NET, (3, 33, 32), same_as=tmp_path / "profile.json")


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + mask


def test_a_stored_profile_of_several_inputs_has_them_all(tmp_path: Path) -> None:
    both = (Input((3, 8)), Input((3, 8), name="mask", dtype="bool"))
    (tmp_path / "profile.json").write_text(json.dumps(api.profile(Sum(), inputs=both).to_dict()))
    assert_cost(Sum(), same_as=tmp_path / "profile.json")
    with pytest.raises(AssertionError, match="profile is of input 3x8 and mask=3x8:bool, batch 1, float32, this is in"):
        assert_cost(Sum(), input_shape=[(3, 8), (3, 8)], same_as=tmp_path / "profile.json")


class Uncountable(nn.Module):
    """One operator has no formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x)


def test_an_incomplete_count_keeps_no_budget() -> None:
    with pytest.raises(AssertionError, match=r"there is no formula for .*eigh"):
        assert_cost(Uncountable(), (4, 4), max_madds="1G")
    assert_cost(Uncountable(), (4, 4), max_params=0)


def test_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="has nothing to hold to"):
        assert_cost(NET, (3, 32, 32))
    with pytest.raises(InvalidValue, match="'3oo' is no count"):
        assert_cost(NET, (3, 32, 32), max_madds="3oo")
    with pytest.raises(InvalidValue, match="cannot be read"):
        assert_cost(NET, (3, 32, 32), same_as=tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InvalidValue, match="holds no profile"):
        assert_cost(NET, (3, 32, 32), same_as=tmp_path / "list.json")


# --- timed in this process --------------------------------------------------------------------------


@pytest.fixture
def traced() -> Iterator[Callable[..., None]]:
    """A tracer that is active, as coverage's is."""

    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    yield tracer
    sys.settrace(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_as_it_was_also_after_an_error(dtype: str, traced: Callable[..., None]) -> None:
    """A network of another dtype is copied, one of the same is used itself."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    net[1].eval()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    prepared = in_process.prepare(net, (3, 8, 8), threads=threads + 1, dtype=dtype)
    with pytest.raises(ZeroDivisionError), prepared.conditions("system") as policy:
        assert policy == "system" and torch.get_num_threads() == threads + 1
        assert torch.is_inference_mode_enabled() and not gc.isenabled() and sys.gettrace() is None
        assert not any(module.training for module in prepared.network.modules())
        assert str(prepared.call().dtype) == f"torch.{dtype}"  # type: ignore[attr-defined]
        assert (torch.full((1,), 1e-310, dtype=torch.float64) * 1).item() == 0
        raise ZeroDivisionError
    assert (torch.full((1,), 1e-310, dtype=torch.float64) * 1).item() > 0
    assert sys.gettrace() is traced and gc.isenabled() and torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled() and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == [True, True, False]
    assert net[0].weight.dtype is torch.float32
    with pytest.raises(UnknownName, match="allocator named 'keep'"), prepared.conditions("keep"):
        pass


class Gpu(Fake):
    """Sets torch's switches as a CUDA device does."""

    kind = "cuda"

    def setup(self) -> None:
        TorchCuda(0).set_policy(Policy(matmul_tf32=True, conv_tf32=False, autotune=True))


def test_the_precision_of_a_gpu_is_put_back() -> None:
    before = TorchCuda(0).policy()
    prepared = in_process.TimedNetwork(Gpu(), lambda: None, nn.ReLU(), 1, None)
    with prepared.conditions("retain") as policy:
        assert policy == "system" and TorchCuda(0).policy() == Policy(True, False, True)
    assert TorchCuda(0).policy() == before != Policy(True, False, True)


class Two(ScriptedGpu):
    """Two scripted GPUs and the one that is the current one."""

    current = 0

    def current_device(self) -> int:
        return self.current


class Adapter:
    """`TorchCuda` of GPU `index`, before scripted ones."""

    def __init__(self, gpu: Two, index: int) -> None:
        self._gpu, self._index = gpu, index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def set_device(self) -> None:
        self._gpu.current = self._index


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Two:
    """A scripted GPU behind ``cuda:1``."""
    gpu = Two()
    monkeypatch.setattr(in_process, "_used_s", {})
    monkeypatch.setattr(in_process, "TorchCuda", lambda index: Adapter(gpu, index))
    monkeypatch.setattr(
        in_process.devices,
        "get",
        lambda name, **options: Cuda(int(name[-1]), api=Adapter(gpu, int(name[-1])), **options),
    )
    return gpu


def test_the_current_gpu_is_put_back_also_after_an_error(gpu: Two) -> None:
    prepared = in_process.prepare(nn.ReLU(), (3, 8, 8), device="cuda:1")
    with pytest.raises(ZeroDivisionError), prepared.conditions("system"):
        assert gpu.current == 1
        raise ZeroDivisionError
    assert gpu.current == 0


def test_a_gpu_is_loaded_once_and_not_for_every_test(gpu: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(in_process, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    loads = []
    for pause in (0.0, in_process.STAYS_WARM_S - 1, in_process.STAYS_WARM_S + 1):
        clock[0] += pause
        before = gpu.log.count("work")
        with in_process.prepare(nn.ReLU(), (3, 8, 8), device="cuda:1").conditions("system"):
            pass
        loads.append(gpu.log.count("work") - before)
    first, soon, later = loads
    assert first > 0 and soon == 0 and later == first


@pytest.mark.parametrize(("dtype", "each"), [("float32", 4), ("float16", 2)])
def test_on_a_gpu_inputs_rotate_as_the_policy_says(gpu: Two, dtype: str, each: int) -> None:
    """The cache is said to be steady: no call may find the input of the one before in it."""
    gpu.l2 = 10_000
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.data_ptr())
            return x

    prepared = in_process.prepare(Spy(), (3, 8, 8), device="cuda:1", dtype=dtype)
    number = 2 * 10_000 // (3 * 8 * 8 * each) + 1
    seen.clear()
    with prepared.conditions("system"):
        assert prepared.device.facts()["gpu.cache"] == "steady"
        for _ in range(2 * number):
            prepared.call()
        assert len(set(seen)) == number and seen[:number] == seen[number:]
    assert seen == []  # what the network has kept is given back
