"""The order of one run on one machine, as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effbench.core import decoding
from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.measure_options import MeasureOptions

_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
ARGUMENTS = ("scale", "select", "models", "depthwise")
"""What `effbench.run` takes beside a study and measuring options."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Order:
    """What a machine shall measure, and the name of the folder that the run stays in.

    Attributes
    ----------
    run
        Name of the run's folder on the machine.
    machine
        Name of the machine. No other carries it out.
    study
        Name of a study; ``""`` where a bundle is measured.
    bundle
        SHA-256 of the bundle's ``bundle.json``; ``""`` where a study is carried out.
    arguments
        Arguments of `effbench.run` for the study: ``scale``, ``models``, ``depthwise``, ``select``.
    options
        Measuring options (`effbench.core.measure_options.MeasureOptions`).
    by
        Who ordered it.
    command
        The command line that ordered it, which the run records.

    Raises
    ------
    InvalidValue
        If a name cannot be that of a folder, or not exactly one of `study` and `bundle` is given.
    UnknownName
        If there is no such argument or option, as where another version of effbench ordered.
    """

    run: str
    machine: str
    study: str = ""
    bundle: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise InvalidValue(f"{self.run[:60]!r} cannot be the name of a run's folder: letters, digits and ._- only")
        if bool(self.study) == bool(self.bundle):
            raise InvalidValue("an order names a study or a bundle, one of the two")
        for name in self.arguments:
            if name not in ARGUMENTS:
                raise UnknownName("argument of a study in an order", name, ARGUMENTS)
        for name in self.options:
            if name not in MeasureOptions.__dataclass_fields__:
                raise UnknownName("option in an order", name, MeasureOptions.__dataclass_fields__)
        if self.bundle and not _DIGEST.fullmatch(self.bundle):
            raise InvalidValue(f"{self.bundle[:70]!r} is no SHA-256 of a bundle")

    @property
    def subject(self) -> str:
        """The study, or the first characters of the bundle's SHA-256."""
        return self.study or f"bundle {self.bundle[:12]}"

    def to_json(self) -> str:
        """Return the order as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)


def parse(text: str | bytes) -> Order:
    """Read an order from JSON. Raises InvalidValue, UnknownName with the field that is wrong."""
    data = text.encode() if isinstance(text, str) else text
    try:
        return decoding.decode(decoding.parse(data), Order)
    except EffbenchError:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"this is no order: {str(error).splitlines()[0][:200]}") from None
