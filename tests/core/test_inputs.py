"""Inputs and outputs of models: several tensors, by name, integers, dictionaries, dataclasses, value-dependent ones.

Counts are checked against the closed forms of the networks, written out beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import UNTIMED_LAUNCHES
from shell import effbench
from torch import nn

from effbench import api, cost, zoo
from effbench.cli import options
from effbench.core import inputs as core_inputs
from effbench.core.errors import EffbenchError, InvalidValue, ModelError
from effbench.core.inputs import Input
from effbench.cost import example_inputs
from effbench.cost.trace import trace
from effbench.runs import run_file

pytestmark = pytest.mark.usefixtures("forked_launches")

NETS = '''
from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import nn

Pair = namedtuple("Pair", "first second")

@dataclass
class Out:
    logits: torch.Tensor
    hidden: torch.Tensor


class Two(nn.Module):
    """A text and an image: 128 tokens of width 8 through a linear layer of 4, and 3 channels through 2."""
    def __init__(self):
        super().__init__()
        self.words, self.head, self.image = nn.Embedding(10, 8), nn.Linear(8, 4), nn.Conv2d(3, 2, 1)
    def forward(self, image, ids, mask=None):
        text = self.head(self.words(ids))
        if mask is not None:
            text = text * mask
        return {"text": text, "rest": Out(text + 1, self.image(image))}


class Counted(nn.Module):
    """Looks at a value: a linear layer of 6 by 5 once or twice."""
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)
    def forward(self, x):
        out = self.layer(x)
        if x.sum() * 0 + 1 > 0:
            out = out + self.layer(x)
        return Pair(out, out * 2)


@torch.library.custom_op("effbench_inputs::known", mutates_args=())
def known(x: torch.Tensor) -> torch.Tensor:
    return x.sin()

@known.register_fake
def _(x):
    return torch.empty_like(x)

@torch.library.custom_op("effbench_inputs::bare", mutates_args=())
def bare(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


class Custom(nn.Module):
    def __init__(self, op="known"):
        super().__init__()
        self.layer, self.op = nn.Linear(6, 5), getattr(torch.ops.effbench_inputs, op)
    def forward(self, x):
        return self.op(self.layer(x))


class Split(nn.Module):
    """Its second half has no values."""
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, device="cpu"), nn.Linear(5, 4, device="meta")
    def forward(self, x):
        if x.sum() > 0:
            x = x + 1
        return self.second(self.first(x))


class Half(Split):
    def forward(self, x):
        return self.second(self.first(x))


class Sized(nn.Module):
    input_shape = (6,)
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)
    def forward(self, x):
        return self.layer(x)


class NameOnly(Sized):
    def forward(self, x, *, scale):
        return self.layer(x) * scale
'''


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    file = tmp_path / "nets.py"
    file.write_text(NETS)
    return file


@pytest.fixture
def two(nets: Path) -> nn.Module:
    return zoo.resolve(f"{nets}:Two")


IDS = Input((128,), "ids", "int64")
TWO_MADDS = 128 * 8 * 4 + 16 * 16 * 3 * 2


# --- descriptions -------------------------------------------------------------------------------------

sides = st.lists(st.integers(1, 999), min_size=0, max_size=4).map(tuple)
inputs = st.builds(
    Input, sides, st.sampled_from(["", "x", "ids", "mask_2"]), st.sampled_from(["", *core_inputs.DTYPES])
)


@settings(deadline=None)
@given(inputs)
def test_what_an_input_prints_is_how_it_is_typed(item: Input):
    assert options.inputs([str(item)]) == (item,)


@settings(deadline=None)
@given(st.lists(inputs, min_size=1, max_size=3, unique_by=lambda item: item.name), st.integers(1, 3))
def test_tensors_are_as_described_on_meta_and_for_real(items: list[Input], batch: int):
    items = [Input(item.shape[:2] and (2,) * len(item.shape[:2]), item.name, item.dtype) for item in items]
    for device in ("meta", "cpu"):
        args, named = example_inputs.make(items, batch, "float16", device)
        assert len(args) == sum(not item.name for item in items)
        for item, tensor in zip([i for i in items if not i.name] + [i for i in items if i.name],
                                [*args, *named.values()], strict=True):  # fmt: skip
            assert tensor.shape == (batch, *item.shape)
            assert str(tensor.dtype) == f"torch.{item.dtype or 'float16'}"
            assert tensor.device.type == device


def test_whole_numbers_are_legal_everywhere_and_the_seed_decides_all_values():
    fed = [Input((50,), dtype="int64"), Input((50,), dtype="bool"), Input((50,))]
    (ids, flags, floats), _ = example_inputs.make(fed, 4, "float32", seed=3)
    assert set(ids.unique().tolist()) == {0, 1}
    assert set(flags.unique().tolist()) == {False, True}
    assert floats.std() > 0.5
    again, _ = example_inputs.make(fed, 4, "float32", seed=3)
    assert all(torch.equal(one, two) for one, two in zip((ids, flags, floats), again, strict=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((3, 8, 8), (Input((3, 8, 8)),)),
        ([(3, 8), (2,)], (Input((3, 8)), Input((2,)))),
        ({"ids": (4,), "mask": Input((2,), dtype="bool")}, (Input((4,), "ids"), Input((2,), "mask", "bool"))),
        ([torch.zeros(7, 4, dtype=torch.int64)], (Input((4,), dtype="int64"),)),
        (torch.zeros(7, 4), (Input((4,)),)),
        ([torch.zeros(7, 4), torch.zeros(7, 2, dtype=torch.float64)], (Input((4,)), Input((2,), dtype="float64"))),
        ([(3,), IDS], (Input((3,)), IDS)),
    ],
)
def test_ways_to_describe_inputs(given: Any, expected: tuple[Input, ...]):
    assert core_inputs.as_inputs(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 3), "positive integers"),
        ([(3,), "ids"], "must be a shape"),
        ([Input((3,), dtype="int65")], "must be one of"),
        ([IDS, IDS], "named once"),
        ({"not a name": (3,)}, "named once"),
    ],
)
def test_descriptions_that_are_none(given: Any, message: str):
    with pytest.raises(InvalidValue, match=message):
        core_inputs.as_inputs(given)


# --- counting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fed", [[(3, 16, 16), IDS], {"ids": IDS, "image": (3, 16, 16)}])
def test_an_image_and_tokens_are_counted(two: nn.Module, fed: Any):
    found = cost.profile(two, fed)
    assert found.cost.madds == TWO_MADDS
    assert found.cost.traced_on == "meta"
    assert found.cost.status == "complete"
    assert cost.profile(two, fed, batch=3).cost.madds == 3 * TWO_MADDS
    assert cost.profile(two, fed, device="real").cost.memory_access_levels == found.cost.memory_access_levels


def test_a_float_mask_has_the_dtype_of_the_network_and_a_stated_one_its_own(two: nn.Module):
    mask = {"image": (3, 16, 16), "ids": IDS}
    half = cost.profile(two, {**mask, "mask": (128, 1)}, dtype="float16")
    single = cost.profile(two, {**mask, "mask": Input((128, 1), dtype="float32")}, dtype="float16")
    assert half.cost.elementwise == single.cost.elementwise == 2 * 128 * 4
    assert half.cost.memory_access == single.cost.memory_access
    # 128 elements read at 4 bytes for 2; the product, written and read again by the addition and kept, at 4 for 2.
    assert single.cost.memory_access_bytes - half.cost.memory_access_bytes == 2 * (128 + 3 * 512)


def test_what_leaves_in_a_dictionary_with_a_dataclass_must_be_written_out(two: nn.Module):
    """Fused, `text + 1` joins the linear layer's output, which leaves the network too and so is still written."""
    args, named = example_inputs.make([Input((3, 16, 16)), IDS], 1, "float32", "meta")
    with torch.no_grad():
        found = trace(two.to("meta"), args, named, tensors="meta")
    assert len(found.returned) == 3
    written = {access.value for record in found.records for access in record.writes}
    assert found.returned <= written


def test_a_value_that_decides_is_looked_at_and_said_so(nets: Path):
    found = api.profile(f"{nets}:Counted", (6,))
    assert (found.cost.madds, found.cost.traced_on) == (2 * 6 * 5, "cpu")
    assert api.profile(zoo.resolve(f"{nets}:Counted"), (6,)).cost.madds == 60


@pytest.mark.parametrize(("op", "traced_on"), [("known", "meta"), ("bare", "cpu")])
def test_a_custom_operator_is_named_as_not_counted(nets: Path, op: str, traced_on: str):
    found = api.profile(f"{nets}:Custom?op={op}", (6,))
    assert (found.cost.madds, found.cost.traced_on, found.cost.status) == (30, traced_on, "partial")
    assert list(found.cost.uncounted) == [f"effbench_inputs::{op}"]


def test_weights_in_several_places_are_one_line(nets: Path):
    with pytest.raises(ModelError, match=r"Split has weights on cpu and meta.*; move it to one device") as raised:
        cost.profile(zoo.resolve(f"{nets}:Split"), (6,))
    assert "\n" not in str(raised.value)


def test_a_network_says_itself_what_it_takes(nets: Path):
    assert api.profile(f"{nets}:Sized").input_shape == (6,)
    assert api.profile(zoo.resolve(f"{nets}:Sized")).cost.madds == 30
    assert api.profile(f"{nets}:Sized", (2, 6)).cost.madds == 60


# --- measuring and storing ----------------------------------------------------------------------------

QUICK: Mapping[str, Any] = {"launches": 1, "budget_s": 0.2, "quick": True}


def test_two_networks_of_two_inputs_are_measured_stored_and_read_again(nets: Path, tmp_path: Path):
    model = f"{nets}:Two"
    fed = [(3, 16, 16), IDS]
    result = api.measure(model, inputs=fed, out=tmp_path / "run", **QUICK)
    cell = result.cells[0]
    assert cell.cost is not None and cell.cost.madds == TWO_MADDS
    assert cell.latency is not None and cell.cell.case.inputs == (Input((3, 16, 16)), IDS)
    assert run_file.load(tmp_path / "run") == result.run
    assert result.to_dict()["cells"][0]["inputs"] == ["3x16x16", "ids=128:int64"]
    lines = (tmp_path / "run" / "run.jsonl").read_text().splitlines()
    broken = [line.replace('"int64"', "64") for line in lines]
    (tmp_path / "run" / "run.jsonl").write_text("\n".join(broken) + "\n")
    with pytest.raises(EffbenchError, match=r"line 1.*dtype: expected text"):
        run_file.load(tmp_path / "run")


def test_commands_take_inputs_by_name(nets: Path):
    fed = ("--input", "3x16x16", "--input", "ids=128:int64", "--input", "mask=128x1")
    done = effbench("profile", f"{nets}:Two", *fed, "--json", "--crosscheck", cwd=nets.parent)
    assert done.code == 0, done.err
    assert done.json["madds"] == TWO_MADDS
    assert done.json["inputs"] == ["3x16x16", "ids=128:int64", "mask=128x1"]
    fvcore, torchs = done.json["crosscheck"]
    assert torchs["madds"] == TWO_MADDS
    assert fvcore["madds"] is None and "unsupported type: Out" in fvcore["reason"], "its trace knows no dataclass"
    models = (f"{nets}:Two", f"{nets}:Sized")
    words = ("--quick", "--launches", "1", "--budget", "0.2s", "--json")
    compared = effbench("compare", *models, *fed, *words, cwd=nets.parent, variables={UNTIMED_LAUNCHES: "1"})
    first, second = compared.json["cells"]
    assert first["latency_s"]["median"] > 0
    assert "forward" in second["skipped"], "the second takes one input and says so"


@pytest.mark.parametrize(
    ("words_", "message"),
    [
        ("ids=", "sizes above zero"),
        ("=3x4", "[NAME=]SIZES[:DTYPE]"),
        ("3x4:", "[NAME=]SIZES[:DTYPE]"),
        ("3x4:float23", "dtypes are float32"),
        ("3x0x4", "sizes above zero"),
        ("a b=3", "must be named once"),
    ],
)
def test_words_that_are_no_input(words_: str, message: str):
    with pytest.raises(InvalidValue) as raised:
        options.inputs([words_])
    assert message in str(raised.value)


def test_names_that_forward_does_not_have_are_one_line(two: nn.Module, nets: Path):
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'idz'"):
        cost.profile(two, {"image": (3, 16, 16), "idz": IDS})
    with pytest.raises(InvalidValue, match="its forward takes image, ids, mask"):
        example_inputs.positional(two, (), {"idz": 1})
    with pytest.raises(InvalidValue, match="by name only"):
        example_inputs.positional(zoo.resolve(f"{nets}:NameOnly"), (1,), {"scale": 2})
    assert example_inputs.positional(two, (1,), {"ids": 2}) == (1, 2)
    assert example_inputs.positional(two, (), {"mask": 3, "image": 1, "ids": 2}) == (1, 2, 3)
    found = cost.profile(zoo.resolve(f"{nets}:NameOnly"), {"x": (6,), "scale": (1,)})
    assert found.cost.madds == 30, "counting passes names as they are"


def test_weights_without_values_are_counted_and_not_measured(nets: Path, tmp_path: Path):
    assert api.profile(f"{nets}:Half", (6,)).cost.madds == 6 * 5 + 5 * 4
    with pytest.raises(EffbenchError, match=r"Half has weights without values.*build them on the CPU"):
        api.measure(f"{nets}:Half", (6,), out=tmp_path / "run", **QUICK)
