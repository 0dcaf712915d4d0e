"""The run-time breakdown: classes of operators, conversion of profiler events, and shares that add up."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import COST, run_of
from shell import effbench, refusal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from effbench import api, devices, paper, runtimes, zoo
from effbench.analysis import time_shares
from effbench.analysis.summary import summarise
from effbench.core.errors import CorruptRun, InvalidValue
from effbench.core.operator_times import Breakdown, OperatorEvent, OperatorTime, WatchedCall
from effbench.core.run import Run
from effbench.core.study import Case, Experiment
from effbench.devices import OutOfMemory, _torch_profiler, cuda
from effbench.devices.fake import Fake
from effbench.metrics import operator_timing as measuring
from effbench.report import json_document
from effbench.report.figures import breakdown as breakdown_figure
from effbench.report.tables import breakdown as breakdown_table
from effbench.report.tables.table_model import render_csv
from effbench.runs import run_file, runner
from effbench.runtimes import Setting
from effbench.studies import catalog, model_comparison, plan
from effbench.zoo._blocks import channel_shuffle

pytestmark = pytest.mark.usefixtures("forked_launches")

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


# --- parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("called", "kind", "part"),
    [
        ("aten::conv2d", "dense", "Conv"),
        ("aten::conv2d", "grouped", "Conv"),
        ("aten::conv2d", "depthwise", "Depthwise"),
        ("aten::conv_transpose2d", "", "Conv"),
        ("aten::_convolution", "", "Conv"),
        ("torchvision::deform_conv2d", "", "Conv"),
        ("aten::relu_", "", "Elemwise"),
        ("aten::hardtanh_", "", "Elemwise"),
        ("aten::add", "", "Elemwise"),
        ("aten::batch_norm", "", "Elemwise"),
        ("aten::cat", "", "Data"),
        ("aten::copy_", "", "Data"),
        ("aten::reshape", "", "Data"),
        ("aten::reshape", "shuffle", "Shuffle"),
        ("aten::resolve_conj", "", "Data"),
        ("aten::linear", "", "Other"),
        ("aten::layer_norm", "", "Other"),
        ("aten::max_pool2d", "", "Other"),
        ("aten::adaptive_avg_pool2d", "", "Other"),
        ("aten::softmax", "", "Other"),
        ("mine::add", "", "Other"),
    ],
)
def test_the_part_of_an_operator(called: str, kind: str, part: str) -> None:
    assert time_shares.part_of(called, kind) == part
    merged = time_shares.part_of(called, kind, depthwise=False)
    assert merged == ("Conv" if part == "Depthwise" else part)


def test_what_is_called_element_wise_is_what_torch_tags_as_such() -> None:
    """Every name under Elemwise that torch tags at all is tagged pointwise, and no name under Data is."""
    untagged = {"batch_norm", "native_batch_norm", "dropout", "feature_dropout", "alpha_dropout"}
    pointwise = {"Elemwise": set(), "Data": set()}
    for name, part in time_shares._PART_OF.items():
        packet = getattr(torch.ops.aten, name, None)
        tags = [getattr(packet, overload).tags for overload in packet.overloads()] if packet is not None else []
        if any(torch.Tag.pointwise in each for each in tags):
            pointwise[part].add(name)
        elif part == "Elemwise":
            # Composite operators carry no tags of their own; each is one torch documents as element-wise.
            assert packet is None or name in untagged or not any(torch.Tag.core in each for each in tags), name
    assert len(pointwise["Elemwise"]) > 60
    # torch tags what writes each output once, also where nothing is computed.
    assert pointwise["Data"] <= {"copy", "fill", "zero", "_to_copy", "to", "clone", "contiguous", "expand", "alias"}


# --- what the profiler saw --------------------------------------------------------------------------


def seen(network: Callable[[Tensor], Any], *shape: int, calls: int = 2) -> tuple[OperatorTime, ...]:
    """The operators of a network on the CPU, as a worker would see them."""
    x = torch.randn(*shape)
    with torch.inference_mode():
        watched = devices.get("cpu", threads=1).time_operators(lambda: network(x), calls)
    assert watched is not None and len(watched) == calls
    return measuring.medians(watched)


def called(operators: tuple[OperatorTime, ...]) -> Counter[tuple[str, str]]:
    """How often the network itself calls what, by kind."""
    return Counter({(item.called, item.kind): round(item.times) for item in operators if item.operator == item.called})


def shuffles(operators: tuple[OperatorTime, ...]) -> float:
    """Copies inside shuffles, per call."""
    return sum(item.times for item in operators if item.kind == "shuffle" and item.operator == "aten::copy_")


SHUFFLES = {
    "our own": lambda x: channel_shuffle(x, 3),
    "transpose and contiguous": lambda x: x.view(2, 3, 4, 6, 6).transpose(1, 2).contiguous().view(2, 12, 6, 6),
    "permute": lambda x: x.reshape(2, 3, 4, 6, 6).permute(0, 2, 1, 3, 4).reshape(2, 12, 6, 6),
    "swapaxes and flatten": lambda x: x.unflatten(1, (3, 4)).swapaxes(2, 1).flatten(1, 2),
    "negative dimensions": lambda x: x.view(2, 3, 4, 6, 6).transpose(-4, -3).reshape(2, -1, 6, 6),
    "channels last": lambda x: x.transpose(1, 3).contiguous().view(2, 6, 6, 3, 4).transpose(3, 4).contiguous(),
    "clone": lambda x: x.view(2, 6, 2, 6, 6).transpose(1, 2).clone(memory_format=torch.contiguous_format),
}

NO_SHUFFLES = {
    "heads of an attention": lambda x: x.flatten(2).view(2, 12, 4, 9).transpose(1, 2).contiguous(),
    "layout": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "a transpose of equal sides": lambda x: x.view(2, 3, 4, 6, 6).transpose(3, 4).contiguous(),
    "one group": lambda x: x.view(2, 1, 12, 6, 6).transpose(1, 2).reshape(2, 12, 6, 6),
    "one group, copied": lambda x: x.view(2, 1, 12, 6, 6).transpose(1, 2).clone(),
    "a copy": lambda x: x.clone(),
    "concatenation": lambda x: torch.cat([x, x], 1),
    "something in between": lambda x: (x.view(2, 3, 4, 6, 6).transpose(1, 2) + 1).contiguous(),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_channel_shuffle_is_found_in_whatever_words_it_is_written(name: str) -> None:
    found = seen(SHUFFLES[name], 2, 12, 6, 6)
    assert shuffles(found) == 1
    assert sum(number for (_, kind), number in called(found).items() if kind == "shuffle") == 3, "view, turn and copy"


@pytest.mark.parametrize("name", NO_SHUFFLES)
def test_no_other_copy_is_taken_for_one(name: str) -> None:
    assert shuffles(seen(NO_SHUFFLES[name], 2, 12, 6, 6)) == 0


@pytest.mark.parametrize("module", [nn.ChannelShuffle(3), nn.PixelShuffle(2), nn.PixelUnshuffle(2)])
def test_torchs_own_shuffles_are_shuffles(module: nn.Module) -> None:
    found = seen(module, 2, 12, 6, 6)
    assert {item.kind for item in found} == {"shuffle"}
    assert {time_shares.part_of(item.called, item.kind) for item in found} == {"Shuffle"}


@pytest.mark.parametrize(
    ("module", "shape", "kind"),
    [
        (nn.Conv2d(4, 8, 3), (1, 4, 8, 8), "dense"),
        (nn.Conv2d(4, 8, 1, groups=2), (1, 4, 8, 8), "grouped"),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 8, 8), "depthwise"),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4), (1, 4, 8, 8), "depthwise"),
        (nn.Conv2d(1, 4, 3), (1, 1, 8, 8), "dense"),
        (nn.Conv1d(4, 4, 3, groups=4), (1, 4, 8), "depthwise"),
        (nn.Conv3d(2, 2, 2), (1, 2, 4, 4, 4), "dense"),
        (nn.ConvTranspose2d(4, 4, 2, groups=4), (1, 4, 8, 8), "depthwise"),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8), "depthwise"),
    ],
    ids=str,
)
def test_convolutions_are_told_apart_by_their_groups(module: nn.Module, shape: tuple[int, ...], kind: str) -> None:
    found = [item for item in seen(module.eval(), *shape) if item.kind]
    assert {item.kind for item in found} == {kind}
    assert {time_shares.part_of(item.called, "") for item in found} == {"Conv"}


@pytest.mark.parametrize("name", ["shufflenet_v1_g3_x1_0", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_the_operators_of_a_network_are_its_modules(name: str) -> None:
    """Counted from the modules, not from the profiler: convolutions by groups, norms, shuffling units."""
    network = zoo.resolve(name, {}).eval()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    kinds = Counter(
        "dense" if each.groups == 1 else "depthwise" if each.groups == each.in_channels else "grouped"
        for each in convolutions
    )
    found = called(seen(network, 1, 3, 64, 64, calls=1))
    assert {kind: number for (name, kind), number in found.items() if name == "aten::conv2d"} == kinds
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert found["aten::batch_norm", ""] == norms
    units = 16  # every unit of both ShuffleNets shuffles once
    assert sum(n for (name, kind), n in found.items() if (name, kind) == ("aten::view", "shuffle")) == (
        0 if name == "mobilenet_v2" else units
    )


def test_no_time_is_lost_or_counted_twice() -> None:
    """Against torch's own table of the same events: the sum of every operator's own time inside the marked calls."""
    network = zoo.resolve("shufflenet_v2_x0_5", {}).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.profiler.profile(record_shapes=True) as profiler:
        network(x)
        with torch.profiler.record_function(_torch_profiler.MARK):
            network(x)
    events = profiler.events()
    mark = next(event for event in events if event.name == _torch_profiler.MARK)
    (call,) = _torch_profiler.events_per_call(events, on_gpu=False)
    own = sum(item.seconds for item in measuring.medians([WatchedCall(1.0, call)]))
    assert own == pytest.approx((mark.cpu_time_total - mark.self_cpu_time_total) * 1e-6, rel=1e-6)
    assert all(event.parent is None or event.parent < place for place, event in enumerate(call))


def test_the_calls_of_a_wrapped_block_are_the_networks_own() -> None:
    def network(x: Tensor) -> Tensor:
        with torch.profiler.record_function("mine::block"):
            return torch.relu(x)

    assert set(called(seen(network, 4, 4))) == {("aten::relu", "")}


def event(name: str, start: int, end: int, parent: Any = None, **more: Any) -> SimpleNamespace:
    """One event as torch.profiler gives it."""
    kinds = {
        "device_type": SimpleNamespace(name="CPU"),
        "is_user_annotation": name == _torch_profiler.MARK,
        "input_shapes": [],
        "concrete_inputs": [],
        "self_cpu_time_total": 0.0,
        "self_device_time_total": 0.0,
    }
    time_range = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=time_range, cpu_parent=parent, **{**kinds, **more})


def test_on_a_gpu_an_operators_time_is_that_of_its_kernels() -> None:
    mark = event(_torch_profiler.MARK, 0, 100)
    conv = event("aten::conv2d", 1, 50, mark, self_cpu_time_total=40.0)
    inner = event("aten::cudnn_convolution", 2, 49, conv, self_cpu_time_total=9.0, self_device_time_total=700.0)
    launch = event("cudaLaunchKernel", 3, 4, inner, self_cpu_time_total=1.0)
    kernel = event("gemm", 60, 760, device_type=SimpleNamespace(name="CUDA"), self_device_time_total=700.0)
    waiting = event("cudaDeviceSynchronize", 51, 99, mark, self_cpu_time_total=48.0)
    before = event("aten::relu", -9, -1, self_device_time_total=5.0)
    (call,) = _torch_profiler.events_per_call([kernel, waiting, launch, inner, conv, mark, before], on_gpu=True)
    found = measuring.medians([WatchedCall(1e-3, call)])
    assert {item.called for item in found} == {"aten::conv2d"}
    assert sum(item.seconds for item in found) == pytest.approx(700e-6)


def test_a_replayed_graph_has_no_operators_but_a_reason() -> None:
    """All of its kernels belong to one launch, which is no operator and called by none."""
    mark = event(_torch_profiler.MARK, 0, 100)
    launch = event("cudaGraphLaunch", 1, 5, mark, self_cpu_time_total=4.0, self_device_time_total=700.0)
    kernel = event("gemm", 60, 760, device_type=SimpleNamespace(name="CUDA"), self_device_time_total=700.0)
    (call,) = _torch_profiler.events_per_call([kernel, launch, mark], on_gpu=True)
    assert call == []

    class Replayed(Fake):
        def time_operators(self, call: Any, calls: int) -> list[WatchedCall]:
            return [WatchedCall(1e-3, [])] * calls

    device = Replayed()
    found = measuring.time_cell(device, device.bind(None, {"madds": 10**6, "memory_access_bytes": 10**6}))
    assert found.missing is not None and "no operator of torch" in found.missing and "under eager" in found.missing
    (split, _) = time_shares.split(broken_down(found))
    assert split.missing == found.missing and split.shares == {}


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_a_library_past_torch_has_no_operators_but_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    prepared = runtimes.get("onnxruntime").prepare(nn.Linear(4, 4).eval(), [(torch.ones(1, 4),)], Setting(tmp_path))
    found = measuring.time_cell(devices.get("cpu", threads=1), prepared.call)
    assert found.missing == measuring.NO_OPERATORS and not found.operators


def test_the_cuda_device_asks_its_adapter_and_names_running_out_of_memory() -> None:
    class Full(RuntimeError):
        pass

    def profile(call: Any, calls: int) -> list[WatchedCall]:
        if call is None:
            raise Full("CUDA out of memory\nand more")
        return [WatchedCall(1e-3, ())] * calls

    emptied = []
    adapter = SimpleNamespace(
        time_operators=profile,
        is_out_of_memory=lambda error: isinstance(error, Full),
        empty_cache=lambda: emptied.append(1),
        now_ns=lambda: 0,
    )
    device = cuda.Cuda(api=adapter)
    assert len(device.time_operators(lambda: None, 3)) == 3
    with pytest.raises(OutOfMemory, match=r"^CUDA out of memory$"):
        device.time_operators(None, 1)  # type: ignore[arg-type]
    assert emptied


@pytest.mark.cuda
@pytest.mark.skipif(bool(cuda.why_unavailable(0)), reason=str(cuda.why_unavailable(0)))
def test_kernels_of_a_real_gpu_are_found_by_the_operator_that_launched_them() -> None:
    device = devices.get("cuda", warm_up_s=0.1)
    device.setup()
    network = device.place(nn.Conv2d(64, 64, 3)).eval()
    x = device.place(torch.randn(8, 64, 56, 56))
    with torch.inference_mode():
        found = measuring.time_cell(device, lambda: network(x))
    assert found.alone_device_s and {item.called for item in found.operators} == {"aten::conv2d"}
    assert 0.3 < sum(item.seconds for item in found.operators) / found.alone_device_s < 1.5


def test_a_disturbed_call_moves_no_median() -> None:
    """One call in five that the system struck leaves each operator's time as it was."""
    quiet = WatchedCall(3e-3, (OperatorEvent("aten::relu", None, 1e-3), OperatorEvent("aten::cat", None, 2e-3)))
    struck = WatchedCall(9e-3, (OperatorEvent("aten::relu", None, 7e-3), OperatorEvent("aten::cat", None, 2e-3)))
    struck = replace(struck, events=(*struck.events, OperatorEvent("aten::sum", None, 1e-3)))
    found = {item.called: item.seconds for item in measuring.medians([quiet, quiet, struck, quiet, quiet])}
    assert found == {"aten::relu": 1e-3, "aten::cat": 2e-3, "aten::sum": 0.0}


# --- shares -----------------------------------------------------------------------------------------


STUDY = Experiment(
    name="made_up",
    title="Made up",
    claim="Where does the time go?",
    factor="model",
    levels=("shufflenet_v1", "mine"),
    reference="shufflenet_v1",
    cases=tuple(Case(name, (3, 8, 8), labels={"model": name}) for name in ("shufflenet_v1", "mine")),
    breakdown="merged",
)
TIMES = (
    OperatorTime("aten::conv2d", "aten::mkldnn_convolution", "dense", 4e-3, 2),
    OperatorTime("aten::conv2d", "aten::conv2d", "dense", 1e-3, 2),
    OperatorTime("aten::conv2d", "aten::conv2d", "depthwise", 2e-3, 1),
    OperatorTime("aten::relu_", "aten::clamp_min_", "", 1e-3, 3),
    OperatorTime("aten::reshape", "aten::copy_", "shuffle", 5e-4, 1),
    OperatorTime("aten::max_pool2d", "aten::max_pool2d", "", 5e-4, 1),
)


def broken_down(*launches: Breakdown, study: Experiment = STUDY) -> Run:
    """A run whose first model has these breakdowns, launch by launch, and whose second has none."""
    run = run_of({case.id: 0.01 for case in study.cases}, experiment=study, launches=len(launches), rounds=3)
    own = zip(run.launches, launches, strict=True)
    return replace(
        run,
        launches=tuple(replace(each, breakdowns={study.cases[0].id: found}) for each, found in own),
    )


def test_shares_are_parts_over_the_latency_without_the_profiler() -> None:
    run = broken_down(*[Breakdown(50, 0.012, 0.010, None, TIMES)] * 3)
    ours, other = time_shares.split(run)
    assert {name: share.point for name, share in ours.shares.items()} == pytest.approx(
        {"Conv": 0.7, "Elemwise": 0.1, "Data": 0.0, "Shuffle": 0.05, "Other": 0.05}
    )
    assert ours.unattributed and ours.unattributed.point == pytest.approx(0.1)
    assert ours.overhead and ours.overhead.point == pytest.approx(1.2)
    assert ours.between and ours.between.point == pytest.approx(0.25)
    apart = time_shares.split(run, depthwise=True)[0].shares
    assert (apart["Conv"].point, apart["Depthwise"].point) == pytest.approx((0.5, 0.2))
    first, share = ours.operators[0]
    assert (first.called, first.kind, first.times, share) == ("aten::conv2d", "dense", 2, pytest.approx(0.5))
    assert ours.paper == {"Conv": 0.87, "Elemwise": 0.04, "Data": 0.01, "Shuffle": 0.0, "Other": 0.08}
    assert other.shares == {} and other.missing == "no launch got as far as the profiler" and other.paper is None


seconds = st.floats(0.0, 1.0)
breakdowns = st.builds(
    Breakdown,
    calls=st.integers(1, 50),
    watched_s=st.floats(1e-4, 10.0),
    alone_s=st.floats(1e-4, 10.0),
    alone_device_s=st.none() | st.floats(1e-4, 10.0),
    operators=st.lists(
        st.builds(
            OperatorTime,
            called=st.sampled_from(["aten::conv2d", "aten::relu_", "aten::cat", "aten::linear", "mine::op"]),
            operator=st.sampled_from(["aten::conv2d", "aten::copy_"]),
            kind=st.sampled_from(["", "dense", "depthwise", "shuffle"]),
            seconds=seconds,
            times=st.floats(0.1, 9.0),
        ),
        min_size=1,
        max_size=9,
    ).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(breakdowns, min_size=1, max_size=4), st.booleans())
def test_parts_and_the_unattributed_share_are_the_whole(launches: list[Breakdown], depthwise: bool) -> None:
    run = broken_down(*launches)
    item = time_shares.split(run, depthwise=depthwise)[0]
    assert item.unattributed is not None
    whole = math.fsum(share.point for share in item.shares.values()) + item.unattributed.point
    assert whole == pytest.approx(1.0, abs=1e-6 * max(1.0, abs(item.unattributed.point)))
    merged = time_shares.split(run, depthwise=False)[0].shares
    conv = sum(share.point for name, share in item.shares.items() if name in ("Conv", "Depthwise"))
    assert conv == pytest.approx(merged["Conv"].point)
    assert sum(share for _, share in item.operators) == pytest.approx(1 - item.unattributed.point, rel=1e-6, abs=1e-9)


def test_on_a_gpu_the_whole_is_the_devices_own_time() -> None:
    run = replace(broken_down(Breakdown(50, 0.012, 0.010, 0.009, TIMES)), clock="device")
    item = time_shares.split(run)[0]
    assert item.latency_s and item.latency_s.point == pytest.approx(0.009)
    assert item.shares["Conv"].point == pytest.approx(7 / 9)


def test_a_network_without_a_breakdown_says_why() -> None:
    run = broken_down(Breakdown(missing="ValueError: only the tenth call fails"))
    assert time_shares.split(run)[0].missing == "ValueError: only the tenth call fails"
    assert time_shares.split(replace(run, experiment=replace(STUDY, breakdown=""))) == ()


@pytest.mark.parametrize("platform", ["GPU", "ARM"])
def test_the_papers_shares(platform: str) -> None:
    for name in ("shufflenet_v1_g3_x1_0", "mobilenet_v2"):
        found = paper.runtime_shares(name, platform)
        assert found and sum(found.values()) == pytest.approx(1.0)
        assert set(found) <= set(time_shares.PARTS)
    assert paper.runtime_shares("resnet18", platform) is None


# --- from a run to a table, a figure, a document ----------------------------------------------------


def test_the_table_has_ours_and_the_papers() -> None:
    run = broken_down(*[Breakdown(50, 0.012, 0.010, None, TIMES)] * 3)
    rows = breakdown_table.breakdown_rows(run, summarise(run), time_shares.split(run))
    titles = [column.heading for column in rows.columns]
    assert titles[3:8] == ["Conv", "Elemwise", "Data", "Shuffle", "Other"]
    texts = [[value.text for value in row] for row in rows.rows]
    assert texts[0][:4] == ["shufflenet_v1", "here", "10.0", "70.0 ± 0.0"]
    assert texts[1][:4] == ["shufflenet_v1", "paper", "–", "87"]
    assert texts[2][0] == "mine" and texts[2][-1] == "not broken down: no launch got as far as the profiler"
    doubtful = replace(summarise(run)[0], flags=("contaminated",))
    rows_again = breakdown_table.breakdown_rows(run, [doubtful, summarise(run)[1]], time_shares.split(run))
    assert rows_again.rows[0][-1].text == "contaminated"
    assert any("Snapdragon 810" in note for note in rows.notes)
    assert "Largest in Other: shufflenet_v1: max_pool2d 5 %." in rows.notes
    assert render_csv(rows).splitlines()[1].startswith("shufflenet_v1,here,0.01,")


def test_depthwise_is_a_column_where_the_run_was_asked_for_it() -> None:
    run = broken_down(Breakdown(50, 0.012, 0.010, None, TIMES), study=time_shares.with_depthwise_part(STUDY))
    rows = breakdown_table.breakdown_rows(run, summarise(run), time_shares.split(run))
    assert [column.heading for column in rows.columns][3:5] == ["Conv", "Depthwise"]
    assert any("set apart" in note for note in rows.notes)


@pytest.mark.parametrize("latency", [0.010, 0.007])
def test_bars_are_as_long_as_their_shares(latency: float) -> None:
    run = broken_down(Breakdown(50, 0.012, latency, None, TIMES))
    parts = time_shares.split(run)
    figure = breakdown_figure.breakdown_figure(run, summarise(run), parts)
    (axes,) = figure.axes
    ends: dict[float, float] = {}
    for patch in axes.patches:
        middle = round(patch.get_y() + patch.get_height() / 2, 3)
        ends[middle] = max(ends.get(middle, 0.0), patch.get_x() + patch.get_width())
    ours = max(100.0, 100 * sum(item.seconds for item in TIMES) / latency)
    assert sorted(ends.values(), reverse=True) == pytest.approx(sorted([ours, 100.0, 0.0], reverse=True))
    words = [text.get_text() for text in axes.texts]
    assert "not broken down: no launch got as far as the profiler" in words
    assert f"{1e3 * latency:.3g} ms; profiler ×{0.012 / latency:.2f}" in words


def test_the_document_keeps_depthwise_apart_and_names_operators() -> None:
    run = broken_down(Breakdown(50, 0.012, 0.010, None, TIMES))
    found = json_document.run_document(run, summarise(run), ())["breakdown"]
    json.dumps(found, allow_nan=False)
    assert set(found[0]["shares"]) == set(time_shares.PARTS)
    assert found[0]["operators"][0] == {
        "operator": "aten::conv2d",
        "kind": "dense",
        "part": "Conv",
        "calls": 2,
        "seconds": pytest.approx(5e-3),
        "share": pytest.approx(0.5),
    }
    assert found[1]["missing"]


# --- the whole way ----------------------------------------------------------------------------------


def execute(directory: Path, study: Experiment = STUDY) -> Run:
    planned = plan.make(
        study, device="fake", sampling={"launches": 3, "min_rounds": 3, "max_rounds": 3, "warmup_s": 0.0}
    )
    return runner.execute(planned, directory, profile=lambda cell: COST)


def test_a_run_stores_what_the_scripted_profiler_saw(tmp_path: Path) -> None:
    run = execute(tmp_path / "run")
    assert run_file.load(tmp_path / "run") == run
    for item in time_shares.split(run):
        # The scripted clock is noisy and its profiler is not.
        assert item.shares["Conv"].point == pytest.approx(0.6, rel=0.05)
        assert item.shares["Elemwise"].point == pytest.approx(0.2, rel=0.05)
        assert item.unattributed and item.unattributed.point == pytest.approx(0.1, abs=0.02)
        assert item.overhead and item.overhead.point == pytest.approx(1.1, rel=0.05)
        assert item.shares["Conv"].n == 3


def test_a_study_that_does_not_ask_gets_none(tmp_path: Path) -> None:
    run = execute(tmp_path / "run", replace(STUDY, breakdown=""))
    assert all(not launch.breakdowns for launch in run.launches)
    assert '"kind":"breakdown"' not in (tmp_path / "run" / run_file.RUN_FILE).read_text()


@pytest.mark.parametrize(
    "change", [{"calls": 0}, {"alone_s": 0.0}, {"watched_s": "long"}, {"operators": [{"called": 1}]}, {"more": 1}]
)
def test_a_breakdown_that_cannot_be_names_its_line(tmp_path: Path, change: dict[str, Any]) -> None:
    execute(tmp_path)
    path = tmp_path / run_file.RUN_FILE
    lines = path.read_text().splitlines()
    at = next(place for place, line in enumerate(lines) if '"kind":"breakdown"' in line)
    lines[at] = json.dumps({**json.loads(lines[at]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptRun, match=f"line {at + 1}:"):
        run_file.load(path)


def test_runs_from_before_there_were_breakdowns_still_load() -> None:
    stored = sorted(REFERENCE.glob("*/g2_groups/run.jsonl"))
    assert stored
    run = run_file.load(stored[0])
    assert run.experiment.breakdown == "" and time_shares.split(run) == ()


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fails_after=0):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 48, 3, 4), nn.Conv2d(48, 48, 3, groups=48)
        self.shuffle, self.fails_after, self.calls = nn.ChannelShuffle(4), fails_after, 0

    def forward(self, x):
        if torch.autograd._profiler_enabled() and self.fails_after:
            raise ValueError("no profiler, please")
        return self.shuffle(self.depthwise(self.stem(x).relu()))

def build():
    return Net()

def shy():
    return Net(1)
"""


def test_parts_of_a_real_network_sum_to_its_latency_within_the_overhead(tmp_path: Path) -> None:
    """No time is asserted, only that parts, what is between them and what the profiler costs fit together."""
    (tmp_path / "net.py").write_text(NETWORK)
    models = [f"{tmp_path}/net.py:{name}" for name in ("build", "shy")]
    options: dict[str, Any] = {"launches": 1, "budget_s": 1.0}
    results = api.run("runtime_breakdown", models=models, out=tmp_path / "run", quick=True, depthwise=True, **options)
    good, shy = time_shares.split(results.run)
    assert [cell.cell.case.model for cell in results.cells] == models
    assert good.overhead and good.between and good.unattributed
    parts = sum(share.point for share in good.shares.values())
    assert parts == pytest.approx(good.overhead.point * (1 - good.between.point)), (
        "parts + between = under the profiler"
    )
    assert 0.3 < parts < 3.0 and good.overhead.point > 0.5
    assert all(good.shares[name].point > 0 for name in ("Conv", "Depthwise", "Elemwise", "Shuffle"))
    assert shy.missing == "ValueError: no profiler, please" and shy.shares == {}
    assert all(cell.latency for cell in results.cells), "what fails under the profiler was measured all the same"
    files = results.write(tmp_path)
    assert {"breakdown.md", "breakdown.csv", "breakdown.png", "breakdown.svg"} <= set(files)
    assert numbers_of_breakdowns(results.run) == {models[0]: 1, models[1]: 1}


def numbers_of_breakdowns(run: Run) -> dict[str, int]:
    found = Counter(cell for launch in run.launches for cell in launch.breakdowns)
    return {result.cell.case.model: found[result.cell.id] for result in run.results}


def test_models_take_the_place_of_a_studys_own() -> None:
    study = catalog.load("runtime_breakdown")
    assert isinstance(study, Experiment)
    changed = model_comparison.with_models(study, ["resnet18", "shufflenet_v2"])
    assert changed.levels == ("resnet18", "shufflenet_v2") and changed.reference == "resnet18"
    assert changed.breakdown == "merged" and changed.notes == study.notes and changed.batch == study.batch
    groups = catalog.load("g2_groups")
    assert isinstance(groups, Experiment)
    with pytest.raises(InvalidValue, match="varies groups, not the model"):
        model_comparison.with_models(groups, ["resnet18"])
    with pytest.raises(InvalidValue, match="leave out --depthwise"):
        time_shares.with_depthwise_part(groups)


def test_the_batch_follows_the_device() -> None:
    study = catalog.load("runtime_breakdown")
    assert isinstance(study, Experiment)
    assert {cell.batch for cell in plan.make(study, device="cuda").cells} == {8}
    assert {cell.batch for cell in plan.make(study, device="cpu").cells} == {1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("g2_groups", "--model", "resnet18"), "varies groups, not the model"),
        (("g2_groups", "--depthwise"), "leave out --depthwise"),
        (("runtime_breakdown", "--model", "resnet_18"), "Did you mean"),
    ],
)
def test_wrong_words_get_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in refusal(effbench("run", *words, cwd=tmp_path))


def test_the_command_prints_the_breakdown(tmp_path: Path) -> None:
    done = effbench(
        "run", "runtime_breakdown", "--device", "fake", "--quick", "--model", "resnet18", "--depthwise", "--out", "out",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = done.json["breakdown"]
    assert found["cell"] == "model=resnet18" and found["shares"]["Conv"]["point"] == pytest.approx(0.6, rel=0.05)
    assert (tmp_path / "out" / "breakdown.md").read_text().count("Depthwise") == 1


def test_multiply_adds_are_in_what_is_called_convolution_or_named_in_other() -> None:
    """torch's counter and the parts must agree on where the arithmetic is."""
    network = zoo.resolve("mobilenet_v2", {}).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    counted = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    assert counted == {"aten.convolution", "aten.addmm"}
    found = called(seen(network, 1, 3, 32, 32, calls=1))
    parts = {name: time_shares.part_of(name, kind) for name, kind in found}
    assert parts["aten::conv2d"] in ("Conv", "Depthwise") and parts["aten::linear"] == "Other"
    assert "Shuffle" not in parts.values()


def test_shapes_are_watched_apart_from_times_unless_the_operators_change() -> None:
    """The calls that are timed know the shapes of the one that was not; a network that never runs the same twice is
    watched with shapes throughout."""
    conv, turns = nn.Conv2d(3, 4, 1).eval(), iter(range(1000))
    x = torch.ones(1, 3, 5, 5)

    def steady() -> None:
        conv(x)

    def changing() -> None:
        for _ in range(next(turns)):
            conv(x)

    with torch.inference_mode():
        for call in (steady, changing):
            watched = _torch_profiler.profile_calls(call, 3)
            assert len(watched) == 3
            for item in watched:
                shapes = [event.shapes[0] for event in item.events if event.name == "aten::convolution"]
                assert shapes and set(shapes) == {(1, 3, 5, 5)}
    assert len({len(item.events) for item in watched}) == 3
