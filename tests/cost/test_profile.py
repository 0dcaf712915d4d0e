"""The guarantees of `profile`: the model is unchanged, errors are one line, unknown operators are named."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import unchanged
from torch import nn
from torch.nn import functional

from effbench.core.errors import EffbenchError, InvalidValue, ModelError
from effbench.cost import count, profile


class Messy(nn.Module):
    """Keeps state in every way a forward pass can: buffers, caches, lists, weights written in place, random numbers."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.again = self.conv
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 8)
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[Any] = []
        self.cache: Any = None
        self.grid = torch.arange(3.0)
        self.fails = fails
        self.conv.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.cache = x
        self.seen.append(x.shape)
        self.conv.weight.mul_(2)
        self.extra, self.fresh = nn.Linear(2, 2), 1
        torch.rand(3)
        torch.set_default_dtype(torch.float64)
        y = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        y = self.attention(y, y, y, need_weights=False)[0] + functional.scaled_dot_product_attention(y, y, y)
        y = functional.dropout(self.lstm(y)[0], 0.5, training=True)
        if self.fails == "always" or (self.fails == "on meta" and y.is_meta):
            raise ValueError("broken on purpose\nsecond line")
        return y


@pytest.mark.parametrize("fails", ["", "on meta", "always"])
@pytest.mark.parametrize("device", ["meta", "real", "auto"])
@pytest.mark.parametrize("counted", [profile, count])
def test_nothing_is_changed(fails: str, device: Any, counted: Any) -> None:
    """Neither by a child process nor by a count in this one."""
    model = Messy(fails)
    model.norm.eval()  # partly frozen, as in fine-tuning
    with unchanged(model):
        if fails == "always":
            with pytest.raises(ModelError):
                counted(model, (3, 6, 6), device=device)
        else:
            cost = counted(model, (3, 6, 6), device=device).cost
            # One that fails on meta believes itself on the CPU.
            assert cost.traced_on == ("meta" if device != "real" else "cpu")
    assert model.seen == [] and model.cache is None


@pytest.mark.parametrize("counted", [profile, count])
@pytest.mark.parametrize("training", [True, False])
def test_torchscript_is_left_in_its_mode(counted: Any, training: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))).train(training)
    counted(model, (3,), batch=2)
    assert [part.training for part in model.modules()] == [training] * 3
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize("counted", [profile, count])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_attention_fast_path_is_left_as_it_was(enabled: bool, counted: Any) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(enabled)
        counted(nn.Linear(3, 4), (3,))
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_what_the_model_shares_stays_shared_while_it_is_counted() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.one.log = self.two.log = [self.one.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.two.weight is self.one.weight is self.one.log[0] and self.one.log is self.two.log
            return self.two(self.one(x))

    assert profile(Shares(), (4,), device="meta").cost.params == 16 + 4 + 4


def test_writing_into_a_tensor_made_on_the_cpu_needs_real_tensors() -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.zeros(1, 4)
            y[:] = x
            return y.nonzero()

    assert profile(Writes(), (4,)).cost.traced_on == "cpu"


def test_a_failing_network_is_one_line_with_the_first_line_of_its_reason() -> None:
    with pytest.raises(ModelError) as caught:
        profile(Messy("always"), (3, 6, 6))
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("Messy", "1x3x6x6", "broken on purpose", "input"))
    assert "second line" not in message


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        (nn.Conv2d(3, 8, 3), (4, 8, 8), {}),
        (nn.Linear(3, 4), (), {}),
        (nn.LazyLinear(3), (4,), {}),
        (nn.Embedding(5, 3), (4,), {}),
        (nn.Linear(3, 4), (3,), {"dtype": "int3"}),
        (nn.Linear(3, 4), (0,), {}),
        (nn.Linear(3, 4), (3.0,), {}),
        (nn.Linear(3, 4), (3,), {"batch": 0}),
        (nn.Linear(3, 4).to("meta"), (3,), {"device": "real"}),
    ],
)
def test_mistakes_are_errors_for_people(model: nn.Module, shape: Any, options: dict[str, Any]) -> None:
    with pytest.raises(EffbenchError) as caught:
        profile(model, shape, **options)
    assert isinstance(caught.value, (ModelError, InvalidValue))
    assert "\n" not in str(caught.value)


def test_an_operator_without_formula_is_named_and_its_traffic_counted() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(torch.linalg.inv(x))

    cost = profile(Spectrum(), (4, 4)).cost
    assert cost.status == "partial"
    assert dict(cost.uncounted) == {"linalg_inv_ex": 2}
    assert cost.madds == 0
    assert cost.memory_access > 2 * 32 - 1


def test_custom_operators_are_named() -> None:
    @torch.library.custom_op("effbench_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(x)

    cost = profile(Custom(), (4, 4)).cost  # no fake implementation: only real tensors will do
    assert (cost.status, cost.traced_on) == ("partial", "cpu")
    assert dict(cost.uncounted) == {"effbench_tests::twice": 1}
    twice.register_fake(torch.empty_like)
    cost = profile(Custom(), (4, 4)).cost
    assert (cost.status, cost.traced_on, cost.memory_access) == ("partial", "meta", 32)


def test_the_json_contract() -> None:
    found = profile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 6, 6), batch=2)
    plain = json.loads(json.dumps(found.to_dict(layers=True)))
    assert plain["input_shape"] == [3, 6, 6]
    assert {"model", "dtype", "params", "madds", "activations", "memory_access", "memory_access_bytes"} <= set(plain)
    assert set(plain["memory_access_levels"]) == {"layer", "eager", "pointwise", "epilogue"}
    assert plain["status"] == "complete"
    assert [(layer["name"], layer["op"]) for layer in plain["layers"]] == [("0", "convolution"), ("1", "relu")]
    assert sum(layer["memory_access"] for layer in plain["layers"]) == plain["memory_access"]
    assert "layers" not in found.to_dict()
    frame = found.to_frame()
    assert list(frame["name"]) == ["0", "1"]
    assert frame["madds"].sum() == found.cost.madds


def test_several_inputs_and_given_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor]) -> torch.Tensor:
            return x + more["y"]

    given = (torch.ones(2, 3), {"y": torch.ones(2, 3)})
    assert profile(Sum(), (3,), inputs=given).cost.memory_access == 18
    assert torch.equal(given[0], torch.ones(2, 3))
    assert profile(nn.Bilinear(2, 3, 4), [(2,), (3,)]).input_shape == ((2,), (3,))


def test_module_paths_reuse_and_layers_made_in_forward() -> None:
    class Reuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4))
            self.same = self.block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.Softmax(-1)(self.same(self.block(x)))

    ops = profile(Reuse(), (4,)).ops
    assert [(op.module, op.call) for op in ops if op.kind == "matmul"] == [("block.0", 1), ("block.0", 2)]
    assert ops[-1].module == "(Softmax)"


def test_a_module_whose_error_is_caught_is_left() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.block(x)
            except RuntimeError:
                return x + 1

    assert [(op.module, op.op) for op in profile(Catches(), (4,)).ops] == [("", "add")]


def test_large_images_cost_no_memory() -> None:
    script = """
import resource, torch
from torch import nn
from effbench.cost import profile
profile(nn.Conv2d(3, 4, 3), (3, 8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(True), nn.Conv2d(64, 64, 3, padding=1))
cost = profile(net, (3, 4096, 4096)).cost
print(cost.madds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    madds, grown = map(int, done.stdout.split())
    assert madds == 4096**2 * 9 * (3 * 64 + 64 * 64)
    assert grown < 2**20  # kilobytes; one activation alone would be 4 GiB


def test_a_float_result_does_not_depend_on_what_was_counted_before() -> None:
    class Scale(nn.Module):
        def __init__(self, by: Any) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.by

    tokens = (torch.ones(2, 3, dtype=torch.int64),)
    sizes = [profile(Scale(by), (3,), inputs=tokens).cost.memory_access_bytes for by in (1, 1.0, True, 1)]
    assert sizes == [96, 48 + 24, 96, 96]


Factory = Callable[[], nn.Module]


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU())])
def test_counting_twice_gives_the_same(build: Factory) -> None:
    model = build()
    assert profile(model, (4,)) == profile(model, (4,))


WIDE = ("wide",)


class Choosing(nn.Module):
    """Asks for an object itself, not for its like."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = WIDE
        self.narrow, self.wide = nn.Linear(8, 8), nn.Linear(8, 80)

    def forward(self, x: torch.Tensor) -> Any:
        return self.wide(x) if self.mode is WIDE else self.narrow(x)


class Growing(nn.Module):
    """Two modules that share their registry of modules, as copy.copy leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8))
        self.view = copy.copy(self.net)

    def forward(self, x: torch.Tensor) -> Any:
        if len(self.net) == 1:
            self.net.append(nn.Linear(8, 80))
        return self.view(x)


@pytest.mark.parametrize(("network", "madds"), [(Choosing(), 640), (Growing(), 64 + 640)])
def test_a_lent_network_still_holds_what_it_held(network: nn.Module, madds: int) -> None:
    for counted in (profile, count):
        assert counted(network, (8,)).cost.madds == madds
