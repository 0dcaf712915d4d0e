"""The client's folder of a fleet's run: one order and one growing copy for each machine.

``FOLDER/MACHINE/run.jsonl`` is a prefix of the machine's own file, and a run folder like any other. The orders lie in
``FOLDER/.fleet``, so that ``FOLDER/*`` names run folders only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from effbench.core import decoding
from effbench.core.errors import EffbenchError, StorageError
from effbench.fleet.orders import Order
from effbench.runs import run_file

ORDERS = run_file.FLEET_ORDERS


@dataclass(frozen=True)
class StoredOrder:
    """An order with what is needed to go on with it: scheduler, certificates, and the folder of its bundle."""

    order: Order
    scheduler: str
    certs: str = ""
    bundle_folder: str = ""


class Mirror:
    """The copy of one machine's run. Holds the lock of the copy while it is open; use as a context manager.

    Raises StorageError if another conductor holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, stored: StoredOrder) -> None:
        self.folder, self.stored, self.order = folder, stored, stored.order
        self.path = folder / self.order.machine / run_file.RUN_FILE
        self._lock = FileLock(folder / ORDERS / f"{self.order.machine}.lock")

    def __enter__(self) -> Mirror:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StorageError(
                f"another effbench fleet conducts {self.order.machine} of {self.folder}; wait for it, or see how far "
                f"it is: effbench fleet watch {self.folder}"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def size(self) -> int:
        """Bytes of the copy."""
        return self.path.stat().st_size if self.path.exists() else 0

    def sha256(self) -> str:
        """Return the SHA-256 of the copy."""
        return hashlib.sha256(self.path.read_bytes() if self.path.exists() else b"").hexdigest()

    def drop_incomplete_line(self) -> None:
        """Remove an incomplete last line, which a client that was killed may have left."""
        if self.path.exists() and (data := self.path.read_bytes()) and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, data: bytes) -> None:
        """Add what the machine's file grew by. Raises StorageError, and leaves the copy as it was."""
        run_file.refuse_link(self.path)
        size = self.size
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            if size:
                os.truncate(self.path, size)
            else:
                self.path.unlink(missing_ok=True)
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}") from error


def store(folder: Path, orders: Mapping[str, StoredOrder]) -> None:
    """Store the orders of new machines in the folder. Raises StorageError if it has one of these machines already."""
    place = folder / ORDERS
    for name in orders:
        if (place / f"{name}.json").exists():
            raise StorageError(
                f"{folder} has a run of {name} already; go on with: effbench fleet run --resume {folder}, or choose "
                "another --out"
            )
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, stored in orders.items():
            # The name is a label's: it cannot lead out of the folder.
            part = place / f"{name}.json.part"
            part.write_text(json.dumps(dataclasses.asdict(stored), indent=2) + "\n")
            os.replace(part, place / f"{name}.json")
    except OSError as error:
        raise StorageError(f"cannot write to {place}: {error.strerror or error}; choose another --out") from error


def load(folder: Path) -> dict[str, StoredOrder]:
    """Return the orders in a folder by machine.

    Raises StorageError if there are none, EffbenchError if one is damaged.
    """
    paths = sorted((folder / ORDERS).glob("*.json"))
    if not paths:
        raise StorageError(f"{folder} holds no run of a fleet; begin one with: effbench fleet run … --out {folder}")
    found = {}
    for path in paths:
        try:
            values: Any = decoding.parse(path.read_bytes())
            stored = decoding.decode(values, StoredOrder)
        except (ValueError, RecursionError, OSError, EffbenchError) as error:
            raise EffbenchError(f"{path} is damaged: {str(error).splitlines()[0][:200]}; restore it") from None
        if stored.order.machine != path.stem:
            raise EffbenchError(f"{path} is an order for {stored.order.machine[:60]!r}; restore it")
        found[path.stem] = stored
    return found
