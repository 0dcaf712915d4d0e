"""Integer arguments: NumPy's are accepted; bool, float and text are refused with an error message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import effbench, refusal
from torch import nn

from effbench import api, cost
from effbench.core import inputs
from effbench.core.errors import InvalidValue
from effbench.core.inputs import Input
from effbench.core.study import Case, Experiment, Sampling
from effbench.cost import example_inputs
from effbench.gates import config
from effbench.pytest_plugin import assert_cost
from effbench.studies import plan

LAYER = nn.Conv2d(3, 4, 1, bias=False)
MADDS = 3 * 4 * 8 * 8
"""Of one image of 8 × 8: a product for each pixel, channel in and channel out."""


@pytest.mark.parametrize(
    "shape",
    [
        (np.int64(3), np.int32(8), np.uint8(8)),
        [3, 8, 8],
        torch.Size([3, 8, 8]),
        np.array([3, 8, 8]),
        (3, torch.tensor(8), np.array(8)),
        "3x8x8",
        ["3x8x8:float32"],
        {"input": "3x8x8"},
        Input((np.int64(3), 8, 8), dtype=torch.float32),
        torch.zeros(1, 3, 8, 8),
    ],
)
def test_a_shape_of_any_whole_numbers(shape: Any):
    found = api.profile(LAYER, shape)
    assert found.cost.madds == MADDS
    assert all(type(side) is int for side in found.input_shape)
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    "shape",
    [
        (True, 8, 8), (3, 8.0, 8), (np.float64(3), 8, 8), (np.bool_(True), 8, 8), (3, -8, 8), (3, 0, 8), (3, None, 8),
        (3, torch.tensor(True), 8), (3, torch.tensor(8.0), 8), 224, np.int64(224), 3.5, "3x8x", "", "big", [None],
        Input(8), Input((3, 8.0, 8)), {"input": None}, {"input": 8}, {1: (3, 8, 8)},
        [(3, 8, 8), 8], pytest.param(object(), id="an object"), [[3, [8]]],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_shape_is_refused_in_words(shape: Any):
    for ask in (inputs.as_inputs, lambda given: api.profile(LAYER, given), lambda given: assert_cost(
        LAYER, given, max_params=100)):  # fmt: skip
        with pytest.raises(InvalidValue, match=r"must (be|consist)") as raised:
            ask(shape)
        assert "\n" not in str(raised.value)


def test_a_study_may_be_made_of_numpys_numbers():
    case = Case("probe_groups", (np.int64(8), np.int64(8)), inputs=(Input((np.int64(8),)),))
    assert json.dumps([case.input_shape, case.inputs[0].shape]) == "[[8, 8], [8]]"


@pytest.mark.parametrize("batch", [0, -1, 1.0, 2.5, True, "2", np.int64(0), np.float64(1)])
def test_a_batch_is_a_whole_number_above_zero_everywhere(batch: Any):
    study = Experiment("s", "", "", "a", (1,), 1, (Case("lenet5", (1, 32, 32), labels={"a": 1}),))
    for ask in (
        lambda: api.profile(LAYER, (3, 8, 8), batch=batch),
        lambda: api.profile("lenet5", batch=batch),
        lambda: cost.crosscheck(LAYER, (3, 8, 8), batch=batch),
        lambda: assert_cost(LAYER, (3, 8, 8), batch=batch, max_madds=MADDS),
        lambda: example_inputs.make([Input((3,))], batch, "float32"),
        lambda: plan.make(study, batch=batch),
        lambda: plan.make(Experiment("s", "", "", "a", (1,), 1, (Case("x", (3,), labels={"a": 1}, batch=batch),))),
        lambda: api.measure(LAYER, (3, 8, 8), batch=batch, device="fake"),
        lambda: config.with_options(config.Config(), {"batch": batch}, {}),
    ):
        with pytest.raises(InvalidValue, match=r"batch.* \(=.*must be"):
            ask()


def test_a_batch_of_numpy_is_taken():
    assert api.profile(LAYER, (3, 8, 8), batch=np.int64(2)).cost.madds == 2 * MADDS
    assert assert_cost(LAYER, (3, 8, 8), batch=np.int8(1), max_madds=MADDS).madds == MADDS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launches": 0}, r"launches \(=0\)"),
        ({"launches": 2.5}, r"launches \(=2.5\) must be a whole number"),
        ({"launches": True}, r"launches \(=True\)"),
        ({"budget_s": 0}, r"budget \(=0\)"),
        ({"budget_s": "1m"}, r"budget \(='1m'\)"),
        ({"budget_s": float("nan")}, r"budget \(=nan\)"),
        ({"precision": 0}, r"precision \(=0\)"),
        ({"precision": True}, r"precision \(=True\)"),
        ({"threads": -1}, r"threads \(=-1\)"),
        ({"threads": 1.5}, r"threads \(=1.5\)"),
        ({"threads": None}, r"threads \(=None\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"seed": 0.5}, r"seed \(=0.5\)"),
        ({"seed": True}, r"seed \(=True\)"),
        ({"dtype": ""}, r"no dtype named ''"),
        ({"runtime": ""}, r"no runtime named ''"),
        ({"allocator": ""}, r"no allocator policy named ''"),
        ({"device": ""}, r"no device named ''"),
    ],
)
def test_what_is_zero_or_empty_is_not_taken_for_not_said(options: dict[str, Any], message: str, tmp_path: Path):
    from effbench.core.errors import EffbenchError

    with pytest.raises(EffbenchError, match=message):
        api.measure(LAYER, (3, 8, 8), out=tmp_path / "out", **{"device": "fake", **options})
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_taken_as_options():
    sampling = plan.checked_sampling(Sampling(launches=np.int64(2), budget_s=np.float32(4), precision=np.float64(0.5)))
    assert json.dumps([sampling.launches, sampling.budget_s, sampling.precision]) == "[2, 4.0, 0.5]"


@pytest.mark.parametrize(
    "words",
    [
        "check lenet5 --max-params 1G --launches 0",
        "check lenet5 --max-params 1G --batch 0",
        "check lenet5 --max-params 1G --device=",
        "profile lenet5 --batch 0",
        "aa lenet5 --launches 0",
        "run g2_groups --device fake --launches 0",
        "run g2_groups --device fake --runtime=",
        "compare lenet5 nin --device fake --dtype=",
        "compare lenet5 nin --device fake --batch 0",
        "bundle lenet5 --out made --batch 0",
    ],
)
def test_commands_refuse_zero_and_nothing(words: str, tmp_path: Path):
    refusal(effbench(*words.split(), cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []
