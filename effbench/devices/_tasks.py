"""How long the threads of this process have waited for a core, together: /proc/self/task. Linux; zero elsewhere."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping

_TASKS = "/proc/self/task"


class Tasks:
    """The threads of this process. Each one's file stays open, since looking it up costs more than reading it."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._ended_ns = 0
        self._last_ns: dict[str, int] = {}
        weakref.finalize(self, _close, self._files).atexit = False

    def run_delay_ns(self) -> int:
        """Nanoseconds that all threads so far have waited for a core, those that ended as far as they were seen."""
        try:
            present = os.listdir(_TASKS)
        except OSError:
            return 0
        for name in self._last_ns.keys() - set(present):
            self._end(name)
        for name in present:
            try:
                if name not in self._files:
                    self._files[name] = os.open(f"{_TASKS}/{name}/schedstat", os.O_RDONLY)
                self._last_ns[name] = int(os.pread(self._files[name], 128, 0).split()[1])
            except (OSError, ValueError, IndexError):  # it has just ended, or the kernel does not say
                self._end(name)
        return self._ended_ns + sum(self._last_ns.values())

    def _end(self, name: str) -> None:
        self._ended_ns += self._last_ns.pop(name, 0)
        if (file := self._files.pop(name, None)) is not None:
            os.close(file)


def _close(files: Mapping[str, int]) -> None:
    for file in files.values():
        os.close(file)
