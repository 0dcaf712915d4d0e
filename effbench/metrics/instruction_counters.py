"""Count executed instructions in one of three ways: perf_event (hardware counter), valgrind, or QEMU.

In the parent, `find_method` returns the method that works on this machine, with the command that the worker has to run
under. In the worker, `open_counter` returns the counter. None of them reads a clock.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from effbench.core.errors import EffbenchError

KINDS = ("instructions", "loads", "stores", "simd", "branches", "syscalls")
"""Kinds of events that a counter may report. Only QEMU reports kinds after the first, and on x86-64 only "syscalls"."""

Counts = Mapping[str, int]
"""A number for each of `KINDS` that the counter reports."""

REMEDY = "install valgrind, or qemu-user and gcc (apt install valgrind)"

_MARK = 0x45464643
"""First argument of the prctl call that makes the QEMU plugin write its counts. The kernel has no such option."""
_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
"""The number of the system call perf_event_open."""
_RETIRED = (0, 1)
"""PERF_TYPE_HARDWARE and PERF_COUNT_HW_INSTRUCTIONS."""
_EVENT_DISABLED, _EVENT_INHERIT, _EVENT_NO_KERNEL, _EVENT_NO_HYPERVISOR = 1, 2, 1 << 5, 1 << 6
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_EMULATED_CPU = {"x86_64": "max", "aarch64": "neoverse-n1"}
"""The emulated CPU is fixed, so that counts are the same on every host; QEMU_CPU overrides it. The largest ARM model
("max") emulates vectors of 512 bits, which few processors have."""


@dataclass(frozen=True)
class Method:
    """One way to count. `command_prefix` is the command that the worker runs under, `variables` are for the worker's
    environment, and `settings` are passed to the worker.
    """

    name: str
    version: str
    command_prefix: tuple[str, ...]
    settings: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)


CPU_S = {"callgrind": (14, 35), "qemu": (17, 10)}
"""Approximate CPU seconds that a process takes to start, and for each cell; perf_event adds none."""


class Counter(Protocol):
    """Counts the instructions of one call. The count includes a small overhead of the counter itself."""

    def count(self, call: Callable[[], object]) -> Counts: ...


def find_method(folder: Path) -> Method | str:
    """Return the first method that works here, or the reasons why none does. `folder` is for files of one process."""
    reasons = []
    for method in (_perf_method, _callgrind_method, _qemu_method):
        found = method(folder)
        if isinstance(found, Method):
            return found
        reasons.append(found)
    return f"instructions cannot be counted here: {'; '.join(reasons)}; {REMEDY}"


def start_method(settings: Mapping[str, str]) -> None:
    """Start the method in a worker, once, before it forks. Raises EffbenchError if that fails."""
    if settings["method"] == "callgrind":
        _start_instrumentation(settings["file"])


def open_counter(settings: Mapping[str, str]) -> Counter:
    """Return a counter for the calling process, a child of the worker. Raises EffbenchError if it cannot start."""
    if settings["method"] == "perf_event":
        return _Event(int(settings["kind"]), int(settings["event"]))
    return _Callgrind(settings["file"]) if settings["method"] == "callgrind" else _Qemu(settings["file"])


# --- the kernel's counter ---------------------------------------------------------------------------


def _perf_method(folder: Path) -> Method | str:
    try:
        _Event(*_RETIRED).close()
    except EffbenchError as error:
        return str(error)
    settings = {"method": "perf_event", "kind": str(_RETIRED[0]), "event": str(_RETIRED[1])}
    return Method("perf_event", platform.release(), _without_aslr(), settings)


class _Event:
    """Counts user-mode events of this thread and the threads that it starts (perf_event_open(2)).

    `kind` and `event` are the kernel's numbers for the type and the config of the event.
    """

    def __init__(self, kind: int, event: int) -> None:
        number = _EVENT_OPEN.get(platform.machine())
        if sys.platform != "linux" or number is None:
            raise EffbenchError(f"{sys.platform} on {platform.machine()} has no perf_event_open")
        flags = _EVENT_DISABLED | _EVENT_INHERIT | _EVENT_NO_KERNEL | _EVENT_NO_HYPERVISOR
        # struct perf_event_attr: type, size, config, sample period, sample type, read format (3: the count and the
        # times enabled and running), flags.
        attributes = struct.pack("=IIQQQQQ", kind, 112, event, 0, 0, 3, flags).ljust(112, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.syscall(number, attributes, 0, -1, ctypes.c_int(-1), 0)
        if self._descriptor < 0:
            raise EffbenchError(_explain_errno(ctypes.get_errno()))

    def count(self, call: Callable[[], object]) -> Counts:
        import fcntl

        start, stop = partial(fcntl.ioctl, self._descriptor, _ENABLE), partial(fcntl.ioctl, self._descriptor, _DISABLE)
        fcntl.ioctl(self._descriptor, _RESET)
        before = os.read(self._descriptor, 24)
        start()
        call()
        stop()
        counted, enabled, running = struct.unpack("=QQQ", os.read(self._descriptor, 24))
        _, enabled_before, running_before = struct.unpack("=QQQ", before)
        if enabled - enabled_before != running - running_before:
            raise EffbenchError("another program uses the processor's counters too (perf); end it and count again")
        return {"instructions": counted}

    def close(self) -> None:
        os.close(self._descriptor)


def _explain_errno(number: int) -> str:
    """Explain an errno of perf_event_open (perf_event_open(2))."""
    meaning = {
        errno.EACCES: "kernel.perf_event_paranoid forbids it (sysctl kernel.perf_event_paranoid=2 allows it)",
        errno.EPERM: "the container or kernel.perf_event_paranoid forbids it",
        errno.ENOENT: "this processor, or the virtual machine, has no such counter",
        errno.EOPNOTSUPP: "this processor, or the virtual machine, has no such counter",
        errno.ENOSYS: "the kernel has no perf_event_open",
    }
    return f"perf_event: {meaning.get(number, os.strerror(number))} ({errno.errorcode.get(number, number)})"


# --- valgrind ---------------------------------------------------------------------------------------


def _callgrind_method(folder: Path) -> Method | str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "valgrind: PyTorch can steer it only on x86-64 Linux"
    valgrind, remote = shutil.which("valgrind"), shutil.which("vgdb")
    if valgrind is None or remote is None or importlib.util.find_spec("torch") is None:
        return "valgrind is not installed" if valgrind is None else "valgrind: there is no PyTorch here to steer it"
    base = folder / "callgrind"
    options = (
        "-q",
        "--tool=callgrind",
        # Without instrumentation, importing torch takes a third of the time.
        "--instr-atstart=no",
        "--collect-atstart=no",
        "--dump-line=no",
        f"--callgrind-out-file={base}.%p",
        f"--vgdb-prefix={folder / 'vgdb'}",
    )
    command_prefix = (*_without_aslr(), valgrind, *options)
    return Method("callgrind", _program_version(valgrind), command_prefix, {"method": "callgrind", "file": str(base)})


class _Callgrind:
    """Counts instructions with valgrind's callgrind, between two client requests that torch issues.

    Each request to dump writes a file with the costs since the last one, by function, and their total.
    """

    def __init__(self, base: str) -> None:
        from torch import _C

        if not _C._valgrind_supported_platform():
            raise EffbenchError("this build of torch cannot steer valgrind; install qemu-user and gcc instead")
        self._toggle, self._dump = _C._valgrind_toggle, _C._valgrind_toggle_and_dump_stats
        self._base = Path(base)

    def count(self, call: Callable[[], object]) -> Counts:
        # A process that ended has written a file with what it did after its last request.
        for left in self._dump_files():
            left.unlink()
        self._toggle()
        call()
        self._dump()
        texts = [file.read_text() for file in self._dump_files()]
        totals = [int(found[1]) for text in texts if (found := re.search(r"^totals: (\d+)", text, re.M))]
        if len(totals) != 1:
            raise EffbenchError("valgrind did not write one total a call; install qemu-user and gcc instead")
        return {"instructions": totals[0]}

    def _dump_files(self) -> list[Path]:
        return list(self._base.parent.glob(f"{self._base.name}.*"))


def _start_instrumentation(base: str) -> None:
    """Make valgrind instrument this process from now on."""
    vgdb = Path(base).with_name("vgdb")
    words = ["vgdb", f"--pid={os.getpid()}", f"--vgdb-prefix={vgdb}", "instrumentation", "on"]
    asking = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # valgrind answers only while this process executes instructions, so do not block while waiting.
    while asking.poll() is None:
        pass
    if asking.returncode:
        raise EffbenchError("valgrind does not answer vgdb; install qemu-user and gcc instead")


# --- the emulator -----------------------------------------------------------------------------------


def _qemu_method(folder: Path) -> Method | str:
    machine = platform.machine()
    name = f"qemu-{machine}"
    qemu, compiler = shutil.which(name), shutil.which("gcc") or shutil.which("cc")
    if qemu is None or compiler is None:
        return f"{name} is not installed" if qemu is None else "there is no C compiler for qemu's plugin"
    version = _program_version(qemu)
    plugin, written = folder / "effcount.so", folder / "effcount.txt"
    source = Path(__file__).with_name("effcount.c")
    words = [compiler, "-O2", "-shared", "-fPIC", f"-DAPI={_plugin_api(version)}", "-o", str(plugin), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        return f"qemu's plugin does not compile: {(done.stderr.strip().splitlines() or ['no reason given'])[0][:200]}"
    cpu = os.environ.get("QEMU_CPU") or _EMULATED_CPU.get(machine, "max")
    variables = {"QEMU_PLUGIN": f"{plugin},out={written}", "QEMU_CPU": cpu, "QEMU_RAND_SEED": "1"}
    # An emulated process starts only emulated ones, so its workers need no command to run under.
    command_prefix = () if _is_emulated() else (*_without_aslr(), qemu)
    settings = {"method": "qemu", "file": str(written)}
    return Method("qemu", f"{version}, {cpu}", command_prefix, settings, variables)


def _is_emulated() -> bool:
    try:
        # The emulator fakes /proc/self/exe, but not this one.
        return Path(os.readlink("/proc/thread-self/exe")).name.startswith("qemu-")
    except OSError:
        return False


def _plugin_api(version: str) -> int:
    """Return the plugin interface version of a QEMU: 1 up to 8, 2 for 9.0, 3 (or more) since 9.1."""
    found = re.search(r"(\d+)\.(\d+)", version)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    return 1 if release < (9, 0) else 2 if release < (9, 1) else 3


class _Qemu:
    """Counts instructions that QEMU executes between two marks, with the plugin effcount.c."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        prctl = ctypes.CDLL(None).prctl
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        self._mark = partial(prctl, _MARK, 0, 0, 0, 0)

    def count(self, call: Callable[[], object]) -> Counts:
        mark = self._mark
        mark()
        call()
        mark()
        try:
            before, after = (line.split() for line in self._path.read_text().splitlines()[-2:])
        except (OSError, ValueError):
            raise EffbenchError("the emulator has not loaded the plugin; install qemu-user, not -static") from None
        return {
            kind: int(last) - int(first) for kind, first, last in zip(KINDS, before, after, strict=True) if last != "-"
        }


# --- parts ------------------------------------------------------------------------------------------


def _without_aslr() -> tuple[str, ...]:
    """Return a command that disables address randomisation, if available: hashing by address varies counts."""
    words = ("setarch", "-R")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except OSError:
        return ()
    return () if done.returncode else words


def _program_version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return f"{Path(program).name} {found[0] if found else 'of unknown version'}"
