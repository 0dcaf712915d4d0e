"""Find a study by name or path, and load it. Studies are files loaded by path, not modules.

A clone's ``experiments/`` is looked in first (a sibling pyproject.toml guards against a stray folder of that name), then the copy
inside the installed package.
"""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

from effbench.core import Experiment
from effbench.errors import EffbenchError, UnknownName

_PACKAGE = Path(__file__).parent


def folder() -> Path:
    """Where the studies that come with effbench live."""
    beside = _PACKAGE.parent / "experiments"
    if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    return _PACKAGE / "_experiments"


def names() -> tuple[str, ...]:
    """Names of the studies that come with effbench."""
    return tuple(sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_")))


def titles() -> dict[str, str]:
    """Each study's name with the first line of its docstring, without executing it."""
    found = {}
    for name in names():
        docstring = ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))) or ""
        found[name] = docstring.partition("\n")[0]
    return found


def load(study: str) -> Experiment:
    """The experiment of this name, or in this ``.py`` file.

    Raises UnknownName; EffbenchError for a file that is missing, has a syntax error, fails to load, or defines no `EXPERIMENT`.
    """
    if study.endswith(".py"):
        path = Path(study)
        if not path.is_file():
            raise EffbenchError(f"there is no study file {study}")
    else:
        path = folder() / f"{study}.py"
        if study not in names():
            raise UnknownName("study", study, names(), hint=" A file of your own is given by its path, ending in .py.")
    try:
        found = runpy.run_path(str(path), run_name="effbench_study").get("EXPERIMENT")
    except SyntaxError as error:
        raise EffbenchError(f"{path}, line {error.lineno}: {error.msg}") from error
    except EffbenchError as error:
        raise EffbenchError(f"{path}: {error}") from error
    except Exception as error:  # the user's file may raise anything
        raise EffbenchError(f"{path} fails to load: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(found, Experiment):
        raise EffbenchError(f"{path} defines no EXPERIMENT; it must end in EXPERIMENT = Experiment(…)")
    ids = [case.id for case in found.cases]
    repeated = next((name for name in ids if ids.count(name) > 1), None)
    if repeated is not None:
        raise EffbenchError(f"{path}: two cases have the id '{repeated}'; give them different labels")
    return found
