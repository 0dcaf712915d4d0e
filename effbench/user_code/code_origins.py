"""Check where the code of a measuring process was loaded from: each side of an A/B run must use its own source tree.

A copy of the user's package that is installed, or lies elsewhere on the import path, would be measured on both sides,
and any slowdown would pass. The network's own module must therefore come from its side's tree. So must every other
module for which the repository has a file on either side.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from effbench.core.errors import EffbenchError, ForeignCode, ModelError, ModelNeedsPackage, ModelNotFound, Reason
from effbench.user_code import opened_files
from effbench.user_code.source_trees import INITS, ModuleFile, Trees, content_of, is_within, trees_of_job
from effbench.zoo import load_model, sys_path

_CODE = re.compile(r"\.(py|pyc|so|so\.[\d.]+|pyd|dylib|dll)$")
_EFFBENCH = os.path.realpath(Path(__file__).parents[1])


def refuse_foreign(job: Mapping[str, Any]) -> None:
    """Raise ForeignCode if this process loaded a part of the project from anywhere but its own side's tree.

    `job` holds the fields of `worker_process.Site.job` and the cells. Does nothing if there is no other side.
    """
    if not job.get("foreign"):
        return
    paths = opened_files.recorded_paths()
    with opened_files.recording_suspended():
        _refuse(job, trees_of_job(job), paths)


def _refuse(job: Mapping[str, Any], trees: Trees, paths: Sequence[str]) -> None:
    for spec in (*job.get("cells", ()), *([job["cell"]] if "cell" in job else [])):
        _require_named(str(spec["model"]), trees)
    # Innermost modules first: a package may be empty, and its modules are what runs.
    for name, module in sorted([*sys.modules.items()], key=lambda item: -item[0].count(".")):
        written = opened_files.source_file(module)
        if written is None or name.partition(".")[0] in ("effbench", "__main__", "__mp_main__"):
            continue
        file = _real_path(written)
        if not trees.is_own(file):
            _require_own(name, file, trees)
            trees.require_inside(name, written, file)
    for path in paths:
        _require_own_read(path, trees)


def explain(error: EffbenchError, job: Mapping[str, Any]) -> Reason:
    """Return why a cell does not run on this side.

    The cause "absent" is only given for what this side's tree does not hold, "lacks" only for what is no part of the
    project.
    """
    if not job.get("foreign"):
        return Reason.of(error)
    with opened_files.recording_suspended():
        return _explain(error, trees_of_job(job))


def _explain(error: EffbenchError, trees: Trees) -> Reason:
    text = str(error)
    if isinstance(error, ModelNotFound) and error.attribute and trees.is_same_on_both(error.module):
        return Reason(f"{text}; its file is the same on both sides, so something else decides what is in it")
    if (
        isinstance(error, ModelNotFound)
        and error.attribute
        and not trees.is_named_by_other(error.module, error.attribute)
    ):
        return Reason(f"{text}; nor does the other side's file name it, so something else decides whether it is there")
    if isinstance(error, ModelNotFound) and (hint := trees.untracked_advice(error.module)):
        return Reason(f"{text}; {hint}")
    if isinstance(error, ModelNotFound) and error.module and not error.attribute:
        if error.module.endswith(".py"):
            return Reason(text, "" if trees.is_in_submodule(error.module) else error.cause)
        candidates = trees.own.files_of(error.module)
        if not candidates:
            return Reason.of(error)
        if hint := _name_conflict(error.module.partition(".")[0], trees):
            return Reason(f"{text}; {hint}")
        return Reason(f"{text}; this side's tree has it in {candidates[0].path}: {trees.advice(candidates[0])}")
    if isinstance(error, ModelNeedsPackage):
        root = error.module.partition(".")[0]
        if hint := _name_conflict(root, trees) or trees.untracked_advice(error.module):
            return Reason(f"{text.partition(';')[0]}; {hint}")
        in_project = [
            module_file
            for tree in (trees.own, trees.other)
            for module_file in tree.files_of(error.module) or tree.files_of(root)
        ]
        if in_project:
            return Reason(
                f"{text.partition(';')[0]}; it is {in_project[0].path} of the project: {trees.advice(in_project[0])}"
            )
        only = trees.only_in_other(f"{root}.py") or trees.only_in_other(root)
        return Reason(f"{text.partition(';')[0]}; {only}") if only else Reason.of(error)
    hint = trees.only_in_other(error.missing_file) if isinstance(error, ModelError) and error.missing_file else ""
    return Reason(f"{text}; {hint}" if hint else text, error.cause)


def _name_conflict(root: str, trees: Trees) -> str:
    """Return advice about a package of the project whose name belongs to Python or to a needed package; "" if it does
    not.
    """
    candidates = trees.files_on_either_side(root)
    if not candidates or not (sys_path.is_stdlib_name(root) or root in sys_path.IMPORTED_PACKAGES):
        return ""
    whose = "Python itself" if sys_path.is_stdlib_name(root) else "torch or effbench needs"
    what = "a module of" if sys_path.is_stdlib_name(root) else "a package that"
    return (
        f"the name '{root}' is taken by {what} {whose}, so {candidates[0].path} is never imported under it; rename that"
    )


# --- what is refused --------------------------------------------------------------------------------


def _require_named(model: str, trees: Trees) -> None:
    """Raise ForeignCode unless the module or file that names a network comes from its own tree."""
    name, _ = load_model.split_arguments(model)
    place, _, attribute = name.rpartition(":")
    if not place or not attribute or place == "pickle" or load_model.is_of_library(name):
        return
    namesake = sys_path.namesake(place)
    if place.endswith(".py") or namesake is not None:
        file = os.path.realpath(namesake or place)
        if not os.path.isfile(file):
            return
    else:
        module = sys.modules.get(place)
        written = opened_files.source_file(module)
        if written is None:
            return
        file = _real_path(written)
    if trees.is_own(file):
        return
    candidates = trees.files_on_either_side(place)
    if trees.is_in_other_tree(file):
        raise _from_other_side(place, candidates, trees)
    if not trees.is_in_own_tree(file) or candidates:
        advice = trees.advice(candidates[0]) if candidates else "name a file or a module of the repository"
        raise ForeignCode(
            f"'{place}' comes from {file}, which is not of the tree that is measured, so both sides would run the same "
            f"code; {advice}"
        )


def _require_own(name: str, file: str, trees: Trees) -> None:
    """Raise ForeignCode for a module that the project has a file for but that was loaded from another file."""
    candidates = trees.files_on_either_side(name)
    if trees.is_in_other_tree(file):
        raise _from_other_side(name, candidates, trees)
    if name.partition(".")[0] in sys_path.IMPORTED_PACKAGES or sys_path.is_in_stdlib(file):
        return
    if file in trees.installed:
        advice = (
            trees.advice(candidates[0])
            if candidates
            else "install each side's own (--against-python), or import from the tree"
        )
        raise ForeignCode(
            f"'{name}' was imported from {file}, an installed copy of this project, so both sides would run the same "
            f"code; {advice}"
        )
    if os.path.basename(file) in INITS and not any(os.path.basename(each.path) in INITS for each in candidates):
        candidates = []  # a package is not a single file of that name, such as tests/utils.py
    copy = None if candidates else trees.copied_from(file, name)
    if copy is not None and not trees.is_of_another_project(name, file):
        raise ForeignCode(
            f"'{name}' was imported from {file}, a copy of {copy} of the other side, so both sides would run the same "
            "code; import from the tree, or remove that copy"
        )
    if not candidates or trees.is_of_another_project(name, file, candidates):
        return
    if trees.is_built_extension(file, candidates):
        raise ForeignCode(
            f"'{name}' is {trees.relative(file)}, this side's own build of {candidates[0].path}, which git ignores; "
            f"the other side's checkout has no build, so they are not alike; {trees.BASELINE_ADVICE}"
        )
    raise ForeignCode(
        f"'{name}' was imported from {file}, but the project has it in {candidates[0].path}, so both sides would run "
        f"the same code; {trees.advice(candidates[0])}"
    )


def _require_own_read(path: str, trees: Trees) -> None:
    """Raise ForeignCode for a project file that was read from the other side's tree, and for code read from a copy of
    it.

    Reading counts because a module need not be imported by name.
    """
    file, top = _real_path(path), str(trees.other.top)
    is_code = _CODE.search(file) is not None
    if not is_code and not is_within(file, top):
        return
    if is_within(file, _EFFBENCH) or trees.is_in_own_tree(file) or sys_path.is_in_stdlib(file):
        return
    if not trees.is_in_other_tree(file):
        if is_code and not trees.is_installed(file) and (copy := trees.copied_from(file, "")) is not None:
            raise ForeignCode(
                f"{file} was read, a copy of {copy} of the other side, so both sides would run the same code; read the "
                "tree's own file, by a path from the file that reads it"
            )
        return
    inside = os.path.relpath(file, top)
    own, content = trees.own.top / inside, content_of(file)
    if ".git" in inside.split(os.sep) or (not is_code and not own.exists()) or content in (None, content_of(str(own))):
        return
    raise ForeignCode(
        f"{inside} was read from the other side's tree, so both would use the same; read the tree's own file, by a "
        "path from the file that reads it"
    )


def _from_other_side(name: str, candidates: Sequence[ModuleFile], trees: Trees) -> ForeignCode:
    advice = trees.advice(candidates[0]) if candidates else "remove the installed copy that leads there"
    return ForeignCode(f"'{name}' was imported from the other side's tree, so both would run the same code; {advice}")


def _real_path(file: str) -> str:
    """Return the real path of a file. Resolved folders are cached, because thousands of files lie in few folders."""
    folder, name = os.path.split(file)
    return os.path.realpath(file) if os.path.islink(file) else os.path.join(_real_folder(folder), name)


@cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
