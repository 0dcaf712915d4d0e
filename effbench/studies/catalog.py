"""Find and load studies and analyses by name or path. They are executed files, not modules.

In a clone they are in ``experiments/``, which is used only if a pyproject.toml lies beside it. Otherwise they come from
the copy inside the installed package.
"""

from __future__ import annotations

import ast
import json
import runpy
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from effbench.core import inputs
from effbench.core.errors import EffbenchError, UnknownName
from effbench.core.study import Analysis, Experiment

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """The folder of the studies that come with effbench."""
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


def load(study: str) -> Experiment | Analysis:
    """The experiment, or the analysis, of this name or in this ``.py`` file.

    Raises UnknownName; EffbenchError for a file that is missing, has a syntax error, fails to load, or defines no
    `EXPERIMENT` and no `ANALYSIS`.
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
        defined = runpy.run_path(str(path), run_name="effbench_study")
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise EffbenchError(f"{error.filename or path}{line}: {error.msg}; correct it first") from error
    except EffbenchError as error:
        raise EffbenchError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise EffbenchError(f"{path}{_line_in(error, path)}: {text}; correct it first") from error
    analysis, found = defined.get("ANALYSIS"), defined.get("EXPERIMENT")
    if isinstance(analysis, Analysis):
        return analysis
    if not isinstance(found, Experiment):
        raise EffbenchError(f"{path} defines no EXPERIMENT; it must end in EXPERIMENT = Experiment(…)")
    try:
        _check(found)
    except EffbenchError as error:
        raise EffbenchError(f"{path}: {error}") from error
    return found


def _line_in(error: BaseException, path: Path) -> str:
    """The last line of the user's own file in the traceback, as the end of a path."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _check(study: Experiment) -> None:
    """Raise EffbenchError for a study that can be loaded but not carried out."""
    if not study.cases:
        raise EffbenchError("the study has no cases; give it at least one")
    repeated = next((name for name, times in Counter(case.id for case in study.cases).items() if times > 1), None)
    if repeated is not None:
        raise EffbenchError(f"two cases have the id '{repeated}'; give them different labels")
    if study.reference not in study.label_values()[study.factor]:
        raise EffbenchError(
            f"no case has {study.factor}={study.reference}, the study's reference; ratios are taken to it"
        )
    for kind, batch in study.batch.items():
        inputs.whole_number(batch, f"batch on {kind}")
    for case in study.cases:
        if not isinstance(case.model, str):
            raise EffbenchError(f"case '{case.id}': model must be a name, not a {type(case.model).__name__}")
        if case.batch is not None:
            inputs.whole_number(case.batch, f"case '{case.id}': batch")
        if not all(isinstance(size, int) and size > 0 for size in case.input_shape):
            raise EffbenchError(f"case '{case.id}': input_shape (={case.input_shape}) must be positive whole numbers")
    try:
        json.dumps(asdict(study), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EffbenchError(f"the study cannot be stored ({error}); use text, numbers and lists only") from error
