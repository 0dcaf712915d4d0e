"""Write docs/zoo.md: every network of the zoo beside every published count, with the reason for each difference.

Run: python benchmarks/zoo_page.py
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import torch

from effbench import paper, zoo
from effbench.cost import profile

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from published_differences import MADDS_DIFFER, PARAMS_DIFFER, printed_like, reason  # noqa: E402

HEAD = """# The zoo and published counts

This page is written by `python benchmarks/zoo_page.py`, and `tests/zoo/test_every_network.py` checks that it
matches the code. Counts are of one image. Multiply-adds are those of convolutions and matrix products. "Met" means
equal to the last digit that the source prints. The published rows are those of
`effbench/paper/published_costs.csv`.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    entries = {name: zoo.entry(name) for name in dict.fromkeys(zoo.entry(name).name for name in zoo.names())}
    lines = [
        HEAD,
        "| network | params | madds (M) | input | source of the count in the code |",
        "| :--- | ---: | ---: | :--- | :--- |",
    ]
    for name, entry in entries.items():
        params, madds = count(name, entry.input_shape)
        shape = "×".join(map(str, entry.input_shape))
        lines.append(f"| `{name}` | {params:,} | {madds:,.2f} | {shape} | {entry.source} |")
    lines += [
        "",
        "## Every published row",
        "",
        "| network | source | published madds (M) | ours | difference | params differ | why |",
    ]
    lines.append("| :--- | :--- | ---: | ---: | ---: | ---: | :--- |")
    met = total = 0
    for name, entry in entries.items():
        for row in paper.table("published_costs"):
            if entry.published and row["model"] == entry.published:
                text, is_met = published_row(name, entry, row)
                lines.append(text)
                met, total = met + is_met, total + 1
    lines += ["", f"{met} of {total} rows are met in multiply-adds and, where they give them, in parameters."]
    return "\n".join(lines) + "\n"


def published_row(name: str, entry: zoo.Entry, row: dict[str, str]) -> tuple[str, bool]:
    """Return one line of the second table, and whether the published row is met."""
    pixels = int(row["input_px"] or entry.input_shape[-1])
    params, madds = count(name, (entry.input_shape[0], pixels, pixels))
    ours = madds
    if entry.counts == "conv" and row["source"].startswith("ShuffleNet v1 paper, Table 1"):
        ours -= classifier(name)
    model, source, why = row["model"], row["source"], []
    printed, difference, params_differ = "–", "–", ""
    is_met = True
    if row["mmadds_million"]:
        theirs = float(row["mmadds_million"])
        printed, difference = row["mmadds_million"], "met"
        if printed_like(ours, row["mmadds_million"]) != theirs:
            difference, is_met = f"{100 * (theirs / ours - 1):+.1f} %", False
            why += [found[0]] if (found := reason(MADDS_DIFFER, model, source)) else []
    if row["params"] and printed_like(params, row["params"]) != float(row["params"]):
        params_differ, is_met = f"{100 * (float(row['params']) / params - 1):+.2f} %", False
        why += [found[0]] if (found := reason(PARAMS_DIFFER, model, source)) else []
    text = f"| `{name}` | {source} | {printed} | {ours:,.2f} | {difference} | {params_differ} | {'; '.join(why)} |"
    return text, is_met


@cache
def count(name: str, shape: tuple[int, ...]) -> tuple[int, float]:
    """Return parameters and million multiply-adds."""
    with torch.device("meta"):
        cost = profile(zoo.build(name), shape).cost
    return cost.params, cost.madds / 1e6


def classifier(name: str) -> float:
    """Return the million multiply-adds of the linear layers."""
    with torch.device("meta"):
        network = zoo.build(name)
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Linear)) / 1e6


if __name__ == "__main__":
    (ROOT / "docs" / "zoo.md").write_text(page(), encoding="utf-8")
