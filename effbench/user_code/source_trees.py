"""The trees of the two sides of a gate: which files each holds for a module, and where a file comes from."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import json
import os
import re
import site
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from effbench.core.errors import ForeignCode

MODULES = (".py", ".pyx", ".so", ".pyd")
PROJECTS = ("pyproject.toml", "setup.cfg", "setup.py")
"""Files that say what a project is called when it is installed."""
_ENDINGS = (*MODULES, *PROJECTS)
INITS = frozenset({"__init__.py", "__init__.pyx"})
_VENDORED = re.compile(r"vendor|third.?part|extern", re.IGNORECASE)
_APART = re.compile(rf"{_VENDORED.pattern}|test|example|doc|bench", re.IGNORECASE)
"""Folders where a package is hardly the project's own: another's, or named after another's."""


def write_listing(file: Path, paths: Iterable[str]) -> None:
    """Keep what `refuse_foreign` needs of the paths of a tree's files, relative to its top: it may be very many."""
    text = "\0".join(path for path in paths if path.endswith(_ENDINGS))
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Held:
    """A file that a tree has for a module, relative to its top, and the folder that would have to be imported from.

    That one `is_inner` where it is a package: foo/onnx/ is hardly what others import as onnx, python/foo/ may be foo.
    """

    path: str
    root: str
    is_inner: bool = False


class Tree:
    """The files of one side."""

    def __init__(self, top: Path, files: Sequence[str]) -> None:
        self.top, self.files = top, frozenset(files)
        self._packages = {os.path.dirname(path) for path in files if os.path.basename(path) in INITS}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in files:
            if path.endswith(MODULES):
                self._by_name[_parts(path)[-1]].append(path)

    def holding(self, module: str) -> list[Held]:
        """The files that can be this module where modules are imported from the top, or from any other folder. A single
        file within a package is none, nor is a vendored copy there: pip/_vendor/six.py is not the six that others
        import.
        """
        wanted, found = module.split("."), []
        for path in self._by_name.get(wanted[-1], ()):
            parts = _parts(path)
            root = "/".join(parts[: -len(wanted)])
            if parts[-len(wanted) :] != wanted:
                continue
            is_inner = root in self._packages and root != ""
            if is_inner and (_VENDORED.search(root) or (len(wanted) == 1 and os.path.basename(path) not in INITS)):
                continue
            found.append(Held(path, root, is_inner))
        return found

    def named(self, *names: str) -> list[str]:
        """The files of modules with one of these last names, whatever folder they are in."""
        return [path for name in dict.fromkeys(names) for path in self._by_name.get(name, ())]

    @cached_property
    def projects(self) -> frozenset[str] | None:
        """What the projects in this tree are called when they are installed; None where they do not say."""
        files = [self.top / path for path in self.files if os.path.basename(path) in PROJECTS]
        names = frozenset().union(*map(_names_in, files))
        return None if "" in names or (not names and any(map(_is_installable, files))) else names


class Trees:
    """The tree of this side, `own`, and of the other one. `folder` is where this side works, in its own tree."""

    RECORDED = "record that revision where it is complete (check --save-baseline DIR), then check --baseline DIR"
    """What works for files that git does not keep."""

    def __init__(self, own: Tree, other: Tree, folder: Path, paths: Sequence[str]) -> None:
        self.own, self.other, self.folder, self.paths = own, other, folder, paths
        self._installation = tuple(_installation())
        self._installed = [os.path.realpath(place) for place in self._installation]

    def is_own(self, file: str) -> bool:
        """Is this real path a file of this side's own tree? A copy that git does not know, where it knows another one,
        is not: `_require_own` looks at those.
        """
        return self.is_near(file) and (not self.own.files or self.relative(file) in self.own.files)

    def is_near(self, file: str) -> bool:
        """Does it lie in this side's tree, and in no environment there?"""
        return within(file, str(self.own.top)) and not self._is_installed_in(file, str(self.own.top))

    def is_of_other(self, file: str) -> bool:
        """Does it lie in the other side's tree, and in no environment there?"""
        own, other = str(self.own.top), str(self.other.top)
        return within(file, other) and not within(file, own) and not self._is_installed_in(file, other)

    def is_installed(self, file: str) -> bool:
        return any(within(file, place) for place in self._installed)

    def _is_installed_in(self, file: str, top: str) -> bool:
        """An environment often lies in the project that it is for; a project may also lie in an environment."""
        inner = (place for place in self._installed if place != top and within(place, top))
        return any(within(file, place) for place in inner)

    def relative(self, file: str) -> str:
        return os.path.relpath(file, self.own.top).replace(os.sep, "/")

    def require_inside(self, name: str, written: str, file: str) -> None:
        """Raises ForeignCode for a module that is found in this side's tree by way of a link that leads out of it."""
        if not os.path.isabs(written):  # torch.ops is called _ops.py
            return
        place = os.path.normpath(written)
        top = str(self.own.top)
        if not within(place, top) or within(file, top):
            return
        if not any(within(place, root) for root in self._installation if within(root, top)):
            raise ForeignCode(
                f"'{name}' comes from {file}, where a link in the tree leads, so both sides would run the same code; "
                "keep the files themselves in the repository"
            )

    def is_alike(self, place: str) -> bool:
        """Do both sides hold the same file for a module that is there but lacks a name?"""
        files = (
            [place] if place.endswith(".py") else [str(self.own.top / held.path) for held in self.own.holding(place)]
        )
        inside = [self.relative(os.path.realpath(os.path.join(self.folder, file))) for file in files]
        return any(
            (content := content_of(str(self.own.top / path))) is not None
            and content == content_of(str(self.other.top / path))
            for path in inside
        )

    def is_named_by_other(self, place: str, attribute: str) -> bool:
        """Does the other side's file for a module say this name, which this side's lacks? A name may be computed."""
        if place.endswith(".py"):
            files = [self.relative(os.path.realpath(os.path.join(self.folder, place)))]
        else:
            files = [held.path for held in self.other.holding(place)]
        texts = [content_of(str(self.other.top / file)) or b"" for file in files]
        word = re.compile(rf"\b{re.escape(attribute)}\b")
        return any(word.search(text.decode("utf-8", "replace")) for text in texts)

    def is_build(self, file: str, held: Sequence[Held]) -> bool:
        """Is this an extension that was built in place in this side's tree, beside the Cython file that it is of?"""
        place = os.path.dirname(self.relative(file)) if self.is_near(file) else None
        sources = [each.path for each in held if each.path.endswith(".pyx")]
        return file.endswith((".so", ".pyd")) and any(os.path.dirname(path) == place for path in sources)

    def ignored(self, place: str) -> str:
        """What to say of a module that this side's tree lacks and that the other one has without git's knowledge."""
        ends = (".py", "/__init__.py", *importlib.machinery.EXTENSION_SUFFIXES)
        names = [place] if place.endswith(".py") else [f"{place.replace('.', '/')}{end}" for end in ends]
        for root in (".", *self.paths):
            for name in names:
                inside = self.relative(os.path.realpath(os.path.join(self.folder, root, name)))
                is_unknown = place and self.other.files and inside not in self.other.files
                if is_unknown and (
                    said := self.only_in_other(os.path.join(root, name), f"a checkout has none; {self.RECORDED}")
                ):
                    return said
        return ""

    def claims(self, module: str) -> list[Held]:
        return [*self.own.holding(module), *self.other.holding(module)]

    def copied(self, file: str, module: str) -> str | None:
        """The file of the other side that this one, from elsewhere, is a copy of, and that this side has changed or
        lacks. A project may be installed under a name that its folder does not have.
        """
        content = None
        for path in self.other.named(Path(file).stem, module.rpartition(".")[2]):
            theirs = self.other.top / path
            if _size(file) in (None, 0) or _size(file) != _size(str(theirs)):
                continue
            content = content_of(file) if content is None else content
            if content is not None and content == content_of(str(theirs)) != content_of(str(self.own.top / path)):
                return path
        return None

    @cached_property
    def installed(self) -> frozenset[str]:
        """The files that the repository's own projects have installed."""
        found = set()
        for name in (self.own.projects or frozenset()) | (self.other.projects or frozenset()):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                for path in importlib.metadata.distribution(name).files or ():
                    found.add(os.path.realpath(str(path.locate())))
        return frozenset(found)

    def is_of_another_project(self, module: str, file: str, held: Sequence[Held] = ()) -> bool:
        """Was it installed by a project that is not this repository's, which only has a file of that name?"""
        above, number = Path(file).parents, len(module.split(".")) - (os.path.basename(file) not in INITS)
        if number >= len(above):
            return False
        place = above[number]
        found = _distribution_of(str(place), os.path.relpath(file, place).replace(os.sep, "/"))
        names = [tree.projects for tree in (self.own, self.other)]
        if found is None or (None in names and not (held and all(each.is_inner for each in held))):
            return False
        if held and self._holds_package(module.partition(".")[0], str(place)):
            return False
        name, source = found
        tops = [str(tree.top) for tree in (self.own, self.other)]
        if any(name.startswith(f"{each}-") or name.endswith(f"-{each}") for tree in names for each in tree or ()):
            return False  # such as foo-nightly of the project foo
        ours = frozenset().union(*(each for each in names if each is not None))
        return name not in ours and not (source and any(within(source, top) for top in tops))

    def _holds_package(self, root: str, place: str) -> bool:
        """Does a tree hold most of the package `root` that lies in `place`, file by file? That tells more than what its
        distribution is called: a project may be renamed, and an old release of it lies there.
        """
        for tree in (self.own, self.other):
            for held in tree.holding(root):
                folder, file = os.path.split(held.path)
                if file not in INITS or held.is_inner or _APART.search(held.root):
                    continue
                files = [path for path in tree.files if path.startswith(f"{folder}/") and path.endswith(".py")]
                shared = [path for path in files if os.path.isfile(os.path.join(place, root, path[len(folder) + 1 :]))]
                if len(shared) >= 2 and 2 * len(shared) >= len(files):
                    return True
        return False

    def advice(self, held: Held) -> str:
        """What to do, so that the module is found in its own tree."""
        root = os.path.relpath(self.own.top / held.root, self.folder)
        known = [os.path.relpath(self.folder / path, self.folder) for path in self.paths]
        if root in known:
            return "remove the other copy, or what leads there (PYTHONPATH, an editable install)"
        return f'add "{root}" to `paths` under [check] in effbench.toml, or remove the installed copy'

    def is_in_submodule(self, path: str) -> bool:
        """Does it lie in a submodule, whose files a revision names without holding them?"""
        inside = os.path.relpath(os.path.abspath(path), self.own.top).replace(os.sep, "/")
        with_submodules = self.own.top / ".gitmodules"
        text = with_submodules.read_text(errors="replace") if with_submodules.is_file() else ""
        places = re.findall(r"^\s*path\s*=\s*\"?(.+?)\"?\s*$", text, re.MULTILINE)
        return any(within(inside, place, "/") for place in places)

    def only_in_other(self, path: str, advice: str = "commit it, or read it from outside of both") -> str:
        """What to say of a file or folder that this side's tree lacks and the other one has, git-ignored perhaps."""
        place = os.path.realpath(os.path.join(self.folder, path))
        if not within(place, str(self.own.top)) or os.path.exists(place):
            return ""
        inside = self.relative(place)
        if not (self.other.top / inside).exists():
            return ""
        return f"{inside} lies in the other side's tree only (git-ignored?): {advice}"


@lru_cache(maxsize=4)
def _loaded(folder: str, own: str, foreign: str, paths: tuple[str, ...], listings: tuple[str, ...]) -> Trees:
    files = [_listed(Path(listing)) for listing in listings] or [[], []]
    tops = [Path(os.path.realpath(top)) for top in (own, foreign)]
    return Trees(Tree(tops[0], files[0]), Tree(tops[1], files[1]), Path(os.path.realpath(folder)), paths)


def of_job(job: Mapping[str, Any]) -> Trees:
    own = job.get("own") or job["folder"]
    return _loaded(job["folder"], own, job["foreign"], tuple(job.get("paths", ())), tuple(job.get("listings") or ()))


def _listed(file: Path) -> list[str]:
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    return text.split("\0") if text else []


# --- parts ------------------------------------------------------------------------------------------


def _parts(path: str) -> list[str]:
    """The module at a path, name by name: ``a/b/__init__.py`` is a, b."""
    *folders, file = path.split("/")
    return folders if file in INITS and folders else [*folders, file.partition(".")[0]]


def within(path: str, place: str, separator: str = os.sep) -> bool:
    return path == place or path.startswith(place.rstrip(separator) + separator)


def content_of(file: str) -> bytes | None:
    try:
        return Path(file).read_bytes()
    except OSError:  # in an archive
        return None


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _installation() -> Iterator[str]:
    """The folders that packages are installed in."""
    yield from site.getsitepackages()
    yield site.getusersitepackages()
    yield sysconfig.get_path("purelib")
    yield sysconfig.get_path("platlib")
    yield from (sys.prefix, sys.base_prefix)


@cache
def _distribution_of(place: str, file: str) -> tuple[str, str] | None:
    """Which project installed this file, relative to `place`: its name, and the folder that it was installed from."""
    for found in importlib.metadata.distributions(path=[place]):
        record = found.read_text("RECORD") or ""
        if not record.startswith(f"{file},") and f"\n{file}," not in record:
            continue
        try:
            url = urlsplit(json.loads(found.read_text("direct_url.json") or "{}").get("url", ""))
        except ValueError:
            url = urlsplit("")
        return _plain(str(found.metadata["Name"])), os.path.realpath(unquote(url.path)) if url.scheme == "file" else ""
    return None


def _names_in(file: Path) -> set[str]:
    """What a project's file calls it. Only a literal tells, and "" is for a name that is computed."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    if file.name != "setup.py":
        return {_plain(name) for name in re.findall(r"^\s*\bname\s*=\s*[\"']?([\w.-]+)", text, re.MULTILINE)}
    literals = {_plain(name) for name in re.findall(r"\bname\s*=\s*[\"']([\w.-]+)[\"']", text)}
    return literals | ({""} if re.search(r"\bname\s*=\s*[^\"'\s=]", text) else set())


def _is_installable(file: Path) -> bool:
    try:
        return file.name == "setup.py" or (file.name == "pyproject.toml" and b"build-system" in file.read_bytes())
    except OSError:
        return False


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
