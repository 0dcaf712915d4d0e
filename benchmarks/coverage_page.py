"""The tables of docs/coverage.md, from results/coverage/*.csv: how many networks agree, and why the others do not.

Run through ``python benchmarks/coverage.py docs``, which rewrites the part of the page between its two markers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "coverage"
PAGE = ROOT / "docs" / "coverage.md"
BEGIN, END = "<!-- generated: python benchmarks/coverage.py docs -->", "<!-- end of the generated part -->"
ROUNDING = 0.0005
"""Half of torchvision's last digit, in G multiply-adds."""

BLIND = {
    "scaled_dot_product_attention": "fvcore skips fused attention, which this network calls in any setting",
    "_convolution_mode": 'fvcore skips convolutions with padding="same"',
    "lstm": "fvcore skips recurrent layers",
    "baddbmm": "fvcore skips `baddbmm`",
    "PythonOp": "fvcore skips what is inside an autograd function",
}
"""Why fvcore is wrong, by the operator that it met and skipped."""

CAUSES: dict[str, str] = {
    r"vit_d(p?wee|little)_.*": "differential attention: timm's fused path multiplies by the values twice, its unfused "
    "path, which fvcore saw, once; with fused attention off our count is fvcore's",
    r"(mvitv2|samvit|convit)_.*|maxvit_.*_tf_.*": "fvcore reads the cost of an einsum from what NumPy prints, "
    "rounded to four digits; torch's own counter gives ours exactly",
}
"""Why the counts differ although fvcore skipped nothing, by network."""

Row = dict[str, str]


@dataclass(frozen=True)
class Coverage:
    """What the three files say. A network of timm is in exactly one of equal, unlike, wrong, failed and large."""

    entries: list[Row]
    entries_unlike: list[Row]
    counted: list[Row]
    uncounted: list[Row]
    partial: list[Row]
    equal: list[Row]
    unlike: list[Row]
    wrong: list[Row]
    failed: list[Row]
    large: list[Row]
    pending: list[Row]

    @property
    def counted_share(self) -> float:
        return len(self.counted) / (len(self.counted) + len(self.uncounted))

    @property
    def equal_share(self) -> float:
        """Of the networks that fvcore counted whole."""
        return len(self.equal) / (len(self.equal) + len(self.unlike))


def read(name: str) -> list[Row]:
    """The rows of one table; none where it was not begun."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def coverage() -> Coverage:
    entries, ours = read("torchvision"), read("timm")
    theirs = {row["network"]: row for row in read("timm_fvcore")}
    counted = [row for row in ours if not row["error"]]
    both = [{**theirs[row["network"]], "madds": row["madds"]} for row in counted if row["network"] in theirs]
    ran = [row for row in both if not row["error"]]
    same = [row for row in ran if row["products"] == row["madds"]]
    differ = [row for row in ran if row["products"] != row["madds"]]
    return Coverage(
        entries=entries,
        entries_unlike=[row for row in entries if not published(row)],
        counted=counted,
        uncounted=[row for row in ours if row["error"]],
        partial=[row for row in counted if row["status"] != "complete"],
        equal=same,
        unlike=[row for row in differ if not row["blind"]],
        wrong=[row for row in differ if row["blind"]],
        failed=[row for row in both if row["error"] and not row["error"].startswith("too large")],
        large=[row for row in both if row["error"].startswith("too large")],
        pending=[row for row in counted if row["network"] not in theirs],
    )


def published(row: Row) -> bool:
    """Does our count of a torchvision entry equal what torchvision publishes?"""
    if row["error"] or row["params"] != row["published_params"]:
        return False
    return abs(int(row["madds"]) / 1e9 - float(row["published_gmadds"])) <= ROUNDING + 1e-9


def cause(row: Row) -> str:
    """Why fvcore's count differs; "unknown" where nobody has found out."""
    skipped = [word.split("::")[-1].split(".")[0].split(":")[0] for word in row["blind"].split()]
    known = [BLIND[name] for name in skipped if name in BLIND]
    return "; ".join(known) or next(
        (why for name, why in CAUSES.items() if re.fullmatch(name, row["network"])), "unknown"
    )


def generated(found: Coverage) -> str:
    """The part of the page between the markers."""
    networks = len({row["network"] for row in found.entries})
    releases = ", ".join(
        sorted({part for row in (*found.entries, *found.equal) for part in row["release"].split(", ")})
    )
    right = len(found.equal) + len(found.unlike)
    sure = len(found.entries) - len(found.entries_unlike)
    lines = [
        f"Releases: {releases}.",
        "",
        "| question | networks | of | share |",
        "| :--- | ---: | ---: | ---: |",
        _share(
            f"torchvision: madds equal `_ops`, params equal `num_params` ({networks} networks)",
            sure,
            len(found.entries),
        ),
        _share("timm: counted on meta without error", len(found.counted), len(found.counted) + len(found.uncounted)),
        _share("timm: every operator has a formula", len(found.counted) - len(found.partial), len(found.counted)),
        _share("timm: equal to fvcore, where fvcore skips nothing", len(found.equal), right),
        "",
        f"fvcore ran on {right + len(found.wrong)} networks, failed on {len(found.failed)}, and was not run on "
        f"{len(found.large)} that are too large for this machine"
        + (f"; {len(found.pending)} are still to be run." if found.pending else "."),
    ]
    if found.entries_unlike:
        lines += [
            "",
            "## torchvision, not equal",
            "",
            *(f"- `{row['network']}` {row['error']}" for row in found.entries_unlike),
        ]
    if found.unlike or found.wrong:
        lines += ["", "## timm, not equal to fvcore", ""]
        lines += ["| network | ours (M) | fvcore (M) | difference | cause |", "| :--- | ---: | ---: | ---: | :--- |"]
        lines += [
            _unlike(row) for row in sorted((*found.unlike, *found.wrong), key=lambda row: (cause(row), row["network"]))
        ]
    if found.failed:
        lines += ["", "## timm, fvcore fails", "", *(f"- `{row['network']}`: {row['error']}" for row in found.failed)]
    if found.large:
        lines += ["", "## timm, not run with fvcore", "", _names(found.large)]
    return "\n".join(lines)


def page(text: str, found: Coverage) -> str:
    """The page with its generated part as the files say."""
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n\n{generated(found)}\n\n{END}{after}"


def _share(question: str, some: int, whole: int) -> str:
    return f"| {question} | {some} | {whole} | {some / max(1, whole):.2%} |"


def _unlike(row: Row) -> str:
    ours, theirs = int(row["madds"]), int(row["products"])
    figures = f"{ours / 1e6:,.1f} | {theirs / 1e6:,.1f} | {theirs - ours:+,} ({(theirs - ours) / ours:+.2%})"
    return f"| `{row['network']}` | {figures} | {cause(row)} |"


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row['network']}`" for row in rows) + "."
