"""Every cell is measured under the same global settings: what a network changes is put back, and the network is named.

A setting is changed while a network is imported and built, or by a call of it. The first is put back and noted on its
cell. The second is put back too, but the cell is left out: its calls run under other settings than its neighbours'.
`_switch_table` lists the settings.
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effbench.core.errors import EffbenchError
from effbench.devices import Device
from effbench.user_code._global_state_table import Switch, rows, shown
from effbench.user_code.training_flags import Modes
from effbench.zoo import external
from effbench.zoo.libraries import LIBRARIES

_LISTED = 3

COLLECTS = "its forward collects Python's garbage, which takes longer in a process that holds more than this one"
"""Before rounds all that is there is frozen, so that a collection looks at next to nothing."""


class Switched(EffbenchError):
    """A network that changes what all cells are measured with."""


@dataclass(frozen=True)
class Change:
    """A switch that was found changed."""

    switch: Switch
    before: Any
    after: Any


class _Unreadable:
    """In place of a value where reading raises."""

    def __str__(self) -> str:
        return "what cannot be read"


_UNREADABLE = _Unreadable()


class Held:
    """The settings as they are when this is made, and whether they still are.

    Without `switches` it watches nothing.
    """

    def __init__(self, switches: Sequence[Switch]) -> None:
        self._switches = tuple(switch for switch in switches if not switch.quiet)
        self._unnamed = tuple(switch for switch in switches if switch.quiet)
        self._quick = tuple(place for place, switch in enumerate(self._switches) if not switch.slow)
        self._all = tuple(range(len(self._switches)))
        self._before: list[Any] = []
        self._before_unnamed: list[Any] = []
        self._notes: dict[str, str] = {}
        self._imported: dict[str, list[tuple[int, Any]]] = {}
        self._collections = 0
        self.collectors: set[str] = set()
        """Cells whose calls collect garbage themselves, which nobody else does once `listen` was called."""
        self._modes: dict[str, Modes] = {}
        self.spoiled = ""
        """What could not be put back: nothing more can be measured in this process."""
        self.renew()

    def renew(self) -> None:
        """From now on the settings of this moment are the ones to keep."""
        self._before = [_read(switch) for switch in self._switches]
        self._before_unnamed = [_read(switch) for switch in self._unnamed]

    def listen(self) -> None:
        """Notice from now on, where Python itself collects no garbage any more, who does (`collectors`)."""
        if self._switches:
            gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: Mapping[str, Any]) -> None:
        self._collections += phase == "start"

    # --- steps of a cell ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def building(self, spec: Mapping[str, Any]) -> Iterator[None]:
        """Import and build the network of `spec` (`Recording.order`). What that changes is put back and noted.

        Raises Switched where something cannot be put back.
        """
        model = str(spec["model"])
        subject = "building it" if model.startswith("pickle:") else model
        interop: list[tuple[int, int]] = []
        try:
            with interop_threads_left(interop) if self._switches else contextlib.nullcontext():
                self._import(model)
                yield
        finally:
            changes = self._put_back(self._all)
        said = [f"{each.switch.name} to {shown(each.after)} ({_told_back(each.before)})" for each in changes]
        said += [f"torch's inter-op threads to {number} (left at {left})" for number, left in interop[-1:]]
        if self.spoiled:
            raise Switched(f"{subject} sets {self.spoiled}; take that out of it")
        if said:
            self._notes[spec["id"]] = f"{subject} sets {_listed(said)}: every cell is measured under the same settings"

    def _import(self, model: str) -> None:
        """Import a package's module, which happens once, and set what that sets for each network that is built from it.

        A file is read anew for each.
        """
        place = model.partition("?")[0].rpartition(":")[0]
        if not self._switches or not place or place.endswith(".py") or place in ("pickle", *LIBRARIES):
            return
        external.imported(model)
        if place not in self._imported:
            after = [_read(switch) for switch in self._switches]
            self._imported[place] = [(number, after[number]) for number in self._changed(after)]
            return
        for number, value in self._imported[place]:
            put_back = self._switches[number].put_back
            if put_back is not None:
                with contextlib.suppress(Exception):
                    put_back(value)

    def facts(self, cell: str) -> dict[str, str]:
        """What building the cell's network changed, as a fact of its "probe"."""
        return {"switches": self._notes[cell]} if cell in self._notes else {}

    @contextlib.contextmanager
    def calling(self, cell: str) -> Iterator[None]:
        """Call the cell's network. Everything is put back afterwards, also after an exception. Raises Switched."""
        try:
            yield
        except BaseException:
            self._put_back(self._all)
            raise
        self.require(cell)

    def watch(self, cell: str, network: Any) -> None:
        """From now on a call that sets a module of this network to training or evaluation is a change, too."""
        if self._switches:
            self._modes[cell] = Modes(network)

    def require(self, cell: str, *, quick: bool = False) -> None:
        """Raise Switched where a setting is not as it was; it is put back. `quick` leaves out what takes long."""
        changes = self._put_back(self._quick if quick else self._all)
        if self._collections:
            self._collections = 0
            self.collectors.add(cell)
        if changes:
            advice = next((f" ({each.switch.advice})" for each in changes if each.switch.advice), "")
            raise Switched(f"its forward sets {told(changes)}; take that out of it{advice}")
        if cell in self._modes and (said := self._modes[cell].told()):
            del self._modes[cell]
            raise Switched(f"its forward {said}")

    # --- putting back -------------------------------------------------------------------------------

    def put_back(self) -> tuple[Change, ...]:
        """Put everything back that has changed, and say what it was."""
        return self._put_back(self._all)

    def _put_back(self, places: Sequence[int]) -> tuple[Change, ...]:
        before, switches = self._before, self._switches
        for switch, value in zip(self._unnamed, self._before_unnamed, strict=True):
            if switch.put_back is not None and switch.read() != value:
                switch.put_back(value)
        for place in places:
            try:
                if switches[place].read() != before[place]:
                    break
            except Exception:
                break
        else:
            return ()
        # What a switch sets along may be one that is not looked at in a hurry.
        after = [_read(switch) for switch in switches]
        left = self._changed(after)
        for _ in range(2):  # the second time for what another switch has set along
            for place in left:
                put_back = switches[place].put_back
                if put_back is not None:
                    with contextlib.suppress(Exception):  # whether it worked is seen below
                        put_back(before[place])
            left = self._changed([_read(switch) for switch in switches])
            if not left:
                break
        found = [Change(switches[place], before[place], after[place]) for place in self._changed(after)]
        if left:
            stuck = switches[left[0]]
            self.spoiled = f"{stuck.name} to {shown(after[left[0]])}, which cannot be put back"
            found.sort(key=lambda change: change.switch is not stuck)
        names = {change.switch.name for change in found if not isinstance(change.after, _Unreadable)}
        return tuple(
            change for change in found if change.switch.name in names and not names.intersection(change.switch.follows)
        )

    def _changed(self, after: Sequence[Any]) -> list[int]:
        return [place for place in self._all if after[place] != self._before[place]]


def told(changes: Sequence[Change]) -> str:
    """What was set, from what, to what."""
    return _listed([f"{each.switch.name}{_told_from(each.before)} to {shown(each.after)}" for each in changes])


def _told_back(before: Any) -> str:
    return "put back" if isinstance(before, io.IOBase) else f"put back to {shown(before)}"


def _told_from(before: Any) -> str:
    return "" if isinstance(before, io.IOBase) else f" from {shown(before)}"


def _read(switch: Switch) -> Any:
    try:
        return switch.read()
    except Exception:  # as torch's old switches do after the new ones were set
        return _UNREADABLE


def _listed(said: Sequence[str]) -> str:
    shortened = [*said[:_LISTED], *([f"{len(said) - _LISTED} more"] if len(said) > _LISTED else [])]
    return " and ".join([", ".join(shortened[:-1]), shortened[-1]] if len(shortened) > 1 else shortened)


@contextlib.contextmanager
def interop_threads_left(asked: list[tuple[int, int]] | None = None) -> Iterator[None]:
    """Meanwhile setting torch's inter-op threads to another number is not done, and noted in `asked` with theirs.

    torch lets a process set them once. The line at the top of many files would raise where a device has set them, or
    where the file is read a second time.
    """
    import torch as imported

    torch: Any = imported
    original = torch.set_num_interop_threads

    def noted(number: int) -> None:
        if asked is not None and number != torch.get_num_interop_threads():
            asked.append((number, torch.get_num_interop_threads()))

    torch.set_num_interop_threads = noted
    try:
        yield
    finally:
        torch.set_num_interop_threads = original


NOTHING = Held(())
"""Where nothing has to be watched."""


def held(device: Device) -> Held:
    """The settings that this device has just been set up with. A scripted device runs no network."""
    return Held(rows()) if device.kind != "fake" and device.uses_torch else NOTHING


@contextlib.contextmanager
def kept() -> Iterator[Held]:
    """Within the block any setting may be changed; afterwards all of them are as they were, also after an exception.

    Yields what can say before the end what has changed (`Held.put_back`). What cannot be put back stays.
    """
    import torch  # noqa: F401 # not only once a network has imported it, and changed it

    found = Held(rows())
    try:
        with interop_threads_left():
            yield found
    finally:
        found.put_back()
