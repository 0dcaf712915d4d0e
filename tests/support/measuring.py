"""Measuring processes without the price of importing torch: each is a fork of the command that starts it.

For commands that are forks themselves (tests/support/nursery.py), and for tests that ask for it (`forked`). Such a fork
forgets effbench and the user's modules and imports them afresh, with the paths, variables and streams that it was
given; it leads a session, is waited for and is killed like any process. What it cannot have is what libraries read
once, at their start: threads, the allocator. So what measures on a real device still imports everything itself, unless
a test says that it does not look at times.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

WORKER = "effbench.runs.worker"
UNTIMED = ("count", "shapes")
"""What a measuring process does for any device, and without a clock (`worker.main`)."""

UNTIMED_LAUNCHES = "EFFBENCH_TESTS_FORK"
"""A variable for commands whose times nobody looks at: launches and metrics on a real device are forks as well."""

_paths: list[str] = []
"""Where this interpreter looks for modules, before a command adds to it."""
_filters: list[Any] = []
_libraries: set[str] = set()
"""What was imported before there was a command: none of it is the user's."""
_PLACES = tuple(place + os.sep for place in {sys.prefix, sys.base_prefix})
_afresh = True


def install(afresh: bool = True) -> None:
    """From now on measuring processes are forked where they can be, in this process and in its forks.

    Where they are many and only their end is looked at, they need not import effbench `afresh`.
    """
    global _afresh
    _libraries.update(sys.modules)
    _afresh, _paths[:], _filters[:] = afresh, [path for path in sys.path if path], warnings.filters
    subprocess.Popen = Popen  # type: ignore[misc]


def forking(folder: Path) -> dict[str, str]:
    """Variables with which a command that is a process of its own imports torch once and forks what measures."""
    (folder / "sitecustomize.py").write_text(
        f"""
import gc, sys
import torch._dynamo, torch.fx.experimental.symbolic_shapes, torch.utils.flop_counter

sys.path.insert(0, {str(Path(__file__).parent)!r})
import measuring

del sys.path[0]
measuring.install()
gc.collect()
gc.freeze()
"""
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


@contextmanager
def forked(afresh: bool = True) -> Iterator[None]:
    """Within the block, whatever this process measures is measured in forks of it, on a real device as well: for tests
    that call effbench themselves and do not look at times.

    Forks that need not import effbench `afresh` have it as the test has left it.
    """
    global _afresh
    importlib.import_module("torch._dynamo")  # once, and not in each fork that counts
    before, untimed = (subprocess.Popen, _afresh), os.environ.get(UNTIMED_LAUNCHES)
    _paths[:] = [path for path in sys.path if path]
    # As a new interpreter has them. Here every warning is an error.
    _filters[:] = [("ignore", None, kind, None, 0) for kind in (DeprecationWarning, PendingDeprecationWarning)]
    subprocess.Popen, _afresh, os.environ[UNTIMED_LAUNCHES] = Popen, afresh, "1"  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen, _afresh = before  # type: ignore[misc]
        del os.environ[UNTIMED_LAUNCHES]
        if untimed is not None:
            os.environ[UNTIMED_LAUNCHES] = untimed


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process as ever, but for measuring processes whose job allows a fork."""

    def _execute_child(self, words: Any, *how: Any) -> None:
        job = _job() if words == [sys.executable, "-m", WORKER] else None
        if job is None or not is_forked(job):
            super()._execute_child(words, *how)  # type: ignore[misc]
            return
        pipes, folder, variables, streams = how[3], how[4], how[5], (how[9], how[12], how[14])
        sys.stdout.flush()
        sys.stderr.flush()
        # Whoever asked for the process kills its session, so there must be one before it is told of the process.
        has_session, begun = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside the threads of pytest-xdist
            self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.close(begun)
            _work(folder, variables, streams, pipes, _afresh and not is_scripted(job))
        os.close(begun)
        os.read(has_session, 1)
        os.close(has_session)
        self._child_created = True
        os.close(streams[0])  # /dev/null; the others are a file of who asks for the process


def _job() -> Mapping[str, Any]:
    """What the process is started for: `launcher.Worker` is told, and tells the process when it is there."""
    frame = sys._getframe()
    while frame.f_globals.get("__name__") != "effbench.host.worker_process":
        assert frame.f_back is not None
        frame = frame.f_back
    job: Mapping[str, Any] = frame.f_locals["job"]
    return job


def is_forked(job: Mapping[str, Any]) -> bool:
    if job.get("device") == "fake" or job.get("task") in UNTIMED:
        return True
    return UNTIMED_LAUNCHES in os.environ and job.get("task") != "peaks"  # which are stored for other commands


def is_scripted(job: Mapping[str, Any]) -> bool:
    """Does it run none of the user's code, but the scripted clock? Then it can keep the effbench that it has."""
    return job.get("device") == "fake" and job.get("task") not in UNTIMED


def _work(
    folder: Any,
    variables: Mapping[str, str],
    streams: tuple[int, int, int],
    pipes: tuple[int, ...],
    afresh: bool,
) -> NoReturn:
    """The life of a fork: all that `python -m effbench.runs.worker` does."""
    code: Any = 1
    try:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        sys.setprofile(None)
        gc.freeze()  # or the process would go through, and copy, all that its parent holds
        _as_a_new_interpreter(folder, variables, streams, pipes, afresh)
        runpy.run_module(WORKER, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        # To take down all that was imported would mean to copy it first.
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(code or 0)


def _as_a_new_interpreter(
    folder: Any,
    variables: Mapping[str, str],
    streams: tuple[int, int, int],
    pipes: tuple[int, ...],
    afresh: bool,
) -> None:
    atexit._clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kept = [os.dup(stream) for stream in streams]
    for number, stream in enumerate(kept):
        os.dup2(stream, number)
    last = 2
    for pipe in (*sorted(pipes), 1 << 16):
        os.closerange(last + 1, pipe)
        last = pipe
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        raw: Any = io.FileIO(number, "w" if number else "r", closefd=False)
        raw = raw if number else io.BufferedReader(raw)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors=getattr(sys, name).errors, write_through=number > 0)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(variables)
    if folder is not None:
        os.chdir(folder)
    warnings.filters[:] = _filters
    sys.path[:] = [*filter(None, variables.get("PYTHONPATH", "").split(os.pathsep)), *_paths]
    afresh = afresh or not _finds_the_same_effbench()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "effbench":
            is_kept = not afresh and name != WORKER  # which is about to be run
        else:
            file = getattr(module, "__file__", None)
            is_kept = name in _libraries or not file or name == "__main__" or file.startswith(_PLACES)
        if not is_kept:
            del sys.modules[name]
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = bool(variables.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = sys.orig_argv = [sys.executable, "-m", WORKER]


def _finds_the_same_effbench() -> bool:
    """Would an import find the effbench that is imported?"""
    places = (os.path.join(path, name) for path in sys.path for name in ("effbench", "effbench.py"))
    return next(filter(os.path.exists, places), "") == os.path.dirname(str(sys.modules["effbench"].__file__))
