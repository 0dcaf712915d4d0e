"""Store and read a bundle's check data: the inputs of each model and the outputs of eager float32. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.runtimes.model_file import as_arrays
from effbench.timing import output_check

if TYPE_CHECKING:
    import numpy as np

INPUTS_FILE, EXPECTED_FILE = "inputs.npz", "expected.npz"
NOTES_FILE = "notes.json"
"""Written only for a network with side effects, or whose output cannot be checked."""


def save(folder: Path, inputs: Sequence[Any], expected: Any, notes: str = "", *, is_checkable: bool = True) -> None:
    """Write the inputs of one call, by position, and the expected outputs, in order. Both are tensors or arrays.

    `notes` describe side effects of the network. Without `is_checkable` its outputs differ from run to run.
    """
    import numpy as np

    for name, arrays in (
        (INPUTS_FILE, [as_arrays((value,))[0] if hasattr(value, "cpu") else np.asarray(value) for value in inputs]),
        (
            EXPECTED_FILE,
            [
                array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)
                for array in output_check.output_arrays(expected)
            ],
        ),
    ):
        with (folder / name).open("wb") as file:
            np.savez(file, *arrays)
    if notes or not is_checkable:
        (folder / NOTES_FILE).write_text(json.dumps({"notes": notes, "is_checkable": is_checkable}))


def load(folder: Path) -> tuple[tuple[np.ndarray[Any, Any], ...], list[np.ndarray[Any, Any]]]:
    """Read the inputs and the expected outputs in this folder. Runs no pickled code. Raises ValueError and OSError."""
    return tuple(_read_arrays(folder / INPUTS_FILE)), _read_arrays(folder / EXPECTED_FILE)


def load_notes(folder: Path) -> tuple[str, bool]:
    """Read the notes in this folder, and whether outputs can be compared with the expected ones. Raises ValueError."""
    path = folder / NOTES_FILE
    if not path.exists():
        return "", True
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{NOTES_FILE} holds no notes")
    return str(found.get("notes", "")), bool(found.get("is_checkable", True))


def _read_arrays(path: Path) -> list[np.ndarray[Any, Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as found:
        return [found[f"arr_{number}"] for number in range(len(found.files))]
