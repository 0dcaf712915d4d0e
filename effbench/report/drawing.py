"""A figure as SVG inside a page: names of its own, colours that follow the page's, nothing that reaches outside."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Collection
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from effbench.report import ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_LEFT_OUT = ("metadata", "style")
"""Metadata names addresses, and a style sheet in a drawing holds for the whole page."""

DARK, LIGHT = (0.086, 0.094, 0.106), (0.922, 0.922, 0.91)
"""What a dark page shows for white and for black, red green blue from 0 to 1."""


def inline(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an ``<svg>`` element for HTML. `prefix` keeps its ids apart from those of other figures.

    `label` is what a screen reader says. Colours are written as ``var(--f-0072b2, #0072b2)``, so that the page can
    replace them; `dark_colours` says by what.
    """
    root = ElementTree.fromstring(ink.svg_text(figure))
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
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def dark_colours(drawings: Collection[str]) -> dict[str, str]:
    """Every colour of these drawings by what stands for it on a dark page: the hue kept, light and dark exchanged."""
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
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if saturation < 0.05:
        mixed = [dark * lightness + light * (1 - lightness) for dark, light in zip(DARK, LIGHT, strict=True)]
    else:
        mixed = list(colorsys.hls_to_rgb(hue, 0.15 + 0.75 * (1 - lightness), 0.85 * saturation))
    return "#" + "".join(f"{round(255 * part):02x}" for part in mixed)
