"""Report which files this process opens: listeners get each path, and an A/B run's process records those that it reads.

A Python audit hook sees them, whatever function opens a file. An audit hook cannot be removed: the first listener
installs it, and without listeners it returns at once. Functions of known libraries that open files outside of Python
are replaced while there is a listener. `recorded_paths` adds the files that are mapped into memory. Files read by
another process are not seen.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

Listener = Callable[[str, int], None]
"""Called with the absolute path of a file that is about to be opened (links and ``..`` not resolved) and the open
flags.
"""

_listeners: list[Listener] = []
_replaced: dict[tuple[int, str], tuple[Any, Any]] = {}
"""Replaced functions by identity of their module or class and name: that module or class, and the original."""
_paths: dict[str, None] | None = None
_LAZY: Any = getattr(importlib.util, "_LazyModule", ())
"""The type of a module that `importlib.util.LazyLoader` has not loaded yet."""
_is_hooked = False
_lock = threading.Lock()
_thread_state = threading.local()


# --- what a gate's process has read -----------------------------------------------------------------


def start_recording() -> None:
    """Record from now on what this process reads, until it ends. Used only by an A/B run's process."""
    global _paths
    _paths = {}
    if _record not in _listeners:
        _add_listener(_record)


@contextmanager
def recording_suspended() -> Iterator[None]:
    """Suspend recording within the block, while effbench itself opens files."""
    global _paths
    paths, _paths = _paths, None
    try:
        yield
    finally:
        _paths = paths


def recorded_paths() -> list[str]:
    """Return the absolute paths recorded so far, links not resolved, with sources in place of bytecode; empty if not
    recording.
    """
    if _paths is None:
        return []
    paths = list(_paths)
    with recording_suspended():
        return list(dict.fromkeys([*map(source_of, paths), *_mapped_files()]))


def source_of(path: str) -> str:
    """Return the source of a bytecode file, which Python has checked by modification time; any other path unchanged."""
    if not path.endswith(".pyc"):
        return path
    source = path[:-1]  # where Python 2 and `compileall -b` put bytecode
    with suppress(ValueError):  # the name is not one that Python gives to bytecode
        source = importlib.util.source_from_cache(path)
    return source if os.path.isfile(source) else path


def _record(path: str, flags: int) -> None:
    if _paths is not None and not flags & os.O_WRONLY:
        _paths[path] = None


def _mapped_files() -> list[str]:
    """Return the files mapped into memory, such as libraries loaded by other libraries; empty if unavailable."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            found = [line.rstrip("\n").split(maxsplit=5)[5:] for line in lines]
    except OSError:  # not Linux
        return []
    return list(dict.fromkeys(path for each in found for path in each if path.startswith(os.sep)))


# --- listening --------------------------------------------------------------------------------------


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` for each file that is opened within the block.

    Files that the listener opens itself are not reported. Its errors are ignored.
    """
    _add_listener(listener)
    try:
        yield
    finally:
        _remove_listener(listener)


def _add_listener(listener: Listener) -> None:
    global _is_hooked
    with _lock:
        _listeners.append(listener)
        if not _is_hooked:
            _is_hooked = True
            sys.addaudithook(_audit_hook)
        for place, name, replacing in _file_openers():
            if (id(place), name) not in _replaced:
                _replaced[id(place), name] = place, vars(place).get(name)
                setattr(place, name, replacing(getattr(place, name)))


def _remove_listener(listener: Listener) -> None:
    with _lock:
        _listeners.remove(listener)
        if not _listeners:
            _restore_functions()


def _restore_functions() -> None:
    for (_, name), (place, held) in _replaced.items():
        if held is None:  # inherited
            delattr(place, name)
        else:
            setattr(place, name, held)
    _replaced.clear()


def _audit_hook(event: str, args: tuple[Any, ...]) -> None:
    if not _listeners or event not in ("open", "ctypes.dlopen", "sqlite3.connect"):
        return
    with suppress(Exception):  # our errors must not reach the network
        if event == "open":
            _report(args[0], args[2])
        elif event == "ctypes.dlopen":
            if os.sep in os.fsdecode(args[0]):  # a bare name is searched for by the system
                _report(args[0])
        else:
            path = os.fsdecode(args[0])
            is_address = path.startswith("file:")
            _report(url2pathname(urlsplit(path).path) if is_address else path, os.O_RDWR)


def _report(path: Any, flags: int = os.O_RDONLY, folder: str = "") -> None:
    if getattr(_thread_state, "is_reporting", False) or not isinstance(path, (str, bytes, os.PathLike)):
        return  # opened by a listener, or the descriptor of an open file
    _thread_state.is_reporting = True
    try:
        name = os.path.join(folder, os.fsdecode(path))
        name = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
        for listener in list(_listeners):
            with suppress(Exception):
                listener(name, flags)
    finally:
        _thread_state.is_reporting = False


def _file_openers() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Yield functions whose files the audit hook does not see, with what replaces them: they open files outside of
    Python, or relative to the descriptor of a folder.
    """
    yield os, "open", _reporting_dir_fd
    torch = sys.modules.get("torch")
    if torch is None:
        return
    yield torch.jit, "load", _reporting
    yield torch, "from_file", _reporting
    yield torch.UntypedStorage, "from_file", _reporting
    if "torch.export" in sys.modules:
        yield sys.modules["torch.export"], "load", _reporting
    if "torch.package" in sys.modules:
        yield sys.modules["torch.package"].PackageImporter, "__init__", _reporting_second
    with suppress(Exception):  # any error of importing an optional package
        import safetensors

        yield safetensors, "safe_open", _reporting
        if "safetensors.torch" in sys.modules:
            yield sys.modules["safetensors.torch"], "safe_open", _reporting


def _reporting(original: Callable[..., Any], position: int = 0) -> Callable[..., Any]:
    """Wrap a function so that the file named by its argument at `position` is reported first."""

    def opening(*args: Any, **kwargs: Any) -> Any:
        if _listeners:  # a module imported in the block may keep this wrapper
            with suppress(Exception):
                _report(args[position] if len(args) > position else next(iter(kwargs.values())))
        return original(*args, **kwargs)

    return opening


def _reporting_second(original: Callable[..., Any]) -> Callable[..., Any]:
    return _reporting(original, 1)


def _reporting_dir_fd(original: Callable[..., int]) -> Callable[..., int]:
    """Wrap `os.open`: the hook sees a name but not the folder descriptor that it is relative to."""

    def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is None or not _listeners:
            return original(path, flags, mode, dir_fd=dir_fd)
        with suppress(Exception):
            _report(path, flags, os.readlink(f"/proc/self/fd/{dir_fd}"))
        is_reporting, _thread_state.is_reporting = getattr(_thread_state, "is_reporting", False), True
        try:
            return original(path, flags, mode, dir_fd=dir_fd)
        finally:
            _thread_state.is_reporting = is_reporting

    return opening


# --- modules ----------------------------------------------------------------------------------------


def source_file(module: Any) -> str | None:
    """Return the file that a loaded module names as its source, without running any of its code.

    Reading ``__file__`` would load a lazily loaded module, and other objects in `sys.modules` may raise anything. None
    if the module names no file or has not been loaded yet.
    """
    kind = type(module)
    if kind is ModuleType:
        file = vars(module).get("__file__")
    elif issubclass(kind, _LAZY):
        return None
    else:
        file = inspect.getattr_static(module, "__file__", None)
    return file if isinstance(file, str) and file else None
