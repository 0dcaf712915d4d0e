"""What a fork of the nursery does before its command begins: effbench is imported, figures are blank."""

from __future__ import annotations

import copyreg
import importlib
import os
import pkgutil
import sys
import time
from typing import Any

LEFT_OUT = ("effbench.__main__", "effbench.pytest_plugin")
"""The one runs the command, the other imports pytest."""

BLANK = {
    "png": b"\x89PNG\r\n\x1a\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>',
}


def load_effbench() -> None:
    """Import every module of effbench whose libraries are here."""
    import effbench

    for found in pkgutil.walk_packages(effbench.__path__, "effbench.", onerror=lambda name: None):
        if found.name not in LEFT_OUT:
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue
    # dask changes how every exception is pickled, and SystemExit loses its code so. Few commands import dask.
    for kind in [each for each in copyreg.dispatch_table if issubclass(each, BaseException)]:
        del copyreg.dispatch_table[kind]


def begin(*, afresh: bool, figures: bool) -> None:
    """In the fork, in its folder: forget effbench where it is to be imported afresh, else draw only wanted figures."""
    if afresh or any(os.path.exists(name) for name in ("effbench", "effbench.py")):
        for name in [name for name in sys.modules if name.partition(".")[0] == "effbench"]:
            del sys.modules[name]
        return
    # A run tells whether its files were changed since its process began.
    sys.modules["effbench.user_code.file_hashes"]._STARTED_S = time.time()  # type: ignore[attr-defined]
    if not figures and "matplotlib.figure" in sys.modules:
        sys.modules["effbench.report"].run_figures = _blank  # type: ignore[attr-defined]
        sys.modules["matplotlib.figure"].Figure.savefig = _saved_blank  # type: ignore[attr-defined]


def _blank(run: Any, cells: Any, verdicts: Any) -> dict[str, Any]:
    """In the place of `effbench.report.run_figures`."""
    return {"figure": sys.modules["matplotlib.figure"].Figure()} if cells else {}


def _saved_blank(figure: Any, place: Any, *, format: str = "png", **_: Any) -> None:
    """In the place of `Figure.savefig`: whoever looks for the file finds it, and errors of writing are as ever."""
    if hasattr(place, "write"):
        place.write(BLANK[format])
        return
    with open(place, "wb") as stream:
        stream.write(BLANK["png"])
