"""Register networks with their published costs, and read the registry from the family files without running them.

Listing and completing names must not wait seconds for torch. `all_entries` therefore reads the literals of every
``@register(…)`` with `ast`. At run time the same decorator fills `REGISTERED`; a test checks that the two are equal.
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
    """A named network with its published costs, which a test checks.

    Attributes
    ----------
    name, aliases
        Names that `zoo.build` takes.
    family, builder
        Module of `effbench.zoo` and function that build it.
    kind
        "network" or "probe".
    arguments
        Arguments of the builder that the name implies.
    params
        Published number of parameters, exact; None if not published for this form.
    madds_million
        Published multiply-adds in millions, rounded as in `source`; None if not published.
    counts
        What `madds_million` includes: "conv+fc", or "conv" for a table without the classifier.
    published
        Its name in the table ``published_costs``; "" if it has none.
    input_shape
        Input shape without the batch. Empty for a probe, whose input follows from its arguments.
    min_pixels
        The smallest height and width that every layer can process.
    source, paper
        Source of the published costs, and the paper of the network.
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
"""All entries of the family files imported so far, by name."""


def register(name: str, **facts: Any) -> Callable[[Builder], Builder]:
    """Register a builder under `name`. `facts` are fields of `Entry`, all literals.

    A name such as ``mobilenet_v2_x{width}`` stands for any width. Raises ValueError if a name or alias is taken.
    """

    def decorate(builder: Builder) -> Builder:
        family = builder.__module__.rpartition(".")[2]
        _add(REGISTERED, Entry(name, family, builder.__name__, **facts))
        return builder

    return decorate


@lru_cache(maxsize=1)
def all_entries() -> dict[str, Entry]:
    """Return every entry by name, in the order of the files and of their decorators. Runs no family file."""
    entries: dict[str, Entry] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for entry in read_entries(path):
            _add(entries, entry)
    return entries


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Return the entries that one family file registers. Raises ValueError if a decorator's argument is not a
    literal.
    """
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
    """Return the entry of this name or alias; None if there is none.

    For an unregistered width or group count of a known family, returns an entry without published costs.
    """
    entries = all_entries()
    for entry in entries.values():
        if name == entry.name or name in entry.aliases:
            return None if "{" in name else entry
    for entry in entries.values():
        values = _match_template(entry.name, name) if "{" in entry.name else None
        if values is not None:
            wanted = replace(entry, name=name, arguments={**entry.arguments, **values})
            return next((known for known in entries.values() if _same_network(known, wanted)), wanted)
    return None


def family(name: str) -> tuple[Entry, ...]:
    """Return the networks of a family: ``vgg`` is the family of vgg11 to vgg19.

    A name that ends inside a number or a word of theirs is a typing error and has no family.
    """

    def is_member(known: str) -> bool:
        rest = known[len(name) :]
        return known.startswith(name) and (rest[:1] == "_" or (rest[:1].isdigit() and not name[-1:].isdigit()))

    name = name.lower()
    return tuple(
        entry
        for entry in all_entries().values()
        if name[:1].isalpha() and entry.kind == "network" and "{" not in entry.name
        and any(map(is_member, (entry.name, *entry.aliases)))
    )  # fmt: skip


def _add(entries: dict[str, Entry], entry: Entry) -> None:
    used = {name for known in entries.values() for name in (known.name, *known.aliases)}
    for name in (entry.name, *entry.aliases):
        if name in used:
            raise ValueError(f"the name '{name}' is registered twice; second use in {entry.family}.{entry.builder}")
    entries[entry.name] = entry


def _same_network(known: Entry, wanted: Entry) -> bool:
    return (known.family, known.builder, known.arguments) == (wanted.family, wanted.builder, wanted.arguments)


def _match_template(template: str, name: str) -> dict[str, float] | None:
    """Return the numbers at the template's braces: ``x0_75`` is 0.75, ``g3`` is 3. None if the name does not match."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(f"(?P<{part}>\\d+(?:_\\d+)?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    return {key: float(text.replace("_", ".")) if "_" in text else int(text) for key, text in found.groupdict().items()}
