"""Error messages for models that do not run: the first line of their error, and a hint only if the hint helps.

Every error is one that torch raises, on meta and on values. Where a hint names an input, the network runs on it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from effbench.core import inputs as core_inputs
from effbench.core.errors import ModelError
from effbench.cost import example_inputs, explain_failure

pytestmark = pytest.mark.quick


class Runs(nn.Module):
    """Runs a function of its input."""

    def __init__(self, function: Callable[[torch.Tensor], Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        _, length = input_ids.shape
        return self.table(input_ids)[:, :length]


class Two(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + mask


def failure(network: nn.Module, inputs: tuple[core_inputs.Input, ...], device: str, batch: int = 1) -> Exception | None:
    args, named = example_inputs.make(inputs, batch, "float32", device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy.deepcopy(network).to(device)(*args, **named)
    except Exception as error:
        return error
    return None


CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
MENDED = {
    "an embedding": (lambda: nn.Embedding(2, 4), "128", "128:int64"),
    "named tokens": (Tokens, "input_ids=128", "input_ids=128:int64"),
    "rows of a table": (lambda: Runs(lambda x: torch.zeros(2, 2, device=x.device)[x]), "8", "8:int64"),
    "classes": (lambda: Runs(lambda x: F.one_hot(x, 2)), "8", "8:int64"),
    "gather": (lambda: Runs(lambda x: torch.zeros(1, 8, device=x.device).gather(1, x)), "8", "8:int64"),
    "take": (lambda: Runs(lambda x: torch.zeros(1, 8, device=x.device).take(x)), "8", "8:int64"),
    "an image with the batch": (lambda: CONV, "8x3x9x9", "3x9x9"),
    "one image with the batch": (lambda: CONV, "1x3x9x9", "3x9x9"),
    "a signal with the batch": (lambda: nn.Conv1d(3, 4, 1), "8x3x9", "3x9"),
    "a clip with the batch": (lambda: nn.Conv3d(3, 4, 1), "2x3x4x4x4", "3x4x4x4"),
    "tokens with the batch": (Tokens, "input_ids=8x128:int64", "input_ids=128:int64"),
    "channels last": (lambda: CONV, "9x9x3", "3x9x9"),
    "a signal with channels last": (lambda: nn.Conv1d(3, 4, 1), "9x3", "3x9"),
    "no channels": (lambda: CONV, "9x9", "3x9x9"),
    "another number of channels": (lambda: CONV, "1x9x9", "3x9x9"),
    "a first linear layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), "3x224x224", "6"),
}


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("case", MENDED)
def test_a_hint_names_an_input_on_which_the_network_runs(case: str, device: str):
    build, given, mended = MENDED[case]
    inputs = core_inputs.as_inputs([given])
    error = failure(build(), inputs, device)
    assert error is not None
    said = explain_failure.explain(error, explain_failure.facts_of(build()), inputs)
    hinted = re.search(r"; .*--input (\S+?)( --batch \d+)?$", said)
    assert hinted and hinted[1] == mended, said
    assert failure(build(), core_inputs.as_inputs([hinted[1]]), device) is None
    assert str(error).splitlines()[0][:80].rstrip(".") in said, "in the network's own words"


def test_the_batch_goes_where_it_belongs():
    inputs = core_inputs.as_inputs(["8x3x9x9"])
    error = failure(CONV, inputs, "meta")
    assert error is not None
    assert explain_failure.explain(error, explain_failure.facts_of(CONV), inputs).endswith("--input 3x9x9 --batch 8")


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("network", "given"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 2)), "3x20x20"),
        (nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2)), "3x2x2"),
        (nn.LSTM(8, 4), "5x9"),
        (Runs(lambda x: x["ids"]), "3"),
    ],
)
def test_other_inputs_are_asked_for_where_they_are_the_cause(network: nn.Module, given: str, device: str):
    inputs = core_inputs.as_inputs([given])
    error = failure(network, inputs, device)
    assert error is not None
    said = explain_failure.explain(error, explain_failure.facts_of(network), inputs)
    assert said.endswith("; give the inputs it was built for (--input)"), said


@pytest.mark.parametrize(
    "code",
    ["x.nope", "{}['shape']", "{}[0]", "1 / 0", "open('/no/such/shape')", "__import__('no_such_input')", "size",
     "raise_(AssertionError())", "raise_(RuntimeError('call setup() first'))",
     "raise_(NotImplementedError('the image branch'))", "len(None)", "None.shape", "x(3)"],
)  # fmt: skip
def test_another_input_is_not_asked_for_where_it_mends_nothing(code: str):
    def raise_(error: Exception) -> None:
        raise error

    network = Runs(lambda x: eval(code, {"x": x, "raise_": raise_}))
    inputs = core_inputs.as_inputs(["3"])
    error = failure(network, inputs, "cpu")
    assert error is not None
    said = explain_failure.explain(error, explain_failure.facts_of(network), inputs)
    assert "--input" not in said and "\n" not in said, said


def test_inputs_that_are_missing_are_named():
    inputs = core_inputs.as_inputs(["3"])
    error = failure(Two(), inputs, "meta")
    assert error is not None
    said = explain_failure.explain(error, explain_failure.facts_of(Two()), inputs)
    assert "its forward takes x, mask: give an --input for each" in said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError(0), "KeyError: 0"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("one\ntwo"), "one"),
        (RuntimeError("Errors in loading:\n\tMissing key"), "Errors in loading: Missing key"),
        (ModelError("already in words."), "already in words"),
        (ValueError("  a\tb  "), "a b"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("x" * 5000), "x" * 300 + "…"),
        (
            RuntimeError(
                "The following operation failed in the TorchScript interpreter.\nTraceback:\nRuntimeError: no"
            ),
            "no",
        ),
    ],
)
def test_a_reason_is_one_line(error: Exception, reason: str):
    assert explain_failure.one_line(error) == reason


def test_a_scripted_network_bears_its_own_name_and_too_little_memory_is_no_wrong_input():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Conv2d(3, 4, 1))
    facts = explain_failure.facts_of(scripted)
    assert facts.name == "Conv2d"
    assert "smaller --batch" in explain_failure.advice(
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), facts, ()
    )
