"""Start a worker process, hand it its job, and read its events. One worker is one launch."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOCATORS = ("retain", "system")

_KEEP = {
    # glibc gives big blocks back to the kernel and faults them in again: a grouped convolution then reads 2x slower in
    # some launches. Raising both thresholds keeps the pages; one alone does not.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class WorkerFailed(Exception):
    """The worker ended, or fell silent, before its job was done. The message says how."""


@dataclass(frozen=True)
class Site:
    """Where a worker finds the code that it runs: here and now by default, or in another tree.

    `folder` is where it works, and what its `paths` are relative to: the first places that it imports from. Nothing
    may be imported from `foreign`, the other side's tree. `python` is the interpreter of an environment of its own,
    which must have effbench too. `under` are the words of a program that runs the interpreter, such as an emulator.
    """

    folder: Path | None = None
    paths: tuple[str, ...] = ()
    foreign: Path | None = None
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
    """A running worker. Use as a context manager: leaving it ends the process, whatever happened."""

    def __init__(
        self, job: Mapping[str, Any], environment: Mapping[str, str], silence_s: float, site: Site | None = None
    ) -> None:
        site = site or Site()
        self._silence_s = silence_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__
        # A session of its own: Ctrl-C reaches only the parent, which still has to save and to say how to go on.
        self._process = subprocess.Popen(
            [*site.under, site.python or sys.executable, "-m", "effbench.measurement.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=site.environment(environment),
            cwd=site.folder,
            start_new_session=True,
        )
        # Ctrl-C falls anywhere. Inside a Queue, which is Python code, it leaves a lock taken or becomes another error.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # Left open: when this process dies, however it dies, the worker reads the end of its input and ends too.
        self.send({**job, **site.job()})

    def send(self, order: Mapping[str, Any]) -> None:
        """Give the worker its job, or one that obeys orders the next of them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; events() tells why
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come. Raises WorkerFailed when the process dies or says nothing for `silence_s`."""
        while True:
            try:
                line = self._lines.get(timeout=self._silence_s)
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
                break  # killed while it wrote this line
            yield event
        code = self._process.wait()
        if code:
            raise WorkerFailed(self._how_it_ended(code))

    def _how_it_ended(self, code: int) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f"; it last printed: {lines[-1].strip()[:200]}" if lines else ""
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
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        # What the network started in a session of its own may outlive it and hold the pipe; that is left to the system.
        self._reader.join(timeout=1.0)
        if not self._reader.is_alive():
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._errors.close()

    def _end_all(self) -> None:
        """The worker and what it started: it leads a session of its own."""
        if sys.platform == "win32":
            self._process.kill()
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
