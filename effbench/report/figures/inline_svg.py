"""A figure as SVG inside a page: names of its own, colours that follow the page's, nothing that reaches outside."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from effbench.report.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_LEFT_OUT = ("metadata", "style")
"""Metadata names addresses, and a style sheet in a drawing holds for the whole page."""

DARK, LIGHT = (0x16 / 255, 0x18 / 255, 0x1B / 255), (0xEB / 255, 0xEB / 255, 0xE8 / 255)
"""What a dark page shows for white and for black, as its style sheet has it: red, green, blue from 0 to 1."""

_LIFT = 1.15
"""The same ratio looks weaker on dark than on white."""


def inline(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an ``<svg>`` element for HTML. `prefix` keeps its ids apart from those of other figures.

    `label` is what a screen reader says. Colours are written as ``var(--f-0072b2, #0072b2)``, so that the page can
    replace them; `dark_colours` says by what.
    """
    root = ElementTree.fromstring(style.svg_text(figure))
    for parent in root.iter():
        for child in [child for child in parent if _local(child.tag) in _LEFT_OUT]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _value(name, value, prefix) for name, value in attributes.items()})
    view = root.get("viewBox", "")
    root.attrib.clear()
    # What names no colour is black, so that has to follow the page as well.
    black = "fill: var(--f-000000, #000000)"
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": label, "style": black})
    return ElementTree.tostring(root, encoding="unicode")


def dark_colours(drawings: Collection[str]) -> dict[str, str]:
    """Every colour of these drawings by what stands for it on a dark page: hue and contrast kept."""
    used = sorted({colour for drawing in drawings for colour in re.findall(r"var\(--f-([0-9a-f]{6})", drawing)})
    return {colour: _exchanged(colour) for colour in used}


def _local(name: str) -> str:
    """``{http://www.w3.org/2000/svg}path`` as ``path``: inside HTML no namespace is written."""
    return name.rpartition("}")[2]


def _value(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}{value}"
    if name == "href":
        return f"#{prefix}{value.removeprefix('#')}"
    if name == "style":
        # The page sets the fonts, once.
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        value = _COLOUR.sub(r"var(--f-\1, #\1)", value)
    return value.replace("url(#", f"url(#{prefix}")


def _exchanged(colour: str) -> str:
    """The colour of the same hue that stands out from a dark page at least as `colour` does from white."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)

    def lighter(share: float) -> tuple[float, ...]:
        if saturation < 0.05:
            return tuple(dark + share * (light - dark) for dark, light in zip(DARK, LIGHT, strict=True))
        return colorsys.hls_to_rgb(hue, share, 0.9 * saturation)

    contrast = (1.05 / (_luminance((red, green, blue)) + 0.05)) ** _LIFT
    wanted = contrast * (_luminance(DARK) + 0.05) - 0.05
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _luminance(lighter(middle)) < wanted else (low, middle)
    return "#" + "".join(f"{round(255 * part):02x}" for part in lighter(high))


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
