"""Precision, memory format, int8 and training: each takes effect, is checked, and is reflected in the costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_of
from torch import nn

import effbench
from effbench import runtimes
from effbench.core.errors import InvalidValue
from effbench.core.study import Case, Cell, Experiment
from effbench.cost import count_in_subprocess
from effbench.cost.count_in_subprocess import CellCosts
from effbench.devices.cpu import Cpu
from effbench.report.run_names import run_names
from effbench.report.tables.table_model import render_markdown
from effbench.results import Results
from effbench.runtimes import Setting, Unsupported, eager, training_step
from effbench.studies.plan import make
from effbench.timing import build_call

pytestmark = pytest.mark.usefixtures("forked_launches")

FLOATS = eager.Eager.dtypes


def order(model: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """One cell as `Recording.cell_spec` describes it."""
    spec = {"id": "cell", "model": model, "arguments": {}, "inputs": [{"shape": [3, 32, 32], "name": "", "dtype": ""}]}
    plain = {"dtype": "float32", "batch": 2, "runtime": "eager", "threads": 1, "memory_format": "contiguous"}
    return {**spec, **plain, "mode": "infer", "folder": str(folder), "calls": None, "cost": {}, **changes}


class Watched(eager.Eager):
    """Eager that keeps the network it was given and what each leaf of it returned."""

    def prepare(self, network: nn.Module, inputs: Any, setting: Setting) -> Any:
        self.network, self.inputs, self.seen = network, inputs, []
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda module, _, output: self.seen.append((module, output)))
        return super().prepare(network, inputs, setting)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    monkeypatch.setattr(runtimes, "get", lambda name: found)
    return found


def prepared(spec: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The call, and what was said of the network."""
    told: dict[str, Any] = {}
    with build_call.inference_mode_for(spec["mode"], Cpu(1)):
        return build_call.prepare(spec, 0, Cpu(1), lambda _, **said: told.update(said["values"])), told


# --- precision and layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mobilenet_v2_x0_15", "resnet18"])
def test_channels_last_holds_all_through_a_convolutional_network(watched: Watched, model: str, tmp_path: Path):
    _, told = prepared(order(model, tmp_path, memory_format="channels_last"))
    (fed,) = watched.inputs[0]
    assert fed.is_contiguous(memory_format=torch.channels_last) and not fed.is_contiguous()
    wide = [(module, output) for module, output in watched.seen if output.dim() == 4 and min(output.shape[1:]) > 1]
    assert len(wide) > 20
    for module, output in wide:
        assert output.is_contiguous(memory_format=torch.channels_last), module
    for module, _ in wide:
        if isinstance(module, nn.Conv2d) and min(module.weight.shape[1:]) > 1:
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= told["output_error"] < 1e-4 and told["output_tolerance"] == 1e-3


def test_a_shuffle_makes_a_layout_contiguous_and_each_convolution_makes_it_channels_last(
    watched: Watched, tmp_path: Path
):
    """A shuffle reorders in a layout of its own; the convolutions on both sides of it are as asked for."""
    prepared(order("shufflenet_v2_x0_5", tmp_path, memory_format="channels_last"))
    dense = [(m, o) for m, o in watched.seen if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(dense) > 20
    assert all(output.is_contiguous(memory_format=torch.channels_last) for _, output in dense)


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_activations_and_output_are_in_the_dtype(watched: Watched, dtype: str, tmp_path: Path):
    call, told = prepared(order("shufflenet_v2_x0_5", tmp_path, dtype=dtype))
    wanted = getattr(torch, dtype)
    assert {weight.dtype for weight in watched.network.parameters()} == {wanted}
    with torch.inference_mode():
        assert call().dtype == wanted
    assert {output.dtype for _, output in watched.seen} == {wanted}
    if dtype == "float32":
        assert "output_error" not in told, "this is what the others are held against"
    else:
        # A half-precision number is rounded to 2^-11 or 2^-8 of it.
        least = {"float64": 0.0, "float16": 2**-13, "bfloat16": 2**-10}[dtype]
        assert least < told["output_error"] < told["output_tolerance"]


def test_the_error_stands_beside_the_speed():
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0})
    probes = {"scale=x1,groups=2": {"output_error": 0.0123, "output_tolerance": 0.1}}
    run = replace(run, launches=(replace(run.launches[0], probes=probes), *run.launches[1:]))
    found = Results(run).tables()[0]
    titles = [column.title for column in found.columns]
    assert [row[titles.index("error vs float32")].text for row in found.rows] == ["–", "1.2e-02"]
    assert Results(run).to_dict()["cells"][1]["prepared"]["output_error"] == 0.0123


def test_runs_are_told_apart_by_layout_and_mode():
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0})

    def changed(**how: str) -> Results:
        return Results(replace(run, results=tuple(replace(r, cell=replace(r.cell, **how)) for r in run.results)))

    several = {1: Results(run), 2: changed(memory_format="channels_last"), 3: changed(mode="train")}
    assert list(map(str, run_names(several).values())) == [
        "1: contiguous, infer",
        "2: channels_last, infer",
        "3: contiguous, train",
    ]


# --- int8 ---------------------------------------------------------------------------------------------


def one_by_one(dtype: str, batch: int = 1) -> Cell:
    """Ten bare 1x1 convolutions, 64 channels to 64 on 56x56."""
    arguments = {"channels": 64, "groups": 1, "blocks": 10, "block": "conv"}
    return Cell(Case("probe_groups", (64, 56, 56), arguments, dtype=dtype, labels={"model": "probe"}), batch=batch)


def test_int8_has_the_elements_of_float32_and_a_byte_for_each():
    """Closed form of the paper: memory access h·w·(c1 + c2) + c1·c2 for a 1x1 convolution."""
    cell = one_by_one("int8", batch=2)
    study = Experiment("made_up", "", "", "model", ("probe",), "probe", (cell.case,))
    planned = make(study)
    counts = CellCosts(planned.cells, planned.sampling.silence_s)
    cost = counts.cost(cell)
    layer = cost.memory_access_levels["layer"]
    assert layer.activations == 10 * 2 * 56 * 56 * (64 + 64) and layer.weights == 10 * 64 * 64
    assert cost.madds == 10 * 2 * 56 * 56 * 64 * 64
    for level, moved in cost.memory_access_levels.items():
        assert (moved.weight_bytes, moved.activation_bytes) == (moved.weights, moved.activations), level
        assert sum(kernel.traffic.bytes for kernel in counts._kernels[cell.id][level]) == moved.bytes
    plain = counts.cost(one_by_one("float32", batch=2))
    assert plain.memory_access == cost.memory_access and plain.memory_access_bytes == 4 * cost.memory_access_bytes
    assert count_in_subprocess._order_of(cell)["dtype"] == "float32", "a stranger's network is counted so as well"


def test_a_profile_of_int8_names_what_can_be_counted():
    with pytest.raises(InvalidValue, match=r"int8.*float32, float64, float16, bfloat16"):
        effbench.profile("shufflenet_v2", dtype="int8")


def test_eager_has_no_int8(tmp_path: Path):
    with pytest.raises(Unsupported, match="eager has no dtype int8; it has float32, float64, float16, bfloat16"):
        prepared(order("resnet18", tmp_path, dtype="int8"))


# --- training -----------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.classifier = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.features(x)) * self.frozen


def seeded(network: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return network().train()


def images(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype),)


def test_a_step_is_forward_backward_and_sgd_with_momentum():
    """Against torch.autograd.grad and the rule written out: v = 0.9 v + g, w = w - rate v. Each call takes the next of
    the inputs, and returns the loss from before its step."""
    network = seeded().double()
    twin = copy.deepcopy(network)
    call = training_step.training_call(network, [images(torch.float64, seed) for seed in (1, 2)])
    # The trial pass before the first step has moved the running statistics of the norm, and nothing else.
    weights = [weight for weight in twin.parameters() if weight.requires_grad]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for seed in (1, 2, 1):
        before = [weight.detach().clone() for weight in network.parameters() if weight.requires_grad]
        loss = twin(*images(torch.float64, seed)).pow(2).mean()
        gradients = torch.autograd.grad(loss, weights)
        assert call().item() == pytest.approx(loss.item(), rel=1e-12)
        momenta = [0.9 * momentum + gradient for momentum, gradient in zip(momenta, gradients, strict=True)]
        after = [weight for weight in network.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, momentum in zip(weights, momenta, strict=True):
                weight -= training_step.LEARNING_RATE * momentum
        for old, new, momentum in zip(before, after, momenta, strict=True):
            assert not torch.equal(old, new)
            torch.testing.assert_close(new - old, -training_step.LEARNING_RATE * momentum, rtol=1e-5, atol=1e-16)
    assert network.frozen == 1


def test_the_norm_of_a_trained_network_is_in_train_mode(watched: Watched, tmp_path: Path):
    call, told = prepared(order("shufflenet_v2_x0_5", tmp_path, mode="train"))
    norm = next(module for module in watched.network.modules() if isinstance(module, nn.BatchNorm2d))
    assert watched.network.training and norm.num_batches_tracked == 2, "the trial pass and the first step"
    call()
    assert norm.num_batches_tracked == 3
    assert all(weight.grad is not None for weight in watched.network.parameters())
    assert told == {}


@pytest.mark.parametrize("memory_format", eager.Eager.memory_formats)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_trains_and_stays_finite(dtype: str, memory_format: str, tmp_path: Path, watched: Watched):
    spec = order("squeezenet1_0", tmp_path, dtype=dtype, memory_format=memory_format, mode="train", batch=1)
    call, _ = prepared(spec)
    assert call().dtype == getattr(torch, dtype)
    assert all(weight.grad.isfinite().all() for weight in watched.network.parameters())


def test_thousands_of_steps_leave_values_where_they_are():
    network = seeded()
    call = training_step.training_call(network, [images()])
    before = copy.deepcopy(network.state_dict())
    first = call().item()
    for _ in range(1000):
        last = call().item()
    assert 0.95 * first < last < first, "it learns, slowly"
    changed = network.state_dict()
    assert not torch.equal(changed["classifier.weight"], before["classifier.weight"]), "also in float32"
    smallest = min(
        weight.grad.abs()[weight.grad != 0].min().item() for weight in network.parameters() if weight.requires_grad
    )
    assert smallest > torch.finfo(torch.float32).tiny, "no denormals"


class Several(Small):
    def forward(self, x: Any) -> Any:
        found = super().forward(x)
        return {"logits": found, "rest": (found.square().sum(), found.argmax(1), None), "count": 3}


class Detached(Small):
    def forward(self, x: Any) -> Any:
        return super().forward(x).detach()


class Bare(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


def test_every_output_of_floats_counts_for_the_loss():
    network = seeded(Several)
    with torch.no_grad():
        found = copy.deepcopy(network)(*images())["logits"]
    loss = training_step.training_call(network, [images()])()
    assert loss.item() == pytest.approx((found.square().mean() + found.square().sum().square()).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Bare, "no parameters to train; use --mode infer"), (Detached, "depends on a parameter.*use --mode infer")],
)
def test_what_cannot_be_trained_says_so(network: type[nn.Module], reason: str):
    with pytest.raises(Unsupported, match=reason):
        training_step.training_call(seeded(network), [images()])


def test_a_batch_norm_over_one_value_has_a_remedy():
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)).train()
    alone = (torch.randn(1, 3, 8, 8),)
    with pytest.raises(Unsupported, match="use --batch 8"):
        training_step.training_call(network, [alone])
    assert training_step.training_call(network, [images()])().isfinite()


@pytest.mark.parametrize("name", [name for name in runtimes.NAMES if "train" not in runtimes.get(name).modes])
def test_what_runs_model_files_has_no_train(name: str, tmp_path: Path):
    runtime = runtimes.get(name)
    if absent := runtime.why_unavailable():
        pytest.skip(absent)
    with pytest.raises(Unsupported, match=f"{name} has no mode train; it has infer"):
        runtime.require(Setting(tmp_path, device=runtime.devices[0], mode="train"))


def test_only_inference_runs_under_inference_mode():
    with build_call.inference_mode_for("infer", Cpu(1)):
        assert torch.is_inference_mode_enabled()
    with build_call.inference_mode_for("train", Cpu(1)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# --- from end to end ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A real training run with everything that can be read beside it, in half precision and channels last."""
    return effbench.measure(
        "lenet5",
        (1, 32, 32),
        mode="train",
        batch=2,
        dtype="bfloat16",
        memory_format="channels_last",
        metrics=("percentiles", "peak_memory"),
        launches=1,
        quick=True,
        out=tmp_path_factory.mktemp("trained") / "run",
    )


def test_a_training_run_measures_and_reads(trained: Results):
    (cell,) = trained.cells
    assert cell.skipped is None and cell.latency is not None
    assert (cell.cell.mode, cell.cell.memory_format, cell.cell.case.dtype) == ("train", "channels_last", "bfloat16")
    assert cell.read("percentiles")["n"] >= 368 or cell.read("percentiles")["p99_high_s"] is None
    assert cell.read("peak_memory")["peak_memory_bytes"] > cell.read("peak_memory")["weights_bytes"]
    assert cell.read("peak_memory")["weights_bytes"] == 2 * cell.cost.params


def test_its_table_says_that_costs_are_of_the_forward_pass(trained: Results):
    text = render_markdown(trained.tables()[0])
    assert "a step multiplies and adds about three times that" in text and "forward, backward and step" in text
    assert "No roofline: counts are of the forward pass, times of a training step." in text
    assert "roofline" not in text.split("\n\n")[1], "no column of bounds"
    (cell,) = trained.to_dict()["cells"]
    assert cell["bounds_s"] is None and cell["paper"]["speed"] is None
    inferred = effbench.profile("lenet5", (1, 32, 32), batch=2, dtype="bfloat16").cost
    assert cell["madds"] == inferred.madds


def test_int8_has_no_peaks_and_says_so(tmp_path: Path):
    results = effbench.measure(
        "lenet5", (1, 32, 32), device="fake", dtype="int8", launches=1, quick=True, out=tmp_path / "run"
    )
    (cell,) = results.cells
    assert cell.bounds_s is None and cell.cost is not None and cell.cost.memory_access_bytes == cell.cost.memory_access
    assert "No roofline: torch has no int8 kernel" in str(results)
