"""ExecuTorch with XNNPACK: what it delegates as the model file itself says, int8, its one thread pool."""

from __future__ import annotations

import copy
import gc
import importlib.util
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effbench import runtimes
from effbench.runtimes import Prepared, Setting, Unsupported

pytest.importorskip("executorch")

from effbench.runtimes.executorch import _Session

EXECUTORCH = runtimes.get("executorch")


class Splitting(nn.Module):
    """A split between two convolutions, token numbers as a second input, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.words = nn.Embedding(2, 6)

    def forward(self, image: Tensor, words: Tensor) -> dict[str, Any]:
        kept, worked = self.stem(image).chunk(2, dim=1)
        return {"features": torch.cat((kept, self.depthwise(worked)), dim=1), "more": [self.words(words)]}


def flat(outputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return [outputs["features"].numpy(), outputs["more"][0].numpy()]


def errors(expected: list[np.ndarray[Any, Any]], found: Any) -> list[float]:
    assert [array.shape for array in found] == [array.shape for array in expected]
    return [float(np.abs(one - other).max() / np.abs(other).max()) for one, other in zip(found, expected, strict=True)]


@dataclass(frozen=True)
class Exported:
    network: nn.Module
    inputs: list[tuple[Tensor, Tensor]]
    setting: Setting
    prepared: Prepared


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exported in float32 as a worker does it, once: the import and the export take seconds."""
    torch.manual_seed(0)
    setting = Setting(tmp_path_factory.mktemp("executorch") / "cell")
    with torch.inference_mode():
        network = Splitting().eval()
        inputs = [(torch.randn(2, 3, 9, 7), torch.randint(0, 2, (2, 4))) for _ in range(2)]
        prepared = EXECUTORCH.prepare(network, inputs, setting)
    return Exported(network, inputs, setting, prepared)


def test_the_model_file_says_the_same_of_what_was_delegated(exported: Exported) -> None:
    """The instructions of the serialised program, which the runtime executes, against our walk over the graph."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    assert {path.name for path in exported.setting.folder.iterdir()} == {"model.pte", "export.json"}
    plan = deserialize_pte_binary((exported.setting.folder / "model.pte").read_bytes()).program.execution_plan[0]
    instructions = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    kernels = Counter(
        plan.operators[each.op_index].name.removeprefix("aten::")
        for each in instructions
        if isinstance(each, KernelCall)
    )
    facts = exported.prepared.facts
    assert facts["outside"] == kernels == {"split_with_sizes_copy": 1, "embedding": 1}
    assert facts["pieces"] == sum(isinstance(each, DelegateCall) for each in instructions) == 2
    # convolution, norm and ReLU before the split; convolution and concat after it.
    assert facts["operators"] == 3 + 2 + 2


def test_int8_says_how_and_stays_near(exported: Exported, tmp_path: Path) -> None:
    setting, network = replace(exported.setting, folder=tmp_path, dtype="int8"), exported.network
    weights = copy.deepcopy(network.state_dict())
    generator = torch.get_rng_state()
    with torch.inference_mode():
        prepared = EXECUTORCH.prepare(network, exported.inputs, setting)
        image, words = errors(flat(network(*exported.inputs[0])), prepared.call())
    # Eight bits leave a rounding of 1/256 of the range a layer; the embedding is not quantised.
    assert 1e-4 < image < 0.05 and words == 0
    facts = prepared.facts
    assert facts["quantisation"] == "static (PT2E), symmetric int8 per channel, ranges of 5 inputs"
    assert facts["pieces"] == 2 and facts["outside"] == exported.prepared.facts["outside"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_inputs_are_given_anew_in_each_call(exported: Exported) -> None:
    """The memory plan reuses their place: set once, a second call would compute on what the first one left there."""
    image, words = (tensor.numpy().copy() for tensor in exported.inputs[0])
    call = EXECUTORCH.open(exported.setting).bind((image, words))  # type: ignore[attr-defined]
    first, again = copy.deepcopy(call()), copy.deepcopy(call())
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    image *= -1
    assert not np.array_equal(call()[0], first[0])


def test_outputs_keep_the_model_alive(exported: Exported) -> None:
    """They are its own memory, which a model that nothing else holds would give back."""
    session = EXECUTORCH.open(exported.setting)  # type: ignore[attr-defined]
    held = weakref.ref(session)
    features = session.bind(tuple(tensor.numpy() for tensor in exported.inputs[0]))()[0][:, :2]
    del session
    gc.collect()
    assert held() is not None
    del features
    gc.collect()
    assert held() is None


def test_the_pool_belongs_to_the_process(exported: Exported) -> None:
    assert exported.prepared.facts["threads"] == 1
    with pytest.raises(Unsupported, match=r"^executorch computes with 1 threads in this process already; measure 2 in"):
        EXECUTORCH.load([], replace(exported.setting, threads=2))  # type: ignore[attr-defined]
    assert _Session.pool_threads == 1


def test_without_torch_the_reason_is_said(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest)
    )
    with pytest.raises(Unsupported, match=r"needs torch; pip install torch, or run model\.pte with executor_runner$"):
        EXECUTORCH.open(exported.setting)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_half_a_file_is_refused(kept: float, exported: Exported, tmp_path: Path) -> None:
    content = (exported.setting.folder / "model.pte").read_bytes()
    (tmp_path / "model.pte").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(Unsupported, match=r"^executorch cannot load model\.pte: .{5}") as error:
        EXECUTORCH.open(replace(exported.setting, folder=tmp_path))  # type: ignore[attr-defined]
    assert "\n" not in str(error.value)
