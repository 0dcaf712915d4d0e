"""A tensor is an example input: its batch, its dtype and its values are counted and timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import UNTIMED_LAUNCHES, forked
from torch import nn

import effbench
from effbench import api, cost
from effbench.core import inputs as core_inputs
from effbench.core.errors import EffbenchError, InvalidValue
from effbench.core.inputs import Input
from effbench.cost import example_inputs
from effbench.timing import in_process

MARKED = """
import torch
from torch import nn


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        if float(x[0, 0]) != 7.0:
            raise ValueError("these are other values")
        return self.linear(x)
"""


class Repeats(nn.Module):
    """As many products as its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x[0, 0].item())):
            x = self.linear(x)
        return x


class Selects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.table(ids)[mask])
        return out


def first_is(value: float, *shape: int) -> torch.Tensor:
    found = torch.zeros(shape)
    found.view(-1)[0] = value
    return found


# --- counting -----------------------------------------------------------------------------------------


def test_a_tensor_is_counted_with_its_batch_and_its_dtype():
    network = nn.Conv2d(3, 8, 1)
    single = effbench.profile(network, (3, 4, 4))
    found = effbench.profile(network, torch.randn(8, 3, 4, 4))
    assert (found.batch, found.dtype, found.input_shape) == (8, "float32", (3, 4, 4))
    assert found.cost.madds == 8 * single.cost.madds == 8 * 3 * 8 * 16
    assert effbench.profile(network, torch.randn(8, 3, 4, 4, dtype=torch.float16)).dtype == "float16"
    assert effbench.profile(network, torch.randn(8, 3, 4, 4), dtype="bfloat16").dtype == "bfloat16"
    assert effbench.profile(network, torch.randn(8, 3, 4, 4), batch=8).batch == 8
    assert effbench.profile("mobilenet_v1", torch.randn(2, 3, 32, 32)).batch == 2


def test_a_batch_that_is_not_that_of_the_tensor_is_refused_in_one_line():
    with pytest.raises(InvalidValue, match=r"^batch \(=4\) is not that of the tensors \(8, .*leave out batch"):
        effbench.profile(nn.Linear(3, 3), torch.zeros(8, 3), batch=4)
    with pytest.raises(InvalidValue, match="is not that of the tensors"):
        effbench.measure(nn.Linear(3, 3), torch.zeros(8, 3), batch=4, device="fake")
    with pytest.raises(InvalidValue, match="batches of 8 and 4"):
        effbench.profile(nn.Linear(3, 3), [torch.zeros(8, 3), torch.zeros(4, 3)])


@pytest.mark.parametrize("times", [1, 3])
def test_control_flow_follows_the_values(times: int):
    found = effbench.profile(Repeats(), first_is(times, 2, 4))
    assert found.cost.madds == times * 2 * 4 * 4
    assert found.cost.traced_on == "cpu"


def test_masks_and_indices_are_the_given_ones():
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :3] = True
    ids = torch.full((2, 6), 9)
    assert effbench.profile(Selects(), {"ids": ids, "mask": mask}).cost.madds == 3 * 4 * 4
    assert effbench.profile(Selects(), [ids, ~mask]).cost.madds == 9 * 4 * 4


def test_the_callers_tensor_is_left_as_it_is():
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.add_(1)
            return x if bool(x.sum() > 0) else 2 * x

    given = torch.zeros(2, 4)
    effbench.profile(Writes(), given)
    cost.count(Writes(), given)
    in_process.prepare(Writes(), given).call()
    assert float(given.abs().sum()) == 0


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(8, 4, 3).transpose(1, 2),
        torch.zeros(8, 3, 4, requires_grad=True),
        torch.zeros(8, 3, 4, requires_grad=True) * 2,
        nn.Parameter(torch.zeros(8, 3, 4)),
        torch.zeros(1, 3, 4).expand(8, 3, 4),
        torch.zeros(8, 3, 4, device="meta"),
        np.zeros((8, 3, 4), dtype=np.float32)[::-1],
        np.zeros((8, 3, 4), dtype=">f4"),
        [torch.zeros(8, 3, 4)],
        {"input": torch.zeros(8, 3, 4)},
    ],
    ids=["strided", "leaf", "history", "parameter", "expanded", "meta", "backwards", "big-endian", "list", "named"],
)
def test_every_kind_of_dense_tensor_is_the_same_input(given: Any):
    found = cost.profile(nn.Linear(4, 5), given)
    assert (found.batch, found.dtype, found.cost.madds) == (8, "float32", 8 * 3 * 4 * 5)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*nested tensors is in prototype:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning", "ignore:.*quantized.*deprecated.*:UserWarning")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: torch.tensor(3.0), "without dimensions"),
        (lambda: {"t": torch.tensor(3)}, "without dimensions"),
        (lambda: torch.zeros(0, 3), "must be 1 or more"),
        (lambda: torch.zeros(2, 0, 3), "positive integers"),
        (lambda: torch.eye(3).to_sparse(), "sparse .*to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse .*to_dense"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]), "nested"),
        (lambda: [[torch.zeros(2, 3)]], "not a list of tensors"),
        (lambda: np.zeros((2, 3), dtype=np.uint16), "must be one of"),
        (lambda: np.array([["a"]]), "must be one of"),
    ],
)
def test_what_is_no_example_input_is_refused_in_one_line(given: Any, message: str):
    with pytest.raises(InvalidValue, match=message) as caught:
        effbench.profile(nn.Linear(3, 3), given())
    assert "\n" not in str(caught.value)


def test_a_shape_and_an_input_still_mean_without_the_batch():
    assert effbench.profile(nn.Linear(3, 3), (3,), batch=5).cost.madds == 5 * 9
    assert effbench.profile(nn.Linear(3, 3), np.array([7, 3])).cost.madds == 7 * 9
    assert core_inputs.normalise([Input((3,)), torch.zeros(4, 3)]).batch == 4


# --- on their way to other processes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [torch.randn(3, 2), torch.arange(6).reshape(3, 2) > 2, torch.randn(3, 2, dtype=torch.bfloat16)]
)
def test_a_stored_tensor_is_read_back_or_refused(tmp_path: Path, given: torch.Tensor):
    (item,) = example_inputs.store_values(core_inputs.normalise(given.T.contiguous().T), tmp_path)
    (back,), _ = example_inputs.make([item], 3, str(given.dtype).removeprefix("torch."))
    assert torch.equal(back, given)
    assert item.sha256 == example_inputs.digest(given)
    torch.save(torch.ones_like(given) if given.dtype != torch.bool else ~given, item.values)
    with pytest.raises(EffbenchError, match="does not hold the tensor"):
        example_inputs.make([item], 3, "float32")
    Path(item.values).unlink()
    with pytest.raises(EffbenchError, match=r"Python session that has ended \(SHA-256"):
        example_inputs.make([item], 3, "float32")


def test_the_digest_tells_dtype_shape_and_values():
    told = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, 3)]
    assert len(set(map(example_inputs.digest, told))) == len(told)


def test_a_measurement_runs_on_the_tensor_and_stores_what_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(UNTIMED_LAUNCHES, "1")
    (tmp_path / "marked.py").write_text(MARKED)
    given, run = first_is(7, 3, 16), tmp_path / "run"
    with forked():
        found = effbench.measure(f"{tmp_path}/marked.py:Marked", given, launches=1, budget_s=1.0, out=run)
    (result,) = found.run.results
    assert result.skipped is None
    assert result.blocks
    assert (result.cell.batch, result.cost and result.cost.madds) == (3, 3 * 16 * 16)
    (item,) = result.cell.case.inputs
    assert (item.shape, item.sha256) == ((16,), example_inputs.digest(given))
    # As if it had been interrupted, and its session had ended.
    path = run / "run.jsonl"
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["kind"] not in ("complete", "end")]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(EffbenchError, match=rf"SHA-256 {item.sha256[:12]}.*measure it again there"):
        api.resume(run)


def test_a_run_on_described_inputs_is_stored_as_it_always_was(tmp_path: Path):
    found = effbench.measure("mobilenet_v1", {"x": (3, 32, 32)}, device="fake", launches=1, out=tmp_path / "run")
    header = json.loads((tmp_path / "run" / "run.jsonl").read_text().splitlines()[0])
    assert header["experiment"]["cases"][0]["inputs"] == [{"shape": [3, 32, 32], "name": "x", "dtype": ""}]
    assert found.run.results[0].cell.case.batch is None


def test_a_module_in_this_process_is_called_with_the_tensor():
    given = torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    prepared = in_process.prepare(nn.Identity(), given)
    assert torch.equal(prepared.call(), given)  # type: ignore[arg-type]
    assert prepared.call() is not given
    with pytest.raises(InvalidValue, match="is not that of the tensors"):
        in_process.prepare(nn.Identity(), given, batch=3)


def test_a_bundle_keeps_the_values(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = torch.randn(2, 1, 32, 32)
    effbench.bundle(["lenet5"], tmp_path / "bundle", runtime="onnxruntime", input_shape=given)
    (kept,) = (tmp_path / "bundle").rglob("inputs.npz")
    assert np.array_equal(np.load(kept)["arr_0"], given.numpy())
    with pytest.raises(InvalidValue, match="is not that of the tensors"):
        effbench.bundle(["lenet5"], tmp_path / "other", runtime="onnxruntime", input_shape=given, batch=3)


def test_a_seed_stands_for_its_values():
    def values(seed: int | torch.Generator) -> torch.Tensor:
        (tensor,), _ = example_inputs.make((Input((4,)),), 2, "float32", "cpu", seed)
        return tensor

    assert torch.equal(values(3), values(3)) and not torch.equal(values(3), values(0))
    drawn = torch.Generator().manual_seed(3)
    assert torch.equal(values(drawn), values(3)) and not torch.equal(values(drawn), values(3)), "it is drawn from"
