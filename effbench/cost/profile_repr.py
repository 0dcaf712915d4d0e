"""Render a profile on one screen: as text for a terminal, as HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from effbench.core import units
from effbench.core.cost import LEVELS
from effbench.core.inputs import Input

if TYPE_CHECKING:
    from effbench.cost.costs import Profile

WIDTH = 100
"""Width of the text in columns."""
COSTLIEST = 5
NAMED = 4
"""Number of uncounted operators that are named; of the others only the number is given."""


class Row(NamedTuple):
    """One module: its path, class, multiply-adds, and memory access in elements."""

    path: str
    kind: str
    madds: int
    memory_access: int


def text(profile: Profile) -> str:
    """Render as text: at most 25 lines of at most 100 columns."""
    cost = profile.cost
    lines = [f"{_line(profile.model)}: input {inputs_text(profile)}, batch {profile.batch}, {profile.dtype}"]
    lines += [f"  {name:<12}{_number(value):>10}  {about}" for name, value, about in _counts(profile)]
    lines += [f"  memory access {'elements':>10}  {'bytes':>9}"]
    for level in LEVELS:
        moved = cost.memory_access_levels[level]
        lines.append(f"    {level:<12}{_number(moved.elements):>10}  {units.size(moved.bytes):>9}")
    lines += [f"  {sentence}" for sentence in _sentences(profile)]
    found = costliest(profile)
    if found:
        lines.append(f"  {'costliest modules':<44}{'madds':>8}{'memory access':>26}")
        for row in found:
            name = _shortened(f"{_line(row.path) or '(the network itself)'} {_line(row.kind)}", 42)
            share, moved_share = _share(row.madds, cost.madds), _share(row.memory_access, cost.memory_access)
            numbers = f"{_number(row.madds):>8} {share:>5}{_number(row.memory_access):>14} {moved_share:>5}"
            lines.append(f"    {name:<42}{numbers}")
    return "\n".join(_shortened(line, WIDTH) for line in lines)


def html_text(profile: Profile) -> str:
    """Render as HTML tables without style sheets or scripts. Names from the model are escaped."""
    cost, escape = profile.cost, html.escape
    cells, right = "style='text-align:left'", "style='text-align:right'"
    counts = "".join(
        f"<tr><th {cells}>{name}</th><td {right} title='{value:,}'>{_number(value)}</td><td {cells}>{about}</td></tr>"
        for name, value, about in _counts(profile)
    )
    levels = "".join(
        f"<tr><th {cells}>memory access, {level}</th><td {right} title='{moved.elements:,} elements'>"
        f"{_number(moved.elements)}</td><td {cells}>elements, {units.size(moved.bytes)}</td></tr>"
        for level in LEVELS
        for moved in (cost.memory_access_levels[level],)
    )
    modules = "".join(
        f"<tr><td {cells}>{escape(_shortened(_line(row.path), 80)) or '(the network itself)'}</td>"
        f"<td {cells}>{escape(_shortened(_line(row.kind), 40))}</td>"
        f"<td {right} title='{row.madds:,}'>{_number(row.madds)}</td><td {right}>{_share(row.madds, cost.madds)}</td>"
        f"<td {right} title='{row.memory_access:,}'>{_number(row.memory_access)}</td>"
        f"<td {right}>{_share(row.memory_access, cost.memory_access)}</td></tr>"
        for row in costliest(profile)
    )
    return (
        f"<div><p><b>{escape(_line(profile.model))}</b>: input {escape(inputs_text(profile))}, batch {profile.batch}, "
        f"{escape(profile.dtype)}</p><table><tbody>{counts}{levels}</tbody></table>"
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in _sentences(profile))
        + (
            f"<table><thead><tr><th {cells}>costliest modules</th><th></th><th {right} colspan=2>madds</th>"
            f"<th {right} colspan=2>memory access</th></tr></thead><tbody>{modules}</tbody></table>"
            if modules
            else ""
        )
        + "</div>"
    )


def costliest(profile: Profile) -> tuple[Row, ...]:
    """Return the modules whose own operators cost most: by multiply-adds, or by memory access where there are none."""
    sums: dict[str, Row] = {}
    for op in profile.ops:
        old = sums.get(op.module, Row(op.module, op.module_type, 0, 0))
        sums[op.module] = Row(op.module, op.module_type, old.madds + op.madds, old.memory_access + op.memory_access)
    ranked = sorted(sums.values(), key=lambda row: (-row.madds, -row.memory_access))
    return tuple(row for row in ranked[:COSTLIEST] if row.madds or row.memory_access)


def inputs_text(profile: Profile) -> str:
    """Format the inputs without the batch, in the syntax of the command line."""
    inputs: Iterable[Input] = profile.inputs or (Input(tuple(profile.input_shape)),)
    return _shortened(" and ".join(map(str, inputs)), 60)


def _counts(profile: Profile) -> Iterator[tuple[str, int, str]]:
    cost = profile.cost
    yield "params", cost.params, "learnable parameters"
    yield "madds", cost.madds, "multiply-adds of convolutions and matrix products"
    yield "flops", cost.flops, "two per multiply-add, and the element-wise operations"
    yield "activations", cost.activations, "output elements of convolutions and matrix products"


def _sentences(profile: Profile) -> Iterator[str]:
    cost = profile.cost
    where = "meta: on shapes alone" if cost.traced_on == "meta" else f"{cost.traced_on}: on real tensors"
    if cost.status == "complete" and not cost.uncounted:
        yield f"status complete; traced on {where}"
        return
    named = [f"{_shortened(_line(name), 40)} ×{times}" for name, times in list(cost.uncounted.items())[:NAMED]]
    more = f" and {len(cost.uncounted) - NAMED} more" if len(cost.uncounted) > NAMED else ""
    yield f"status {cost.status}; traced on {where}"
    yield f"not counted: {', '.join(named) or 'not said'}{more}"


def _number(value: int) -> str:
    return str(value) if value < 1000 else units.count(value)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else units.MISSING


def _line(words: str) -> str:
    """Make a name printable and one line, since classes and modules may have any name."""
    return "".join(mark if mark.isprintable() else " " for mark in str(words)).strip()


def _shortened(words: str, width: int) -> str:
    return words if len(words) <= width else f"{words[: width - 1]}…"
