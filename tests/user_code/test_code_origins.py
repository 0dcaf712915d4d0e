"""Source of the code on each side of a gate: installed copies, virtual environments, vendored files, monorepos."""

from __future__ import annotations

import importlib
import importlib.util
import json
import mmap
import os
import py_compile
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from effbench.core.errors import ForeignCode, ModelError, ModelNeedsPackage, ModelNotFound
from effbench.host.worker_process import Site
from effbench.user_code import code_origins, file_hashes, opened_files, source_trees

Files = dict[str, str]
Refused = Callable[..., str]

LASTING = {"torch", "numpy", "safetensors", "sympy", "mpmath", "networkx"}
"""Modules that cannot be loaded twice in a process, and what they load."""


def written(folder: Path, files: Files) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


PROJECT: Files = {
    "python/foo/__init__.py": "",
    "python/foo/nets.py": "WORK = 3\n",
    "python/foo/blocks.py": "WIDTH = 1\n",
    "pyproject.toml": '[project]\nname = "Foo_project"\n[build-system]\nrequires = []\n',
    "nets.py": "import foo.nets\n",
}
INSTALLED: Files = {"foo/__init__.py": "", "foo/nets.py": "WORK = 1\n", "foo/blocks.py": "WIDTH = 1\n"}


def metadata(name: str, files: Files, url: str = "") -> Files:
    folder = f"{name}-1.0.dist-info"
    told = {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{folder}/RECORD": "".join(f"{file},,\n" for file in files),
    }
    return told | ({f"{folder}/direct_url.json": json.dumps({"url": url, "dir_info": {}})} if url else {})


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refused]:
    """What is said of a process that has imported these modules from these places; "" where it goes on."""

    def refuse(
        project: Files,
        *imports: str,
        path: Sequence[Path | str] = (),
        model: str = "own.py:net",
        before: Files | None = None,
        ignored: Files | None = None,
        paths: Sequence[str] = (".", "src"),
        inside: str = ".",
        as_baseline: bool = False,
        is_listed: bool = True,
    ) -> str:
        project = {"own.py": "", **project}
        tree, top = written(tmp_path / "tree", project if before is None else before), tmp_path / "top"
        written(written(top, project), ignored or {})
        sides = [(top, project), (tree, project if before is None else before)]
        (own, _), (other, _) = sides[::-1] if as_baseline else sides
        files = [tmp_path / "now", tmp_path / "before"]
        for file, (_, held) in zip(files, sides, strict=True):
            source_trees.write_listing(file, held)
        listings = (files[::-1] if as_baseline else files) if is_listed else ()
        folder = own / inside
        folder.mkdir(parents=True, exist_ok=True)
        job = {**Site(folder, tuple(paths), other, own, tuple(listings)).job(), "cells": [{"model": model}]}
        monkeypatch.chdir(folder)
        known = dict(sys.modules)
        monkeypatch.setattr(sys, "path", [*job["paths"], *map(str, path), *sys.path])
        importlib.invalidate_caches()
        source_trees._load_trees.cache_clear()  # a process is asked of one pair of trees
        try:
            for name in imports:
                importlib.import_module(name)
            code_origins.refuse_foreign(job)
        except ForeignCode as error:
            return str(error)
        finally:
            for name in set(sys.modules) - set(known):
                if name.partition(".")[0] not in LASTING:
                    del sys.modules[name]
        return ""

    yield refuse


@pytest.mark.parametrize("is_baseline", [False, True], ids=["candidate", "baseline"])
def test_an_installed_copy_of_the_project_is_refused_and_its_folder_named(
    refused: Refused, tmp_path: Path, is_baseline: bool
) -> None:
    """`pip install .`, and the source in a folder that `paths` does not name: both sides would run the copy."""
    place = written(tmp_path / "site", INSTALLED | metadata("foo-project", INSTALLED))
    said = refused(PROJECT, "foo.nets", path=[place], as_baseline=is_baseline)
    assert "'foo.nets' was imported from" in said and 'add "python" to `paths`' in said


def test_found_in_its_own_tree_it_is_not_refused(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", INSTALLED)
    assert refused(PROJECT, "foo.nets", path=[place], paths=["python"]) == ""


def test_the_module_that_a_network_is_named_by_is_its_own_trees_even_where_a_copy_is_equal(
    refused: Refused, tmp_path: Path
) -> None:
    same = {name.removeprefix("python/"): text for name, text in PROJECT.items() if name.startswith("python/")}
    place = written(tmp_path / "site", same)
    said = refused(PROJECT, "foo.nets", path=[place])
    assert "'foo.nets' was imported from" in said, "its data files may be others"
    said = refused(PROJECT, "foo.nets", path=[place], model="foo.nets:build")
    assert "'foo.nets' comes from" in said and '"python"' in said
    said = refused({}, "foo.nets", path=[place], model="foo.nets:build")
    assert "'foo.nets' comes from" in said, "a library of others is the same on both sides, whatever it is"


def test_a_file_that_leads_out_of_the_tree_is_the_same_on_both_sides(refused: Refused, tmp_path: Path) -> None:
    outside = written(tmp_path / "shared", {"net.py": "", "blocks.py": ""})
    for name in ("net.py", "blocks.py"):
        (tmp_path / "top").mkdir(exist_ok=True)
        (tmp_path / "top" / name).symlink_to(outside / name)
    assert "'net.py' comes from" in refused({}, model="net.py:build", before={})
    listed = {"blocks.py": ""}
    said = refused(listed, "blocks", before=listed)
    assert "'blocks' was imported from" in said


@pytest.mark.parametrize(
    ("kind", "project", "copy", "module"),
    [
        ("src layout", {"lib/src/foo/__init__.py": "A = 2\n"}, {"foo/__init__.py": "A = 1\n"}, "foo"),
        ("namespace", {"python/org/foo/nets.py": "A = 2\n"}, {"org/foo/nets.py": "A = 1\n"}, "org.foo.nets"),
        ("one file", {"lib/foo.py": "A = 2\n"}, {"foo.py": "A = 1\n"}, "foo"),
        ("became a package", {"lib/foo/__init__.py": "A = 2\n"}, {"foo.py": "A = 1\n"}, "foo"),
        ("sibling", {"b/bar/__init__.py": "A = 2\n"}, {"bar/__init__.py": "A = 1\n"}, "bar"),
    ],
)
def test_every_layout(refused: Refused, tmp_path: Path, kind: str, project: Files, copy: Files, module: str) -> None:
    place = written(tmp_path / "site", copy)
    assert f"'{module}' was imported from" in refused(project, module, path=[place], inside="a")


def test_a_copy_in_an_archive(refused: Refused, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "foo.egg", "w") as archive:
        for name, text in INSTALLED.items():
            archive.writestr(name, text)
    assert "foo.egg" in refused(PROJECT, "foo.nets", path=[tmp_path / "foo.egg"])


def test_a_module_that_only_the_other_side_still_has(refused: Refused, tmp_path: Path) -> None:
    """Deleted in the working tree: the installed copy would stand in for it."""
    place = written(tmp_path / "site", INSTALLED)
    now = {name: text for name, text in PROJECT.items() if "blocks" not in name}
    assert "'foo.blocks' was imported" in refused(now, "foo.blocks", path=[place], before=PROJECT)


def test_copies_in_the_project_that_git_ignores(refused: Refused, tmp_path: Path) -> None:
    """A build folder or an environment in the working tree is no part of the revision."""
    ignored = {f".venv/lib/{name}": text for name, text in INSTALLED.items()}
    said = refused(PROJECT, "foo.nets", path=[tmp_path / "top/.venv/lib"], ignored=ignored)
    assert "'foo.nets' was imported from" in said and ".venv" in said
    made = {"python/foo/_version.py": "V = 1\n"}
    assert refused(PROJECT, "foo._version", ignored=made, paths=["python"]) == "", "generated, and nobody's copy"


def test_an_environment_in_the_project_is_not_its_tree(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where git was not told to ignore it, so that it is among the files."""
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path / "top/env/lib")])
    copy = {f"env/lib/{name}": text for name, text in INSTALLED.items()}
    said = refused(PROJECT | copy, "foo.nets", path=[tmp_path / "top/env/lib"], before=PROJECT)
    assert "'foo.nets' was imported from" in said
    said = refused(PROJECT | copy, "foo.nets", path=[tmp_path / "top/env/lib"], before=PROJECT, as_baseline=True)
    assert "'foo.nets' was imported from" in said


def test_whatever_lies_in_the_other_tree_is_refused_also_where_the_project_is_in_an_environment(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    said = refused(PROJECT, "foo.nets", path=[tmp_path / "tree" / "python"])
    assert "'foo.nets' was imported from the other side's tree" in said or "'foo'" in said


@pytest.mark.parametrize(
    ("kind", "project", "module"),
    [
        (
            "vendored in a package",
            {"foo/__init__.py": "", "foo/_vendor/__init__.py": "", "foo/_vendor/bar.py": "A\n"},
            "bar",
        ),
        ("vendored beside", {"vendor/bar.py": "A = 2\n", "pyproject.toml": '[project]\nname = "foo"\n'}, "bar"),
        ("a script of that name", {"benchmarks/bar.py": "A = 2\n"}, "bar"),
        ("tests of it", {"tests/bar/test_nets.py": ""}, "bar.nets"),
        ("a module of Python", {"logging.py": "raise ValueError\n", "http/__init__.py": ""}, "logging.handlers"),
        ("a module of torch's", {"numpy.py": "raise ValueError\n"}, "numpy"),
        ("a module of a runtime's", {"ncnn.py": "A = 2\n"}, "ncnn"),
    ],
)
def test_no_false_refusals(refused: Refused, tmp_path: Path, kind: str, project: Files, module: str) -> None:
    library = {"bar/__init__.py": "A = 1\n", "bar/nets.py": "", "ncnn.py": "A = 1\n"}
    told = {} if kind == "vendored in a package" else metadata("bar", {name: "" for name in library if "bar" in name})
    place = written(tmp_path / "site", library | told)
    assert refused(project, module, path=[place], paths=["none"]) == ""


def test_a_library_that_was_installed_from_this_repository_is_no_stranger(refused: Refused, tmp_path: Path) -> None:
    """Its project's name is nowhere to be read, but where it came from is."""
    library = {"bar/__init__.py": "A = 1\n"}
    place = written(tmp_path / "site", library | metadata("bar", library, (tmp_path / "top").as_uri()))
    project = {"python/bar/__init__.py": "A = 2\n"}
    assert "'bar' was imported from" in refused(project, "bar", path=[place])
    assert "'bar' was imported from" in refused(
        {**project, "setup.py": "from setuptools import setup\nsetup(name=NAME)\n"}, "bar", path=[place]
    )


def test_a_hundred_thousand_files_take_no_time_to_speak_of(refused: Refused, tmp_path: Path) -> None:
    listing = tmp_path / "many"
    source_trees.write_listing(listing, (f"data/{n % 100}/part_{n}.py" for n in range(100_000)))
    tree = source_trees.Tree(tmp_path, source_trees._read_listing(listing))
    assert [held.path for held in tree.files_of("part_77")] == ["data/77/part_77.py"]
    assert tree.files_of("77.part_77") and not tree.files_of("78.part_77")


# --- why a side does not run it ---------------------------------------------------------------------


def absent(module: str) -> ModelNotFound:
    error = ModelNotFound("there is none")
    error.module = module
    return error


def lacking(module: str) -> ModelNeedsPackage:
    error = ModelNeedsPackage(f"it imports '{module}', which is not installed; pip install {module}")
    error.module = module
    return error


def test_absent_is_only_what_the_revision_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = written(tmp_path / "tree", {**PROJECT, ".gitmodules": '[submodule "x"]\n\tpath = third_party/x\n'})
    top = written(tmp_path / "top", {**PROJECT, "weights.pt": "", "helper.py": "", "new.py": ""})
    for file, held in (("before", PROJECT), ("now", {**PROJECT, "new.py": ""})):
        source_trees.write_listing(tmp_path / file, held)
    job = Site(tree, (".", "src"), top, tree, (tmp_path / "before", tmp_path / "now")).job()
    monkeypatch.chdir(tree)

    def cause(error: ModelError) -> str:
        return code_origins.explain(error, job).cause

    assert cause(absent("gone.py")) == cause(absent("foo.gone")) == cause(absent("new.py")) == "absent"
    for module in ("helper.py", "helper"):
        said = code_origins.explain(absent(module), job)
        assert said.cause == "" and "git-ignored" in said, "what no revision will ever hold is not new"
    lacks_name = absent("foo.nets")
    lacks_name.attribute = "net"
    assert cause(lacks_name) == "", "the same file on both sides: something else decides what is in it"
    (top / "python/foo/nets.py").write_text("def net(): ...")
    assert cause(lacks_name) == "absent"
    assert cause(absent("third_party/x/nets.py")) == "", "a submodule that was not fetched is not new"
    assert cause(absent("foo.nets")) == "", "it is there, in a folder that `paths` does not name"
    assert 'add "python" to `paths`' in code_origins.explain(absent("foo.nets"), job)
    assert cause(lacking("einops")) == "lacks"
    assert cause(lacking("foo")) == cause(lacking("new")) == "", "a part of the project is no package to install"
    said = code_origins.explain(lacking("helper"), job)
    assert said.cause == "" and "helper.py lies in the other side's tree only (git-ignored?)" in said
    error = ModelError("it raises FileNotFoundError")
    error.missing_file = os.path.join(tree, "weights.pt")
    assert "weights.pt lies in the other side's tree only (git-ignored?)" in code_origins.explain(error, job)
    assert code_origins.explain(absent("foo.nets"), {}).cause == "absent", "without another side nothing is looked for"


def test_nothing_is_refused_without_another_side(tmp_path: Path) -> None:
    job: dict[str, Any] = {**Site(tmp_path).job(), "cells": [{"model": "nosuch.py:net"}]}
    code_origins.refuse_foreign(job)
    code_origins.refuse_foreign({"cells": []})


RENAMED: Files = {
    "lib/__init__.py": "",
    "lib/layers.py": "WORK = 3\n",
    "pyproject.toml": '[project]\nname = "foo-project"\n[tool.setuptools]\npackage-dir = { foo = "lib" }\n',
    "nets.py": "import foo.layers\n",
}
"""A package whose folder is not called as it is imported."""
BEFORE: Files = {**RENAMED, "lib/layers.py": "WORK = 1\n"}
COPY: Files = {"foo/__init__.py": "", "foo/layers.py": "WORK = 3\n"}


def test_a_package_installed_by_this_project_is_refused_under_any_name(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", {**COPY, **metadata("Foo_Project", COPY)})
    said = refused(RENAMED, "foo.layers", path=[place], before=BEFORE)
    assert "'foo" in said and "an installed copy of this project" in said and "--against-python" in said


def test_what_another_project_installed_under_the_same_folder_names_is_not(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", {**COPY, **metadata("stranger", COPY), "foo/layers.py": "WORK = 2\n"})
    assert refused(RENAMED, "foo.layers", path=[place], before=BEFORE) == ""


def test_a_copy_of_the_other_side_s_file_is_refused_under_any_name(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", COPY)
    said = refused(RENAMED, "foo.layers", path=[place], before=BEFORE, as_baseline=True)
    assert "'foo.layers'" in said and "a copy of lib/layers.py of the other side" in said


def test_a_copy_of_this_side_s_own_file_is_its_code(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", COPY)
    assert refused(RENAMED, "foo.layers", path=[place], before=BEFORE) == ""


COMPUTED: Files = {
    "setup.py": "NAME = 'foo'\nsetup(name=NAME)\n",
    "python/foo/__init__.py": "",
    "python/foo/nets.py": "WORK = 3\n",
    "python/foo/onnxish/__init__.py": "",
}
"""A project that only its installer knows the name of, with an adapter called like somebody else's package."""


def test_a_name_that_is_computed_excuses_no_copy(refused: Refused, tmp_path: Path) -> None:
    copy = {"foo/__init__.py": "", "foo/nets.py": "WORK = 1\n"}
    place = written(tmp_path / "site", {**copy, **metadata("foo", copy)})
    assert "'foo.nets' was imported from" in refused(COMPUTED, "foo.nets", path=[place])


def test_an_adapter_is_not_the_package_that_it_is_called_like(refused: Refused, tmp_path: Path) -> None:
    theirs = {"onnxish/__init__.py": "VERSION = 2\n"}
    place = written(tmp_path / "site", {**theirs, **metadata("onnxish", theirs)})
    assert refused(COMPUTED, "onnxish", path=[place]) == ""


@pytest.mark.parametrize("name", ["foo-project-nightly", "my-foo-project"])
def test_a_variant_of_the_project_is_no_stranger(refused: Refused, tmp_path: Path, name: str) -> None:
    place = written(tmp_path / "site", INSTALLED | metadata(name, INSTALLED))
    assert "'foo.nets' was imported from" in refused(PROJECT, "foo.nets", path=[place])


def test_a_root_that_is_a_package_itself_still_holds_the_module(refused: Refused, tmp_path: Path) -> None:
    place = written(tmp_path / "site", INSTALLED)
    assert "'foo.nets' was imported from" in refused({**PROJECT, "python/__init__.py": ""}, "foo.nets", path=[place])


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a gate's process, which does so until it ends."""
    monkeypatch.setattr(opened_files, "_paths", None)
    opened_files.start_recording()
    yield
    opened_files._remove_listener(opened_files._record)


READS = """
import json, pathlib, runpy, importlib.util
def load(path):
    spec = importlib.util.spec_from_file_location("anything", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("way", ["spec", "runpy", "exec", "data"])
def test_what_is_read_from_the_other_tree_is_refused_whatever_it_is_called(
    refused: Refused, tmp_path: Path, way: str
) -> None:
    """A path that is written out leads the baseline to the candidate's files."""
    there = tmp_path / "top"
    line = {
        "spec": f"load({str(there / 'blocks.py')!r})",
        "runpy": f"runpy.run_path({str(there / 'blocks.py')!r})",
        "exec": f"exec(compile(pathlib.Path({str(there / 'blocks.py')!r}).read_text(), 'x', 'exec'))",
        "data": f"json.loads(pathlib.Path({str(there / 'cfg.json')!r}).read_text())",
    }[way]
    now = {"reads_it.py": f"{READS}\n{line}\n", "blocks.py": "WORK = 3\n", "cfg.json": "3"}
    said = refused(now, "reads_it", before={**now, "blocks.py": "WORK = 1\n", "cfg.json": "1"}, as_baseline=True)
    assert ("cfg.json" if way == "data" else "blocks.py") in said and "was read from the other side's tree" in said


@pytest.mark.usefixtures("watching")
def test_what_the_check_itself_reads_is_no_ground_for_refusal(refused: Refused, tmp_path: Path) -> None:
    """It compares a stranger's file with those of both trees that are called like it."""
    place = written(tmp_path / "site", {"stranger/__init__.py": "", "stranger/layers.py": "WORK = 2\n"})
    for _ in range(2):
        assert refused(RENAMED, "stranger.layers", path=[place], before=BEFORE, as_baseline=True) == ""


BELOW = """
import ctypes, os, sqlite3
import safetensors, torch
from safetensors.torch import load_file
def safe_open(path):
    safetensors.safe_open(path, "pt")
def connect(path):
    sqlite3.connect(path).close()
def folder(path):
    os.close(os.open(os.path.basename(path), os.O_RDONLY, dir_fd=os.open(os.path.dirname(path), os.O_RDONLY)))
"""


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize(
    "call",
    [
        *("ctypes.CDLL", "torch.ops.load_library", "torch.jit.load", "torch.package.PackageImporter"),
        *("load_file", "safe_open", "connect", "folder"),
    ],
)
def test_what_is_read_below_python_is_refused_too(refused: Refused, tmp_path: Path, call: str) -> None:
    """None of these files is a good one: that it was to be read is enough."""
    there = tmp_path / "top" / "file.so"
    line = f"try:\n    {call}({str(there)!r})\nexcept Exception:\n    pass\n"
    now = {"reads_it.py": f"{BELOW}\n{line}", "file.so": "now"}
    said = refused(now, "reads_it", before={**now, "file.so": "before"}, as_baseline=True)
    assert "file.so was read from the other side's tree" in said
    assert refused(now, "reads_it", before=now, as_baseline=True) == "", "the same on both sides"


def test_an_exported_program_is_seen(tmp_path: Path) -> None:
    """A good one: of any other file torch says why it is none, for which Python opens it."""
    path, seen = tmp_path / "net.pt2", []
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.ones(1, 2),)), path)
    with opened_files.listening(lambda name, flags: seen.append(name)):
        torch.export.load(path)
    assert str(path) in seen


@pytest.mark.usefixtures("watching")
def test_a_library_of_the_other_tree_that_another_one_needs_is_seen_in_memory(refused: Refused, tmp_path: Path) -> None:
    there = tmp_path / "top" / "libinner.so"
    there.parent.mkdir()
    there.write_text("x" * 4096)
    now = {"libinner.so": "x" * 4096}
    with opened_files.recording_suspended():
        file = there.open()
    with file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        said = refused(now, before={}, as_baseline=True)
    if sys.platform == "linux":
        assert "libinner.so was read from the other side's tree" in said


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("kind", ["other tree", "copy", "legacy", "without source"])
def test_byte_code_stands_for_its_source(refused: Refused, tmp_path: Path, kind: str) -> None:
    """A warm cache: only the byte code is opened."""
    now = {"blocks.py": "WORK = 3\n"}
    place = tmp_path / ("elsewhere" if kind == "copy" else "top")
    with opened_files.recording_suspended():
        source = written(place, now) / "blocks.py"
        cached = py_compile.compile(str(source), str(source) + "c" if kind in ("legacy", "without source") else None)
        if kind == "without source":
            source.unlink()
    path = source if kind in ("other tree", "copy") else cached
    reads = {"reads_it.py": f"{READS}\nload({str(path)!r})\n"}
    if kind == "without source":
        now = {}
    said = refused({**now, **reads}, "reads_it", before={"blocks.py": "WORK = 1\n", **reads}, as_baseline=True)
    assert "blocks.py" in said and ("a copy of blocks.py" if kind == "copy" else "was read from the other") in said
    if kind == "legacy":
        assert refused({**now, **reads}, "reads_it", before={**now, **reads}, as_baseline=True) == "", "alike"


def test_no_module_is_run_to_learn_where_it_comes_from(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is loaded when it is first used, nor whatever else stands among the modules."""

    class Raises:
        def __getattr__(self, name: str) -> None:
            raise KeyError(name)

    class RaisesAlways(ModuleType):
        def __getattribute__(self, name: str) -> None:
            raise ValueError(name)

    place = written(tmp_path / "site", {"foo_lazily.py": "raise ImportError('install graphviz to draw')\n"})
    spec = importlib.util.spec_from_file_location("foo_lazily", place / "foo_lazily.py")
    assert spec and spec.loader
    loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    loader.exec_module(lazy)
    for name, module in (("foo_lazily", lazy), ("weird", Raises()), ("weirder", RaisesAlways("x")), ("none", None)):
        monkeypatch.setitem(sys.modules, name, module)
    assert refused({"lib/foo_lazily.py": ""}) == "", "it has run nothing yet"
    assert refused({"lib/foo_lazily.py": ""}, model="foo_lazily:build") == ""
    file_hashes.digests(["foo_lazily:build"], tmp_path)
    assert type(lazy) is not ModuleType, "and it still has not"
    monkeypatch.setitem(sys.modules, "foo_lazily", importlib.util.module_from_spec(spec))
    assert "'foo_lazily' was imported from" in refused({"lib/foo_lazily.py": ""})


def test_a_package_of_others_is_not_a_lone_file_of_its_name(refused: Refused, tmp_path: Path) -> None:
    theirs = {"utils_/__init__.py": "", "utils_/layers.py": "N = 2\n"}
    place = written(tmp_path / "site", theirs)
    assert refused({"tests/utils_.py": "x = 1\n"}, "utils_.layers", path=[place]) == ""
    said = refused({"tests/utils_.py": "", "lib/utils_/__init__.py": ""}, "utils_.layers", path=[place])
    assert "'utils_' was imported from" in said


def test_an_extension_that_was_built_in_place_is_no_copy(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to delete his build."""
    project = {"foo/__init__.py": "", "foo/_c.pyx": "N = 2\n"}
    module = ModuleType("foo._c")
    module.__file__ = str(tmp_path / "top/foo/_c.so")
    monkeypatch.setitem(sys.modules, "foo._c", module)
    said = refused(project, ignored={"foo/_c.so": "built"})
    assert "foo/_c.so, this side's own build of foo/_c.pyx" in said and "remove" not in said
    assert "check --save-baseline" in said


def test_a_generated_module_is_told_of_as_such_and_a_name_that_is_taken_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = {"src/foo/__init__.py": "", "packaging/blocks.py": "", "packaging/__init__.py": "", "nets.py": ""}
    tree = written(tmp_path / "tree", project)
    top = written(tmp_path / "top", {**project, "src/foo/_version.py": "", "src/foo/_fast.abi3.so": ""})
    for file in ("before", "now"):
        source_trees.write_listing(tmp_path / file, project)
    job = Site(tree, (".", "src"), top, tree, (tmp_path / "before", tmp_path / "now")).job()
    monkeypatch.chdir(tree)
    source_trees._load_trees.cache_clear()
    for name, file in (("foo._version", "_version.py"), ("foo._fast", "_fast.abi3.so")):
        said = code_origins.explain(lacking(name), job)
        assert said.cause == "" and f"src/foo/{file} lies in the other side's tree only (git-ignored?)" in said
        assert "remove" not in said and "check --save-baseline" in said
    said = code_origins.explain(absent("src/foo/_version.py"), job)
    assert said.cause == "" and "src/foo/_version.py lies in the other side's tree only" in said
    assert "the name 'packaging' is taken by a package that torch" in code_origins.explain(
        lacking("packaging.blocks"), job
    )
    computed = absent("nets.py")
    computed.attribute = "build_big"
    (top / "nets.py").write_text("globals()['build_' + 'big'] = int")
    said = code_origins.explain(computed, job)
    assert said.cause == "" and "something else decides whether it is there" in said
    (top / "nets.py").write_text("def build_big(): ...")
    assert code_origins.explain(computed, job).cause == "absent"


def test_an_old_release_of_the_package_under_another_name_is_no_strangers(refused: Refused, tmp_path: Path) -> None:
    """Of a third version, so that it is no copy of either side's."""
    place = written(tmp_path / "site", INSTALLED | metadata("foo", INSTALLED))
    assert "'foo.nets' was imported from" in refused(PROJECT, "foo.nets", path=[place])
    vendored = {name.replace("python/", "third_party/"): text for name, text in PROJECT.items()}
    assert refused(vendored, "foo.nets", path=[place]) == "", "theirs is another project, kept here too"
    shares = {"python/foo/__init__.py": "", "python/foo/ours.py": "", "pyproject.toml": PROJECT["pyproject.toml"]}
    assert refused(shares, "foo.nets", path=[place]) == "", "nothing but its first name"
