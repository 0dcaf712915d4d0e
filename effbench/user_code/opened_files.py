"""Which files this process opens: who listens is told each path, and a gate's process keeps those that it has read.

An audit hook of Python's sees them, whoever holds which name of which function. No hook can be taken away again: the
first listener installs it, and while nobody listens it looks at one list and returns. Libraries that open files below
Python are seen where they are known to: their functions are replaced while anybody listens. What is still mapped into
memory when a gate asks is seen too. What another process reads is not.
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
"""Is told an absolute path, links and ``..`` not resolved, that is about to be opened, and with which flags."""

_listeners: list[Listener] = []
_replaced: dict[tuple[int, str], tuple[Any, Any]] = {}
"""The functions that are replaced, by the identity of the module or class and the name: that place, what it held."""
_paths: dict[str, None] | None = None
_LAZY: Any = getattr(importlib.util, "_LazyModule", ())
"""What a module is until it is first used, where `importlib.util.LazyLoader` loads it."""
_is_hooked = False
_lock = threading.Lock()
_own = threading.local()


# --- what a gate's process has read -----------------------------------------------------------------


def watch() -> None:
    """Keep from now on what this process reads: it does so until its end, and only a gate's process does."""
    global _paths
    _paths = {}
    if _keep not in _listeners:
        _begin(_keep)


@contextmanager
def unwatched() -> Iterator[None]:
    """Within the block whoever opens files is effbench itself."""
    global _paths
    paths, _paths = _paths, None
    try:
        yield
    finally:
        _paths = paths


def so_far() -> list[str]:
    """The absolute paths, links not resolved, and of byte code its source's; nothing where nobody watches."""
    if _paths is None:
        return []
    paths = list(_paths)
    with unwatched():
        return list(dict.fromkeys([*map(source_of, paths), *_mapped()]))


def source_of(path: str) -> str:
    """The source of a file of byte code, whose time of change Python has compared; any other path as it is."""
    if not path.endswith(".pyc"):
        return path
    source = path[:-1]  # where Python 2 put it, and `compileall -b` does
    with suppress(ValueError):  # a name that Python does not give
        source = importlib.util.source_from_cache(path)
    return source if os.path.isfile(source) else path


def _keep(path: str, flags: int) -> None:
    if _paths is not None and not flags & os.O_WRONLY:
        _paths[path] = None


def _mapped() -> list[str]:
    """The files that are mapped into memory, such as libraries that others of them needed; none where it cannot say."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            found = [line.rstrip("\n").split(maxsplit=5)[5:] for line in lines]
    except OSError:  # not Linux
        return []
    return list(dict.fromkeys(path for each in found for path in each if path.startswith(os.sep)))


# --- listening --------------------------------------------------------------------------------------


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Tell `listener` of each file that is opened meanwhile. What it opens itself is not told, nor what it raises."""
    _begin(listener)
    try:
        yield
    finally:
        _end(listener)


def _begin(listener: Listener) -> None:
    global _is_hooked
    with _lock:
        _listeners.append(listener)
        if not _is_hooked:
            _is_hooked = True
            sys.addaudithook(_hear)
        for place, name, replacing in _openers():
            if (id(place), name) not in _replaced:
                _replaced[id(place), name] = place, vars(place).get(name)
                setattr(place, name, replacing(getattr(place, name)))


def _end(listener: Listener) -> None:
    with _lock:
        _listeners.remove(listener)
        if not _listeners:
            _put_back()


def _put_back() -> None:
    for (_, name), (place, held) in _replaced.items():
        if held is None:  # inherited
            delattr(place, name)
        else:
            setattr(place, name, held)
    _replaced.clear()


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if not _listeners or event not in ("open", "ctypes.dlopen", "sqlite3.connect"):
        return
    with suppress(Exception):  # what we make of its name is no business of the network
        if event == "open":
            _tell(args[0], args[2])
        elif event == "ctypes.dlopen":
            if os.sep in os.fsdecode(args[0]):  # not where the system has to search for it
                _tell(args[0])
        else:
            path = os.fsdecode(args[0])
            is_address = path.startswith("file:")
            _tell(url2pathname(urlsplit(path).path) if is_address else path, os.O_RDWR)


def _tell(path: Any, flags: int = os.O_RDONLY, folder: str = "") -> None:
    if getattr(_own, "looks", False) or not isinstance(path, (str, bytes, os.PathLike)):
        return  # a listener's own, or a file that is open already
    _own.looks = True
    try:
        name = os.path.join(folder, os.fsdecode(path))
        name = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
        for listener in list(_listeners):
            with suppress(Exception):
                listener(name, flags)
    finally:
        _own.looks = False


def _openers() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """The functions that open files below Python, or in a folder that the hook is not told, and what to put there."""
    yield os, "open", _in_folder
    torch = sys.modules.get("torch")
    if torch is None:
        return
    yield torch.jit, "load", _telling
    yield torch, "from_file", _telling
    yield torch.UntypedStorage, "from_file", _telling
    if "torch.export" in sys.modules:
        yield sys.modules["torch.export"], "load", _telling
    if "torch.package" in sys.modules:
        yield sys.modules["torch.package"].PackageImporter, "__init__", _telling_second
    with suppress(Exception):  # whatever keeps an optional package from being imported
        import safetensors

        yield safetensors, "safe_open", _telling
        if "safetensors.torch" in sys.modules:
            yield sys.modules["safetensors.torch"], "safe_open", _telling


def _telling(original: Callable[..., Any], position: int = 0) -> Callable[..., Any]:
    """The function, telling first of the file that its argument at this position names."""

    def opening(*args: Any, **kwargs: Any) -> Any:
        if _listeners:  # a module that was imported meanwhile may keep this
            with suppress(Exception):
                _tell(args[position] if len(args) > position else next(iter(kwargs.values())))
        return original(*args, **kwargs)

    return opening


def _telling_second(original: Callable[..., Any]) -> Callable[..., Any]:
    return _telling(original, 1)


def _in_folder(original: Callable[..., int]) -> Callable[..., int]:
    """`os.open`: the hook is told a name, and not the open folder that it is relative to."""

    def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is None or not _listeners:
            return original(path, flags, mode, dir_fd=dir_fd)
        with suppress(Exception):
            _tell(path, flags, os.readlink(f"/proc/self/fd/{dir_fd}"))
        looks, _own.looks = getattr(_own, "looks", False), True
        try:
            return original(path, flags, mode, dir_fd=dir_fd)
        finally:
            _own.looks = looks

    return opening


# --- modules ----------------------------------------------------------------------------------------


def written_file(module: Any) -> str | None:
    """What a loaded module says that it was loaded from. Runs nothing of it: asked for its ``__file__``, a module that
    is loaded when it is first used loads, and what else stands among the modules raises whatever it likes. None where
    it does not say, or has run nothing so far.
    """
    kind = type(module)
    if kind is ModuleType:
        file = vars(module).get("__file__")
    elif issubclass(kind, _LAZY):
        return None
    else:
        file = inspect.getattr_static(module, "__file__", None)
    return file if isinstance(file, str) and file else None
