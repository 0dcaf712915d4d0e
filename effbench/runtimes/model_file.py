"""Run model files: a network is exported once with torch and then opened without torch."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import first_line
from effbench.devices.base import Call
from effbench.host import optional_packages
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, round_robin

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

FACTS_FILE = "export.json"
"""Written last, so that a folder with this file holds a complete export."""


class Session(ABC):
    """An opened model file, ready to run. Needs no torch."""

    @property
    @abstractmethod
    def threads(self) -> int | None:
        """Return the number of threads that the runtime reports; None if it reports none."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return what the runtime reports about running the model, in addition to `Prepared.facts`."""
        return {}

    @abstractmethod
    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        """Return a call that runs the network on these inputs.

        Inputs are in the order of the network's forward. The call returns a sequence of arrays in the order of its
        outputs.
        """


class ModelFileRuntime(Runtime):
    """A runtime of model files. `export_modules` lists the modules that only the export needs."""

    export_modules: tuple[str, ...] = ()

    @abstractmethod
    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        """Write the model's files into `setting.folder` and return facts about it.

        Parameters
        ----------
        network : nn.Module
            The network, in eval mode.
        inputs : tuple of Tensor
            An example input, batch included.
        setting : Setting
            The conditions to export for.

        Returns
        -------
        mapping
            `Prepared.facts` without times and sizes.

        Raises
        ------
        Unsupported
            If the network cannot be exported.
        """

    @abstractmethod
    def open(self, setting: Setting) -> Session:
        """Open the model in `setting.folder` with `setting.threads` threads. Imports no torch. Raises Unsupported."""

    def is_exported(self, setting: Setting) -> bool:
        """Whether the folder holds a complete export."""
        return (setting.folder / FACTS_FILE).exists()

    def export_once(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> dict[str, Any]:
        """Export the network unless the folder already holds it. Return its facts, with `prepare_s` and
        `artefact_bytes`.

        Raises Unsupported, also if the runtime's exporter raises anything else.
        """
        facts_file = setting.folder / FACTS_FILE
        if self.is_exported(setting):
            return dict(json.loads(facts_file.read_text()))
        for module in self.export_modules:
            if not optional_packages.has(module):
                raise Unsupported(f"{module}, which exporting for {self.name} needs, is not installed; {self.remedy}")
        setting.folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        try:
            facts = dict(self.export(network, inputs, setting))
        except (Unsupported, MemoryError):
            raise
        except Exception as error:  # exporters raise any error, and a failed export is a result
            message = first_line(error, 200)
            raise Unsupported(f"{self.name} cannot export it: {type(error).__name__}: {message}") from error
        facts["prepare_s"] = time.perf_counter() - start
        facts["artefact_bytes"] = sum(path.stat().st_size for path in setting.folder.rglob("*") if path.is_file())
        facts_file.write_text(json.dumps(facts))
        return facts

    def load(self, inputs: Sequence[tuple[np.ndarray[Any, Any], ...]], setting: Setting) -> Prepared:
        """Open the exported model in `setting.folder` on these inputs. Imports no torch. Raises Unsupported."""
        facts = json.loads((setting.folder / FACTS_FILE).read_text())
        start = time.perf_counter()
        session = self.open(setting)
        facts["load_s"] = time.perf_counter() - start
        facts["threads"] = session.threads
        facts |= session.facts
        if setting.threads and session.threads not in (None, setting.threads):
            raise Unsupported(f"{self.name} uses {session.threads} threads where {setting.threads} were asked for")
        return Prepared(round_robin([session.bind(arrays) for arrays in inputs]), facts)

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        self.export_once(network, inputs[0], setting)
        return self.load([as_arrays(each) for each in inputs], setting)


def as_arrays(inputs: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Convert tensors to arrays of the same values. bfloat16 becomes float32, because numpy has no bfloat16."""
    return tuple((each.float() if str(each.dtype) == "torch.bfloat16" else each).cpu().numpy() for each in inputs)
