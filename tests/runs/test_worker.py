"""The worker process: its events arrive and it ends, whatever its environment prints, closes or leaves running."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from effbench.host import worker_process
from effbench.host.worker_process import Worker, WorkerFailed, last_message
from effbench.runs import worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there the protocol shares the standard streams")

NOISE = {
    "prints": "print('hello')",
    "a line that never ends": "import sys; sys.stdout.write('{')",
    "bytes": r"import os; os.write(1, b'\xff\xfe\x00{}\n'); os.write(2, b'\xff\n')",
    "json": """print('{"event": "error", "message": "no"}')""",
    "reads": "import sys; sys.stdin.read()",
    "closes": "import os; [os.close(number) for number in (0, 1, 2)]",
    "at its end": "import atexit; atexit.register(print, 'bye')",
    "another stream": "import io, sys; sys.stdout = sys.stdin = None",
    "a child": "import os, time; os.fork() or (time.sleep(60), os._exit(0))",
}


def heard(folder: Path, start: str, silence_s: float = 60, job_bytes: int = 0) -> list[dict[str, Any]]:
    """What a worker says that is asked for the shapes of no networks, in an environment that does this at its start."""
    (folder / "sitecustomize.py").write_text(start)
    variables = worker_process.worker_environment(1, "system")
    variables["PYTHONPATH"] = os.pathsep.join([str(folder), variables["PYTHONPATH"]])
    with Worker({"task": "shapes", "models": [], "padding": "x" * job_bytes}, variables, silence_s) as process:
        return list(process.events())


@pytest.mark.parametrize("start", NOISE.values(), ids=NOISE)
def test_what_runs_when_python_starts_does_not_disturb(tmp_path: Path, start: str) -> None:
    assert heard(tmp_path, start) == []


def test_what_is_registered_for_the_exit_runs_and_the_interpreter_is_not_dismantled(tmp_path: Path) -> None:
    """To dismantle torch's modules takes longer than to count a network."""
    files = {name: tmp_path / name for name in ("registered", "dismantled")}
    start = (
        "import atexit, pathlib, sys\n"
        f"atexit.register(pathlib.Path({str(files['registered'])!r}).touch)\n"
        f"class Last:\n    def __del__(self, touch=pathlib.Path({str(files['dismantled'])!r}).touch): touch()\n"
        "sys.modules['last'] = Last()\n"
    )
    assert heard(tmp_path, start) == []
    assert {name: path.exists() for name, path in files.items()} == {"registered": True, "dismantled": False}


@pytest.mark.parametrize(
    ("module", "ready"),
    [("open('ready', 'w').close()", True), ("raise OSError('a library is missing')", False), (None, False)],
    ids=["imports", "fails", "missing"],
)
def test_a_job_may_come_after_an_import(tmp_path: Path, module: str | None, ready: bool) -> None:
    """The first launch of a comparison imports torch before its job is known."""
    if module is not None:
        (tmp_path / "ahead.py").write_text(module.replace("'ready'", repr(str(tmp_path / "ready"))))
    variables = worker_process.worker_environment(1, "system")
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    with Worker({"imports": "ahead"}, variables, 60) as process:
        process.send({"task": "shapes", "models": []})
        assert list(process.events()) == []
    assert (tmp_path / "ready").exists() is ready


HANGS = {
    "sleeps": "import time; time.sleep(600)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "closes its pipes and lives on": "import os, time; os.closerange(3, 4096); time.sleep(600)",
    "holds the lock of the interpreter": "import ctypes; ctypes.PyDLL(None).pause()",
}


@pytest.mark.parametrize("start", HANGS.values(), ids=HANGS)
def test_one_that_hangs_is_ended(tmp_path: Path, start: str) -> None:
    with pytest.raises(WorkerFailed, match=r"no sign of life for 0\.5 s"):
        heard(tmp_path, start, 0.5)


def test_one_that_never_takes_its_job_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="no sign of life"):
        heard(tmp_path, HANGS["sleeps"], 0.5, 1 << 18)  # more than a pipe holds


def test_one_that_took_long_over_a_large_job_is_heard(tmp_path: Path) -> None:
    assert heard(tmp_path, "import time; time.sleep(0.3)", job_bytes=1 << 18) == []


def test_a_thread_that_never_ends_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "EXIT_TIMEOUT_S", 0.2)
    assert heard(tmp_path, "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()") == []


def test_one_that_dies_is_told_though_its_child_holds_the_pipes(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="ended with exit code 3"):
        heard(tmp_path, "import os, time\nif os.fork(): os._exit(3)\ntime.sleep(5)")


def test_pipes_that_a_start_file_closes(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"exit code 1; it last printed: OSError: .*Bad file descriptor"):
        heard(tmp_path, "import atexit, os; os.closerange(3, 4096); atexit.register(print, 'bye')")


def test_no_program_that_a_network_starts_has_the_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, other = os.pipe(), os.pipe()
    for end in (pipe[0], other[1]):
        os.set_inheritable(end, True)
    monkeypatch.setenv(worker_process.PIPES, f"{pipe[0]},{other[1]}")
    orders, events = worker._pipes()
    assert worker_process.PIPES not in os.environ
    assert not os.get_inheritable(orders.fileno()) and not os.get_inheritable(events.fileno())
    for stream in (orders, events):
        stream.close()
    os.close(pipe[1]), os.close(other[0])


def test_the_message_of_the_last_traceback_is_the_last_word() -> None:
    assert last_message("") == ""
    assert last_message("a\nb\n") == "b"
    printed = "Traceback (most recent call last):\n  File x\n    y\nValueError: first\n\nDuring …\n\nTraceback (most "
    printed += "recent call last):\n  File x\n    y\nOSError: second\nmore of it\nbye\n"
    assert last_message(printed) == "OSError: second"
