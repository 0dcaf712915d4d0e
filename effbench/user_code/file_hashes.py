"""The files that a network consists of, by their SHA-256: a run measures the same code and data in all its launches.

These are the file that its name says, what it imports that is no installed package, and what it opens to read while it
is built and first called. A worker tells the digests of its launch, and refuses a job that was begun with others.
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

WHOLE_BYTES = 64 << 20
"""Of a file above this size only its size and its time of change are taken: hashing it would take longer than to build
the network."""

_PSEUDO = tuple(Path(place) for place in ("/dev", "/proc", "/sys"))

_STARTED_S = time.time()

_opened: dict[str, str] = {}
"""What networks of this process opened to read, each with what told its content then: "" where there was no file."""
_written: set[str] = set()
"""What they opened to write and had not read before."""
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Note which files are opened to be read meanwhile (`opened` says which are seen)."""
    with opened_files.told_to(_note):
        yield


def _note(path: str, flags: int) -> None:
    """Take down a file that is about to be opened, with what tells its content now."""
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
            _opened[name] = _state(name)
    elif name in _opened or not (flags & _ACCESS == os.O_WRONLY or flags & (os.O_TRUNC | os.O_EXCL)):
        # Perhaps it is left as it is, or written with the same words again.
        told = _opened.setdefault(name, _state(name))
        if told.startswith("state:") and told == _state(name):
            _opened[name] = digest(Path(name))
    else:
        _written.add(name)


def _state(name: str) -> str:
    """What changes with a file's content, and costs nothing to read."""
    try:
        about = os.stat(name)
    except OSError:
        return ""
    return f"state:{about.st_ino},{about.st_size},{about.st_mtime_ns}"


def _is_changed(name: str, told: str) -> bool:
    """Whether a file has other content than when this was told of it. Raises OSError."""
    return not told or told != (_state(name) if told.startswith("state:") else digest(Path(name)))


# --- digests ----------------------------------------------------------------------------------------


def digests(models: Iterable[str], folder: Path | None = None, apart: Iterable[str] = ()) -> dict[str, str]:
    """The files that the networks of this process consist of, each with what tells its content.

    Parameters
    ----------
    models : iterable of str
        The names of the networks, which may lead to a file.
    folder : Path, optional
        What the names of files are relative to: the folder of the side, by default the current one.
    apart : iterable of str
        Folders whose files are not the networks' own, such as those of exported models.

    Returns
    -------
    dict of str to str
        By name, "sha256:…", or "size:…,changed:…" (bytes, nanoseconds) above `WHOLE_BYTES`. A file that cannot be read
        is left out.
    """
    folder = Path(os.path.abspath(folder or Path.cwd()))
    places = (*_not_the_users(), *(Path(place).resolve() for place in apart))
    found = {}
    # By text first: of the thousands of modules that a process has imported hardly one is the user's.
    prefixes = tuple(f"{place}{os.sep}" for place in places)
    for name in _files(models):
        if not name.startswith(prefixes):
            with contextlib.suppress(OSError):
                path = Path(name)
                if not str(path.resolve()).startswith(prefixes) and (told := digest(path)):
                    found[_name(path, folder)] = told
    return found


def _files(models: Iterable[str]) -> Iterator[str]:
    names: dict[str, None] = {}
    pickled = set()
    for model in models:
        place = model.partition("?")[0].rpartition(":")[0]
        if place.endswith(".py"):
            names.setdefault(os.path.abspath(place))
        elif model.startswith("pickle:"):
            pickled.add(os.path.abspath(model.partition(":")[2]))
    for name, module in list(sys.modules.items()):
        origin = opened_files.written_file(module)
        # What torch compiles becomes a module of its own, in a folder of its own.
        if origin and name.partition(".")[0] not in ("effbench", "torch", "__main__"):
            names.setdefault(os.path.abspath(origin))
    yield from names
    for name, told in list(_opened.items()):
        if name not in names and name not in _written | pickled and not _is_passing(name):
            with contextlib.suppress(OSError):
                if not _is_changed(name, told):
                    yield name


def _is_passing(name: str) -> bool:
    """Whether this is a temporary file that did not exist before this process, or was written by it below Python."""
    try:
        is_temporary = Path(name).resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
        return is_temporary and os.stat(name).st_mtime >= _STARTED_S
    except OSError:
        return True


@cache
def _prefixes() -> tuple[str, ...]:
    return tuple(f"{place}{os.sep}" for place in _not_the_users())


@cache
def _not_the_users() -> tuple[Path, ...]:
    """Where installed packages and the standard library lie, effbench itself, and files that are no files."""
    named = sysconfig.get_paths()
    places = {named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in named}
    # And not `sys.prefix`: people make environments in the folder of a project, and put projects under /usr.
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    # As they are called, and as they lie: a folder of these may be a link.
    places |= {os.path.realpath(place) for place in places}
    own = Path(__file__).resolve().parents[1]
    return (own, *_PSEUDO, *map(Path, places))


def digest(path: Path) -> str:
    """What tells the content of a regular file; "" for anything else. Raises OSError."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        return ""
    if about.st_size > WHOLE_BYTES:
        return f"size:{about.st_size},changed:{about.st_mtime_ns}"
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _name(path: Path, folder: Path) -> str:
    """The file's name as a run may tell it: relative to the folder, or without the name of whose home it lies in."""
    for own in (folder, folder.resolve()):
        if path.is_relative_to(own):
            return path.relative_to(own).as_posix()
    with contextlib.suppress(RuntimeError):
        home = Path.home().resolve()
        if path.is_relative_to(home) and home != Path(home.anchor):
            return f"~/{path.relative_to(home).as_posix()}"
    return path.as_posix()


def of_job(job: Mapping[str, Any]) -> dict[str, str]:
    """The files of a worker's job; none where all its networks are effbench's own.

    Raises NotComparable where one has other content than the job was told of.
    """
    cells = job["cells"]
    models = [spec.get("model", "") for spec in cells if not spec.get("bundled")]
    if not any(":" in model for model in models):
        return {}
    apart = (spec["folder"] for spec in cells)
    folder = Path(job["folder"]) if job.get("folder") else None
    found = digests(models, folder, apart)
    require_same(job.get("files") or {}, found)
    return found


# --- the same as before -----------------------------------------------------------------------------


def require_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise NotComparable, naming the first file that has other content than in an earlier launch of the run."""
    changed = [name for name, told in before.items() if now.get(name, told) != told]
    if changed:
        name, more = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        was, is_ = (_shortened(each[name]) for each in (before, now))
        raise NotComparable(
            f"{name}{more} changed since the first launch of this run (its {was[0]} was {was[1]}, is {is_[1]}); put it "
            "back, or start a new run"
        )


def require_unchanged(before: Mapping[str, str]) -> None:
    """The same, of the files as they lie there now; the current folder is what they are relative to.

    Raises NotComparable, also for a file that is no longer there.
    """
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


def _shortened(told: str) -> tuple[str, str]:
    kind, _, value = told.partition(":")
    if kind == "sha256":
        return "SHA-256", f"{value[:12]}…"
    return "size and time of change", value.replace(",changed:", " B, ")
