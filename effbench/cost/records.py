"""The tracer's records: one per operator call, with every tensor that it read and wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from effbench.cost.op_cost import CallCost


class Access(NamedTuple):
    """One tensor read or written: content number, which part of it, and whether it is independent of the input."""

    value: int
    view: object
    elements: int
    bytes: int
    constant: bool


class Record(NamedTuple):
    """One operator call. `module` is the module's path ("" is the model), `call` numbers the calls of that module."""

    op: str
    module: str
    module_type: str
    call: int
    cost: CallCost
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


def mark_batch_constants(records: Sequence[Record], again: Sequence[Record]) -> list[Record]:
    """Return the records, with constants that grow with the batch marked as no constants.

    `again` is the same network at a larger batch. A call is matched there by its module, its operator, and how many
    calls of that operator the module made before. A call without a match stays as it is, since some operators run at
    one batch size only.
    """
    likes = dict(zip(_call_keys(again), again, strict=True))

    def marked(accesses: tuple[Access, ...], others: tuple[Access, ...]) -> tuple[Access, ...]:
        if len(accesses) != len(others):
            return accesses
        return tuple(
            one._replace(constant=one.constant and two.elements <= one.elements)
            for one, two in zip(accesses, others, strict=True)
        )

    found = []
    for place, one in zip(_call_keys(records), records, strict=True):
        two = likes.get(place)
        found.append(
            one
            if two is None
            else one._replace(reads=marked(one.reads, two.reads), writes=marked(one.writes, two.writes))
        )
    return found


def _call_keys(records: Sequence[Record]) -> list[tuple[object, ...]]:
    seen: Counter[tuple[object, ...]] = Counter()
    places: list[tuple[object, ...]] = []
    for record in records:
        kind = (record.module, record.call, record.op)
        places.append((*kind, seen[kind]))
        seen[kind] += 1
    return places


def stored_bytes(records: Sequence[Record]) -> dict[int, int]:
    """Map the contents that are unpacked weights to the bytes of their packed form.

    A quantised weight is stored in fewer bytes than the product computes with. The stored bytes are what is read.
    """
    sources: dict[int, frozenset[Access]] = {}
    found: dict[int, int] = {}
    for record in records:
        if not record.reads or not all(access.constant for access in record.writes):
            continue
        origins = frozenset(
            source
            for access in record.reads
            if access.elements
            for source in sources.get(access.value, (access._replace(constant=True),))
        )
        for access in record.writes:
            sources[access.value] = origins
            largest = max(origins, key=lambda source: source.elements, default=access)
            if access.elements and largest.bytes * access.elements < access.bytes * largest.elements:
                found[access.value] = sum(source.bytes for source in origins)
    return found
