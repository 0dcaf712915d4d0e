"""The contract of runtimes: one test suite for every installed runtime."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import model_file_alone  # noqa: E402
import numpy as np  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from effbench import doctor, runtimes  # noqa: E402
from effbench.cli import options  # noqa: E402
from effbench.devices import cuda  # noqa: E402
from effbench.host import worker_process  # noqa: E402
from effbench.runtimes import Prepared, Runtime, Setting, Unsupported, torch_compile  # noqa: E402
from effbench.runtimes.model_file import ModelFileRuntime  # noqa: E402
from effbench.timing import output_check  # noqa: E402

HERE = Path(__file__).parent
EVERY = {
    "device": ("cpu", "cuda", "mps"),
    "dtype": ("float32", "float64", "float16", "bfloat16", "int8"),
    "memory_format": ("contiguous", "channels_last"),
    "mode": ("infer", "train"),
}


# --- networks in the style of the zoo ------------------------------------------------------------------


def block(c1: int, c2: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(c1, c2, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c2), nn.ReLU())


class Stack(nn.Module):
    """Three convolutions and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 16, stride=2), block(16, 16), block(16, 24, kernel=1))
        self.classifier = nn.Linear(24, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


class Shuffled(nn.Module):
    """Half of the channels pass untouched, then all are shuffled: three convolutions, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = block(3, 16), nn.Sequential(block(8, 8, kernel=1), block(8, 8, groups=8))

    def forward(self, image: Tensor) -> Tensor:
        left, right = self.stem(image).chunk(2, dim=1)
        joined = torch.cat([left, self.branch(right)], dim=1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(joined.shape)


class Several(nn.Module):
    """Two images that must not change places and token numbers; outputs by name, one in a list; two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.words = block(3, 8), block(3, 8, stride=2), nn.Embedding(5, 6)

    def forward(self, near: Tensor, far: Tensor, tokens: Tensor) -> dict[str, Any]:
        near, far = self.one(near), self.other(far)
        return {"sum": near + 2 * far, "more": [far.mean((2, 3)), self.words(tokens)]}


class Rare(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(image[:, 0])


class Undecided(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.sum() > 0 else image - 1


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "stack": (Stack, ((4, 3, 96, 96),), 3),
    "shuffled": (Shuffled, ((2, 3, 16, 16),), 3),
    "several": (Several, ((1, 3, 16, 16), (1, 3, 32, 32), (1, 4)), 2),
}
"""How to build it, the shapes of its inputs (images, and token numbers), how many convolutions it has."""
SINGLE = (lambda: block(3, 16), ((4, 3, 96, 96),), 1)


def built(name: str, device: str) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """The network in eval mode with statistics that are not those of a fresh batch norm, and three inputs."""
    torch.manual_seed(0)
    make, shapes, _ = {**NETWORKS, "single": SINGLE}[name]
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    inputs = [tuple(drawn(shape).to(device) for shape in shapes) for _ in range(3)]
    return network.to(device), inputs


def drawn(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape) if len(shape) == 4 else torch.randint(5, shape)


# --- each runtime, and what it made of each network -----------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A network that a runtime has prepared, what it was before, and what else preparing it did."""

    network: nn.Module
    inputs: list[tuple[Tensor, ...]]
    setting: Setting
    prepared: Prepared
    before: dict[str, Any]
    said: object
    left_beside: list[str]
    silenced: bool


def condition(network: nn.Module) -> dict[str, Any]:
    """Everything of a network that preparing it could change."""
    return {
        "weights": {name: value.clone() for name, value in network.state_dict().items()},
        "modes": [module.training for module in network.modules()],
        "gradients": [(weight.requires_grad, weight.grad is None) for weight in network.parameters()],
        "attributes": [sorted(vars(module)) for module in network.modules()],
        "hooks": [sum(len(value) for key, value in vars(module).items() if "hooks" in key and value is not None)
                  for module in network.modules()],
    }  # fmt: skip


def loudness() -> object:
    root = logging.getLogger()
    return root.manager.disable, root.level, list(root.handlers), list(warnings.filters)


class Bench:
    """One runtime and its subjects, each prepared once for all tests: exports take seconds."""

    def __init__(self, runtime: Runtime, folder: Path, capture: Any) -> None:
        self.runtime, self.folder, self._capture = runtime, folder, capture
        self.device = "cpu" if "cpu" in runtime.devices else "cuda"
        self._subjects: dict[str, Subject] = {}

    def setting(self, name: str) -> Setting:
        return Setting(self.folder / name, self.device, threads=1 if self.device == "cpu" else 0)

    def subject(self, name: str) -> Subject:
        if name not in self._subjects:
            network, inputs = built(name, self.device)
            before, setting = condition(network), self.setting(name)
            self.runtime.require(setting)
            beside = self.folder / f"beside {name}"
            beside.mkdir()
            loud = loudness()
            self._capture.read_global_capture()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(beside)
                patch.setenv("TMPDIR", str(beside))
                prepared = self.runtime.prepare(network, inputs, setting)
            said, silenced = self._capture.read_global_capture(), loudness() != loud
            self._subjects[name] = Subject(
                network, inputs, setting, prepared, before, tuple(said), os.listdir(beside), silenced
            )
        return self._subjects[name]


def runtime_of(name: str) -> Runtime:
    module = runtimes._ADAPTERS[name][0]
    if importlib.util.find_spec(f"effbench.runtimes.{module}") is None:
        pytest.skip(f"{module}.py is not written yet")
    return runtimes.get(name)


@pytest.fixture(scope="module", params=runtimes.NAMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return runtime_of(request.param)


@pytest.fixture(scope="module")
def bench(
    runtime: Runtime, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    absent = runtime.why_unavailable()
    if absent:
        pytest.skip(absent)
    if "cpu" not in runtime.devices and (reason := cuda.why_unavailable(0)):
        pytest.skip(reason)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    yield Bench(runtime, tmp_path_factory.mktemp(runtime.name), capture)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of the model files in a process without torch, with two threads."""
    if not isinstance(bench.runtime, ModelFileRuntime) or "torch" in bench.runtime.modules:
        pytest.skip("it needs torch")
    for name in NETWORKS:
        subject = bench.subject(name)
        with torch.inference_mode():
            expected = output_check.output_arrays(subject.network(*subject.inputs[0]))
        arrays = {f"input {place}": each.numpy() for place, each in enumerate(subject.inputs[0])}
        arrays |= {f"output {place}": each for place, each in enumerate(expected)}
        np.savez(subject.setting.folder / "io", **arrays)
    home = tmp_path_factory.mktemp("home")
    variables = worker_process.worker_environment(2, "retain") | {"HOME": str(home), "TMPDIR": str(home)}
    variables.pop("CI", None)  # where telemetry is off
    command = [sys.executable, "-W", "error", model_file_alone.__file__, bench.runtime.name, str(bench.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    return {**json.loads(done.stdout), "home": os.listdir(home)}


@pytest.fixture(autouse=True)
def as_in_a_worker() -> Iterator[None]:
    with torch.inference_mode():
        yield


def copied(output: Any) -> Any:
    """Some runtimes return views of what they keep, and write there again."""
    return copy.deepcopy(list(output) if isinstance(output, (list, tuple)) else output)


def same(one: Any, other: Any) -> bool:
    pairs = zip(*map(output_check.output_arrays, (one, other)), strict=True)
    return all(bool((left == right).all()) for left, right in pairs)


# --- the contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_eager_computes_for_each_input_in_turn(bench: Bench, name: str) -> None:
    subject = bench.subject(name)
    expected = [copied(subject.network(*each)) for each in subject.inputs]
    found = [copied(subject.prepared.call()) for _ in range(2 * len(expected))]
    # What was called before, by another test, decides which input is next.
    first = next(at for at, wanted in enumerate(expected) if close(wanted, found[0]))
    for at, output in enumerate(found):
        error = output_check.check(expected[(first + at) % len(expected)], output, "float32")["output_error"]
        assert error < 1e-4
    assert not any(close(expected[0], other) for other in expected[1:]), "or the turn would not show"
    for once, again in zip(found[:3], found[3:], strict=True):
        assert same(once, again), "the same input gives the same bits"


def close(expected: Any, found: Any) -> bool:
    try:
        return output_check.check(expected, found, "float32")["output_error"] < 1e-4
    except Unsupported:
        return False


@pytest.mark.parametrize("name", NETWORKS)
def test_it_leaves_the_network_as_it_was(bench: Bench, name: str) -> None:
    subject = bench.subject(name)
    subject.prepared.call()
    after = condition(subject.network)
    weights, kept = subject.before["weights"], after.pop("weights")
    assert after == {key: value for key, value in subject.before.items() if key != "weights"}
    assert weights.keys() == kept.keys() and all(torch.equal(weights[key], kept[key]) for key in kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_says_what_became_of_the_network(bench: Bench, name: str) -> None:
    subject = bench.subject(name)
    facts = subject.prepared.facts
    json.dumps(facts, allow_nan=False)
    if bench.runtime.name == "eager":
        assert not facts, "nothing becomes of it"
        return
    assert facts["prepare_s"] > 0 and facts["pieces"] >= 1
    if bench.runtime.name == "cudagraph":
        return
    convolutions = NETWORKS[name][2]
    # Each convolution is a kernel of its own; eager makes three operators of each block and some twenty of the rest.
    assert convolutions <= facts["operators"] <= 3 * convolutions + 20
    assert all(isinstance(count, int) and count > 0 for count in facts["outside"].values())
    assert sum(facts["outside"].values()) <= facts["operators"]
    assert facts["threads"] in (None, 1)
    weights = sum(weight.numel() for weight in subject.network.parameters())
    assert facts["artefact_bytes"] > (4 * weights if isinstance(bench.runtime, ModelFileRuntime) else 0)


def test_it_describes_itself_in_plain_values(bench: Bench) -> None:
    facts = bench.runtime.facts()
    json.dumps(facts, allow_nan=False)
    assert any(name.endswith("version") and value for name, value in facts.items())
    assert all("." in name for name in facts), "dotted names keep runtimes apart"


def test_a_later_launch_finds_what_the_first_one_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = bench.subject("shuffled")
    if isinstance(bench.runtime, ModelFileRuntime):
        monkeypatch.setattr(bench.runtime, "export", lambda *_: pytest.fail("exported again"))
    again = bench.runtime.prepare(subject.network, subject.inputs, subject.setting)
    assert close(subject.network(*subject.inputs[0]), again.call()) or bench.runtime.name == "compile"
    if bench.runtime.name not in ("eager", "cudagraph"):
        for name in ("prepare_s", "artefact_bytes", "pieces", "operators", "outside"):
            assert again.facts[name] == subject.prepared.facts[name]
        assert again.facts["load_s"] > 0


@pytest.mark.parametrize("make", [Rare, Undecided])
def test_it_says_no_or_is_right(
    bench: Bench, make: Callable[[], nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An operator that few have, and control flow that depends on the data: traced, the wrong branch would be kept."""
    inputs = [(sign * torch.rand(1, 1, 6, 6, device=bench.device),) for sign in (1.0, -1.0)]
    network = make().eval().to(bench.device)
    try:
        prepared = bench.runtime.prepare(network, inputs, replace(bench.setting("none"), folder=tmp_path))
        found = [copied(prepared.call()) for _ in inputs]
    except Unsupported as reason:
        assert len(str(reason)) > 20 and str(reason).isprintable()
        assert "matrix_exp" in str(reason) or make is Undecided, "the operator is named"
        assert bench.runtime.name != "eager"
    else:
        expected = [copied(network(*each)) for each in inputs]
        assert sorted(close(wanted, output) for wanted in expected for output in found) == [False, False, True, True]
    assert capfd.readouterr() == ("", "")


def test_one_thread_is_one_thread(bench: Bench) -> None:
    if bench.device != "cpu" or not Path("/proc/self/task").exists():
        pytest.skip("threads are counted on a Linux CPU")
    assert len(model_file_alone.busy_threads(bench.subject("stack").prepared.call)) == 1


def test_two_threads_are_two_threads(bench: Bench, request: pytest.FixtureRequest) -> None:
    """In a process of its own, as a worker would be: several runtimes set their threads up once. A model file serves
    any number of threads; what torch.compile makes is for one number.
    """
    if bench.device != "cpu" or not Path("/proc/self/task").exists():
        pytest.skip("threads are counted on a Linux CPU")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    if isinstance(bench.runtime, ModelFileRuntime) and "torch" not in bench.runtime.modules:
        told = request.getfixturevalue("alone")
    else:
        told = two_threads_with_torch(bench)
    assert told["threads"] in (2, None) and told["busy"] <= 2
    # OpenVINO's tasks go to whichever thread is awake: where neighbours take both processors, one may do them all.
    assert told["busy"] == 2 or bench.runtime.name == "openvino"


def two_threads_with_torch(bench: Bench) -> dict[str, Any]:
    environment = worker_process.worker_environment(2, "retain") | {
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])
    }
    command = [sys.executable, "-c", "import test_contract as tests; tests.report_two_threads()"]
    made = bench.subject("stack").setting.folder
    folder = made if isinstance(bench.runtime, ModelFileRuntime) else bench.folder / "two"
    if (made / torch_compile._TOOLS).exists():
        shutil.copytree(made / torch_compile._TOOLS, folder / torch_compile._TOOLS)
    # A model file is there by now. What is made anew is one convolution: to compile three takes four times as long.
    network = "stack" if isinstance(bench.runtime, ModelFileRuntime) else "single"
    told = json.dumps({"runtime": bench.runtime.name, "folder": str(folder), "network": network})
    done = subprocess.run(command, input=told, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report_two_threads() -> None:
    """Print how many threads compute and how many the runtime says, having prepared the network as a worker does."""
    from effbench import devices

    told = json.loads(sys.stdin.readline())
    devices.get("cpu", threads=2).setup()
    with torch.inference_mode():
        prepared = runtimes.get(told["runtime"]).prepare(
            *built(told["network"], "cpu"), Setting(Path(told["folder"]), threads=2)
        )
        busy = model_file_alone.most_busy_threads(prepared.call)
        print(json.dumps({"busy": busy, "threads": prepared.facts.get("threads")}))


def test_a_model_file_runs_without_torch_calls_nobody_and_leaves_nothing(alone: dict[str, Any]) -> None:
    """What their own imports do: OpenVINO sends a message from a thread and keeps an identity in the home folder, ONNX
    Runtime keeps one in the temporary folder.
    """
    assert alone["errors"].keys() == NETWORKS.keys() and max(alone["errors"].values()) < 1e-4
    assert (alone["python_threads"], alone["sockets"], alone["telemetry"], alone["home"]) == (1, [], [], [])


@pytest.mark.parametrize("name", NETWORKS)
def test_preparing_says_nothing_and_leaves_nothing_beside_the_cells_folder(bench: Bench, name: str) -> None:
    subject = bench.subject(name)
    assert subject.said == ("", "")
    if isinstance(bench.runtime, ModelFileRuntime):  # torch's compiler adds filters of warnings where it is imported
        assert subject.left_beside == [] and not subject.silenced


def test_a_missing_exporter_is_named_with_the_extra(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A runtime may run models without what makes them."""
    if not isinstance(bench.runtime, ModelFileRuntime) or not bench.runtime.export_modules:
        pytest.skip("nothing else makes its models")
    subject, find = bench.subject("stack"), importlib.util.find_spec
    for module in bench.runtime.export_modules:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest, gone=module: None if name == gone else find(name, *rest)
        )
        assert bench.runtime.why_unavailable() is None and bench.runtime.load([], subject.setting)
        with pytest.raises(Unsupported) as refused:
            bench.runtime.prepare(subject.network, subject.inputs, replace(subject.setting, folder=tmp_path / "cell"))
        needed = f"{module}, which exporting for {bench.runtime.name} needs, is not installed"
        assert str(refused.value) == f"{needed}; pip install 'effbench[{bench.runtime.extra}]'"
        assert not (tmp_path / "cell").exists()


# --- what it does not have ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", EVERY)
def test_what_it_does_not_have_is_refused_with_what_it_has(
    runtime: Runtime, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runtime, "why_unavailable", lambda: None)
    fits = {name: getattr(runtime, f"{name}s")[0] for name in EVERY}
    known = getattr(runtime, f"{what}s")
    assert set(known) <= set(EVERY[what])
    for value in set(EVERY[what]) - set(known):
        with pytest.raises(Unsupported) as refused:
            runtime.require(Setting(tmp_path, **(fits | {what: value})))
        words = what.replace("_", " ")
        assert str(refused.value) == f"{runtime.name} has no {words} {value}; it has {', '.join(known)}"


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    for module in runtime.modules:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest, gone=module: None if name == gone else find(name, *rest)
        )
        remedy = f"{module} is not installed; pip install 'effbench[{runtime.extra}]'"
        assert runtimes.why_unavailable(runtime.name) == remedy
        with pytest.raises(Unsupported) as refused:
            runtime.require(Setting(tmp_path, runtime.devices[0]))
        assert str(refused.value) == remedy


def test_lists_and_doctor_name_every_runtime_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ncnn" else find(name, *rest))
    remedy = "pip install 'effbench[ncnn]'"
    listed = options.names("runtimes")
    assert tuple(listed) == runtimes.NAMES
    assert listed["ncnn"].endswith(f" (missing: ncnn is not installed; {remedy})")
    assert listed["eager"] == runtimes.get("eager").summary
    present, *absent = doctor._runtimes()
    assert present.value.startswith("eager, ") and "ncnn" not in present.value
    (told,) = [finding for finding in absent if finding.topic == "runtime ncnn"]
    assert (told.status, told.value, told.todo) == ("note", "ncnn is not installed", remedy)


def test_every_extra_is_one_of_the_packages() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    extras = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in runtimes.NAMES:
        runtime = runtime_of(name)
        assert bool(runtime.extra) == bool(runtime.modules)
        assert not runtime.extra or runtime.extra in extras, f"{runtime.extra} is no extra of pyproject.toml"
        assert runtime.name == name and runtime.summary and "\n" not in runtime.summary


def test_adapters_import_nothing_heavy() -> None:
    """Listing runtimes takes milliseconds, and a bundle runs where there is no torch."""
    code = (
        "import sys; from effbench import runtimes;"
        "[runtimes.why_unavailable(name) for name in runtimes.NAMES];"
        "heavy = ('torch', 'numpy', 'onnxruntime', 'onnx', 'openvino', 'ncnn', 'executorch');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
