"""Which networks exist and what is published about them: read from the family files' decorators without running them.

Listing and completing names must not wait seconds for torch, so `catalogue` reads the literals of every
``@register(…)`` with `ast`. At run time the same decorator fills `REGISTERED`; a test holds the two equal.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A network by name, with the published counts that a test holds it to.

    `params` is exact, `madds_million` a number as `source` prints it (its rounding included); both are None where
    nothing is published for this form. `counts` says what that number leaves out: "conv" is a table without the
    classifier. `published` is the network's name in the table ``published_costs``. `input_shape` excludes the batch and
    is empty for a probe, whose input follows its arguments; `min_pixels` is the smallest height and width that every
    layer still has something to see of. `family` is the file, `builder` the function.
    """

    name: str
    family: str = ""
    builder: str = ""
    kind: Literal["network", "probe"] = "network"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    params: int | None = None
    madds_million: float | None = None
    counts: Literal["conv+fc", "conv"] = "conv+fc"
    published: str = ""
    input_shape: tuple[int, ...] = (3, 224, 224)
    min_pixels: int = 32
    source: str = ""
    paper: str = ""


REGISTERED: dict[str, Entry] = {}
"""Every entry of the family files imported so far, by name."""


def register(name: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Name a builder; `facts` are fields of `Entry`, all literals. A name such as ``mobilenet_v2_x{width}`` stands for
    any width.

    Raises ValueError when a name or alias is already taken.
    """

    def decorate(builder: Builder) -> Builder:
        family = builder.__module__.rpartition(".")[2]
        _add(REGISTERED, Entry(name, family, builder.__name__, **facts))
        return builder

    return decorate


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Entry]:
    """Every entry by name, in the order of the files and of the decorators within. Runs none of them."""
    entries: dict[str, Entry] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for entry in read(path):
            _add(entries, entry)
    return entries


def read(path: Path) -> tuple[Entry, ...]:
    """The entries that one family file registers. Raises ValueError where a decorator's argument is not a literal."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                (name,) = (ast.literal_eval(argument) for argument in call.args)
                facts = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
                found.append(Entry(name, path.stem, node.name, **facts))
    return tuple(found)


def find(name: str) -> Entry | None:
    """The entry of this name or alias.

    For an unregistered width or group of a known family, an entry without counts.
    """
    entries = catalogue()
    for entry in entries.values():
        if name == entry.name or name in entry.aliases:
            return None if "{" in name else entry
    for entry in entries.values():
        values = _match(entry.name, name) if "{" in entry.name else None
        if values is not None:
            wanted = replace(entry, name=name, arguments={**entry.arguments, **values})
            return next((known for known in entries.values() if _same_network(known, wanted)), wanted)
    return None


def family(name: str) -> tuple[Entry, ...]:
    """The networks whose names go on where `name` ends: ``vgg`` is the family of vgg11 to vgg19.

    A name that ends inside a number or a word is a typing error, and no family's.
    """

    def goes_on(known: str) -> bool:
        rest = known[len(name) :]
        return known.startswith(name) and (rest[:1] == "_" or (rest[:1].isdigit() and not name[-1:].isdigit()))

    name = name.lower()
    return tuple(
        entry
        for entry in catalogue().values()
        if name[:1].isalpha() and entry.kind == "network" and "{" not in entry.name
        and any(map(goes_on, (entry.name, *entry.aliases)))
    )  # fmt: skip


def _add(entries: dict[str, Entry], entry: Entry) -> None:
    taken = {name for known in entries.values() for name in (known.name, *known.aliases)}
    for name in (entry.name, *entry.aliases):
        if name in taken:
            raise ValueError(f"the name '{name}' is registered twice; second use in {entry.family}.{entry.builder}")
    entries[entry.name] = entry


def _same_network(known: Entry, wanted: Entry) -> bool:
    return (known.family, known.builder, known.arguments) == (wanted.family, wanted.builder, wanted.arguments)


def _match(template: str, name: str) -> dict[str, float] | None:
    """Numbers at the template's braces, written the way names carry them: ``x0_75`` is 0.75, ``g3`` is 3."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(f"(?P<{part}>\\d+(?:_\\d+)?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    return {key: float(text.replace("_", ".")) if "_" in text else int(text) for key, text in found.groupdict().items()}
