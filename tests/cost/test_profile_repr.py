"""The text and HTML representation of a profile: one screen, and safe for any names."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from pages import HARM, Page
from torch import nn

import effbench
from effbench.core import units
from effbench.core.cost import LEVELS
from effbench.core.inputs import Input


class Sines(nn.Module):
    """Has an operator without a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(self.layer(x)[..., :4]) if ids.dtype == torch.int64 else x


@pytest.mark.parametrize("name", ["resnet50", "lenet5", "nasnet_a"])
def test_one_screen_says_all_that_matters(name: str):
    found = effbench.profile(name)
    shown, cost = repr(found), found.cost
    lines = shown.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100
    assert name in lines[0] and "x".join(map(str, found.input_shape)) in lines[0]
    for word, count in (("params", cost.params), ("madds", cost.madds), ("flops", cost.flops)):
        assert re.search(rf"^ +{word} +{re.escape(units.count(count))} ", shown, re.M), word
    for level in LEVELS:
        moved = cost.memory_access_levels[level]
        assert re.search(rf"^ +{level} +{units.count(moved.elements)} +{units.size(moved.bytes)}$", shown, re.M), level
    assert "status complete" in shown and "traced on meta" in shown


def test_the_costliest_modules_are_those_of_the_closed_form():
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 10))
    shown = repr(effbench.profile(network, (4,)))
    listed = re.findall(r"^    (\d) Linear +(\S+(?: k)?) +(\d+) %", shown, re.M)
    assert listed == [("3", "1.00 k", "66"), ("1", "500", "33"), ("0", "20", "1")]


def test_what_is_not_counted_is_named_and_many_are_told_short():
    found = effbench.profile(Sines(), {"x": (4, 4), "ids": Input((3,), dtype="int64")})
    assert "status partial" in repr(found) and "linalg_eig" in repr(found)
    assert "x=4x4 and ids=3:int64" in repr(found)
    many = replace(found, cost=replace(found.cost, uncounted={f"operator_{n}": n for n in range(1, 90)}))
    assert "operator_1 ×1" in repr(many) and "and 85 more" in repr(many)
    assert len(repr(many).splitlines()) <= 25 and max(map(len, repr(many).splitlines())) <= 100


def test_real_tensors_are_said():
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x * 3

    assert "traced on cpu: on real tensors" in repr(effbench.profile(Looks(), (3,)))


def test_a_network_without_operators_has_a_repr_too():
    found = effbench.profile(nn.Identity(), (3,))
    assert "params" in repr(found) and "costliest" not in repr(found)
    assert "costliest" not in found._repr_html_()


def test_harmful_names_stay_text():
    found = effbench.profile(nn.Sequential(nn.Linear(4, 5)), (4,))
    bad = replace(
        found,
        model=HARM * 9,
        dtype=HARM,
        ops=tuple(replace(op, module=HARM * 9, module_type=HARM) for op in found.ops),
        cost=replace(found.cost, status="partial", uncounted={HARM: 3}),
        inputs=tuple(Input((4,), name=HARM) for _ in range(30)),
    )
    lines = repr(bad).splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    page = Page(bad._repr_html_())
    known = {"document", "div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert {item.tag for item in page.all()} <= known
    assert all(set(item.attributes) <= {"style", "title", "colspan"} for item in page.all())
    assert "alert(1)" in page.root.text, "escaped, not dropped"


def test_the_page_has_every_number_and_no_style_sheet_or_script():
    found = effbench.profile("resnet18")
    page = Page(found._repr_html_())
    for count in (found.cost.params, found.cost.madds, found.cost.flops):
        assert f"{count:,}" in {item.attributes.get("title") for item in page.all("td")}
    for level in LEVELS:
        assert units.size(found.cost.memory_access_levels[level].bytes) in page.root.text
    assert not page.all("style") and not page.all("script")
