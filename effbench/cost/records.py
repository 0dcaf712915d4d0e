"""What the tracer writes down: one record per operator call, with every tensor it read and wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from effbench.cost.plan import Plan


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


def scaled_apart(records: Sequence[Record], again: Sequence[Record], batch: int) -> list[Record]:
    """The records with every constant that grows with the batch marked as none.

    `again` is the same network at ``batch + 1``; where it ran other operators, nothing is changed.
    """

    def marked(accesses: tuple[Access, ...], others: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(
            one._replace(constant=one.constant and one.elements * (batch + 1) != two.elements * batch)
            for one, two in zip(accesses, others, strict=True)
        )

    if [record.op for record in records] != [record.op for record in again]:
        return list(records)
    return [
        one._replace(reads=marked(one.reads, two.reads), writes=marked(one.writes, two.writes))
        for one, two in zip(records, again, strict=True)
    ]
