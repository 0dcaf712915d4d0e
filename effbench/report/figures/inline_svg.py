"""Render a figure as SVG inside an HTML page: unique ids, colours that follow dark mode, no external references."""

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
"""Elements that are removed: metadata contains URLs, and a style sheet in an SVG applies to the whole page."""

DARK, LIGHT = (0x16 / 255, 0x18 / 255, 0x1B / 255), (0xEB / 255, 0xEB / 255, 0xE8 / 255)
"""Background and text colour of the dark page, as in its style sheet: red, green, blue from 0 to 1."""

_CONTRAST_POWER = 1.15
"""Factor on the contrast ratio, since the same ratio looks weaker on dark than on white."""


def inline(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an ``<svg>`` element for HTML. `prefix` makes its ids unique on the page.

    `label` is the text for screen readers. Colours are written as ``var(--f-0072b2, #0072b2)``, so that the page can
    replace them by those of `dark_colours`.
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
    # Elements without a colour are black, which must be replaceable as well.
    black = "fill: var(--f-000000, #000000)"
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": label, "style": black})
    return ElementTree.tostring(root, encoding="unicode")


def dark_colours(drawings: Collection[str]) -> dict[str, str]:
    """Map every colour of these drawings to one for a dark page, of the same hue and contrast."""
    used = sorted({colour for drawing in drawings for colour in re.findall(r"var\(--f-([0-9a-f]{6})", drawing)})
    return {colour: _dark_colour(colour) for colour in used}


def _local(name: str) -> str:
    """Strip the namespace: ``{http://www.w3.org/2000/svg}path`` becomes ``path``, as in HTML."""
    return name.rpartition("}")[2]


def _value(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}{value}"
    if name == "href":
        return f"#{prefix}{value.removeprefix('#')}"
    if name == "style":
        # Fonts are set in the page's style sheet.
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        value = _COLOUR.sub(r"var(--f-\1, #\1)", value)
    return value.replace("url(#", f"url(#{prefix}")


def _dark_colour(colour: str) -> str:
    """Return a colour of the same hue, with at least the contrast on the dark page that `colour` has on white."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
    hue, _, saturation = colorsys.rgb_to_hls(red, green, blue)

    def lighter(share: float) -> tuple[float, ...]:
        if saturation < 0.05:
            return tuple(dark + share * (light - dark) for dark, light in zip(DARK, LIGHT, strict=True))
        return colorsys.hls_to_rgb(hue, share, 0.9 * saturation)

    contrast = (1.05 / (_luminance((red, green, blue)) + 0.05)) ** _CONTRAST_POWER
    wanted = contrast * (_luminance(DARK) + 0.05) - 0.05
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _luminance(lighter(middle)) < wanted else (low, middle)
    return "#" + "".join(f"{round(255 * part):02x}" for part in lighter(high))


def _luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance as defined by WCAG 2."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
