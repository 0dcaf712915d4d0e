"""Models with side effects: measured as they are, side effects reported, state restored."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import UNTIMED_LAUNCHES
from shell import effbench, refusal
from torch import nn

from effbench import devices, profile, runtimes
from effbench.core.errors import ModelError
from effbench.cost import count_in_subprocess
from effbench.runtimes import Unsupported, copy_network
from effbench.runtimes.base import Prepared, Runtime
from effbench.timing import build_call, dtype_cast, in_process, output_check, reference_io, side_effects
from effbench.user_code import failure_reasons, global_state
from effbench.user_code.module_state import Snapshot

NETWORKS = '''
import random
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CALLS = 0
LOG = []

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6)

class InPlace(Base):
    def forward(self, x):
        x -= 0.45
        x /= 0.225
        return self.net(x)

class Slice(Base):
    def forward(self, x):
        x[:, 0] = 0
        return self.net(x)

class Relu(Base):
    def forward(self, x):
        return self.net(F.relu(x, inplace=True))

class Resized(Base):
    def forward(self, x):
        y = self.net(x)
        x.resize_(x.shape[0], 2)
        return y

class ResizedLater(Base):
    calls = 0
    def forward(self, x):
        y = self.net(x)
        self.calls += 1
        if self.calls > 5:
            x.resize_(x.shape[0], 2)
        return y

class Second(Base):
    def forward(self, x, mask):
        mask += 1
        return self.net(x * mask)

class Buffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("h", torch.zeros(1))
    def forward(self, x):
        self.h.copy_(0.5 * self.h + x.mean())
        return self.net(x) + self.h

class Replaced(Base):
    def __init__(self):
        super().__init__()
        self.h = None
    def forward(self, x):
        y = self.net(x)
        self.h = y if self.h is None else self.h + y
        return self.h

class Growing(Base):
    def __init__(self):
        super().__init__()
        self.cache = []
    def forward(self, x):
        self.cache.append(x)
        return self.net(x) + len(self.cache)

class ById(Base):
    def __init__(self):
        super().__init__()
        self.memo = {}
    def forward(self, x):
        if id(x) not in self.memo:
            self.memo[id(x)] = self.net(x)
        return self.memo[id(x)]

class Nested(Base):
    def __init__(self):
        super().__init__()
        self.state = {"steps": [torch.zeros(())]}
    def forward(self, x):
        self.state["steps"][0] += 1
        return self.net(x) + self.state["steps"][0]

class Global(Base):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return self.net(x) * CALLS

class OfTheClass(Base):
    calls = 0
    def forward(self, x):
        OfTheClass.calls += 1
        return self.net(x) * OfTheClass.calls

def shared():
    calls = 0
    class Shared(Base):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return self.net(x) * calls
    return Shared()

class Decays(Base):
    def forward(self, x):
        self.net.weight.data.mul_(0.5)
        return self.net(x)

class Dropout(Base):
    def forward(self, x):
        return F.dropout(self.net(x), 0.5)

class Noise(Base):
    def forward(self, x):
        return self.net(x) + torch.rand(6)

class PythonNoise(Base):
    def forward(self, x):
        return self.net(x) * random.random()

class NumpyNoise(Base):
    def forward(self, x):
        return self.net(x) * float(np.random.rand())

class OwnNoise(Base):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)
    def forward(self, x):
        return self.net(x) + torch.rand(6, generator=self.generator)

class Seeded(Base):
    def forward(self, x):
        torch.manual_seed(0)
        return self.net(x) + torch.randn(6)

class Forked(Base):
    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.net(x) + torch.randn_like(x)

class Exports(Base):
    def forward(self, x):
        return self.net(x) + 3 * (torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting())

class Drifts(Base):
    calls = 0
    def forward(self, x):
        self.calls += 1
        return self.net(x) if self.calls % 3 else self.net(self.net(self.net(x)))

class ByData(Base):
    def forward(self, x):
        return self.net(x) if x.sum() > 0 else self.net(self.net(x))

class Chooses(Base):
    def forward(self, x):
        return self.net(x) if random.random() < 0.5 else self.net(x)

class Table(Base):
    """A cache that is filled once is no state."""
    def __init__(self):
        super().__init__()
        self.table = None
    def forward(self, x):
        if self.table is None:
            self.table = torch.linspace(0, 1, 6)
        return self.net(x) * self.table

class Keeps(Base):
    """So is what it remembers of the last call, which is the same after the same call."""
    def forward(self, x):
        self.last = self.net(x)
        return self.last

class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.register_buffer("other", torch.full((4,), 1j))
    def forward(self, x):
        return torch.fft.rfft(x) * self.weight + self.other

class Grad(Base):
    """Follows the advice."""
    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.net(x).square().sum(), x)[0]

class Backward(Base):
    """Follows it too, and adds up."""
    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            self.net(x.clone()).square().sum().backward()
            return self.net.weight.grad

class OfItsInput(Base):
    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            self.net(x.requires_grad_()).square().sum().backward(inputs=[x])
            return x.grad

class OfAnAttribute(Base):
    def __init__(self):
        super().__init__()
        self.shift = torch.zeros(6, requires_grad=True)
    def forward(self, x):
        with torch.inference_mode(False), torch.enable_grad():
            self.net(x.clone() + self.shift).square().sum().backward(inputs=[self.shift])
            return self.shift.grad

class Force(Base):
    def forward(self, x):
        x.requires_grad_()
        return torch.autograd.grad(self.net(x).square().sum(), x)[0]

class Enabled(Base):
    def forward(self, x):
        with torch.enable_grad():
            return Force.forward(self, x)

class Saves(Base):
    def forward(self, x):
        y = x * 1
        with torch.inference_mode(False), torch.enable_grad():
            return self.net(y)

def half():
    return nn.Linear(6, 6).half()

def double():
    return nn.Linear(6, 6).double()

def mixed():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6).bfloat16())

def with_double_buffer():
    net = nn.Linear(6, 6)
    net.register_buffer("step", torch.zeros((), dtype=torch.float64))
    return net

class ForcedHalf(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6).half()
    def forward(self, x):
        return self.net(x.half())

class Trains(Base):
    def forward(self, x):
        self.net.train()
        return self.net(x)

class Late(Base):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(6, dtype=torch.float64))
        return self.net(x) * self.scale

class Sparse(Base):
    def forward(self, x):
        return self.net(x).relu().to_sparse()


class Rows(Base):
    def forward(self, x):
        return {"rows": self.net(x).relu().to_sparse_csr()}


class Quantised(Base):
    def forward(self, x):
        return torch.quantize_per_tensor(self.net(x).float(), 0.1, 0, torch.qint8)


class Ragged(Base):
    def forward(self, x):
        return torch.nested.as_nested_tensor([self.net(x)[0], self.net(x)[1, :4]])


class Unreadable(Base):
    def forward(self, x):
        return Odd(self.net(x))


class Odd(torch.Tensor):
    def cpu(self):
        raise TypeError("it has no values")


class OnMeta(Base):
    def __init__(self):
        super().__init__()
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)

    def forward(self, x):
        return self.net(x)


class Huge(nn.Module):
    def __init__(self, kind="weights"):
        super().__init__()
        if kind == "weights":
            self.net = nn.Linear(400_000, 400_000)
        elif kind == "numpy":
            self.net = torch.from_numpy(np.ones((400_000, 400_000)))
        elif kind == "python":
            raise MemoryError
    def forward(self, x):
        return x + torch.empty(400_000, 400_000).sum()
'''


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "odd_networks.py"
    path.write_text(NETWORKS)
    return path


class Cell:
    """A cell prepared in this process as a worker does."""

    def __init__(self, file: Path, name: str, runtime: str = "eager", dtype: str = "float32", **options: Any) -> None:
        device, told = devices.get("cpu", threads=1), {}
        shapes = options.pop("shapes", ((6,),))
        spec = {
            "id": "cell",
            "model": f"{file}:{name}",
            "arguments": options.pop("arguments", {}),
            "inputs": [{"shape": shape, "name": "", "dtype": ""} for shape in shapes],
            "batch": 2,
            "dtype": dtype,
            "memory_format": "contiguous",
            "mode": options.pop("mode", "infer"),
            "runtime": runtime,
            "threads": 1,
            "folder": str(options.pop("folder", file.parent / "cells")),
            "cost": {},
            "keep": options.pop("keep", False),
        }
        with build_call.inference_mode_for(spec["mode"], device), torch.random.fork_rng(devices=[]):
            self.call = build_call.prepare(
                spec, 0, device, lambda event, **fields: told.update(fields["values"]), **options
            )
            self.timing = device.time_block(self.call, 3)
            getattr(self.call, "restore_inputs", lambda: None)()
            self.output: Any = self.call()
        self.facts = told
        self.notes = told.get("notes", "")


@pytest.mark.parametrize("name", ["InPlace", "Slice", "Relu", "Resized", "Second"])
def test_a_network_that_writes_into_its_input_gets_it_back(networks: Path, name: str) -> None:
    shapes = ((6,), (6,)) if name == "Second" else ((6,),)
    first = Cell(networks, name, shapes=shapes)
    put_back = "it writes into its input, which is put back before each block of calls"
    assert first.notes == (side_effects.RESHAPES if name == "Resized" else put_back)
    # A later launch is not looked at, and neither is a training step.
    later = Cell(networks, name, shapes=shapes, examine=False)
    assert later.notes == first.notes
    torch.testing.assert_close(later.output, first.output)
    # Against eager float32, whose reference must not be fed what this cell has written, nor the other way round.
    wider = Cell(networks, name, shapes=shapes, dtype="float64")
    assert wider.facts["output_error"] < 1e-5
    torch.testing.assert_close(wider.output.float(), first.output)
    if name != "Resized":  # it spoils what its backward pass needs
        assert Cell(networks, name, shapes=shapes, mode="train").notes == first.notes
    assert torch.isfinite(Cell(networks, name, shapes=shapes, minimal_memory=True).output).all()


class _CallsOften(Runtime):
    """Eager PyTorch after six calls, as torch.compile makes some before anything is timed."""

    name = "often"
    dtypes = ("float32", "float64")

    def facts(self) -> dict[str, Any]:
        return {}

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[torch.Tensor, ...]], setting: Any) -> Prepared:
        for _ in range(6):
            network(*inputs[0])
        return runtimes.get("eager").prepare(network, inputs, setting)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_that_resizes_its_input_in_a_later_call_gets_copies(
    networks: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, often = runtimes.get, _CallsOften()
    monkeypatch.setattr(runtimes, "get", lambda name: often if name == "often" else real(name))
    cell = Cell(networks, "ResizedLater", "often", dtype)
    assert cell.notes == f"{side_effects.RESHAPES}; it keeps state between calls (calls)"
    assert cell.facts["output_error"] < 1e-4


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("Buffer", "h"),
        ("Replaced", "h"),
        ("Growing", "cache"),
        ("Nested", "state"),
        ("Global", "CALLS"),
        ("OfTheClass", "OfTheClass.calls"),
        ("shared", "calls"),
        ("Decays", "net.weight"),
        ("Backward", "net.weight.grad, net.bias.grad"),
        ("OfAnAttribute", "shift.grad"),
    ],
)
def test_hidden_state_is_the_same_for_reference_and_runtime(networks: Path, name: str, where: str) -> None:
    said = f"it keeps state between calls: its output differs from call to call on the same input ({where})"
    assert Cell(networks, name).notes == said
    other = Cell(networks, name, dtype="float64")
    assert other.notes == said and other.facts["output_error"] < 1e-4


def test_the_gradient_of_an_input_adds_up_too(networks: Path) -> None:
    cell = Cell(networks, "OfItsInput", dtype="float64")
    assert cell.notes == f"it keeps state between calls ({side_effects.GRADIENT})" and cell.facts["output_error"] < 1e-4


def test_gradients_that_a_module_came_with_are_put_back() -> None:
    class Adds(Trains):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                self.net(x.clone()).sum().backward()
            return x

        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("nobody can copy it")

    network = Adds()
    network.net.bias.grad = torch.ones(6)
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        prepared.call()
        assert network.net.weight.grad is not None and network.net.bias.grad[0] == 2
    assert prepared.network is network and network.net.weight.grad is None
    assert network.net.bias.grad.tolist() == [1.0] * 6
    assert "it keeps state between calls (net.weight.grad, net.bias.grad)" in prepared.notes


def test_a_memory_of_inputs_is_named_and_no_output_of_it_is_stale(networks: Path) -> None:
    cell = Cell(networks, "ById", dtype="bfloat16")
    assert cell.notes == "it keeps state between calls (memo)" and cell.output.dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["Dropout", "Noise", "PythonNoise", "NumpyNoise", "OwnNoise"])
def test_a_random_output_is_named_and_only_its_shape_is_checked(networks: Path, name: str) -> None:
    for dtype in ("float32", "float64"):
        cell = Cell(networks, name, dtype=dtype)
        assert cell.notes == "its output is random: it draws random numbers in each call"
        assert "output_error" not in cell.facts
    with pytest.raises(Unsupported, match="has the shapes 3 where eager float32 returns 2"):
        output_check.require_shapes(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_network_that_trains_itself_is_refused_in_every_runtime(networks: Path, runtime: str) -> None:
    if runtime != "eager":
        pytest.importorskip(runtime)
    with pytest.raises(global_state.SettingChanged, match="its forward puts Linear into training mode"):
        Cell(networks, "Trains", runtime, dtype="float32" if runtime != "eager" else "float64")


def test_random_numbers_that_do_not_reach_the_output(networks: Path) -> None:
    cell = Cell(networks, "Chooses", dtype="float64")
    assert cell.notes == "it draws random numbers in each call" and cell.facts["output_error"] < 1e-5


@pytest.mark.parametrize("name", ["Seeded", "Forked"])
def test_one_that_seeds_itself_is_random_elsewhere(networks: Path, name: str) -> None:
    """`Forked` puts the random state back itself, so that nothing of it moves."""
    with pytest.raises(
        Unsupported, match=f"{build_call.SEEDED}, and onnxruntime draws other numbers than eager float32"
    ):
        Cell(networks, name, "onnxruntime", folder=networks.parent / name)


def test_an_output_that_is_off_for_another_reason_is_not_called_random(networks: Path) -> None:
    network, arguments = nn.Sequential(nn.Linear(6, 6), nn.Dropout()).eval(), [torch.rand(2, 6)]
    assert not side_effects.seeds_itself(network, arguments)
    before = torch.get_rng_state()
    assert side_effects.seeds_itself(nn.Dropout().train(), arguments) and torch.equal(before, torch.get_rng_state())

    class OwnGenerator(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn(6, generator=torch.Generator().manual_seed(0))

    assert side_effects.seeds_itself(OwnGenerator(), arguments)
    with pytest.raises(Unsupported, match="its output differs from eager float32 by"):
        Cell(networks, "Exports", "onnxruntime", folder=networks.parent / "Exports")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Drifts", r"something else than this network: it keeps state between calls \(calls\)"),
        ("Seeded", "something else than this network: " + build_call.SEEDED),
        ("ByData", "decides by its data what it computes"),
    ],
)
def test_why_a_trace_differs(networks: Path, name: str, said: str) -> None:
    pytest.importorskip("ncnn")
    with pytest.raises(Unsupported, match=said):
        Cell(networks, name, "ncnn", folder=networks.parent / f"{name} traced")


@pytest.mark.parametrize("name", ["Table", "Keeps"])
def test_what_is_no_state_is_not_named(networks: Path, name: str) -> None:
    assert Cell(networks, name).facts == {}


@pytest.mark.parametrize("name", ["InPlace", "Buffer", "Dropout"])
def test_bundled_and_opened_again(networks: Path, name: str, tmp_path: Path) -> None:
    """A model file cannot write into its input; of a random one only shapes can be checked on the other machine."""
    pytest.importorskip("onnxruntime")
    made = Cell(networks, name, "onnxruntime", folder=tmp_path, keep=True)
    notes, is_checkable = reference_io.load_notes(tmp_path)
    assert notes == made.notes != "" and is_checkable == (name != "Dropout")
    assert "put back" not in notes
    spec = {"id": "cell", "runtime": "onnxruntime", "folder": str(tmp_path), "threads": 1, "dtype": "float32"}
    told: dict[str, Any] = {}
    build_call.prepare(
        {**spec, "memory_format": "contiguous", "mode": "infer", "bundled": True, "cost": {}},
        0,
        devices.get("cpu", threads=1),
        lambda event, **fields: told.update(fields["values"]),
    )
    assert told["notes"] == notes and ("output_error" in told) == is_checkable


def test_complex_weights_stay_complex(networks: Path) -> None:
    for dtype, kind in (("float32", torch.complex64), ("float64", torch.complex128)):
        output = Cell(networks, "Complex", dtype=dtype).output
        assert output.dtype is kind and output.imag.abs().max() > 0.9
    network = nn.Module()
    network.weight = nn.Parameter(torch.full((2,), 1 + 2j, dtype=torch.complex128))
    network.register_buffer("count", torch.ones(2, dtype=torch.int64))
    dtype_cast.cast(network, torch.float16)
    assert network.weight.dtype is torch.complex64 and network.weight.imag.tolist() == [2, 2]
    assert network.count.dtype is torch.int64 and dtype_cast.own_dtype(network) == "float32"


def test_complex_outputs_are_held_to_each_other_as_such() -> None:
    """The imaginary part alone differs."""
    one, other = torch.tensor([1 + 1j, 2]), torch.tensor([1 - 1j, 2])
    assert output_check.check(one, one.clone(), "float32")["output_error"] == 0
    with pytest.raises(Unsupported, match="differs from eager float32 by 1 of"):
        output_check.check(one, other, "float32")
    with pytest.raises(Unsupported, match="differs"):
        output_check.check(one.numpy(), other.conj().conj(), "float32")
    assert not output_check.is_finite(torch.tensor([complex(0, float("nan"))]))
    assert not output_check.is_finite(np.array([complex(float("inf"), 0)]))
    assert output_check.is_finite(one) and output_check.is_finite(one.numpy())


def test_a_network_that_casts_in_its_forward_is_counted_and_measured_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "casting_nets.py"
    file.write_text(CASTING)
    cell = Cell(file, "mixed", shapes=((6, 4),))
    assert cell.notes == "its weights are float32 and bfloat16, measured as they are"
    assert cell.output.dtype is torch.bfloat16
    # Where the dtype asked for is the first of several, a cast to it fails as well.
    own = Cell(file, "half_first", dtype="float16", shapes=((6, 4),))
    assert own.notes == "its weights are float16 and float32, measured as they are"
    with pytest.raises(ModelError, match="its weights are float32 and bfloat16, and all are measured as bfloat16"):
        Cell(file, "mixed", dtype="bfloat16", shapes=((6, 4),))
    found = count_in_subprocess.profile(f"{file}:mixed", (6, 4), batch=1, dtype="float32")
    assert found.cost.memory_access_levels["eager"].weight_bytes == 42 * (4 + 2)
    with pytest.raises(ModelError, match="its weights are float32 and bfloat16; effbench casts all to one dtype"):
        count_in_subprocess.profile(f"{file}:mixed", (6, 4), batch=1, dtype="float16")
    with pytest.raises(ModelError, match=r"its weights are float64; .* \(--dtype float64 takes it as it is\)"):
        count_in_subprocess.profile(f"{file}:double", (6, 4), batch=1, dtype="float32")
    assert count_in_subprocess.profile(f"{file}:double", (6, 4), batch=1, dtype="float64").cost.madds == 144
    with pytest.raises(ModelError, match="its weights are float32; effbench casts all"):
        count_in_subprocess.profile(f"{file}:plain", (6, 4), batch=1, dtype="float64")
    with pytest.raises(ModelError, match="takes 6 channels"):  # which no cast is to blame for
        count_in_subprocess.profile(f"{file}:mixed", (5, 4), batch=1, dtype="float32")


CASTING = """
import torch
from torch import nn

class Casts(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(nn.Conv1d(6, 6, 1).to(kind) for kind in kinds)

    def forward(self, x):
        for layer, kind in zip(self.layers, self.kinds):
            x = layer(x.to(kind))
        return x

def mixed():
    return Casts(torch.float32, torch.bfloat16)

def half_first():
    return Casts(torch.float16, torch.float32)

def double():
    return Casts(torch.float64)

def plain():
    return Casts(torch.float32)
"""


@pytest.mark.parametrize("error", ["RuntimeError", "ValueError"])
def test_a_training_step_that_changes_the_shape_of_its_input_gets_copies(tmp_path: Path, error: str) -> None:
    """It is not examined before, so its second call fails, with an error of any kind."""
    file = tmp_path / f"grows_{error.lower()}.py"
    file.write_text(
        "from torch import nn\n"
        "class Grows(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = nn.Linear(6, 6)\n"
        "    def forward(self, x):\n"
        f"        if x.dim() != 2: raise {error}('expected 2 dims')\n"
        "        y = self.net(x.clone())\n        x.unsqueeze_(0)\n        return y\n"
    )
    assert Cell(file, "Grows", mode="train").notes == side_effects.RESHAPES


def test_another_dtype_is_measured_as_asked_and_said(networks: Path) -> None:
    advice = "its weights are {0} and measured as float32 (--dtype {0} measures them as they are)"
    for name, dtype in (("half", "float16"), ("double", "float64")):
        assert Cell(networks, name).notes == advice.format(dtype)
        own = Cell(networks, name, dtype=dtype)
        assert own.notes == "" and own.output.dtype is getattr(torch, dtype)
    assert Cell(networks, "mixed").notes == "its weights are float32 and bfloat16, and all are measured as float32"
    assert "float32 and float64" in Cell(networks, "with_double_buffer").notes
    assert Cell(networks, "Late").notes == "it makes weights of float64 when it first runs, which stay so"
    with pytest.raises(ModelError, match=r"same dtype.*; its weights are float16 and measured as float32 \(--dtype"):
        Cell(networks, "ForcedHalf")
    assert Cell(networks, "ForcedHalf", dtype="float16").notes == ""


def test_gradients_in_forward(networks: Path) -> None:
    """Where they cannot be had, the reason is what to write; who has written it is measured."""
    assert Cell(networks, "Grad").output.shape == (2, 6)
    for name in ("Force", "Enabled", "Saves"):
        with pytest.raises(RuntimeError) as raised:
            Cell(networks, name)
        assert failure_reasons.reason_for(raised.value) == failure_reasons.GRADIENTS_ADVICE
    assert "with torch.inference_mode(False), torch.enable_grad():" in failure_reasons.GRADIENTS_ADVICE


@pytest.mark.parametrize("kind", ["weights", "numpy", "python", "forward"])
def test_out_of_memory_is_named_wherever_it_happens(networks: Path, kind: str) -> None:
    with pytest.raises(Exception) as raised:
        Cell(networks, "Huge", arguments={"kind": kind})
    assert failure_reasons.reason_for(raised.value).startswith("out of memory: ")


def test_other_errors_keep_their_reason() -> None:
    assert failure_reasons.reason_for(ValueError("a memory of it")) == "ValueError: a memory of it"
    assert failure_reasons.reason_for(SystemExit(3)) == "it called sys.exit(3)"
    assert failure_reasons.reason_for(Unsupported("first\nsecond")) == "first"
    assert failure_reasons.reason_for(RuntimeError()) == "RuntimeError: RuntimeError"


def test_notes_reach_the_table(networks: Path, tmp_path: Path) -> None:
    models = [f"{networks}:{name}" for name in ("InPlace", "Buffer")]
    words = ["--input", "6", "--quick", "--launches", 2, "--budget", "0.2s", "--out", "run"]
    # The second launch is not looked at.
    done = effbench("compare", *models, *words, cwd=tmp_path, variables={UNTIMED_LAUNCHES: "1"})
    assert done.code == 0, done.err
    assert done.out.count("it writes into its input") == 1
    assert done.out.count("it keeps state between calls: its output differs") == 1
    assert "pip" not in refusal(effbench("compare", f"{networks}:Force", *words[:2], "--out", "two", cwd=tmp_path))


# --- the same in a test's own process ---------------------------------------------------------------

TABLES: dict[str, torch.Tensor] = {}


class Caches(nn.Module):
    """Fills a table at its first call, counts, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 6)
        self.own: torch.Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.own is None:
            self.own = TABLES.setdefault("table", torch.linspace(0, 1, 6))
        np.random.rand()
        return nn.functional.dropout(self.net(x) * self.own)


class CannotBeCopied(Caches):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("it holds a lock")


@pytest.mark.parametrize("kind", [Caches, CannotBeCopied])
def test_a_module_is_left_as_it_was(kind: type[Caches]) -> None:
    TABLES.clear()
    network = kind()
    network.net.eval()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    prepared = in_process.prepare(network, (6,))
    assert (prepared.network is network) == (kind is CannotBeCopied)
    assert prepared.notes[0] == "its output is random: it draws random numbers in each call"
    with pytest.raises(ZeroDivisionError), prepared.conditions("system"):
        prepared.call()
        assert TABLES
        raise ZeroDivisionError
    assert network.calls == 0 and network.own is None and TABLES == {}
    assert network.training and not network.net.training
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    network(torch.randn(2, 6)).sum().backward()  # nothing that it keeps was made in inference mode


def test_one_that_cannot_be_copied_is_not_cast_for_good() -> None:
    with pytest.raises(ModelError, match="CannotBeCopied cannot be copied, and to be measured as float64"):
        in_process.prepare(CannotBeCopied(), (6,), dtype="float64")


def test_weights_that_were_computed_are_copied() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        network = nn.utils.weight_norm(nn.Linear(6, 6))
    assert not network.weight.is_leaf
    copy = copy_network.deep_copy(network)
    assert copy is not None and torch.equal(copy.weight, network.weight)
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        prepared.call()
    network(torch.randn(2, 6)).sum().backward()
    assert network.weight_v.grad is not None


def test_a_lazy_module_stays_lazy() -> None:
    network = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        assert prepared.call().shape == (1, 3)  # type: ignore[attr-defined]
    assert type(network[0]) is nn.LazyLinear and network[1].has_uninitialized_params()


def test_a_hook_that_collects_is_emptied_again() -> None:
    seen: list[torch.Tensor] = []
    network = nn.Linear(6, 6)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        prepared.call()
        assert seen
    assert seen == [] and len(network._forward_hooks) == 1


def test_a_snapshot_touches_nothing_that_is_as_it_was() -> None:
    network = nn.BatchNorm1d(6)
    before = {name: (id(tensor), tensor._version) for name, tensor in network.state_dict(keep_vars=True).items()}
    state = Snapshot(network)
    network.eval()
    assert state.changed() == ["training"]
    state.restore()
    assert network.training and state.changed() == []
    after = {name: (id(tensor), tensor._version) for name, tensor in network.state_dict(keep_vars=True).items()}
    assert after == before


def test_looking_raises_what_the_network_raises_and_puts_back() -> None:
    class Fails(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            raise LookupError("no")

    network = Fails()
    with pytest.raises(LookupError):
        side_effects.detect(network, [torch.zeros(1)])
    assert "calls" not in vars(network)


class Sets(nn.Module):
    """Sets something for the whole process, at a call of it."""

    def __init__(self, setting: Callable[[], object], first: int = 1) -> None:
        super().__init__()
        self.net, self.setting, self.left = nn.Linear(6, 6), setting, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 1:
            self.setting()
        return self.net(x)


SETTINGS: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
    "threads": (lambda: torch.set_num_threads(3), torch.get_num_threads, "torch's threads from 1 to 3"),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype, "torch's default dtype"),
    "garbage": (lambda: gc.set_threshold(7), gc.get_threshold, "gc.get_threshold"),
    "folder": (lambda: os.chdir("/"), os.getcwd, "the working folder"),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
        "torch.float32_matmul_precision from highest to medium",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_forward_sets_is_put_back_and_named(name: str) -> None:
    setting, read, told = SETTINGS[name]
    with global_state.settings_restored():
        torch.set_num_threads(1)
        before = read()
        prepared = in_process.prepare(Sets(setting), (6,))
        assert read() == before
        assert [note for note in prepared.notes if told in note and note.endswith("; put back")], prepared.notes
        with prepared.conditions("system"):
            assert not prepared.late_notes
            prepared.call()
        assert read() == before
        (note,) = [note for note in prepared.notes if "sets" in note]  # one fault, told once
        assert told in note and "while it is timed" in note


class Trains(nn.Module):
    """Puts itself, or a part of it, into training mode, from its `first` call on."""

    def __init__(self, part: str = "", first: int = 1) -> None:
        super().__init__()
        self.net, self.drop, self.part, self.left = nn.Linear(6, 6), nn.Dropout(), part, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 1:
            self.get_submodule(self.part).train()
        return self.net(self.drop(x))


@pytest.mark.parametrize(("part", "first"), [("", 1), ("drop", 1), ("", 50)])
def test_a_network_that_trains_itself_is_noted_once_in_a_test(part: str, first: int) -> None:
    network = Trains(part, first).train()
    network.drop.eval()
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        assert not prepared.network.training
        for _ in range(60):
            prepared.call()
    (note,) = [note for note in prepared.notes if "mode" in note]
    kind = "Dropout" if part else "Trains"
    assert note.startswith(f"its forward puts {kind} into training mode") and "take train()" in note
    assert network.training and not network.drop.training


def test_what_only_a_late_call_sets_is_named_too() -> None:
    with global_state.settings_restored():
        torch.set_num_threads(1)
        prepared = in_process.prepare(Sets(SETTINGS["threads"][0], first=50), (6,))
        assert not any("sets" in note for note in prepared.notes)
        with prepared.conditions("system"):
            for _ in range(60):
                prepared.call()
        assert torch.get_num_threads() == 1 and "torch's threads from 1 to 3" in prepared.late_notes[0]


def test_gradients_in_a_test_get_the_same_advice() -> None:
    class Force(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.requires_grad_()
            return torch.autograd.grad(x.square().sum(), x)[0]

    prepared = in_process.prepare(Force(), (6,))
    with (
        pytest.raises(ModelError, match="it computes gradients in its forward") as caught,
        prepared.conditions("system"),
    ):
        prepared.call()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_whose_text_cannot_be_made_is_told_by_its_type() -> None:
    class Odd(RuntimeError):
        def __str__(self) -> str:
            raise ValueError("no text")

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise Odd

    assert failure_reasons.reason_for(Odd()) == "Odd: Odd" and failure_reasons.out_of_memory_reason(Odd()) == ""
    assert failure_reasons.reason_for(SystemExit(Odd())) == "it called sys.exit(Odd())"
    with pytest.raises(ModelError, match="Odd"):
        profile(Fails(), (6,))


def test_a_frozen_module_is_measured() -> None:
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(6, 6).eval()))
    assert not hasattr(frozen, "training")
    prepared = in_process.prepare(frozen, (6,))
    with prepared.conditions("system"):
        assert prepared.call().shape == (1, 6)  # type: ignore[attr-defined]
    assert side_effects.with_cloned_inputs(frozen)(torch.ones(1, 6)).shape == (1, 6)


@pytest.mark.filterwarnings("ignore:.*(deprecated|beta|prototype):UserWarning")
@pytest.mark.parametrize("name", ["Sparse", "Rows", "Quantised", "Ragged", "Unreadable"])
def test_an_output_of_another_kind_is_no_refusal(networks: Path, name: str) -> None:
    said = "its output holds a Odd that cannot be read as numbers, so it is not checked" if name == "Unreadable" else ""
    assert Cell(networks, name).notes == said
    wider = Cell(networks, name, dtype="float64")
    assert wider.notes == said and ("output_error" in wider.facts) == (not said)


def test_notes_are_complete_beside_an_output_that_cannot_be_read() -> None:
    class Unreadable(torch.Tensor):
        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            raise TypeError("it has no values")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return nn.functional.dropout(x.add_(1)).as_subclass(Unreadable)

    network = Network().eval()
    found = side_effects.detect(network, (torch.ones(6),))
    assert found.notes() == (
        side_effects.WRITES,
        side_effects.DRAWS,
        "it keeps state between calls (calls)",
        "its output holds a Unreadable that cannot be read as numbers, so it is not checked",
    )
    assert found.writes_input and found.changes_state and not found.is_readable and not found.is_checkable


def test_pairs_of_real_numbers_stand_for_complex_ones() -> None:
    one = torch.tensor([1 + 1j, 2])
    assert output_check.check(one, torch.view_as_real(one), "float32")["output_error"] == 0
    output_check.require_shapes(one, torch.view_as_real(one).numpy())
    with pytest.raises(Unsupported, match="differs from eager float32 by 1 of"):
        output_check.check(one, torch.view_as_real(one.conj().resolve_conj()), "float32")
    with pytest.raises(Unsupported, match="shapes 2x2"):
        output_check.check(one.real, torch.view_as_real(one), "float32")


COUNTS = np.zeros(2)
NUMBER = np.int64(0)


class Arrays(nn.Module):
    """Keeps state in arrays, in default arguments and in attributes of functions."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.held = np.zeros(3), {"deep": [np.zeros((), np.int32)]}

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("it holds a lock")

    @torch.no_grad()
    def step(self, told: list[int] = [], *, also: dict[str, int] = {}) -> int:  # noqa: B006
        told.append(1)
        also["calls"] = also.get("calls", 0) + 1
        return len(told)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global NUMBER
        NUMBER += 1
        np.add(COUNTS, 1, out=COUNTS)
        self.own += 1
        self.held["deep"][0][...] += 2
        add.calls = getattr(add, "calls", 0) + 1  # type: ignore[attr-defined]
        return add(x, float(self.own[0] + COUNTS[0]) + self.step())

    helper = staticmethod(lambda: add)


def add(x: torch.Tensor, number: float) -> torch.Tensor:
    return x + number


def test_arrays_and_default_arguments_are_state_too() -> None:
    network = Arrays()
    network.add = add
    prepared = in_process.prepare(network, (6,))
    (note,) = prepared.notes
    assert note.startswith("it keeps state between calls: its output differs from call to call on the same input (")
    state = Snapshot(network)
    network(torch.zeros(1, 6))
    assert {"own", "held", "COUNTS", "NUMBER", "told", "also", "add"} <= set(state.changed())
    state.restore()
    assert state.changed() == []
    with prepared.conditions("system"):
        prepared.call()
        assert COUNTS[0] == 1
    assert not COUNTS.any() and not network.own.any() and not network.held["deep"][0].any() and NUMBER == 0
    assert network.step() == 1 and vars(add) == {}
    Arrays.step.__wrapped__.__defaults__[0].clear()


def test_an_array_that_was_resized_or_is_fixed() -> None:
    network = nn.Linear(6, 6)
    network.grows, network.fixed = np.arange(3), np.arange(2)
    network.fixed.flags.writeable = False
    state = Snapshot(network)
    network.grows.resize(5, refcheck=False)
    assert state.changed() == ["grows"]
    state.restore()
    assert network.grows.tolist() == [0, 1, 2] and state.changed() == []


def test_inputs_have_values_whatever_the_default_device(networks: Path) -> None:
    with global_state.settings_restored():
        assert Cell(networks, "OnMeta").output.device.type == "cpu"


def test_what_a_copy_loses_is_measured_itself() -> None:
    class Slots(nn.Module):
        __slots__ = ("scale",)

        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = nn.Linear(6, 6), 2.0
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.net(x) * self.scale

    network = Slots()
    prepared = in_process.prepare(network, (6,))
    with prepared.conditions("system"):
        prepared.call()
    assert prepared.network is network and network.calls == 0 and network.training


def test_filters_of_warnings_of_its_first_call_hold_while_it_is_timed() -> None:
    """As where a library is imported in the first forward, and hides a warning of its own."""

    def hides() -> None:
        if not next(calls):
            warnings.filterwarnings("ignore", message="hidden")
        warnings.warn("hidden", stacklevel=1)

    calls = itertools.count()  # which nobody can put back, like an import
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        prepared = in_process.prepare(Sets(hides), (6,))
        assert list(warnings.filters) == before
        with prepared.conditions("system"):
            prepared.call()
        assert list(warnings.filters) == before
