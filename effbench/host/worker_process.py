"""Start a worker process, hand it its job, and read its events. One worker is one launch."""

from __future__ import annotations

import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_KEEP = {
    # glibc gives big blocks back to the kernel and faults them in again: a grouped convolution then reads 2x slower in
    # some launches. Raising both thresholds keeps the pages; one alone does not.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


PIPES = "EFFBENCH_PIPES"
"""The variable that tells a worker the numbers of its pipes: orders to read, events to write."""

OVER = "over"
"""The last event of a worker that has carried its job out, whatever becomes of the process afterwards."""

LEAVING_S = 5.0
"""How long a worker that has said `OVER` may take to end by itself."""
LAST_WORDS_S = 1.0
"""How long after its end what it wrote may take to be read."""
ENDING_S = 30.0
"""How long a process that was killed may take to end."""

_OLD_PROTOCOL = "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
"""Up to 0.4 a worker read its job from the standard input, which now holds nothing."""


class WorkerFailed(Exception):
    """The worker ended, or fell silent, before its job was done. The message says how."""


@dataclass(frozen=True)
class Site:
    """Where a worker finds the code that it runs: here and now by default, or in another tree.

    `folder` is where it works, and what its `paths` are relative to: the first places that it imports from. Nothing
    may be imported from `foreign`, the other side's tree, and nothing of the project from outside of `own`, the tree
    that holds the folder; `listings` are files that hold the paths in both (`origins.write_listing`). `python` is the
    interpreter of an environment of its own, which must have effbench too. `under` are the words of a program that runs
    the interpreter, such as an emulator.
    """

    folder: Path | None = None
    paths: tuple[str, ...] = ()
    foreign: Path | None = None
    own: Path | None = None
    listings: tuple[Path, ...] = ()
    python: str | None = None
    under: tuple[str, ...] = ()

    def job(self) -> dict[str, Any]:
        """What the worker itself has to know."""
        if self.folder is None:
            return {}
        return {
            "paths": [str(self.folder / path) for path in self.paths],
            "folder": str(self.folder),
            "foreign": None if self.foreign is None else str(self.foreign),
            "own": str(self.own or self.folder),
            "listings": list(map(str, self.listings)),
        }

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables without the ways that lead into the other tree, or into this process's own packages."""
        if self.python is not None:
            return {name: value for name, value in variables.items() if name != "PYTHONPATH"}
        if self.foreign is None:
            return dict(variables)
        foreign, kept = self.foreign.resolve(), [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
        own = Path(__file__).resolve().parents[2]

        def leads_there(entry: str) -> bool:
            path = Path(entry).resolve()
            # An environment often lies in the project it is for; effbench may lie there too.
            return path.is_relative_to(foreign) and path != own and not any(map(path.is_relative_to, kept))

        entries = [entry for entry in variables["PYTHONPATH"].split(os.pathsep) if not leads_there(entry)]
        return {**variables, "PYTHONPATH": os.pathsep.join(entries)}


def worker_environment(threads: int, allocator: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of a worker: thread counts, which must be set before torch loads, and the allocator."""
    environment = dict(os.environ if base is None else base)
    if threads > 0:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
    if allocator == "retain":
        environment.update(_KEEP)
    # The same path and no more: a file called random.py where effbench was called from must not replace a module.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    # A user's folder stays as it was; and a stale file of bytes would be another revision's code.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # What this process can import, the worker can: a notebook's own modules are on its path, not on a fresh one's.
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return environment


def as_deployed(variables: Mapping[str, str]) -> dict[str, str]:
    """The same variables under the system's own allocator policy."""
    return {name: value for name, value in variables.items() if _KEEP.get(name) != value}


class Worker:
    """A running worker. Use as a context manager: leaving it ends the process, whatever happened.

    Orders and events have pipes of their own, since anything that an environment runs at start-up (a sitecustomize, a
    .pth file) may read the standard input or print.
    """

    def __init__(
        self, job: Mapping[str, Any], environment: Mapping[str, str], silence_s: float, site: Site | None = None
    ) -> None:
        site = site or Site()
        self._silence_s, self._is_own, self._is_deaf = silence_s, site.python is None, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        words = [*site.under, site.python or sys.executable, "-m", "effbench.runs.worker"]
        variables = site.environment(environment)
        # A session of its own: Ctrl-C reaches only the parent, which still has to save and to say how to go on.
        start = partial(subprocess.Popen, words, stderr=self._errors, cwd=site.folder, start_new_session=True)
        if sys.platform == "win32":  # a process there inherits no descriptors by number
            self._process = start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
            assert self._process.stdin is not None and self._process.stdout is not None
            self._orders, self._events = self._process.stdin.fileno(), self._process.stdout
        else:
            theirs, self._orders = _pipe()
            events, says = _pipe()
            os.set_blocking(self._orders, False)
            self._events = os.fdopen(events, "rb")
            pipes: tuple[int, ...] = (theirs, says)
            try:
                told = {**variables, PIPES: f"{theirs},{says}"}
                self._process = start(stdin=subprocess.DEVNULL, stdout=self._errors, env=told, pass_fds=pipes)
            except BaseException:
                pipes += (self._orders,)
                self._events.close()
                self._errors.close()
                raise
            finally:
                for pipe in pipes:
                    os.close(pipe)
        # Ctrl-C falls anywhere. Inside a Queue, which is Python code, it leaves a lock taken or becomes another error.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ended, self._ends = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._await_end, daemon=True)
        self._waiter.start()
        # Left open: when this process dies, however it dies, the worker reads the end of its input and ends too.
        try:
            self.send({**job, **site.job()})
        except BaseException:  # Ctrl-C while it does not take its job
            self.__exit__()
            raise

    def send(self, order: Mapping[str, Any]) -> None:
        """Give the worker its job, or one that obeys orders the next of them.

        One that is dead, or takes nothing for `silence_s`, gets none; `events` tells why.
        """
        left = memoryview(json.dumps(order).encode() + b"\n")
        try:
            while left and not self._is_deaf:
                try:
                    left = left[os.write(self._orders, left) :]
                except BlockingIOError:  # a job of many cells is larger than a pipe
                    self._is_deaf = not _is_writable(self._orders, self._silence_s)
        except BrokenPipeError:
            return

    def _read(self) -> None:
        if sys.platform == "win32":
            for line in self._events:
                self._lines.put(line)
            return
        events, half = self._events.fileno(), b""
        with selectors.DefaultSelector() as ready:
            ready.register(events, selectors.EVENT_READ)
            ready.register(self._ended, selectors.EVENT_READ)
            while any(key.fd == events for key, _ in ready.select()):  # else all is read that a dead worker wrote
                part = os.read(events, 1 << 16)
                if not part:
                    return
                *lines, half = (half + part).split(b"\n")
                for line in lines:
                    self._lines.put(line)

    def _await_end(self) -> None:
        self._process.wait()
        # Not the end of its pipe: a child of the network's may hold that for ever.
        os.close(self._ends)
        self._reader.join(LAST_WORDS_S)
        self._lines.put(None)

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come. Raises WorkerFailed when the process dies or says nothing for `silence_s`."""
        while True:
            try:
                line = self._lines.get(timeout=0 if self._is_deaf else self._silence_s)
            except queue.Empty:
                raise WorkerFailed(
                    f"no sign of life for {self._silence_s:g} s, taken for hung and ended; where one call takes "
                    "longer, measure it as a study with Sampling(silence_s=...)"
                ) from None
            if line is None:
                break
            try:
                event = json.loads(line)
            except ValueError:
                continue  # killed while it wrote this line; its end follows
            if event["event"] == OVER:
                # All is told. What a thread that the network left does from now on is nobody's concern.
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(LEAVING_S)
                return
            yield event
        code = self._process.wait()
        if code:
            raise WorkerFailed(self._how_it_ended(code))

    def _how_it_ended(self, code: int) -> str:
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace")
        if not self._is_own and _OLD_PROTOCOL in printed:
            return "its environment has effbench of an earlier version; install the same in both"
        said = last_words(printed)
        last = f"; it last printed: {said}" if said else ""
        if code < 0:
            known = {known.value: known.name for known in signal.Signals}
            name = known.get(-code, f"signal {-code}")
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the process was ended by {name}{hint}{last}"
        return f"the process ended with exit code {code}{last}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end_all()
        with suppress(subprocess.TimeoutExpired):  # one that the kernel cannot end, as on a network drive that is gone
            self._process.wait(ENDING_S)
        if self._process.stdin is None:
            os.close(self._orders)
        else:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._waiter.join(LAST_WORDS_S)
        if not self._waiter.is_alive() and not self._reader.is_alive():
            self._events.close()
            os.close(self._ended)
        self._errors.close()

    def _end_all(self) -> None:
        """The worker and what it started: it leads a session of its own."""
        if sys.platform == "win32":
            self._process.kill()
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def last_words(printed: str) -> str:
    """The line that tells most of how a process ended: the message of its last traceback, else its last line.

    What an environment prints when Python ends comes after the traceback.
    """
    lines = printed.strip().splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if begins:
        said = (line for line in lines[begins[-1] + 1 :] if line.strip() and not line[0].isspace())
        return next(said, lines[-1]).strip()[:200]
    return lines[-1].strip()[:200] if lines else ""


def _pipe() -> tuple[int, int]:
    """The two ends of a pipe, neither of them a standard stream's number, which the new process needs for that."""
    import fcntl

    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))
        os.close(end)
    return ends[0], ends[1]


def _is_writable(descriptor: int, timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_WRITE)
        return bool(selector.select(timeout_s))
