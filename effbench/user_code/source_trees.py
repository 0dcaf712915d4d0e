"""Describe the source trees of both sides of an A/B run: the files of each module, and where a file comes from."""

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
"""Files that contain a project's distribution name."""
_ENDINGS = (*MODULES, *PROJECTS)
INITS = frozenset({"__init__.py", "__init__.pyx"})
_VENDORED = re.compile(r"vendor|third.?part|extern", re.IGNORECASE)
_NOT_OWN_FOLDERS = re.compile(rf"{_VENDORED.pattern}|test|example|doc|bench", re.IGNORECASE)
"""Folders whose packages are rarely the project's own: vendored, or named after another package."""


def write_listing(file: Path, paths: Iterable[str]) -> None:
    """Write the paths that `code_origins.refuse_foreign` needs, relative to the tree's top, to a file.

    There may be too many of them for a job.
    """
    text = "\0".join(path for path in paths if path.endswith(_ENDINGS))
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class ModuleFile:
    """A file of a tree that can be a certain module.

    `path` is relative to the tree's top, `root` is the folder that it would be imported from. `is_inner` says whether
    that folder is a package itself. Then the file is rarely that module: foo/onnx/ is rarely imported as onnx, while
    python/foo/ may well be imported as foo.
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
                self._by_name[_module_parts(path)[-1]].append(path)

    def files_of(self, module: str) -> list[ModuleFile]:
        """Return the files that can be this module, imported from the tree's top or from any other folder.

        A single file within a package does not count, nor does a vendored copy: pip/_vendor/six.py is not the six that
        others import.
        """
        wanted, found = module.split("."), []
        for path in self._by_name.get(wanted[-1], ()):
            parts = _module_parts(path)
            root = "/".join(parts[: -len(wanted)])
            if parts[-len(wanted) :] != wanted:
                continue
            is_inner = root in self._packages and root != ""
            if is_inner and (_VENDORED.search(root) or (len(wanted) == 1 and os.path.basename(path) not in INITS)):
                continue
            found.append(ModuleFile(path, root, is_inner))
        return found

    def named(self, *names: str) -> list[str]:
        """Return the files of modules with one of these last names, in any folder."""
        return [path for name in dict.fromkeys(names) for path in self._by_name.get(name, ())]

    @cached_property
    def projects(self) -> frozenset[str] | None:
        """Return the distribution names of the projects in this tree; None if they cannot be read."""
        files = [self.top / path for path in self.files if os.path.basename(path) in PROJECTS]
        names = frozenset().union(*map(_project_names, files))
        return None if "" in names or (not names and any(map(_is_installable, files))) else names


class Trees:
    """The trees of this side (`own`) and of the other side. `folder` is this side's working folder."""

    BASELINE_ADVICE = "record that revision where it is complete (check --save-baseline DIR), then check --baseline DIR"
    """Advice for files that git does not track."""

    def __init__(self, own: Tree, other: Tree, folder: Path, paths: Sequence[str]) -> None:
        self.own, self.other, self.folder, self.paths = own, other, folder, paths
        self._installation = tuple(_installation_folders())
        self._installed = [os.path.realpath(place) for place in self._installation]

    def is_own(self, file: str) -> bool:
        """Whether this real path is a file of this side's own tree.

        A file that git does not track, in a tree where it tracks others, is not; `_require_own` checks those.
        """
        return self.is_in_own_tree(file) and (not self.own.files or self.relative(file) in self.own.files)

    def is_in_own_tree(self, file: str) -> bool:
        """Whether it lies in this side's tree, outside of virtual environments there."""
        return is_within(file, str(self.own.top)) and not self._is_installed_in(file, str(self.own.top))

    def is_in_other_tree(self, file: str) -> bool:
        """Whether it lies in the other side's tree, outside of virtual environments there."""
        own, other = str(self.own.top), str(self.other.top)
        return is_within(file, other) and not is_within(file, own) and not self._is_installed_in(file, other)

    def is_installed(self, file: str) -> bool:
        return any(is_within(file, place) for place in self._installed)

    def _is_installed_in(self, file: str, top: str) -> bool:
        """Whether it lies in a virtual environment within `top`. A project may in turn lie within an environment."""
        inner = (place for place in self._installed if place != top and is_within(place, top))
        return any(is_within(file, place) for place in inner)

    def relative(self, file: str) -> str:
        return os.path.relpath(file, self.own.top).replace(os.sep, "/")

    def require_inside(self, name: str, written: str, file: str) -> None:
        """Raise ForeignCode for a module in this side's tree whose link leads out of the tree."""
        if not os.path.isabs(written):  # torch.ops has the file name _ops.py
            return
        place = os.path.normpath(written)
        top = str(self.own.top)
        if not is_within(place, top) or is_within(file, top):
            return
        if not any(is_within(place, root) for root in self._installation if is_within(root, top)):
            raise ForeignCode(
                f"'{name}' comes from {file}, where a link in the tree leads, so both sides would run the same code; "
                "keep the files themselves in the repository"
            )

    def is_same_on_both(self, place: str) -> bool:
        """Whether both sides have the same file for this file or module, in which a name was not found."""
        files = (
            [place]
            if place.endswith(".py")
            else [str(self.own.top / module_file.path) for module_file in self.own.files_of(place)]
        )
        inside = [self.relative(os.path.realpath(os.path.join(self.folder, file))) for file in files]
        return any(
            (content := content_of(str(self.own.top / path))) is not None
            and content == content_of(str(self.other.top / path))
            for path in inside
        )

    def is_named_by_other(self, place: str, attribute: str) -> bool:
        """Whether the other side's file of this file or module contains a name that this side's lacks.

        The text is searched, not the definitions, since code may make a name when it runs.
        """
        if place.endswith(".py"):
            files = [self.relative(os.path.realpath(os.path.join(self.folder, place)))]
        else:
            files = [module_file.path for module_file in self.other.files_of(place)]
        texts = [content_of(str(self.other.top / file)) or b"" for file in files]
        word = re.compile(rf"\b{re.escape(attribute)}\b")
        return any(word.search(text.decode("utf-8", "replace")) for text in texts)

    def is_built_extension(self, file: str, candidates: Sequence[ModuleFile]) -> bool:
        """Whether this is an extension built in this side's tree, beside its Cython source."""
        place = os.path.dirname(self.relative(file)) if self.is_in_own_tree(file) else None
        sources = [each.path for each in candidates if each.path.endswith(".pyx")]
        return file.endswith((".so", ".pyd")) and any(os.path.dirname(path) == place for path in sources)

    def untracked_advice(self, place: str) -> str:
        """Return advice about a module that this side lacks and the other side has as an untracked file; "" if none."""
        ends = (".py", "/__init__.py", *importlib.machinery.EXTENSION_SUFFIXES)
        names = [place] if place.endswith(".py") else [f"{place.replace('.', '/')}{end}" for end in ends]
        for root in (".", *self.paths):
            for name in names:
                inside = self.relative(os.path.realpath(os.path.join(self.folder, root, name)))
                is_unknown = place and self.other.files and inside not in self.other.files
                if is_unknown and (
                    said := self.only_in_other(os.path.join(root, name), f"a checkout has none; {self.BASELINE_ADVICE}")
                ):
                    return said
        return ""

    def files_on_either_side(self, module: str) -> list[ModuleFile]:
        return [*self.own.files_of(module), *self.other.files_of(module)]

    def copied_from(self, file: str, module: str) -> str | None:
        """Return the path in the other side's tree of a file that this side changed or lacks and that `file`, from
        outside of both trees, is a copy of; None if there is none.

        Files with the name of `file` or of the module are compared, in any folder: a project may be installed under
        another name than its folder's.
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
        """Return the files that the repository's own projects have installed."""
        found = set()
        for name in (self.own.projects or frozenset()) | (self.other.projects or frozenset()):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                for path in importlib.metadata.distribution(name).files or ():
                    found.add(os.path.realpath(str(path.locate())))
        return frozenset(found)

    def is_of_another_project(self, module: str, file: str, candidates: Sequence[ModuleFile] = ()) -> bool:
        """Whether it was installed by another project, while this repository only has a file of the same name."""
        above, number = Path(file).parents, len(module.split(".")) - (os.path.basename(file) not in INITS)
        if number >= len(above):
            return False
        place = above[number]
        found = _distribution_of(str(place), os.path.relpath(file, place).replace(os.sep, "/"))
        names = [tree.projects for tree in (self.own, self.other)]
        if found is None or (None in names and not (candidates and all(each.is_inner for each in candidates))):
            return False
        if candidates and self._holds_package(module.partition(".")[0], str(place)):
            return False
        name, source = found
        tops = [str(tree.top) for tree in (self.own, self.other)]
        if any(name.startswith(f"{each}-") or name.endswith(f"-{each}") for tree in names for each in tree or ()):
            return False  # such as foo-nightly for the project foo
        ours = frozenset().union(*(each for each in names if each is not None))
        return name not in ours and not (source and any(is_within(source, top) for top in tops))

    def _holds_package(self, root: str, place: str) -> bool:
        """Whether a tree contains most files of the package `root` in `place`.

        This is stronger evidence than the distribution's name: a project may be renamed while an old release is
        installed.
        """
        for tree in (self.own, self.other):
            for module_file in tree.files_of(root):
                folder, file = os.path.split(module_file.path)
                if file not in INITS or module_file.is_inner or _NOT_OWN_FOLDERS.search(module_file.root):
                    continue
                files = [path for path in tree.files if path.startswith(f"{folder}/") and path.endswith(".py")]
                shared = [path for path in files if os.path.isfile(os.path.join(place, root, path[len(folder) + 1 :]))]
                if len(shared) >= 2 and 2 * len(shared) >= len(files):
                    return True
        return False

    def advice(self, module_file: ModuleFile) -> str:
        """Return what to do so that the module is found in its own tree."""
        root = os.path.relpath(self.own.top / module_file.root, self.folder)
        known = [os.path.relpath(self.folder / path, self.folder) for path in self.paths]
        if root in known:
            return "remove the other copy, or what leads there (PYTHONPATH, an editable install)"
        return f'add "{root}" to `paths` under [check] in effbench.toml, or remove the installed copy'

    def is_in_submodule(self, path: str) -> bool:
        """Whether it lies in a git submodule, whose files a revision does not contain."""
        inside = os.path.relpath(os.path.abspath(path), self.own.top).replace(os.sep, "/")
        with_submodules = self.own.top / ".gitmodules"
        text = with_submodules.read_text(errors="replace") if with_submodules.is_file() else ""
        places = re.findall(r"^\s*path\s*=\s*\"?(.+?)\"?\s*$", text, re.MULTILINE)
        return any(is_within(inside, place, "/") for place in places)

    def only_in_other(self, path: str, advice: str = "commit it, or read it from outside of both") -> str:
        """Return a message about a file or folder that only the other side's tree has, perhaps untracked; "" if
        none.
        """
        place = os.path.realpath(os.path.join(self.folder, path))
        if not is_within(place, str(self.own.top)) or os.path.exists(place):
            return ""
        inside = self.relative(place)
        if not (self.other.top / inside).exists():
            return ""
        return f"{inside} lies in the other side's tree only (git-ignored?): {advice}"


@lru_cache(maxsize=4)
def _load_trees(folder: str, own: str, foreign: str, paths: tuple[str, ...], listings: tuple[str, ...]) -> Trees:
    files = [_read_listing(Path(listing)) for listing in listings] or [[], []]
    tops = [Path(os.path.realpath(top)) for top in (own, foreign)]
    return Trees(Tree(tops[0], files[0]), Tree(tops[1], files[1]), Path(os.path.realpath(folder)), paths)


def trees_of_job(job: Mapping[str, Any]) -> Trees:
    own = job.get("own") or job["folder"]
    return _load_trees(
        job["folder"], own, job["foreign"], tuple(job.get("paths", ())), tuple(job.get("listings") or ())
    )


def _read_listing(file: Path) -> list[str]:
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    return text.split("\0") if text else []


# --- parts ------------------------------------------------------------------------------------------


def _module_parts(path: str) -> list[str]:
    """Return the module name at a path, split at the dots: ``a/b/__init__.py`` is a, b."""
    *folders, file = path.split("/")
    return folders if file in INITS and folders else [*folders, file.partition(".")[0]]


def is_within(path: str, place: str, separator: str = os.sep) -> bool:
    return path == place or path.startswith(place.rstrip(separator) + separator)


def content_of(file: str) -> bytes | None:
    try:
        return Path(file).read_bytes()
    except OSError:  # such as a path inside a zip archive
        return None


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None


def _installation_folders() -> Iterator[str]:
    """Yield the folders that packages are installed in."""
    yield from site.getsitepackages()
    yield site.getusersitepackages()
    yield sysconfig.get_path("purelib")
    yield sysconfig.get_path("platlib")
    yield from (sys.prefix, sys.base_prefix)


@cache
def _distribution_of(place: str, file: str) -> tuple[str, str] | None:
    """Return the name of the project that installed this file, relative to `place`, and the folder it was installed
    from.
    """
    for found in importlib.metadata.distributions(path=[place]):
        record = found.read_text("RECORD") or ""
        if not record.startswith(f"{file},") and f"\n{file}," not in record:
            continue
        try:
            url = urlsplit(json.loads(found.read_text("direct_url.json") or "{}").get("url", ""))
        except ValueError:
            url = urlsplit("")
        return _normalised(str(found.metadata["Name"])), os.path.realpath(
            unquote(url.path)
        ) if url.scheme == "file" else ""
    return None


def _project_names(file: Path) -> set[str]:
    """Return the project names in a project file. Only literals can be read; "" stands for a computed name."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    if file.name != "setup.py":
        return {_normalised(name) for name in re.findall(r"^\s*\bname\s*=\s*[\"']?([\w.-]+)", text, re.MULTILINE)}
    literals = {_normalised(name) for name in re.findall(r"\bname\s*=\s*[\"']([\w.-]+)[\"']", text)}
    return literals | ({""} if re.search(r"\bname\s*=\s*[^\"'\s=]", text) else set())


def _is_installable(file: Path) -> bool:
    try:
        return file.name == "setup.py" or (file.name == "pyproject.toml" and b"build-system" in file.read_bytes())
    except OSError:
        return False


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
