"""Turn errors of drawing into one-line warnings, so that the tables are written even if figures fail."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from effbench.core.errors import StorageError

_T = TypeVar("_T")


def draw_or_warn(draw: Callable[[], dict[str, _T]]) -> dict[str, _T]:
    """Return the files that `draw` writes, or, after a RuntimeWarning with the reason, nothing.

    Raises StorageError where the folder cannot be written.
    """
    try:
        load_matplotlib()
        return draw()
    except StorageError:
        raise
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed here; effbench report draws them where it is"
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {said}".rstrip(": ")
    warnings.warn(f"no figures: {reason}", RuntimeWarning, stacklevel=2)
    return {}


def load_matplotlib() -> None:
    """Import matplotlib, even if MPLBACKEND or the user's matplotlibrc is invalid, since our figures use neither.

    Raises what the import raises without them.
    """
    if "matplotlib" in sys.modules:
        return
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise
    except Exception:
        found = importlib.util.find_spec("matplotlib")
        if found is None or found.origin is None:
            raise
        shipped = Path(found.origin).parent / "mpl-data" / "matplotlibrc"
        # The failed import has left partially imported modules.
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        variables = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
        os.environ["MATPLOTLIBRC"] = str(shipped)
        try:
            importlib.import_module("matplotlib")
        finally:
            del os.environ["MATPLOTLIBRC"]
            os.environ.update({name: value for name, value in variables.items() if value is not None})
