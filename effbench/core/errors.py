"""The exceptions of effbench. Each message is one line that names the fault and the remedy.

Every error that a user can cause derives from `EffbenchError`. The command line prints its message and exits with 2.
Any other exception is a bug in effbench.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class EffbenchError(Exception):
    """An error that the user can fix. The message is one line.

    Attributes
    ----------
    cause
        Kind of the error, also across processes: ``"absent"``, ``"lacks"``, ``"start"`` or ``"foreign"``; ``""`` for
        any other.
    """

    cause: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its message, without calling the constructor of its class again."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[EffbenchError], args: tuple[Any, ...], state: dict[str, Any]) -> EffbenchError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class UnknownName(EffbenchError):
    """An unknown name. The message suggests the nearest known name and lists all, or the nearest of many.

    With `family`, the name is the common part of several names, and the message lists those.

    Attributes
    ----------
    kind
        What the name is of, such as ``"model"``.
    name
        The unknown name.
    known
        The known names, or those of the family.
    """

    LISTED = 16
    LONGEST_NAME = 100
    LONGEST_FAMILY = 700
    """Most characters of the listed names of a family, since families of timm have hundreds of names."""

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
    """A model that cannot be built, or that raises in its forward pass.

    Attributes
    ----------
    missing_file
        Path of a file that was not found, if that is the cause; else ``""``.
    """

    missing_file: str = ""


class ModelNotFound(ModelError):
    """A model that does not exist: its file, its module, or its name in that module.

    Attributes
    ----------
    module
        The module that was searched for.
    attribute
        The missing name, if the module exists; else ``""``.
    """

    cause = "absent"
    module: str = ""
    attribute: str = ""


class ModelNeedsPackage(ModelError):
    """A model whose code imports a package that is not installed.

    Attributes
    ----------
    module
        Name of the package.
    """

    cause = "lacks"
    module: str = ""


class CannotStart(EffbenchError):
    """A worker process that cannot start: its environment lacks effbench, torch or another package."""

    cause = "start"


class ForeignCode(EffbenchError):
    """One side of a gate has imported code from outside its own source tree."""

    cause = "foreign"


class NeedsValues(ModelError):
    """A model whose forward pass reads tensor values, traced on tensors without values."""


class DeviceUnavailable(EffbenchError):
    """A supported device that this machine does not have."""


class CorruptRun(EffbenchError):
    """An invalid run file. The message names the line."""


class NotComparable(EffbenchError):
    """Two runs whose conditions differ; the message names the fields."""


class StorageError(EffbenchError):
    """A folder cannot be written, is full, is in use by another run, or holds no run."""


class Reason(str):
    """The message of an error as text, with its `EffbenchError.cause`."""

    cause: str

    def __new__(cls, text: str, cause: str = "") -> Reason:
        made = super().__new__(cls, text)
        made.cause = cause
        return made

    @classmethod
    def of(cls, error: EffbenchError) -> Reason:
        return cls(str(error), error.cause)


def error_from_reason(reason: str) -> EffbenchError:
    """Rebuild the error that a reason was made from, possibly in another process."""
    kinds: tuple[type[EffbenchError], ...] = (ModelNotFound, ModelNeedsPackage, CannotStart, ForeignCode)
    cause = getattr(reason, "cause", "")
    return next((kind for kind in kinds if kind.cause == cause), EffbenchError)(str(reason))


def message_of(error: BaseException | str) -> str:
    """The message of an error; "" if its `__str__` raises, which is possible in user code."""
    try:
        return str(error)
    except Exception:
        return ""


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of an error's message, at most `most` characters of it; the name of its type if it has none."""
    return (message_of(error).strip() or type(error).__name__).splitlines()[0][:most]


class Unsupported(Exception):
    """The runtime cannot execute this model. The message is shown as the reason of the skipped cell."""
