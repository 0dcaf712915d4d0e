"""Errors for people: each is one sentence that says what is wrong and what to do.

Everything a user can cause derives from `EffbenchError`; the command line prints it as one line and
exits with 2. Any other exception is a bug in effbench.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class EffbenchError(Exception):
    """Something the user can put right. The message is one line.

    `cause` is its kind where a program has to know it, also in another process: "absent", "lacks", "start", "foreign".
    """

    cause: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another with its message, whatever its class was made from."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[EffbenchError], args: tuple[Any, ...], state: dict[str, Any]) -> EffbenchError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class UnknownName(EffbenchError):
    """A name that is not registered; names the nearest one and lists the rest, or of very many the nearest.

    One that stands for a whole `family` of names lists them.
    """

    LISTED = 12
    LONGEST_NAME = 100
    LONGEST_FAMILY = 700
    """Characters of the names of a family; one of timm has hundreds."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "", family: bool = False) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        if len(name) > self.LONGEST_NAME:
            name = f"{name[: self.LONGEST_NAME]}…"
        if family:
            listed = [
                one
                for end, one in enumerate(self.known)
                if len(", ".join(self.known[: end + 1])) <= self.LONGEST_FAMILY
            ]
            more = f" and {len(self.known) - len(listed)} more" if len(listed) < len(self.known) else ""
            super().__init__(f"'{name}' is a family of {kind}s; name one: {', '.join(listed)}{more}")
            return
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        choices = ", ".join(self.known)
        if len(self.known) > self.LISTED:
            nearest = difflib.get_close_matches(name, self.known, n=self.LISTED // 2, cutoff=0.0)
            choices = f"{', '.join(nearest)} and {len(self.known) - len(nearest)} more"
        super().__init__(f"there is no {kind} named '{name}'.{guess} Known: {choices}.{hint}")


class InvalidValue(EffbenchError):
    """A value that breaks a rule; the message shows the value and the rule."""


class ModelError(EffbenchError):
    """A network that cannot be built, or that raises in its forward pass.

    `missing_file` is the path of a file that it did not find, where that is why.
    """

    missing_file: str = ""


class Absent(ModelError):
    """A network whose file, module or name in it does not exist. `module` is what was looked for, `attribute` the name
    that it lacks, where that is what is missing.
    """

    cause = "absent"
    module: str = ""
    attribute: str = ""


class LacksPackage(ModelError):
    """A network whose code imports what is not installed. `module` is what that is."""

    cause = "lacks"
    module: str = ""


class CannotStart(EffbenchError):
    """A measuring process that cannot begin: its environment lacks effbench, torch or more."""

    cause = "start"


class ForeignCode(EffbenchError):
    """One side of a gate has loaded code that is not of its own tree."""

    cause = "foreign"


class NeedsValues(ModelError):
    """A network that looks at values, built without any."""


class DeviceUnavailable(EffbenchError):
    """A device that effbench knows but that this machine does not have."""


class CorruptRun(EffbenchError):
    """A run file that cannot be read as one: the message names the line."""


class NotComparable(EffbenchError):
    """Two runs whose conditions differ; the message names the fields."""


class StorageError(EffbenchError):
    """The output folder cannot be written, is full, or is in use by another run."""


class Reason(str):
    """Why something does not run, in one line, with the `EffbenchError.cause` of the error that said so."""

    cause: str

    def __new__(cls, text: str, cause: str = "") -> Reason:
        made = super().__new__(cls, text)
        made.cause = cause
        return made

    @classmethod
    def of(cls, error: EffbenchError) -> Reason:
        return cls(str(error), error.cause)


def of_reason(reason: str) -> EffbenchError:
    """The error that this reason was made from, in another process perhaps."""
    kinds: tuple[type[EffbenchError], ...] = (Absent, LacksPackage, CannotStart, ForeignCode)
    cause = getattr(reason, "cause", "")
    return next((kind for kind in kinds if kind.cause == cause), EffbenchError)(str(reason))


def text_of(error: BaseException | str) -> str:
    """The text of an error; "" where making it raises, as an error of a user's own class may."""
    try:
        return str(error)
    except Exception:
        return ""


class Unsupported(Exception):
    """This runtime cannot take this network; the message is the reason that the skipped row shows."""
