"""Objects that are no models: the error is one line that names the type and the remedy."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import effbench
from effbench.core.errors import EffbenchError, InvalidValue
from effbench.pytest_plugin import assert_cost
from effbench.zoo import check_model

LAYER = nn.Linear(2, 3)


class Net(nn.Module):
    pass


class Plain:
    pass


def build() -> nn.Module:
    return LAYER


def onnx_model() -> Any:
    return pytest.importorskip("onnx").ModelProto()


NONE = {
    "None": (lambda: None, "is None; does the function that builds it return it"),
    "a function": (lambda: build, r"is a function \(build\).*call it: .*\(build\(\)\)"),
    "a lambda": (lambda: lambda: LAYER, "is a function"),
    "a partial": (lambda: functools.partial(build), r"is a function \(build\)"),
    "a compiled function": (lambda: torch.compile(build), "is a function"),
    "a function of torch": (lambda: torch.relu, r"is a function \(relu\)"),
    "a method": (lambda: LAYER.forward, r"is a method of Linear \(forward\)"),
    "a class of networks": (lambda: Net, r"Net is a class.*\(Net\(\)\)"),
    "another class": (lambda: Plain, "Plain is a class, and none of torch.nn.Module"),
    "another object": (Plain, "is of type Plain"),
    "a state dict": (LAYER.state_dict, "is a state dict of 2 tensors; build the network"),
    "a dict": (lambda: {"model": 3}, "is a dict|of type int"),
    "an exported program": (
        lambda: torch.export.export(LAYER, (torch.zeros(1, 2),)),
        r"is an ExportedProgram.*program.module\(\)",
    ),
    "a graph": (lambda: torch.fx.symbolic_trace(LAYER).graph, "is a torch.fx.Graph"),
    "an ONNX model": (onnx_model, "is an ONNX model"),
    "a path": (lambda: Path("nets.py"), "is a path; pass text .*'nets.py:function'"),
    "a tensor": (lambda: torch.zeros(2, 3), r"is a tensor of shape \(2, 3\); the model comes first"),
    "an optimiser": (lambda: torch.optim.SGD(LAYER.parameters()), "is an optimiser"),
    "a number": (lambda: 3, "is of type int"),
    "a generator": (LAYER.parameters, "is of type generator"),
}


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_model_is_told_in_words(case: str):
    make, message = NONE[case]
    given = make()
    for ask in (
        lambda: effbench.profile(given, (2,)),
        lambda: effbench.measure(given, (2,), device="fake"),
        lambda: effbench.compare(LAYER, given, input_shape=(2,), device="fake"),
        lambda: assert_cost(given, (2,), max_params=1),
    ):
        with pytest.raises(EffbenchError, match=message) as raised:
            ask()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("given", [[LAYER, LAYER], (LAYER,)])
def test_several_models_are_compared(given: Any):
    with pytest.raises(InvalidValue, match=r"one network at a time, or use effbench.compare"):
        effbench.profile(given, (2,))


@pytest.mark.parametrize("given", [[], {}, ()])
def test_no_model_at_all(given: Any):
    with pytest.raises(InvalidValue, match=r"no model|is a dict"):
        effbench.measure(given, (2,), device="fake")


def test_modules_of_all_kinds_are_taken():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = [LAYER, torch.fx.symbolic_trace(LAYER), torch.compile(LAYER), torch.jit.script(LAYER)]
    for network in kinds:
        assert check_model.require_model(network) is network
    assert effbench.profile(kinds[1], (2,)).cost.madds == 6


def test_a_model_without_a_shape_has_its_own_and_text_is_a_shape():
    assert effbench.profile("lenet5", None).input_shape == (1, 32, 32)
    assert effbench.profile(LAYER, "2").cost.madds == effbench.profile(LAYER, (2,)).cost.madds == 6
    with pytest.raises(InvalidValue, match=r"input \(=224\) must be a shape"):
        effbench.profile(LAYER, 224)
