"""Peak memory: a known 200 MB is found, exported models are loaded and not built, a GPU's allocator is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import run_of
from scripted_gpu import MB, Gpu

from effbench import runtimes
from effbench.core.errors import EffbenchError
from effbench.core.run import Metric
from effbench.devices import Memory, cpu
from effbench.devices.cpu import Cpu
from effbench.devices.cuda import Cuda
from effbench.devices.fake import Fake
from effbench.host.worker_process import worker_environment
from effbench.metrics import base, peak_memory
from effbench.results import Results
from effbench.runtimes.base import Prepared, Setting, Unsupported
from effbench.runtimes.model_file import FACTS_FILE, ModelFileRuntime, Session
from effbench.timing import build_call, build_network

NETWORKS = """
import torch
from torch import nn

MILLIONS = 50


class Held(nn.Module):
    '''Weights of 200 MB, of which a call touches four bytes.'''

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(MILLIONS * 10**6))

    def forward(self, x):
        return x + self.weight[0]


class Passing(nn.Module):
    '''An activation of 200 MB.'''

    def forward(self, x):
        return x.new_ones(MILLIONS * 10**6).add_(x.sum()).mean()


def tiny():
    return nn.Conv2d(3, 8, 3)
"""


def order(model: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """One cell as `Recording.cell_spec` describes it."""
    cost = {"params": 50_000_000, "madds": 1, "memory_access_bytes": 1000}
    spec = {"id": "cell", "model": model, "arguments": {}, "inputs": [{"shape": [3, 8, 8], "name": "", "dtype": ""}]}
    plain = {"dtype": "float32", "batch": 1, "runtime": "eager", "threads": 1, "memory_format": "contiguous"}
    return {**spec, **plain, "mode": "infer", "folder": str(folder), "calls": None, "cost": cost, **changes}


def job(spec: Mapping[str, Any], device: str = "cpu") -> dict[str, Any]:
    options = {"threads": 1} if device == "cpu" else {}
    return {"task": "peak_memory", "seed": 0, "device": device, "device_options": options, "mode": "infer"} | {
        "sampling": {},
        "cell": spec,
    }


# --- a CPU --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "networks.py"
    path.write_text(NETWORKS)
    return path


@pytest.mark.parametrize("name", ["Held", "Passing"])
def test_two_hundred_megabytes_show(file: Path, tmp_path: Path, name: str):
    """Whatever the policy of the run: under "retain" the pieces that a call freed may be too small for the next."""
    variables = worker_environment(1, "retain")
    found = base.measure_in_subprocess(job(order(f"{file}:{name}", tmp_path)), variables, 60.0)
    assert found.missing is None
    values = found.values
    # What the network itself takes; the code that runs it is read from its files.
    assert values["peak_memory_bytes"] - values["code_bytes"] == pytest.approx(200e6, rel=0.10)
    assert values["weights_bytes"] == 200_000_000
    assert values["baseline_bytes"] > 50e6, "python and torch"
    assert values["source"] == "VmHWM of /proc/self/status" and values["reserved_bytes"] is None
    assert values["allocator"] == "system"


def test_a_process_inherits_no_peak_from_its_parent(tmp_path: Path):
    """ru_maxrss of a child starts at what its parent held; a worker's would be that of whoever calls effbench."""
    script = "import json; from effbench.devices.cpu import Cpu; print(json.dumps(Cpu().memory().peak_bytes))"
    parent = (
        "import subprocess, sys; held = bytearray(b'x') * 400_000_000; "
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], capture_output=True, text=True, check=True).stdout)"
    )
    told = subprocess.run([sys.executable, "-c", parent, script], capture_output=True, text=True, check=True)
    assert 5e6 < json.loads(told.stdout) < 300e6


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd", 1024)])
def test_elsewhere_getrusage_is_asked(monkeypatch: pytest.MonkeyPatch, platform: str, unit: int):
    """In bytes on macOS, in kB on others."""
    import resource

    monkeypatch.setattr(cpu.sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": 7_000})())
    assert Cpu(1).memory() == Memory(7_000 * unit, "ru_maxrss of getrusage")


def test_where_nobody_counts_there_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.sys, "platform", "win32")
    with pytest.raises(EffbenchError, match="counted nowhere"):
        Cpu(1).memory()


# --- what is left out of it ----------------------------------------------------------------------------


class Opened(Session):
    threads = 1

    def bind(self, arrays: tuple[Any, ...]) -> Any:
        return lambda: [array + 1 for array in arrays]


class FromFile(ModelFileRuntime):
    """A runtime of model files that writes and reads none."""

    name = "from_file"
    seen: list[Any]

    def facts(self) -> dict[str, Any]:
        return {}

    def export(self, network: Any, inputs: Any, setting: Setting) -> Mapping[str, Any]:
        raise AssertionError("exported again")

    def open(self, setting: Setting) -> Session:
        return Opened()

    def load(self, inputs: Sequence[tuple[Any, ...]], setting: Setting) -> Prepared:
        self.seen = list(inputs)
        return super().load(inputs, setting)


def test_an_exported_network_is_opened_and_never_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The weights of torch's copy, and the check against it, are no memory of the runtime."""
    runtime = FromFile()
    monkeypatch.setattr(runtimes, "get", lambda name: runtime)
    monkeypatch.setattr(build_network, "build", lambda *_: pytest.fail("the network was built"))
    (tmp_path / FACTS_FILE).write_text("{}")
    call = build_call.prepare(
        order("shufflenet_v2", tmp_path, runtime="from_file", batch=2),
        0,
        Cpu(1),
        lambda *_, **__: None,
        minimal_memory=True,
    )
    ((fed,),) = runtime.seen
    assert isinstance(fed, np.ndarray) and fed.dtype == np.float32 and fed.shape == (2, 3, 8, 8)
    assert np.array_equal(call()[0], fed + 1)


def test_the_same_inputs_as_in_a_launch(tmp_path: Path, file: Path):
    spec = order(f"{file}:tiny", tmp_path)
    network, inputs = build_network.build(spec, 3, Cpu(1))
    assert np.array_equal(build_network.inputs_of(spec, 3, Cpu(1)).make(network, 1)[0][0], inputs[0][0])


def test_the_check_against_float32_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path):
    told: list[Any] = []

    def emit(event: str, **fields: Any) -> None:
        told.append(fields["values"])

    spec = order(f"{file}:tiny", tmp_path, dtype="bfloat16")
    build_call.prepare(spec, 0, Cpu(1), emit, minimal_memory=True)
    assert told == []
    build_call.prepare(spec, 0, Cpu(1), emit)
    assert told[0]["output_error"] > 0


def test_what_allocates_past_torch_on_a_gpu_is_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Gpu(Fake):
        kind = "cuda"

    monkeypatch.setattr(peak_memory.devices, "get", lambda *_, **__: Gpu())
    monkeypatch.setattr(runtimes, "get", lambda name: FromFile())
    told: list[Any] = []
    base.measure(job(order("any", tmp_path, runtime="from_file"), "cuda"), lambda event, **said: told.append(said))
    assert "from_file allocates past torch" in told[0]["reason"]


# --- a GPU ---------------------------------------------------------------------------------------------


class Allocator(Gpu):
    """A scripted GPU whose allocator keeps what it got from the driver until told to give it back.

    Setting up works in 16 MB and frees them.
    """

    held = kept = most = most_kept = 0

    def take(self, size: int) -> None:
        self.held += size
        self.kept = max(self.kept, self.held)
        self.most, self.most_kept = max(self.most, self.held), max(self.most_kept, self.kept)

    def queue_load(self) -> None:
        super().queue_load()
        self.take(16 * MB)
        self.held -= 16 * MB

    def place(self, value: Any) -> Any:
        self.take(value.nbytes if hasattr(value, "nbytes") else sum(weight.nbytes for weight in value.parameters()))
        return value

    def empty_cache(self) -> None:
        self.kept = self.held

    def reset_peak(self) -> None:
        self.most, self.most_kept = self.held, self.kept

    def peak_allocated(self) -> int:
        return self.most

    def peak_reserved(self) -> int:
        return self.most_kept


def on_a_gpu(spec: Mapping[str, Any], gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    def get(name: str, **options: Any) -> Cuda:
        assert options["warm_up_s"] == 0, "nothing is timed"
        return Cuda(api=gpu, **{**options, "warm_up_s": 0.05})

    monkeypatch.setattr(peak_memory.devices, "get", get)
    told: list[Any] = []
    base.measure(job(spec, "cuda"), lambda event, **said: told.append(said))
    values: Mapping[str, Any] = told[-1]["values"]
    return values


def test_a_gpu_holds_the_network_and_one_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path):
    """The rounds rotate through more than 100 MB of inputs, so that none is in the cache; a user has one."""
    weights, image = 4 * (8 * 3 * 9 + 8), 4 * 3 * 8 * 8
    gpu = Allocator()
    values = on_a_gpu(order(f"{file}:tiny", tmp_path), gpu, monkeypatch)
    assert "work" in gpu.log, "setting up took memory too"
    assert values["peak_memory_bytes"] == weights + image
    # By the same rule: above what there was before the network, with nothing left over that it could use unseen.
    assert values["reserved_bytes"] == weights + image


@pytest.mark.parametrize(
    ("dtype", "described", "each"),
    [
        ("float32", "", 4),
        ("float16", "", 2),
        ("bfloat16", "", 2),
        ("float64", "", 8),
        ("int8", "", 4),  # quantised by the runtime, fed with float32
        ("float16", "int64", 8),  # tokens stay what they are
        ("float16", "float64", 8),
    ],
)
def test_inputs_outgrow_twice_the_cache_in_the_dtype_that_they_are_read_in(
    tmp_path: Path, file: Path, dtype: str, described: str, each: int
):
    shape, cache = [3, 8, 8], 100_000
    inputs = [{"shape": shape, "name": "", "dtype": described}]
    spec = order(f"{file}:tiny", tmp_path, dtype=dtype, batch=2, inputs=inputs)
    _, fed = build_network.build(spec, 0, Cuda(api=Gpu(l2=cache)))
    assert len(fed) == 2 * cache // (2 * 192 * each) + 1
    assert len(build_network.build(spec, 0, Cuda(api=Gpu(l2=cache)), minimal_memory=True)[1]) == 1


class OnePercentOff(FromFile):
    """As TF32 might round, where the reference does not."""

    devices = ("cuda",)

    def require(self, setting: Setting) -> None:
        self.asked = setting

    def prepare(self, network: Any, inputs: Any, setting: Setting) -> Prepared:
        return Prepared(lambda: 1.01 * network(*inputs[0]))


def test_the_runtime_and_the_check_of_its_output_hear_of_tf32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
):
    runtime = OnePercentOff()
    monkeypatch.setattr(runtimes, "get", lambda name: runtime)
    spec = order(f"{file}:tiny", tmp_path, runtime="from_file")
    told: list[Any] = []

    def emit(event: str, **fields: Any) -> None:
        told.append(fields["values"])

    build_call.prepare(spec, 0, Cuda(1, api=Gpu(), precision="tf32", autotune=True), emit)
    assert (runtime.asked.index, runtime.asked.tf32, runtime.asked.autotune) == (1, True, True)
    assert told[0]["output_error"] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(Unsupported, match=r"differs from eager float32 by 0\.01"):
        build_call.prepare(spec, 0, Cuda(api=Gpu()), emit)
    assert (runtime.asked.index, runtime.asked.tf32, runtime.asked.autotune) == (0, False, False)


# --- where it is shown ---------------------------------------------------------------------------------


def test_the_table_shows_peak_and_weights_and_says_who_counted():
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0}, facts={"run.allocator": "retain"})
    values = {"peak_memory_bytes": 37_000_000, "weights_bytes": 9_110_000, "source": "VmHWM", "baseline_bytes": 1}
    first, second = run.results
    run = replace(run, results=(replace(first, metrics=(Metric("peak_memory", values),)), second))
    results = Results(run)
    found = results.tables()[0]
    titles = [column.title for column in found.columns]
    assert [row[titles.index("peak memory (MB)")].text for row in found.rows] == ["37.0", "–"]
    assert [row[titles.index("weights (MB)")].raw for row in found.rows] == [9_110_000, None]
    assert any("VmHWM, allocator retain" in note for note in found.notes)
    assert results.to_dict()["cells"][0]["peak_memory"] == values
