"""Start a worker process, send it its job, and read its events. One worker process is one launch."""

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

_RETAIN_VARIABLES = {
    # By default glibc returns large blocks to the kernel and faults them in again: grouped convolutions then read 2x
    # slower in some launches. Raising both thresholds keeps the pages; raising one does not.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


PIPES = "EFFBENCH_PIPES"
"""Environment variable with the descriptors of a worker's pipes: commands to read, events to write."""

DONE = "over"
"""The last event of a worker. Its job is complete, however the process ends afterwards."""

EXIT_TIMEOUT_S = 5.0
"""Seconds that a worker may take to exit after `DONE`."""
DRAIN_TIMEOUT_S = 1.0
"""Seconds to wait for unread output after a worker has exited."""
KILL_TIMEOUT_S = 30.0
"""Seconds that a killed process may take to end."""

_OLD_PROTOCOL = "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"
"""The error of effbench up to 0.4, whose worker reads its job from standard input, which is now empty."""


class WorkerFailed(Exception):
    """The worker ended, or sent nothing for too long, before its job was done. The message says how."""


@dataclass(frozen=True)
class Site:
    """Where a worker finds the code that it runs: this environment by default, or another source tree.

    Attributes
    ----------
    folder
        Its working folder.
    paths
        Folders that it imports from first, relative to `folder`.
    foreign
        The source tree of the other side of an A/B run. Nothing may be imported from it.
    own
        The source tree that holds `folder`. Modules of the project may be imported from this tree only.
    listings
        Files that list the paths in both trees (`source_trees.write_listing`).
    python
        Interpreter of a separate environment, which must have effbench installed.
    command_prefix
        Command line of a program that runs the interpreter, such as an emulator.
    """

    folder: Path | None = None
    paths: tuple[str, ...] = ()
    foreign: Path | None = None
    own: Path | None = None
    listings: tuple[Path, ...] = ()
    python: str | None = None
    command_prefix: tuple[str, ...] = ()

    def job(self) -> dict[str, Any]:
        """Return the fields that the worker itself needs."""
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
        """Remove from PYTHONPATH what leads into the other side's tree, or into this process's packages."""
        if self.python is not None:
            return {name: value for name, value in variables.items() if name != "PYTHONPATH"}
        if self.foreign is None:
            return dict(variables)
        foreign, kept = self.foreign.resolve(), [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
        own = Path(__file__).resolve().parents[2]

        def leads_there(entry: str) -> bool:
            path = Path(entry).resolve()
            # A virtual environment often lies inside the project's folder; effbench may lie there too.
            return path.is_relative_to(foreign) and path != own and not any(map(path.is_relative_to, kept))

        entries = [entry for entry in variables["PYTHONPATH"].split(os.pathsep) if not leads_there(entry)]
        return {**variables, "PYTHONPATH": os.pathsep.join(entries)}


def worker_environment(threads: int, allocator: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables of a worker: thread counts, which must be set before torch loads, and malloc
    policy.
    """
    environment = dict(os.environ if base is None else base)
    if threads > 0:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
    if allocator == "retain":
        environment.update(_RETAIN_VARIABLES)
    # Keep the import path but add nothing: a random.py in the current folder must not replace a standard module.
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    # Leaves the user's folder unchanged. A stale bytecode file would also run the code of another revision.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # A worker can import what this process can. In a notebook that includes modules that a fresh path lacks.
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return environment


def without_allocator_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without our malloc settings, so that the system's own policy applies."""
    return {name: value for name, value in variables.items() if _RETAIN_VARIABLES.get(name) != value}


class Worker:
    """A running worker process. Use it as a context manager, which always ends the process.

    Commands and events have their own pipes, because code that an environment runs at start-up (sitecustomize, a .pth
    file) may read standard input or print.
    """

    def __init__(
        self, job: Mapping[str, Any], environment: Mapping[str, str], silence_s: float, site: Site | None = None
    ) -> None:
        site = site or Site()
        self.silence_s, self._is_own, self._is_unresponsive = silence_s, site.python is None, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        arguments = [*site.command_prefix, site.python or sys.executable, "-m", "effbench.runs.worker"]
        variables = site.environment(environment)
        # A separate session: Ctrl-C reaches only the parent, which still has to save and print how to resume.
        start = partial(subprocess.Popen, arguments, stderr=self._errors, cwd=site.folder, start_new_session=True)
        if sys.platform == "win32":  # a process there inherits no descriptors by number
            self._process = start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
            assert self._process.stdin is not None and self._process.stdout is not None
            self._commands, self._events = self._process.stdin.fileno(), self._process.stdout
        else:
            commands, self._commands = _pipe()
            events, event_output = _pipe()
            os.set_blocking(self._commands, False)
            self._events = os.fdopen(events, "rb")
            pipes: tuple[int, ...] = (commands, event_output)
            try:
                worker_variables = {**variables, PIPES: f"{commands},{event_output}"}
                self._process = start(
                    stdin=subprocess.DEVNULL, stdout=self._errors, env=worker_variables, pass_fds=pipes
                )
            except BaseException:
                pipes += (self._commands,)
                self._events.close()
                self._errors.close()
                raise
            finally:
                for pipe in pipes:
                    os.close(pipe)
        # Ctrl-C can arrive anywhere. Inside `Queue`, which is Python code, it leaves a lock held or becomes another
        # error.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._exit_read, self._exit_write = os.pipe()
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._await_end, daemon=True)
        self._waiter.start()
        # Left open: when this process dies, the worker reads the end of its input and exits too.
        try:
            self.send({**job, **site.job()})
        except BaseException:  # Ctrl-C while the worker does not read its job
            self.__exit__()
            raise

    def send(self, command: Mapping[str, Any]) -> None:
        """Send the worker its job, or its next command.

        Nothing is sent to a worker that is dead or reads nothing for `silence_s`; `events` then raises the reason.
        """
        left = memoryview(json.dumps(command).encode() + b"\n")
        try:
            while left and not self._is_unresponsive:
                try:
                    left = left[os.write(self._commands, left) :]
                except BlockingIOError:  # a job of many cells is larger than a pipe
                    self._is_unresponsive = not _is_writable(self._commands, self.silence_s)
        except BrokenPipeError:
            return

    def _read_events(self) -> None:
        if sys.platform == "win32":
            for line in self._events:
                self._lines.put(line)
            return
        events, rest = self._events.fileno(), b""
        with selectors.DefaultSelector() as ready:
            ready.register(events, selectors.EVENT_READ)
            ready.register(self._exit_read, selectors.EVENT_READ)
            while any(key.fd == events for key, _ in ready.select()):  # afterwards a dead worker has nothing unread
                part = os.read(events, 1 << 16)
                if not part:
                    return
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    self._lines.put(line)

    def _await_end(self) -> None:
        self._process.wait()
        # Do not wait for the end of its pipe: a child process of the network may hold it open forever.
        os.close(self._exit_write)
        self._reader.join(DRAIN_TIMEOUT_S)
        self._lines.put(None)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield events as they arrive. Raises WorkerFailed if the process dies or sends nothing for `silence_s`."""
        while True:
            try:
                line = self._lines.get(timeout=0 if self._is_unresponsive else self.silence_s)
            except queue.Empty:
                raise WorkerFailed(
                    f"no sign of life for {self.silence_s:g} s, taken for hung and ended; where one call takes "
                    "longer, measure it as a study with Sampling(silence_s=...)"
                ) from None
            if line is None:
                break
            try:
                event = json.loads(line)
            except ValueError:
                continue  # killed while it wrote this line; the loop ends next
            if event["event"] == DONE:
                # The job is complete. What a remaining thread of the network does from now on does not matter.
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(EXIT_TIMEOUT_S)
                return
            yield event
        code = self._process.wait()
        if code:
            raise WorkerFailed(self._describe_end(code))

    def _describe_end(self, code: int) -> str:
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace")
        if not self._is_own and _OLD_PROTOCOL in printed:
            return "its environment has effbench of an earlier version; install the same in both"
        message = last_message(printed)
        last = f"; it last printed: {message}" if message else ""
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
            self._kill_all()
        with suppress(subprocess.TimeoutExpired):  # the kernel cannot end a process that waits for a lost network drive
            self._process.wait(KILL_TIMEOUT_S)
        if self._process.stdin is None:
            os.close(self._commands)
        else:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._waiter.join(DRAIN_TIMEOUT_S)
        if not self._waiter.is_alive() and not self._reader.is_alive():
            self._events.close()
            os.close(self._exit_read)
        self._errors.close()

    def _kill_all(self) -> None:
        """Kill the worker and the processes that it started, all in its session."""
        if sys.platform == "win32":
            self._process.kill()
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class WorkerEvents:
    """Iterates over the events of a worker until its process ends, however it ends."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.failure = ""
        """How the process failed (`WorkerFailed`), once all events are read; "" if it did not."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._worker.events()
        except WorkerFailed as failure:
            self.failure = str(failure)

    @property
    def ending(self) -> str:
        """Why a result is missing after all events."""
        return self.failure or "the process ended early, without an error"


def last_message(printed: str) -> str:
    """Return the line that best explains how a process ended: the message of its last traceback, else its last line.

    An environment may print more at exit, after the traceback.
    """
    lines = printed.strip().splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if begins:
        message = (line for line in lines[begins[-1] + 1 :] if line.strip() and not line[0].isspace())
        return next(message, lines[-1]).strip()[:200]
    return lines[-1].strip()[:200] if lines else ""


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe, with descriptors above those of the standard streams, which the child needs."""
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
