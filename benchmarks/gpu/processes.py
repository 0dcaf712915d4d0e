"""Start a module in a separate process, wait for it, and end it with every process that it started."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 6.0
"""Seconds between asking a process to end and killing it."""

POLL_S = 0.05
_HEAVY = ("torch", "torch._dynamo", "matplotlib.pyplot", "pandas", "scipy.stats", "effbench.cli", "effbench.report")
_is_loaded = False


class Child:
    """A process started here. `is_leader` says whether it leads its own process group."""

    def __init__(self, pid: int, popen: subprocess.Popen[bytes] | None, is_leader: bool) -> None:
        self.pid, self._popen, self._is_leader = pid, popen, is_leader
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self._popen is not None:
            return self._popen.poll()
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def wait(self, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> int | None:
        """Return its exit code, or None if it still runs after `seconds` or `should_stop()` is true."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None and time.monotonic() < end and not should_stop():
            time.sleep(POLL_S)
        return code

    def end(self, ask: signal.Signals, grace_s: float = GRACE_S) -> int | None:
        """Ask it to end, then kill it and every process that it started, even outside of its process group."""
        started = family(self.pid)
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, ask)
            self.wait(grace_s)
        started |= family(self.pid)
        if self._is_leader:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        for pid in started - ({self.pid} if self.poll() is not None else set()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return self.wait(5.0)


def start(
    module: str, arguments: Sequence[str], *, out: Path, errors: Path, folder: Path, is_leader: bool = False
) -> Child:
    """Run ``python -m module arguments`` in `folder` and append its output to these files.

    It imports effbench from this checkout, whether effbench is installed or not.
    """
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    for path in (out, errors):
        path.parent.mkdir(parents=True, exist_ok=True)
    if _is_loaded:
        return Child(_fork(module, arguments, out, errors, folder, is_leader), None, is_leader)
    with out.open("ab") as stdout, errors.open("ab") as stderr:
        popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            start_new_session=is_leader,
        )
    return Child(popen.pid, popen, is_leader)


def load_once() -> None:
    """Load torch and other slow modules now, and fork later processes from this one, so that they start at once.

    Only for trying the script out. Never for the cuda device, whose driver does not survive a fork.
    """
    global _is_loaded
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in _HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    _is_loaded = hasattr(os, "fork")


def _fork(module: str, arguments: Sequence[str], out: Path, errors: Path, folder: Path, is_leader: bool) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    code: int | str | None = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if is_leader:
            os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is killed (Linux)."""
    with suppress(OSError, AttributeError, ImportError):
        import ctypes

        set_death_signal = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, int(signal.SIGTERM), 0, 0, 0)


def family(pid: int) -> set[int]:
    """Return this process and all its descendants from /proc; only itself without /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat") if Path("/proc/self/stat").exists() else ():
        with suppress(OSError, ValueError, IndexError):
            # "pid (name) state ppid": a name may hold spaces and brackets.
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = {pid}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
