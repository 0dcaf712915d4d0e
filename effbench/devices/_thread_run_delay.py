"""Measure how long the threads of this process have waited for a CPU core, in total. Linux only; zero elsewhere."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping

_TASKS = "/proc/self/task"


class ThreadRunDelays:
    """The threads of this process in /proc/self/task. Their files stay open, because opening costs more than
    reading.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._ended_threads_ns = 0
        self._last_ns: dict[str, int] = {}
        weakref.finalize(self, _close, self._files).atexit = False

    def run_delay_ns(self) -> int:
        """Return the nanoseconds that all threads have waited for a core so far. Ended threads count up to their last
        sample.
        """
        try:
            present = os.listdir(_TASKS)
        except OSError:
            return 0
        for name in self._last_ns.keys() - set(present):
            self._forget(name)
        for name in present:
            try:
                if name not in self._files:
                    self._files[name] = os.open(f"{_TASKS}/{name}/schedstat", os.O_RDONLY)
                self._last_ns[name] = int(os.pread(self._files[name], 128, 0).split()[1])
            except (OSError, ValueError, IndexError):  # the thread has just ended, or the kernel has no such counter
                self._forget(name)
        return self._ended_threads_ns + sum(self._last_ns.values())

    def _forget(self, name: str) -> None:
        self._ended_threads_ns += self._last_ns.pop(name, 0)
        if (file := self._files.pop(name, None)) is not None:
            os.close(file)


def _close(files: Mapping[str, int]) -> None:
    for file in files.values():
        os.close(file)
