"""ONNX Runtime: facts about its graph, precisions, refusals, its session on CUDA."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from model_files import error, fed, prepared_by
from scripted_gpu import Gpu
from torch import Tensor, nn

from effbench.devices.cuda import Cuda
from effbench.runtimes import Prepared, Setting, Unsupported
from effbench.runtimes import onnxruntime as adapter
from effbench.runtimes.onnxruntime import OnnxRuntime, delegation_facts
from effbench.timing import output_check

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Small(nn.Module):
    """Two inputs of different kinds, outputs by name, and three convolutions whose norm and ReLU can be folded."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16), (16, 16), (16, 32))
        self.layers = nn.Sequential(
            *(
                layer
                for inner, outer in widths
                for layer in (nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
            )
        )
        self.names = nn.Embedding(5, 32)

    def forward(self, image: Tensor, index: Tensor) -> dict[str, Tensor]:
        y = self.layers(image)
        return {"sum": y.mean((2, 3)) + self.names(index), "map": y}


prepared = partial(prepared_by, "onnxruntime")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def small(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Setting]:
    """The network exported to float32, once: what became of it, and where."""
    setting = Setting(tmp_path_factory.mktemp("onnx") / "cell")
    return prepared(network, [fed(0)], setting), setting


def test_the_norm_and_the_relu_are_folded_into_three_convolutions(small: tuple[Prepared, Setting]) -> None:
    facts, setting = small[0].facts, small[1]
    assert facts["layers"]["Conv"] == 3
    assert not {"BatchNormalization", "Relu"} & facts["layers"].keys()
    assert facts["operators"] == sum(facts["layers"].values())
    assert facts["pieces"] == 1 and facts["outside"] == {}
    assert facts["artefact_bytes"] == (setting.folder / "model.onnx").stat().st_size > 4 * (3 * 16 + 16 * 16) * 9


def test_its_session_flushes_denormals_and_lets_no_thread_spin(small: tuple[Prepared, Setting]) -> None:
    options = adapter._open_session(small[1]).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists a process's threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_it_makes_one_thread_fewer_than_it_computes_with(small: tuple[Prepared, Setting], threads: int) -> None:
    setting = replace(small[1], threads=threads)
    before = len(os.listdir("/proc/self/task"))
    session = OnnxRuntime().open(setting)
    assert session.threads == threads
    assert len(os.listdir("/proc/self/task")) - before == threads - 1


def test_int8_runs_its_convolutions_on_whole_numbers_and_says_how(network: nn.Module, tmp_path: Path) -> None:
    found = prepared(network, [fed(0)], Setting(tmp_path / "cell", dtype="int8"))
    assert found.facts["layers"]["QLinearConv"] == 3 and "Conv" not in found.facts["layers"]
    assert "8 inputs" in found.facts["quantisation"]
    with torch.inference_mode():
        # 0.11 without VNNI instructions, where sums of products of bytes saturate; a wrong network is at 1.
        assert 1e-4 < error(network(*fed(0)), found.call()) < 0.2
    assert sorted(os.listdir(tmp_path / "cell")) == ["export.json", "model.onnx"]


def test_int8_on_cuda_is_refused() -> None:
    with pytest.raises(Unsupported, match="int8 on the CPU only; use"):
        OnnxRuntime().require(Setting(Path(), device="cuda", dtype="int8"))


def test_float16_that_is_cast_to_float32_for_every_convolution_is_refused() -> None:
    def node(kind: str, dtype: str) -> dict[str, Any]:
        return {"op_name": kind, "input_type_shape": [{dtype: [1, 8, 4, 4]}, {dtype: [8, 8, 1, 1]}]}

    adapter._refuse_casts([node("Conv", "float16"), node("Cast", "float"), node("Gemm", "float16")])
    with pytest.raises(Unsupported, match=r"computes 1 of 2 .* in float32 on this CPU; use"):
        adapter._refuse_casts([node("Conv", "float"), node("Cast", "float"), node("Gemm", "float16")])


def test_float16_on_this_cpu_is_float16_or_is_refused(tmp_path: Path) -> None:
    layer = nn.Conv2d(8, 8, 1).half()
    try:
        found = prepared(layer, [(torch.ones(1, 8, 4, 4).half(),)], Setting(tmp_path, dtype="float16"))
    except Unsupported as refused:
        assert "1 of 1" in str(refused)
    else:
        (output,) = found.call()
        assert output.dtype == np.float16


def test_pieces_are_the_stretches_that_the_wanted_provider_runs() -> None:
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    assert delegation_facts([("Conv", cpu)] * 4, cpu) == {
        "operators": 4,
        "pieces": 1,
        "outside": {},
        "layers": {"Conv": 4},
    }
    ran = [("Memcpy", cuda), ("Conv", cuda), ("Relu", cuda), ("NonZero", cpu), ("MemcpyFromHost", cuda), ("Conv", cuda)]
    found = delegation_facts(ran, cuda)
    assert (found["operators"], found["pieces"]) == (6, 2)
    assert found["outside"] == {"Memcpy": 1, "NonZero": 1, "MemcpyFromHost": 1}
    assert delegation_facts([], cuda)["pieces"] == 0


class Scripted:
    """What of onnxruntime is used, for a device that this machine need not have: its value is twice its input.

    On the scripted GPU a run launches a kernel of `work` ns: on the stream that the session was given, or on one of
    its own, beside everything else; and waits for it at the end unless the run's options say not to. As onnxruntime
    does, it takes a stream with the address 0 for none.
    """

    def __init__(self, available: list[str], started: list[str], gpu: Gpu | None = None, work: int = 100_000) -> None:
        self.started, self.placed, self.runs, self.asked = started, [], 0, []
        self.gpu, self.work, self.beside = gpu, work, 0
        self.get_available_providers = lambda: available
        self.SessionOptions = onnxruntime.SessionOptions
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.RunOptions = onnxruntime.RunOptions
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._place)

    def InferenceSession(self, path: str, options: Any, providers: Any) -> Any:  # noqa: N802 - onnxruntime's name
        self.asked, self.options = providers, options
        binding = SimpleNamespace(bind_ortvalue_input=self._bind, bind_ortvalue_output=self._bind)
        return SimpleNamespace(
            get_providers=lambda: self.started,
            get_provider_options=lambda: {CUDA_PROVIDER: self._told()},
            get_inputs=lambda: [SimpleNamespace(name="x")],
            get_outputs=lambda: [SimpleNamespace(name="y")],
            get_session_options=lambda: options,
            run=lambda names, feed: [2 * feed["x"]],
            io_binding=lambda: binding,
            run_with_iobinding=self._run,
        )

    def _told(self) -> dict[str, str]:
        """Everything that the provider can be told, in words, with what it takes where nothing is said."""
        defaults = {"device_id": "0", "use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "gpu_mem_limit": "18"}
        given = dict(self.asked[0][1])
        has = str(int(given.pop("user_compute_stream", "0") != "0"))
        return {**defaults, **given, "has_user_compute_stream": has}

    def _place(self, array: Any, device: str, index: int = 0) -> Any:
        return SimpleNamespace(numpy=lambda: array, device=(device, index))

    def _bind(self, name: str, value: Any) -> None:
        self.placed.append((name, *value.device))

    def _run(self, binding: Any, options: Any = None) -> None:
        self.runs += 1
        if self.gpu is None:
            return
        if self.asked[0][1].get("user_compute_stream") == str(self.gpu.stream_address()):
            self.gpu.launch(10_000, self.work)
            end = self.gpu.busy_until
        else:
            self.gpu.clock += 10_000
            end = self.beside = max(self.beside, self.gpu.clock) + self.work
        entry = "disable_synchronize_execution_providers"
        if options is None or options.get_run_config_entry(entry) != "1":
            self.gpu.clock = max(self.gpu.clock, end)


CUDA_PROVIDER = "CUDAExecutionProvider"
CUDA = Setting(Path("cell"), device="cuda", threads=0)


def on(
    monkeypatch: pytest.MonkeyPatch,
    *,
    available: list[str] | None = None,
    started: list[str] | None = None,
    gpu: Gpu | None = None,
) -> tuple[Scripted, OnnxRuntime]:
    """onnxruntime on a scripted GPU, and the runtime that runs there."""
    gpu = gpu or Gpu()
    scripted = Scripted(available or [CUDA_PROVIDER], started or [CUDA_PROVIDER, "CPUExecutionProvider"], gpu)
    monkeypatch.setitem(sys.modules, "onnxruntime", scripted)
    return scripted, OnnxRuntime(lambda index: gpu)


def test_cuda_keeps_inputs_and_outputs_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, runtime = on(monkeypatch)
    call = runtime.open(CUDA).bind((np.arange(3.0),))
    assert scripted.placed == [("x", "cuda", 0), ("y", "cuda", 0)] and scripted.runs == 0
    output = call()
    assert scripted.runs == 1
    assert output_check.check(torch.tensor([0.0, 2.0, 4.0]), output, "float32")["output_error"] == 0
    assert output_check.is_finite(output)
    assert not output_check.is_finite(runtime.open(CUDA).bind((np.array([np.nan]),))())


def test_a_block_on_cuda_has_the_device_time_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed form: nothing waits inside, so that 20 kernels of 100 us behind a spin take 20 times 100 us."""
    gpu = Gpu()
    _, runtime = on(monkeypatch, gpu=gpu)
    call = runtime.open(CUDA).bind((np.arange(3.0),))
    timing = Cuda(api=gpu, warm_up_s=0).time_block(call, 20)
    assert timing.device_ns == 20 * 100_000
    assert timing.wall_ns == 20 * 100_000 + 10_000


def test_an_output_is_waited_for_before_its_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs return before they end, and the copy to the host goes by another stream."""
    gpu = Gpu()
    _, runtime = on(monkeypatch, gpu=gpu)
    (output,) = runtime.open(CUDA).bind((np.arange(3.0),))()
    assert gpu.busy_until > gpu.clock and "sync" not in gpu.log
    np.asarray(output)
    assert gpu.busy_until <= gpu.clock


@pytest.mark.parametrize(
    ("conditions", "options"),
    [
        ({}, {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        ({"index": 1}, {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        ({"tf32": True}, {"device_id": "0", "use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
        ({"autotune": True}, {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}),
    ],
)
def test_the_cuda_provider_follows_the_runs_gpu_and_policies_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conditions: dict[str, Any], options: dict[str, str]
) -> None:
    scripted, runtime = on(monkeypatch)
    (tmp_path / "export.json").write_text("{}")
    setting = replace(CUDA, folder=tmp_path, **conditions)
    found = runtime.load([(np.arange(3.0),)], setting)
    assert scripted.asked == [(CUDA_PROVIDER, {**options, "user_compute_stream": "7"})]
    assert found.facts["provider_options"] == {**options, "has_user_compute_stream": "1"}
    assert {each[1:] for each in scripted.placed} == {("cuda", setting.index)}


def test_a_session_that_took_no_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels run where neither spin nor events are."""

    class Default(Gpu):
        def stream_address(self) -> int:
            return 0

    _, runtime = on(monkeypatch, gpu=Default())
    with pytest.raises(Unsupported, match="computes on a stream of its own"):
        runtime.open(CUDA)


@pytest.mark.parametrize(
    ("available", "started", "remedy"),
    [
        (["CPUExecutionProvider"], ["CPUExecutionProvider"], "pip install onnxruntime-gpu"),
        ([CUDA_PROVIDER], ["CPUExecutionProvider"], "install the CUDA and cuDNN"),
    ],
)
def test_cuda_that_is_not_there_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, available: list[str], started: list[str], remedy: str
) -> None:
    _, runtime = on(monkeypatch, available=available, started=started)
    with pytest.raises(Unsupported, match=remedy):
        runtime.open(CUDA)


def test_a_build_without_cuda_is_refused_before_anything_is_exported() -> None:
    """The build installed here is such a one, as PyPI's `onnxruntime` is."""
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(Unsupported) as refused:
        OnnxRuntime().require(CUDA)
    remedy = "pip install onnxruntime-gpu in its place"
    assert str(refused.value) == f"the installed onnxruntime has no CUDAExecutionProvider; {remedy}"
