"""fvcore and torch's own counter beside ours: equal, or different by an amount that is worked out and named."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from effbench import zoo
from effbench.cost import Check, crosscheck


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        return x @ weight


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6)

    def forward(self, x: Any) -> Any:
        return self.linear(Product.apply(x, self.weight))


class MatrixVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: Any) -> Any:
        return x[0] @ self.weight


def rows(model: nn.Module, shape: Any) -> dict[str, Check]:
    return {check.counter: check for check in crosscheck(model, shape)}


def test_resnet18_differs_from_fvcore_by_its_norms_alone() -> None:
    model = zoo.build("resnet18")
    found = rows(model, (3, 224, 224))
    norms = 2 * (64 * 112**2 + 4 * 64 * 56**2 + 5 * (128 * 28**2 + 256 * 14**2 + 512 * 7**2))
    assert dict(found["fvcore"].parts) == {"counts batch_norm": norms, "counts adaptive_avg_pool2d": 512 * 49}
    assert found["fvcore"].difference == norms + 512 * 49
    assert found["fvcore"].activations == found["fvcore"].ours_activations
    assert (found["torch"].difference, found["torch"].reason) == (0, "equal")
    assert all(check.unexplained == 0 for check in found.values())


@pytest.mark.parametrize(
    ("model", "shape", "fvcore"),
    [
        (nn.Conv2d(3, 4, 3, padding="same"), (3, 8, 8), {"does not see aten::_convolution_mode": -64 * 4 * 27}),
        (nn.LSTM(6, 5), (7, 6), {"does not see aten::lstm": -7 * 20 * 11}),
        (Custom(), (6,), {"does not see prim::PythonOp.Product": -36}),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (5, 8),
            {"counts layer_norm": 2 * 5 * 40, "does not see aten::scaled_dot_product_attention": -2 * 25 * 8},
        ),
        (nn.GroupNorm(2, 8), (8, 4, 4), {"counts group_norm": 5 * 128}),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8), {}),
    ],
)
def test_every_difference_to_fvcore_has_its_cause(model: nn.Module, shape: Any, fvcore: dict[str, int]) -> None:
    found = rows(model, shape)
    assert dict(found["fvcore"].parts) == fvcore
    assert found["fvcore"].unexplained == 0
    assert found["torch"].difference == 0


def test_what_torchs_counter_does_not_see() -> None:
    found = rows(MatrixVector(), (5, 6))
    assert dict(found["torch"].parts) == {"does not see mv": -30}
    assert found["torch"].unexplained == 0


def test_a_difference_without_cause_is_said_to_be_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[crosscheck.__module__], "FVCORE_BLIND", frozenset())
    check = rows(nn.LSTM(6, 5), (7, 6))["fvcore"]
    assert check.unexplained == -1540
    assert "unexplained (−1,540)" in check.reason


def test_a_missing_or_failing_counter_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no luck\ntrace")

    monkeypatch.setattr("torch.utils.flop_counter.FlopCounterMode", broken)
    found = rows(nn.Linear(3, 4), (3,))
    assert found["fvcore"].madds is None and found["fvcore"].difference is None
    assert "pip install fvcore" in found["fvcore"].reason
    assert found["torch"].reason == "torch fails: no luck"
    assert found["torch"].ours == 12


def test_a_meta_model_is_checked_too_and_nothing_changes() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.train()
    found = rows(model, (3, 6, 6))
    assert found["fvcore"].madds == 16 * 8 * 27 + 2 * 128
    assert model.training and all(parameter.is_meta for parameter in model.parameters())
