"""Names and labels of machines, and the choice of machines by them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from effbench.core.errors import InvalidValue, UnknownName

MACHINE = "machine"
"""The key of the label that every machine has: its own name."""

_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,39}")
_RULE = "1 to 40 characters of a-z, 0-9, '.', '_' and '-', of which the first is no '.' or '-'"


@dataclass(frozen=True)
class Label:
    """A property of a machine, such as ``board=pi5``; its own name is the label ``machine=NAME``.

    Raises InvalidValue for a key or value that breaks the rule for names.
    """

    key: str
    value: str

    def __post_init__(self) -> None:
        for part in (self.key, self.value):
            check_name(part, f"label {self.key}={self.value}")

    def __str__(self) -> str:
        return f"{self.key}={self.value}"

    @property
    def resource(self) -> str:
        """The label as the name of a resource of dask, whose own command line cannot parse a second ``=``."""
        return f"{self.key}:{self.value}"

    @classmethod
    def parse(cls, text: str) -> Label:
        """``board=pi5``, or the name of a machine, such as ``pi5-a``. Raises InvalidValue."""
        key, separator, value = text.partition("=")
        return cls(key, value) if separator else cls(MACHINE, key)

    @classmethod
    def of_machine(cls, text: str) -> Label:
        """A label that a machine is started with: ``key=value``, no name of a machine. Raises InvalidValue."""
        key, separator, _ = text.partition("=")
        if not separator:
            raise InvalidValue(f"--label {text}: expected KEY=VALUE, such as board=pi5")
        if key == MACHINE:
            raise InvalidValue(f"--label {text}: the label '{MACHINE}' is the machine's name; set it with --name")
        return cls.parse(text)

    @classmethod
    def of_resource(cls, resource: str) -> Label:
        """The label that has this name of a resource. Raises InvalidValue."""
        key, _, value = resource.partition(":")
        return cls(key, value)


def check_name(name: str, where: str = "") -> str:
    """Return the name. Raises InvalidValue, which begins with `where`, for one that breaks the rule."""
    if not _NAME.fullmatch(name):
        shown = repr(name if len(name) <= 60 else f"{name[:60]}…")
        raise InvalidValue(f"{where[:100]}{': ' if where else ''}{shown} cannot be a name; use {_RULE}")
    return name


def select(on: Sequence[str], machines: Mapping[str, Collection[str]]) -> list[str]:
    """The names of the machines that have one of these labels, in the order of `machines`; all if `on` is empty.

    A label is ``board=pi5`` or the name of a machine. A comma joins labels that a machine must all have. `machines`
    has the labels of each machine by its name. Raises UnknownName for a label that no machine has, and InvalidValue
    where no machine has all of the joined labels.
    """
    if not on:
        return list(machines)
    if not machines:
        raise InvalidValue(f"--on {on[0]}: no machine is connected; start one with: effbench fleet worker")
    labels = {name: {*own, f"{MACHINE}={name}"} for name, own in machines.items()}
    there = sorted({str(label) for own in machines.values() for label in own if not label.startswith(f"{MACHINE}=")})
    chosen: set[str] = set()
    for joined in on:
        words = [word.strip() for word in joined.split(",")]
        wanted = {word if "=" in word else f"{MACHINE}={word}" for word in words}
        for word in words:
            if not any(word in own or f"{MACHINE}={word}" in own for own in labels.values()):
                raise UnknownName("label or machine", word, (*there, *machines))
        found = {name for name, own in labels.items() if wanted <= own}
        if not found:
            raise InvalidValue(f"--on {joined}: no machine has all of these labels; give --on twice for either of them")
        chosen |= found
    return [name for name in machines if name in chosen]
