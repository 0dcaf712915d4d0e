"""Models that change global settings: settings are restored and reported, other models are unaffected."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import UNTIMED_LAUNCHES
from runs import run_of, study
from shell import effbench

from effbench.analysis import summary
from effbench.core.run import Launch
from effbench.cost import count_in_subprocess
from effbench.devices.fake import Fake
from effbench.gates import checked_models
from effbench.gates.baseline import name_of
from effbench.user_code import global_state
from effbench.user_code._global_state_table import GlobalSetting, readable_settings
from effbench.user_code.global_state import SettingChanged, SettingsGuard

backends: Any = torch.backends
TIMES = {case.id: 1e-3 for case in study().cases}
LEFT_OPEN: list[Any] = []


def entered(context: Any) -> None:
    LEFT_OPEN.append(context)
    context.__enter__()


def other_threads() -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


ENGINE = backends.quantized.engine
OTHER = next(name for name in backends.quantized.supported_engines if name != ENGINE)


def set_engine(name: str) -> None:
    torch._C._set_qengine(backends.quantized._get_qengine_id(name))


CHANGES: dict[str, tuple[str, Callable[[], object]]] = {
    "threads": ("torch's threads from", other_threads),
    "mkldnn": ("mkldnn.enabled from True to False", lambda: torch._C._set_mkldnn_enabled(False)),
    "precision": (
        "float32_matmul_precision from highest to medium",
        lambda: torch.set_float32_matmul_precision("medium"),
    ),
    "new precision": ("fp32_precision from", lambda: torch._C._set_fp32_precision_setter("mkldnn", "all", "bf16")),
    "tf32": ("matmul_precision from highest to high", lambda: torch._C._set_cublas_allow_tf32(True)),
    "cudnn": ("cudnn.allow_tf32 from True to False", lambda: torch._C._set_cudnn_allow_tf32(False)),
    "autotuning": ("cudnn.benchmark from False", lambda: torch._C._set_cudnn_benchmark(True)),
    "attention": ("flash attention from True", lambda: torch._C._set_sdp_use_flash(False)),
    "deterministic": ("use_deterministic_algorithms from", lambda: torch._C._set_deterministic_algorithms(True)),
    "only warned of": ("to (True, True)", lambda: torch._C._set_deterministic_algorithms(True, warn_only=True)),
    "dtype": ("default dtype from torch.float32 to torch.float64", lambda: torch.set_default_dtype(torch.float64)),
    "device": ("default device from None to", lambda: torch.set_default_device("meta")),
    "entered device": (
        "open modes (of functions, of operators) from (0, 0) to (1, 0)",
        lambda: entered(torch.device("meta")),
    ),
    "gradients": ("grad mode from True to False", lambda: torch.set_grad_enabled(False)),
    "inference": ("inference mode from False to True", lambda: entered(torch.inference_mode())),
    "autocast": ("autocast on cpu from False to True", lambda: entered(torch.autocast("cpu"))),
    "anomalies": ("anomaly detection from", lambda: torch.set_anomaly_enabled(True)),
    "denormals": ("flushing of denormals from", lambda: torch.set_flush_denormal(True)),
    "fast path": ("mha's fast path from True", lambda: backends.mha.set_fastpath_enabled(False)),
    "hooks": (
        "number of hooks on every module from 0 to 1",
        lambda: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
    ),
    "garbage": ("gc.isenabled from True to False", gc.disable),
    "thresholds": ("gc.get_threshold from", lambda: gc.set_threshold(7)),
    "profiler": ("sys.setprofile from None to", lambda: sys.setprofile(lambda *_: None)),
    "traced memory": ("tracemalloc from False to True", tracemalloc.start),
    "switch interval": ("setswitchinterval from 0.005 to 0.0001", lambda: sys.setswitchinterval(1e-4)),
    "stream": ("sys.stdout to another stream;", lambda: setattr(sys, "stdout", io.StringIO())),
    "numbers of numpy": ("to (divide=raise, ", lambda: np.seterr(all="raise")),
    "quantised kernels": (f"quantized.engine from {ENGINE} to {OTHER}", lambda: set_engine(OTHER)),
    "variable": ("NUMEXPR_NUM_THREADS from None to 3", lambda: os.environ.update(NUMEXPR_NUM_THREADS="3")),
    "folder": ("working folder from", lambda: os.chdir("/")),
    "cores": ("cores that the process may use from", lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})),
    "timer": ("ITIMER_PROF from False to True", lambda: signal.setitimer(signal.ITIMER_PROF, 1000.0)),
}


@pytest.fixture
def guard() -> Iterator[SettingsGuard]:
    # Coverage may look at this process by other means; what a test changes is put back in any case.
    with global_state.settings_restored() as found:
        yield found
    assert found.restore() == ()


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_that_a_call_changes_is_named_and_put_back(guard: SettingsGuard, change: str) -> None:
    words, act = CHANGES[change]
    if change == "cores" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("there is one core")
    before = [setting.read() for setting in readable_settings()]
    with pytest.raises(SettingChanged) as refused, guard.calling("cell"):
        act()
    assert words in str(refused.value) and str(refused.value).startswith("its forward sets ")
    assert [setting.read() for setting in readable_settings()] == before
    guard.require_unchanged("cell")


def test_it_is_put_back_also_where_the_network_raises(guard: SettingsGuard) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="its own"), guard.calling("cell"):
        other_threads()
        raise RuntimeError("its own")
    with pytest.raises(KeyError), guard.building({"id": "cell", "model": "x.py:f"}):
        other_threads()
        raise KeyError
    assert torch.get_num_threads() == threads


def test_what_building_changes_is_noted_and_only_what_was_set_itself(guard: SettingsGuard) -> None:
    with guard.building({"id": "cell", "model": "x.py:f"}):
        torch.set_float32_matmul_precision("medium")
        torch.set_num_interop_threads(torch.get_num_interop_threads() + 3)  # a second time, which torch refuses
    note = guard.facts("cell")["switches"]
    assert note.startswith(
        "x.py:f sets torch.float32_matmul_precision to medium (put back to highest) and torch's inter-op"
    )
    assert "fp32_precision" not in note and guard.facts("other") == {}


@pytest.mark.parametrize("kind", ["error", "ignore", "reset", "other list", "recorded"])
def test_filters_of_warnings_are_put_back_without_a_word(guard: SettingsGuard, kind: str) -> None:
    act: dict[str, Callable[[], object]] = {
        "error": lambda: warnings.simplefilter("error"),
        "ignore": lambda: warnings.filterwarnings("ignore", module="somebody"),
        "reset": warnings.resetwarnings,
        "other list": lambda: setattr(warnings, "filters", [("ignore", None, Warning, None, 0)]),
        "recorded": lambda: entered(warnings.catch_warnings(record=True)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        guard.remember_settings()
        for step in (guard.building({"id": "cell", "model": "x.py:f"}), guard.calling("cell")):
            before = warnings.showwarning, list(warnings.filters)
            with step:
                act[kind]()
            assert (warnings.showwarning, list(warnings.filters)) == before and guard.facts("cell") == {}
        act[kind]()
        guard.require_unchanged("cell", quick=True)
        assert (warnings.showwarning, list(warnings.filters)) == before


def test_what_was_remembered_of_another_filter_is_forgotten(guard: SettingsGuard) -> None:
    """Python remembers for each line that its warning was ignored or shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard.remember_settings()
        for _ in range(2):
            with guard.calling("cell"):
                warnings.simplefilter("default")
                told: list[object] = []
                warnings.showwarning = lambda *each, into=told: into.append(each)
                _warn()
                assert len(told) == 1
            with pytest.raises(UserWarning):
                _warn()


def _warn() -> None:
    warnings.warn("of a network", stacklevel=1)


def test_a_long_list_is_shortened(guard: SettingsGuard) -> None:
    with guard.building({"id": "cell", "model": "pickle:/tmp/x"}):
        for name in ("threads", "mkldnn", "dtype", "fast path", "gradients"):
            CHANGES[name][1]()
    note = guard.facts("cell")["switches"]
    assert note.startswith("building it sets ") and "and 2 more: every cell" in note


def test_a_setting_that_nobody_can_put_back_spoils_the_process() -> None:
    value = [1]
    lasting = GlobalSetting("the moon", lambda: value[0], None)
    stubborn = GlobalSetting("the tide", lambda: value[0], lambda before: None)
    for setting in (lasting, stubborn):
        value[0] = 1
        guard = SettingsGuard([setting])
        told = f"f sets {setting.name} to 2, which cannot be put back"
        with pytest.raises(SettingChanged, match=told), guard.building({"id": "cell", "model": "x.py:f"}):
            value[0] = 2
        assert guard.unrestored


def test_what_takes_long_is_left_out_between_blocks() -> None:
    read: list[str] = []
    quick = GlobalSetting("quick", lambda: read.append("quick"), None)
    slow = GlobalSetting("slow", lambda: read.append("slow"), None, slow=True)
    guard = SettingsGuard([quick, slow])
    read.clear()
    guard.require_unchanged("cell", quick=True)
    assert read == ["quick"]
    guard.require_unchanged("cell")
    assert read == ["quick", "quick", "slow"]


def test_a_module_that_trains_itself_is_named(guard: SettingsGuard) -> None:
    network = torch.nn.Sequential(torch.nn.Dropout()).eval()
    guard.watch_training_flags("cell", network)
    guard.require_unchanged("other")
    with pytest.raises(SettingChanged, match="puts Sequential into training mode"), guard.calling("cell"):
        network.train()
    guard.watch_training_flags("cell", network)
    with pytest.raises(SettingChanged, match="puts Dropout out of training mode"), guard.calling("cell"):
        network[0].eval()


def test_a_scripted_device_is_not_watched() -> None:
    assert global_state.guard_for(Fake()) is global_state.NO_GUARD
    with global_state.NO_GUARD.building({"id": "cell", "model": "no.such:thing"}):
        pass


def test_counting_a_file_leaves_this_process_as_it_was(tmp_path: Path) -> None:
    """Also one that sets the inter-op threads: it is read more than once, and torch lets them be set once."""
    path = tmp_path / "top.py"
    path.write_text(
        "import torch\ntorch.set_num_threads(torch.get_num_threads() + 1)\ntorch.set_num_interop_threads(1)\n"
        "torch.set_default_dtype(torch.float64)\ndef net(): return torch.nn.Linear(8, 8)\n"
    )
    before = [setting.read() for setting in readable_settings()]
    assert count_in_subprocess.profile(f"{path}:net", (8,), batch=1, dtype="float32").cost.madds == 64
    assert [setting.read() for setting in readable_settings()] == before


def test_a_summary_notes_it() -> None:
    run = run_of(TIMES)
    cell = run.results[0].cell.id
    launch = Launch(0, 0, probes={cell: {"switches": "x sets y"}})
    told = replace(run, launches=(launch, *run.launches[1:], replace(launch, number=9)))
    assert summary.process_change_notes(told, cell) == ("x sets y",)
    assert "x sets y" in next(each for each in summary.summarise(told) if each.cell.id == cell).notes


def test_a_gate_tells_what_its_networks_do_and_in_which_dtype() -> None:
    run = run_of(TIMES)
    result = run.results[0]
    launch = Launch(
        0, 0, probes={result.cell.id: {"notes": "it keeps state; its weights are bfloat16", "switches": "x"}}
    )
    told = replace(run, launches=(launch, *run.launches[1:]))
    name = name_of(result.cell.case)
    expected = ("x", f"{name}: it keeps state", f"{name}: its weights are bfloat16")
    assert checked_models.remarks([told, told]) == expected and checked_models.remarks([run]) == ()


# --- real processes ---------------------------------------------------------------------------------

NETWORKS = """
import gc, os, torch, warnings
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(32, 32)

    def forward(self, x):
        return self.net(x)

class Witness(Plain):
    "Is measured under what every network is measured under, or fails."
    def __init__(self):
        super().__init__()
        self.folder = os.getcwd()
        self.check()

    def check(self):
        assert torch.get_num_threads() == 1 and torch.backends.mkldnn.enabled
        assert torch.get_default_dtype() == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        assert self.folder != "/" and os.getcwd() != "/"

    def forward(self, x):
        self.check()
        warnings.warn("nobody makes an error of this")
        return super().forward(x)

class Builds(Plain):
    def __init__(self):
        super().__init__()
        torch.set_num_threads(2)
        os.chdir("/")

class Threads(Plain):
    def forward(self, x):
        torch.set_num_threads(2)
        return super().forward(x)

class Warned(Plain):
    def forward(self, x):
        if not x.is_meta:
            warnings.simplefilter("error")
        return super().forward(x)

class Late(Plain):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls == 40:
            torch.backends.mkldnn.enabled = False
        return super().forward(x)

class Collects(Plain):
    def forward(self, x):
        gc.collect()
        return super().forward(x)

class Raises(Plain):
    def forward(self, x):
        torch.set_float32_matmul_precision("medium")
        if not x.is_meta:
            raise RuntimeError("on purpose")
        return super().forward(x)

class Lasting(Plain):
    "What it leaves open nobody can end."
    def forward(self, x):
        if not x.is_meta:
            self.profiler = torch.autograd.profiler.profile(use_kineto=False)
            self.profiler.__enter__()
        return super().forward(x)
"""


def test_the_odd_network_is_named_and_not_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(NETWORKS)
    names = ("Warned", "Builds", "Threads", "Collects", "Witness", "Late", "Raises", "Lasting")
    done = effbench(
        "compare", *(f"odd.py:{name}" for name in names), "--input", "32", "--quick", "--launches", 2, "--json",
        "--out", "run", 
        cwd=tmp_path, variables={UNTIMED_LAUNCHES: "1"},
    )  # fmt: skip
    assert done.code == 0, done.err
    cells = {cell["model"].partition(":")[2]: cell for cell in done.json["cells"]}
    assert cells["Witness"]["skipped"] is None and cells["Witness"]["blocks"] and cells["Witness"]["notes"] == []
    assert cells["Warned"]["skipped"] is None and cells["Warned"]["blocks"] and cells["Warned"]["notes"] == []
    assert cells["Builds"]["skipped"] is None and cells["Builds"]["blocks"]
    assert any("odd.py:Builds sets torch's threads to 2 (put back to 1)" in note for note in cells["Builds"]["notes"])
    assert cells["Collects"]["notes"] == [global_state.COLLECTS_GARBAGE] and cells["Collects"]["blocks"]
    assert "its forward sets torch's threads from 1 to 2" in cells["Threads"]["skipped"]
    assert "mkldnn.enabled from True to False" in cells["Late"]["skipped"]
    assert "on purpose" in cells["Raises"]["skipped"]
    assert "torch's profiler" in cells["Lasting"]["skipped"]
