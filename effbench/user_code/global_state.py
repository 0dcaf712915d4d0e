"""Keep every cell under the same global settings: restore what a network changes, and report the network.

A network can change a setting while it is imported and built, or in a call. Both are restored. A change while building
is noted on the cell. A change in a call excludes the cell, because its calls run under other settings than the rest.
`_global_state_table` lists the settings.
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
from effbench.user_code._global_state_table import GlobalSetting, format_value, readable_settings
from effbench.user_code.training_flags import TrainingFlags
from effbench.zoo import load_model
from effbench.zoo.libraries import LIBRARIES

_MAX_LISTED = 3

COLLECTS_GARBAGE = (
    "its forward collects Python's garbage, which takes longer in a process that holds more than this one"
)
"""Before the rounds all existing objects are frozen, so that a garbage collection has almost nothing to scan."""


class SettingChanged(EffbenchError):
    """A network changes a setting that all cells are measured under."""


@dataclass(frozen=True)
class Change:
    """A changed setting, with its values before and after."""

    setting: GlobalSetting
    before: Any
    after: Any


class _Unreadable:
    """Stands for a value that cannot be read."""

    def __str__(self) -> str:
        return "what cannot be read"


_UNREADABLE = _Unreadable()


class SettingsGuard:
    """Remembers the global settings, and detects and restores changes. Without `settings` it does nothing."""

    def __init__(self, settings: Sequence[GlobalSetting]) -> None:
        self._settings = tuple(setting for setting in settings if not setting.unreported)
        self._unreported = tuple(setting for setting in settings if setting.unreported)
        self._quick = tuple(place for place, setting in enumerate(self._settings) if not setting.slow)
        self._all = tuple(range(len(self._settings)))
        self._before: list[Any] = []
        self._before_unreported: list[Any] = []
        self._notes: dict[str, str] = {}
        self._imported: dict[str, list[tuple[int, Any]]] = {}
        self._collections = 0
        self.cells_collecting_garbage: set[str] = set()
        """Cells whose calls collect garbage, recorded since `record_garbage_collection` was called."""
        self._modes: dict[str, TrainingFlags] = {}
        self.unrestored = ""
        """The setting that could not be restored, after which nothing more can be measured in this process; else ""."""
        self.remember_settings()

    def remember_settings(self) -> None:
        """Remember the current settings, which `restore` restores from now on."""
        self._before = [_read(setting) for setting in self._settings]
        self._before_unreported = [_read(setting) for setting in self._unreported]

    def record_garbage_collection(self) -> None:
        """Record from now on which cells collect garbage (`cells_collecting_garbage`).

        Python's automatic collection must be off, so that only a cell's own calls collect.
        """
        if self._settings:
            gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: Mapping[str, Any]) -> None:
        self._collections += phase == "start"

    # --- steps of a cell ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def building(self, spec: Mapping[str, Any]) -> Iterator[None]:
        """Import and build the network of `spec` (`Recording.cell_spec`); restore and note what that changes.

        Raises SettingChanged if something cannot be restored.
        """
        model = str(spec["model"])
        subject = "building it" if model.startswith("pickle:") else model
        interop: list[tuple[int, int]] = []
        try:
            with interop_threads_ignored(interop) if self._settings else contextlib.nullcontext():
                self._import(model)
                yield
        finally:
            changes = self._restore(self._all)
        descriptions = [
            f"{each.setting.name} to {format_value(each.after)} ({_restored_text(each.before)})" for each in changes
        ]
        descriptions += [f"torch's inter-op threads to {number} (left at {left})" for number, left in interop[-1:]]
        if self.unrestored:
            raise SettingChanged(f"{subject} sets {self.unrestored}; take that out of it")
        if descriptions:
            self._notes[spec["id"]] = (
                f"{subject} sets {_join(descriptions)}: every cell is measured under the same settings"
            )

    def _import(self, model: str) -> None:
        """Import a network's module, and let every network that is built from it start under the settings that the
        import makes.

        A module is imported once per process, so for its further networks those settings are made again. A file is
        executed for each network.
        """
        place = model.partition("?")[0].rpartition(":")[0]
        if not self._settings or not place or place.endswith(".py") or place in ("pickle", *LIBRARIES):
            return
        load_model.import_module_of(model)
        if place not in self._imported:
            after = [_read(setting) for setting in self._settings]
            self._imported[place] = [(number, after[number]) for number in self._changed(after)]
            return
        for number, value in self._imported[place]:
            restore = self._settings[number].restore
            if restore is not None:
                with contextlib.suppress(Exception):
                    restore(value)

    def facts(self, cell: str) -> dict[str, str]:
        """Return what building the cell's network changed, as a fact of its "probe" event."""
        return {"switches": self._notes[cell]} if cell in self._notes else {}

    @contextlib.contextmanager
    def calling(self, cell: str) -> Iterator[None]:
        """Call the cell's network within the block, and restore everything afterwards. Raises SettingChanged if a
        setting has changed.
        """
        try:
            yield
        except BaseException:
            self._restore(self._all)
            raise
        self.require_unchanged(cell)

    def watch_training_flags(self, cell: str, network: Any) -> None:
        """From now on also count it as a change if a call switches a module of this network between training and
        evaluation.
        """
        if self._settings:
            self._modes[cell] = TrainingFlags(network)

    def require_unchanged(self, cell: str, *, quick: bool = False) -> None:
        """Restore all settings. Raises SettingChanged if any had changed. `quick` skips what is slow to read."""
        changes = self._restore(self._quick if quick else self._all)
        if self._collections:
            self._collections = 0
            self.cells_collecting_garbage.add(cell)
        if changes:
            advice = next((f" ({each.setting.advice})" for each in changes if each.setting.advice), "")
            raise SettingChanged(f"its forward sets {describe_changes(changes)}; take that out of it{advice}")
        if cell in self._modes and (descriptions := self._modes[cell].changes_text()):
            del self._modes[cell]
            raise SettingChanged(f"its forward {descriptions}")

    # --- restoring ----------------------------------------------------------------------------------

    def restore(self) -> tuple[Change, ...]:
        """Restore everything that changed, and return the changes."""
        return self._restore(self._all)

    def _restore(self, places: Sequence[int]) -> tuple[Change, ...]:
        before, settings = self._before, self._settings
        for setting, value in zip(self._unreported, self._before_unreported, strict=True):
            if setting.restore is not None and setting.read() != value:
                setting.restore(value)
        for place in places:
            try:
                if settings[place].read() != before[place]:
                    break
            except Exception:
                break
        else:
            return ()
        # A changed setting may change others, which the quick check skips.
        after = [_read(setting) for setting in settings]
        left = self._changed(after)
        for _ in range(2):  # restoring one setting may change others, which the second pass restores
            for place in left:
                restore = settings[place].restore
                if restore is not None:
                    with contextlib.suppress(Exception):  # success is checked below
                        restore(before[place])
            left = self._changed([_read(setting) for setting in settings])
            if not left:
                break
        found = [Change(settings[place], before[place], after[place]) for place in self._changed(after)]
        if left:
            stuck = settings[left[0]]
            self.unrestored = f"{stuck.name} to {format_value(after[left[0]])}, which cannot be put back"
            found.sort(key=lambda change: change.setting is not stuck)
        names = {change.setting.name for change in found if not isinstance(change.after, _Unreadable)}
        return tuple(
            change
            for change in found
            if change.setting.name in names and not names.intersection(change.setting.follows)
        )

    def _changed(self, after: Sequence[Any]) -> list[int]:
        return [place for place in self._all if after[place] != self._before[place]]


def describe_changes(changes: Sequence[Change]) -> str:
    """Describe the changes: each setting, its old value and its new one."""
    return _join([f"{each.setting.name}{_from_text(each.before)} to {format_value(each.after)}" for each in changes])


def _restored_text(before: Any) -> str:
    return "put back" if isinstance(before, io.IOBase) else f"put back to {format_value(before)}"


def _from_text(before: Any) -> str:
    return "" if isinstance(before, io.IOBase) else f" from {format_value(before)}"


def _read(setting: GlobalSetting) -> Any:
    try:
        return setting.read()
    except Exception:  # torch's old precision settings raise after the new ones were set
        return _UNREADABLE


def _join(descriptions: Sequence[str]) -> str:
    shortened = [
        *descriptions[:_MAX_LISTED],
        *([f"{len(descriptions) - _MAX_LISTED} more"] if len(descriptions) > _MAX_LISTED else []),
    ]
    return " and ".join([", ".join(shortened[:-1]), shortened[-1]] if len(shortened) > 1 else shortened)


@contextlib.contextmanager
def interop_threads_ignored(ignored: list[tuple[int, int]] | None = None) -> Iterator[None]:
    """Within the block, ignore calls that set torch's inter-op threads, and note them in `ignored` with the number in
    force.

    torch lets a process set them only once. A call at the top of a file would raise if a device has already set them,
    or if the file is executed a second time.
    """
    import torch as imported

    torch: Any = imported
    original = torch.set_num_interop_threads

    def ignore(number: int) -> None:
        if ignored is not None and number != torch.get_num_interop_threads():
            ignored.append((number, torch.get_num_interop_threads()))

    torch.set_num_interop_threads = ignore
    try:
        yield
    finally:
        torch.set_num_interop_threads = original


NO_GUARD = SettingsGuard(())
"""Checks nothing."""


def guard_for(device: Device) -> SettingsGuard:
    """Remember the settings after `device.setup()`. The fake device runs no network, so nothing is checked on it."""
    return SettingsGuard(readable_settings()) if device.kind != "fake" and device.uses_torch else NO_GUARD


@contextlib.contextmanager
def settings_restored() -> Iterator[SettingsGuard]:
    """Restore all settings when the block ends, also after an exception.

    Yields the `SettingsGuard`, whose `restore` returns what has changed so far. What cannot be restored stays changed.
    """
    import torch  # noqa: F401 # imported now, before a network imports and changes it

    found = SettingsGuard(readable_settings())
    try:
        with interop_threads_ignored():
            yield found
    finally:
        found.restore()
