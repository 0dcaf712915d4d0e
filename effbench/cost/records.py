"""What the tracer writes down: one record per operator call, with every tensor it read and wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from effbench.cost.op_cost import Plan


class Access(NamedTuple):
    """One tensor read or written: its content, the part of it, and whether the network's input does not reach it."""

    value: int
    view: object
    elements: int
    bytes: int
    constant: bool


class Record(NamedTuple):
    """One operator call, in order of execution. `module` is a path ("" is the model), `call` which use of it."""

    op: str
    module: str
    module_type: str
    call: int
    plan: Plan
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


def scaled_apart(records: Sequence[Record], again: Sequence[Record]) -> list[Record]:
    """The records with every constant that grows with the batch marked as none.

    `again` is the same network at a larger batch. A call is found there by its module, its operator and how many of
    that operator the module ran before; what has no like there (some operators run at one batch size only) stays as
    it is.
    """
    likes = dict(zip(_places(again), again, strict=True))

    def marked(accesses: tuple[Access, ...], others: tuple[Access, ...]) -> tuple[Access, ...]:
        if len(accesses) != len(others):
            return accesses
        return tuple(
            one._replace(constant=one.constant and two.elements <= one.elements)
            for one, two in zip(accesses, others, strict=True)
        )

    found = []
    for place, one in zip(_places(records), records, strict=True):
        two = likes.get(place)
        found.append(
            one
            if two is None
            else one._replace(reads=marked(one.reads, two.reads), writes=marked(one.writes, two.writes))
        )
    return found


def _places(records: Sequence[Record]) -> list[tuple[object, ...]]:
    seen: Counter[tuple[object, ...]] = Counter()
    places: list[tuple[object, ...]] = []
    for record in records:
        kind = (record.module, record.call, record.op)
        places.append((*kind, seen[kind]))
        seen[kind] += 1
    return places


def stored_bytes(records: Sequence[Record]) -> dict[int, int]:
    """By content that is a weight of fewer bytes unpacked, the bytes of what it was unpacked from.

    A quantised weight is held in fewer bytes than its product computes with: it is read as it is held.
    """
    sources: dict[int, frozenset[Access]] = {}
    found: dict[int, int] = {}
    for record in records:
        if not record.reads or not all(access.constant for access in record.writes):
            continue
        held = frozenset(
            source
            for access in record.reads
            if access.elements
            for source in sources.get(access.value, (access._replace(constant=True),))
        )
        for access in record.writes:
            sources[access.value] = held
            largest = max(held, key=lambda source: source.elements, default=access)
            if access.elements and largest.bytes * access.elements < access.bytes * largest.elements:
                found[access.value] = sum(source.bytes for source in held)
    return found
