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

        Parameters
        ----------
        arrays : tuple of numpy.ndarray
            The inputs of one call, batch included, in the order of the network's forward.

        Returns
        -------
        callable
            Takes no argument, runs the network once, and returns its outputs as a sequence of arrays in their order.
        """


class ModelFileRuntime(Runtime):
    """A runtime of model files, which bundles can hold.

    Attributes
    ----------
    export_modules
        Modules that only the export needs.
    """

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
        """Open the model in `setting.folder` with `setting.threads` threads. Imports no torch.

        Parameters
        ----------
        setting : Setting
            The conditions to run under.

        Returns
        -------
        Session
            The opened model.

        Raises
        ------
        Unsupported
            If the runtime cannot run this model under this setting.
        """

    def is_exported(self, setting: Setting) -> bool:
        """Whether a folder holds a complete export.

        Parameters
        ----------
        setting : Setting
            Its `folder` is looked at.

        Returns
        -------
        bool
            False also for an export that was interrupted.
        """
        return (setting.folder / FACTS_FILE).exists()

    def export_once(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> dict[str, Any]:
        """Export the network unless the folder already holds it.

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
        dict
            The facts of `export`, with `prepare_s` (seconds of the export) and `artefact_bytes` (size of the files).

        Raises
        ------
        Unsupported
            If a module that the export needs is not installed, or the exporter raises any error but MemoryError.
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
        """Open the exported model in `setting.folder` on these inputs. Imports no torch.

        Parameters
        ----------
        inputs : sequence of tuple of numpy.ndarray
            Inputs to rotate through, batch included. Each call uses the next tuple.
        setting : Setting
            The conditions to run under.

        Returns
        -------
        Prepared
            The call, and the facts of the export with `load_s` (seconds), `threads` and `Session.facts`.

        Raises
        ------
        Unsupported
            If the runtime cannot run this model under this setting, or uses another number of threads.
        """
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
