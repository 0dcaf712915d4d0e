"""Hash the files that a network consists of, so that all launches of a run measure the same code and data.

These are the file that its name refers to, imported modules that are not installed packages, and files that it reads
while it is built and first called. A worker reports the digests of its launch. It refuses a job that was started with
other digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import site
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from effbench.core.errors import NotComparable
from effbench.user_code import opened_files

MAX_HASHED_BYTES = 64 << 20
"""Of larger files only size and modification time are recorded: hashing would take longer than building the network."""

_PSEUDO = tuple(Path(place) for place in ("/dev", "/proc", "/sys"))

_STARTED_S = time.time()

_opened: dict[str, str] = {}
"""Files that networks of this process opened for reading, with a digest or state from then; "" if the file did not
exist.
"""
_written: set[str] = set()
"""Files that they opened for writing and had not read before."""
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


@contextlib.contextmanager
def recording_reads() -> Iterator[None]:
    """Record the files that are opened for reading within the block (`opened_files` says which are seen)."""
    with opened_files.listening(_record_open):
        yield


def _record_open(path: str, flags: int) -> None:
    """Record a file that is about to be opened, with its current state."""
    name = os.path.abspath(path)
    if name.startswith(_prefixes()):
        return
    is_read = flags & _ACCESS == os.O_RDONLY and not flags & (os.O_CREAT | os.O_TRUNC)
    is_cache = f"{os.sep}__pycache__{os.sep}" in name or (sys.pycache_prefix and name.startswith(sys.pycache_prefix))
    if is_cache and not is_read:
        return
    name = opened_files.source_of(name)
    if is_read:
        if name not in _opened:
            _opened[name] = _file_state(name)
    elif name in _opened or not (flags & _ACCESS == os.O_WRONLY or flags & (os.O_TRUNC | os.O_EXCL)):
        # The file may stay unchanged, or be rewritten with the same content.
        recorded = _opened.setdefault(name, _file_state(name))
        if recorded.startswith("state:") and recorded == _file_state(name):
            _opened[name] = digest(Path(name))
    else:
        _written.add(name)


def _file_state(name: str) -> str:
    """Return what changes with a file's content and needs no reading: inode, size and modification time."""
    try:
        status = os.stat(name)
    except OSError:
        return ""
    return f"state:{status.st_ino},{status.st_size},{status.st_mtime_ns}"


def _is_changed(name: str, recorded: str) -> bool:
    """Whether a file's content differs from the recorded state or digest. Raises OSError."""
    return not recorded or recorded != (_file_state(name) if recorded.startswith("state:") else digest(Path(name)))


# --- digests ----------------------------------------------------------------------------------------


def digests(models: Iterable[str], folder: Path | None = None, excluded: Iterable[str] = ()) -> dict[str, str]:
    """Return the files that the networks of this process consist of, each with a digest of its content.

    Parameters
    ----------
    models : iterable of str
        Names of the networks, which may refer to files.
    folder : Path, optional
        Folder that file names are relative to: that of the side, by default the current one.
    excluded : iterable of str
        Folders whose files do not count, such as those of exported models.

    Returns
    -------
    dict of str to str
        By file name, "sha256:…", or "size:…,changed:…" (bytes, nanoseconds) above `MAX_HASHED_BYTES`. Unreadable files
        are left out.
    """
    folder = Path(os.path.abspath(folder or Path.cwd()))
    places = (*_folders_not_of_users(), *(Path(place).resolve() for place in excluded))
    found = {}
    # Compare as text first: of thousands of imported modules few are the user's.
    prefixes = tuple(f"{place}{os.sep}" for place in places)
    for name in _file_names(models):
        if not name.startswith(prefixes):
            with contextlib.suppress(OSError):
                path = Path(name)
                if not str(path.resolve()).startswith(prefixes) and (recorded := digest(path)):
                    found[_display_name(path, folder)] = recorded
    return found


def _file_names(models: Iterable[str]) -> Iterator[str]:
    names: dict[str, None] = {}
    pickled = set()
    for model in models:
        place = model.partition("?")[0].rpartition(":")[0]
        if place.endswith(".py"):
            names.setdefault(os.path.abspath(place))
        elif model.startswith("pickle:"):
            pickled.add(os.path.abspath(model.partition(":")[2]))
    for name, module in list(sys.modules.items()):
        origin = opened_files.source_file(module)
        # Code generated by torch becomes a module in a folder of its own.
        if origin and name.partition(".")[0] not in ("effbench", "torch", "__main__"):
            names.setdefault(os.path.abspath(origin))
    yield from names
    for name, recorded in list(_opened.items()):
        if name not in names and name not in _written | pickled and not _is_temporary(name):
            with contextlib.suppress(OSError):
                if not _is_changed(name, recorded):
                    yield name


def _is_temporary(name: str) -> bool:
    """Whether this is a temporary file that is newer than this process: created by it, or written outside of Python."""
    try:
        is_temporary = Path(name).resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
        return is_temporary and os.stat(name).st_mtime >= _STARTED_S
    except OSError:
        return True


@cache
def _prefixes() -> tuple[str, ...]:
    return tuple(f"{place}{os.sep}" for place in _folders_not_of_users())


@cache
def _folders_not_of_users() -> tuple[Path, ...]:
    """Return the folders of installed packages, the standard library, effbench and pseudo file systems."""
    named = sysconfig.get_paths()
    places = {named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in named}
    # `sys.prefix` is not among them: virtual environments lie in project folders, and projects lie under /usr.
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    # Both as named and as resolved: any of these folders may be a link.
    places |= {os.path.realpath(place) for place in places}
    own = Path(__file__).resolve().parents[1]
    return (own, *_PSEUDO, *map(Path, places))


def digest(path: Path) -> str:
    """Return a digest of a regular file's content; "" for anything else. Raises OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return ""
    if status.st_size > MAX_HASHED_BYTES:
        return f"size:{status.st_size},changed:{status.st_mtime_ns}"
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _display_name(path: Path, folder: Path) -> str:
    """Return the file's name as a run file may show it: relative to `folder`, or with ``~`` for the home folder."""
    for own in (folder, folder.resolve()):
        if path.is_relative_to(own):
            return path.relative_to(own).as_posix()
    with contextlib.suppress(RuntimeError):
        home = Path.home().resolve()
        if path.is_relative_to(home) and home != Path(home.anchor):
            return f"~/{path.relative_to(home).as_posix()}"
    return path.as_posix()


def digests_of_job(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a worker's job; empty if all its networks are effbench's own.

    Raises NotComparable if a digest differs from the one in the job.
    """
    cells = job["cells"]
    models = [spec.get("model", "") for spec in cells if not spec.get("bundled")]
    if not any(":" in model for model in models):
        return {}
    excluded = (spec["folder"] for spec in cells)
    folder = Path(job["folder"]) if job.get("folder") else None
    found = digests(models, folder, excluded)
    require_same(job.get("files") or {}, found)
    return found


# --- the same as before -----------------------------------------------------------------------------


def require_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise NotComparable, naming the first file whose content changed since an earlier launch of the run."""
    changed = [name for name, recorded in before.items() if now.get(name, recorded) != recorded]
    if changed:
        name, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        was, now_is = (_shorten(each[name]) for each in (before, now))
        raise NotComparable(
            f"{name}{more} changed since the first launch of this run (its {was[0]} was {was[1]}, is {now_is[1]}); put "
            "it back, or start a new run"
        )


def require_unchanged(before: Mapping[str, str]) -> None:
    """Raise NotComparable if a file changed on disk or is gone. Names are relative to the current folder."""
    now = {}
    for name in before:
        path = Path(name).expanduser()
        try:
            now[name] = digest(path)
        except OSError:
            raise NotComparable(
                f"{name} is no longer there (in {Path.cwd()}), and the run was begun with it; put it back, or resume "
                "the run where it was begun"
            ) from None
    require_same(before, now)


def _shorten(recorded: str) -> tuple[str, str]:
    kind, _, value = recorded.partition(":")
    if kind == "sha256":
        return "SHA-256", f"{value[:12]}…"
    return "size and time of change", value.replace(",changed:", " B, ")
