"""torch.compile and CUDA graphs as runtimes: behaviour that other runtimes do not have."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from effbench.devices import OutOfMemory  # noqa: E402
from effbench.devices.torch_cuda import TorchCuda  # noqa: E402
from effbench.runtimes import Setting, Unsupported, get, torch_compile, training_step  # noqa: E402
from effbench.runtimes.cuda_graph import CudaGraph  # noqa: E402

needs_compiler = pytest.mark.skipif(
    bool(get("compile").why_unavailable()), reason=str(get("compile").why_unavailable())
)


class Line(nn.Module):
    """One multiplication and one addition, which become one kernel."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, value: Tensor) -> Tensor:
        return self.factor * value + 1


# --- compile: cells do not get into each other's way ----------------------------------------------------


@needs_compiler
def test_every_cell_of_a_class_is_compiled_under_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve is more than the 8 versions that dynamo keeps of one code; each further one would run eagerly, or fail."""
    seen: list[str] = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        seen.append(graph.code)
        return graph.forward  # type: ignore[no-any-return]

    torch._dynamo.reset()
    given = torch.ones(2)
    made = [torch_compile.function_with_own_code(Line(float(factor))) for factor in range(12)]
    assert len({id(entry.__code__) for entry in made}) == 12
    for factor, entry in enumerate(made):
        run = torch.compile(entry, backend=backend, fullgraph=True, dynamic=False)
        for _ in range(2):
            assert torch.equal(run(given), factor * given + 1)
    assert len(seen) == 12, "each was compiled, and once"
    assert [torch_compile.compiled_versions(entry) for entry in made] == [1] * 12, (
        "no guard of another one is tried first"
    )


def test_the_count_of_entries_is_that_of_a_shared_code() -> None:
    """What the test above rules out: entries of one code object pile up."""
    torch._dynamo.reset()
    shared = torch_compile.function_with_own_code(Line())
    run = torch.compile(shared, backend="eager", fullgraph=True, dynamic=False)
    assert torch_compile.compiled_versions(shared) == 0
    for size in (2, 3, 4):
        run(torch.ones(size))
    assert torch_compile.compiled_versions(shared) == 3


class Counting(nn.Module):
    """It is another network at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, value: Tensor) -> Tensor:
        self.calls += 1
        return value * self.calls


class Breaking(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return value + 1


@needs_compiler
@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Counting(), "cannot take it: it would compile again from call to call, since it does not hold that .*calls"),
        (Breaking(), r"torch.compile cannot take it: Call to `torch._dynamo.graph_break\(\)`. User-inserted"),
    ],
    ids=("anew", "break"),
)
def test_what_would_compile_anew_or_break_is_refused(network: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=words) as refused:
        get("compile").prepare(network, [(torch.ones(4),)], Setting(tmp_path))
    assert "\n" not in str(refused.value)


@needs_compiler
@pytest.mark.parametrize(("rotated", "tried"), [(1, 2), (3, 6), (40, 16)])
def test_few_calls_prepare_a_cell_however_many_inputs_rotate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: int, tried: int
) -> None:
    """What is compiled does not matter to it."""
    made: list[object] = []
    turns, really = torch_compile.round_robin, torch.compile

    def counted(calls: Any) -> Any:
        call = turns(calls)
        return lambda: made.append(call())

    monkeypatch.setattr(torch_compile, "round_robin", counted)
    monkeypatch.setattr(torch, "compile", lambda entry, **options: really(entry, **{**options, "backend": "eager"}))
    with torch.inference_mode():
        get("compile").prepare(Line(), [(torch.ones(4),)] * rotated, Setting(tmp_path))
    assert len(made) == tried


@needs_compiler
def test_nothing_runs_eagerly_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch in the environment makes torch.compile do nothing, and say nothing."""
    with torch._dynamo.config.patch(disable=True), pytest.raises(Unsupported, match="unset TORCHDYNAMO_DISABLE"):
        get("compile").prepare(Line(), [(torch.ones(4),)], Setting(tmp_path))
    monkeypatch.setattr(torch_compile, "compiled_versions", lambda _: 0)
    with pytest.raises(Unsupported, match="left it to eager"):
        get("compile").prepare(Line(), [(torch.ones(4),)], Setting(tmp_path))


@needs_compiler
def test_what_a_launch_compiled_the_next_one_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the only cache: not torch's own, and not what another cell of this process left."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    given = torch.randn(4, 4)
    made: dict[str, dict[str, Any]] = {}
    for launch in ("cold", "warm", "another"):
        with torch.inference_mode():
            setting = Setting(tmp_path / ("b" if launch == "another" else "a"))
            prepared = get("compile").prepare(Line(), [(given,)], setting)
            assert torch.allclose(prepared.call(), 2 * given + 1)
        made[launch] = dict(prepared.facts)
    assert [facts["cached"] for facts in made.values()] == [False, True, False]
    assert ["load_s" in facts for facts in made.values()] == [False, True, False]
    assert made["warm"]["prepare_s"] == made["cold"]["prepare_s"], "the first launch's"
    for facts in made.values():
        assert (facts["pieces"], facts["operators"], facts["outside"]) == (1, 1, {}), "one fused kernel"
    assert not [*(tmp_path / "elsewhere").rglob("*.so")]
    assert not torch._inductor.async_compile._pool_set, "no compiler process waits"


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_compiled(dtype: str, tmp_path: Path) -> None:
    given = torch.randn(4, 4, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        prepared = get("compile").prepare(Line().to(given.dtype), [(given,)], Setting(tmp_path, dtype=dtype))
    output: Any = prepared.call()
    assert output.dtype == given.dtype and torch.allclose(output, 2 * given + 1, rtol=1e-2, atol=1e-2)


@needs_compiler
def test_a_training_step_is_compiled_forward_and_backward(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = [(torch.randn(2, 3, 8, 8),) for _ in range(2)]

    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()

    taught, expected = network(), network()
    prepared = get("compile").prepare(taught, inputs, Setting(tmp_path, mode="train"))
    step = training_step.training_call(expected, inputs)
    for _ in range(4):  # as many as preparing took: twice each input
        step()
    for _ in range(3):
        assert torch.allclose(prepared.call(), step(), rtol=1e-5)  # type: ignore[arg-type]
    for weight, other in zip(taught.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(weight, other, rtol=1e-5, atol=1e-7)
    assert prepared.facts["pieces"] == 2
    assert prepared.facts["outside"] == {"convolution": 1, "convolution_backward": 1}


# --- compile: what it needs, what it says ---------------------------------------------------------------


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "c++-of-mine")
    reason = "there is no C++ compiler 'c++-of-mine'; install one (apt install g++), or name yours in CXX"
    with pytest.raises(Unsupported) as refused:
        get("compile").require(Setting(tmp_path))
    assert str(refused.value) == reason == get("compile").why_unavailable()


def test_without_the_headers_of_python_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_compile.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(torch_compile.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "apt install python3-dev" in str(get("compile").why_unavailable())


WRITTEN = '''
import torch
from torch._inductor.select_algorithm import extern_kernels
cpp_fused_relu_0 = async_compile.cpp_pybinding(["float*"], """ kernel(extern_kernels) """)
class Runner:
    def call(self, args):
        buf0 = extern_kernels.convolution(arg0, arg1, stride=(1, 1))
        assert_size_stride(buf0, (1, 8), (8, 1))
        cpp_fused_relu_0(buf0)
        buf1 = torch.ops.mkldnn._convolution_pointwise.default(buf0, arg2)
        buf2 = empty_strided_cpu((1, 8), (8, 1), torch.float32)
        extern_kernels.mm(reinterpret_tensor(buf1, (1, 8)), arg3, out=buf2)
        triton_poi_fused_add_1.run(buf2, 8, stream=stream0)
        return (buf2, )
def benchmark_compiled_module():
    extern_kernels.mm(1, 2)
    cpp_fused_relu_0(3)
'''


def test_kernels_are_counted_where_they_are_launched() -> None:
    ast.parse(WRITTEN)
    own, others = torch_compile.count_kernels(WRITTEN)
    assert own == 2
    assert others == Counter(convolution=1, convolution_pointwise=1, mm=1)


# --- cudagraph: on a scripted GPU -----------------------------------------------------------------------


@dataclass
class Gpu:
    """What `TorchCuda` is for a GPU, written down. A replay computes what was captured anew, into the same output."""

    log: list[str] = field(default_factory=list)
    refuses: Exception | None = None
    captured: int = 0

    def graph_pool(self) -> str:
        return "pool"

    def capture(self, call: Callable[[], None], pool: Any) -> Callable[[], None]:
        assert pool == "pool"
        self.log.append("capture")
        call()
        call()
        if self.refuses:
            raise self.refuses
        number = self.captured = self.captured + 1
        return lambda: self.log.append(f"replay {number}")

    def synchronize(self) -> None:
        self.log.append("sync")

    def abandon_capture(self) -> None:
        self.log.append("abandon")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return "out of memory" in str(error)


def on(gpu: Gpu) -> CudaGraph:
    return CudaGraph(lambda index: gpu)


def test_each_input_has_a_graph_and_they_are_replayed_in_turn(tmp_path: Path) -> None:
    gpu, network = Gpu(), Line()
    inputs = [(torch.full((2,), float(number)),) for number in range(3)]
    prepared = on(gpu).prepare(network, inputs, Setting(tmp_path, "cuda"))
    assert gpu.log == ["capture"] * 3 + ["sync"], "all is captured before anything is timed"
    gpu.log.clear()
    outputs = [prepared.call() for _ in range(6)]
    assert gpu.log == ["replay 1", "replay 2", "replay 3"] * 2, "nothing else happens in a call"
    for number, output in enumerate(outputs[:3]):
        assert torch.equal(output, 2 * inputs[number][0] + 1)  # type: ignore[arg-type]
        assert outputs[number + 3] is output, "the place that the graph writes to"
    assert prepared.facts["pieces"] == 1 and prepared.facts["prepare_s"] > 0


@pytest.mark.parametrize(("rotated", "graphs"), [(1, 1), (8, 8), (9, 8), (512, 8)])
def test_a_cell_captures_few_graphs_however_many_inputs_outgrow_the_cache(
    tmp_path: Path, rotated: int, graphs: int
) -> None:
    gpu = Gpu()
    inputs = [(torch.full((2,), float(number)),) for number in range(rotated)]
    prepared = on(gpu).prepare(Line(), inputs, Setting(tmp_path, "cuda"))
    assert gpu.log.count("capture") == prepared.facts["graphs"] == graphs
    outputs = [prepared.call() for _ in range(graphs + 1)]
    for number, output in enumerate(outputs[:graphs]):
        assert torch.equal(output, 2 * inputs[number][0] + 1)  # type: ignore[arg-type]
    assert outputs[graphs] is outputs[0]


def test_what_no_probe_may_capture_says_why() -> None:
    """A replay inside of a capture invalidates it; a library that launches past torch leaves it empty."""
    refused = {name: get(name).why_no_graph for name in ("eager", "compile", "cudagraph", "onnxruntime")}
    assert refused["eager"] is refused["compile"] is None
    assert refused["cudagraph"] and refused["onnxruntime"]


def test_a_pass_that_cannot_be_captured_is_a_reason(tmp_path: Path) -> None:
    gpu = Gpu(refuses=RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with"))
    with pytest.raises(Unsupported) as refused:
        on(gpu).prepare(Line(), [(torch.ones(2),)], Setting(tmp_path, "cuda"))
    said = "a CUDA graph cannot hold it: CUDA error: operation not permitted when stream is capturing"
    assert str(refused.value) == said
    assert gpu.log[-1] == "abandon", "the error may surface once more"


def test_no_memory_is_not_a_reason_of_the_network(tmp_path: Path) -> None:
    gpu = Gpu(refuses=RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(OutOfMemory, match="Tried to allocate"):
        on(gpu).prepare(Line(), [(torch.ones(2),)], Setting(tmp_path, "cuda"))


def test_on_the_cpu_it_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as refused:
        get("cudagraph").require(Setting(tmp_path, "cpu"))
    assert str(refused.value) == "cudagraph has no device cpu; it has cuda"


def test_the_adapter_warms_up_aside_and_captures_into_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def stream(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, wait_stream=lambda other: log.append(f"{name} waits for {other.name}"))

    @contextmanager
    def entered(what: str) -> Iterator[None]:
        log.append(f"enter {what}")
        yield
        log.append(f"leave {what}")

    current = stream("current")
    graph = SimpleNamespace(
        capture_begin=lambda pool, capture_error_mode: log.append(f"begin in {pool}, {capture_error_mode}"),
        capture_end=lambda: log.append("end"),
        replay=lambda: log.append("replay"),
    )
    scripted = SimpleNamespace(
        Stream=lambda: stream("aside"),
        current_stream=lambda: current,
        stream=lambda aside: entered(aside.name),
        synchronize=lambda index: log.append("synchronise"),
        empty_cache=lambda: log.append("empty"),
        CUDAGraph=lambda: graph,
        graph_pool_handle=lambda: "pool",
    )
    adapter = TorchCuda(0)
    monkeypatch.setattr(adapter, "_cuda", scripted)
    replay = adapter.capture(lambda: log.append("call"), adapter.graph_pool())
    replay()
    assert log == [
        "aside waits for current",
        "enter aside",
        "call",
        "leave aside",
        "current waits for aside",
        "synchronise",
        "empty",
        "enter aside",
        "begin in pool, thread_local",
        "call",
        "end",
        "leave aside",
        "replay",
    ]
