"""Runtimes that run a model file: exported once with torch, opened as often as needed without it."""

from __future__ import annotations

import importlib.util
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import text_of
from effbench.devices.base import Call
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, in_turn

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

FACTS_FILE = "export.json"
"""Written last: a folder that has it holds a whole export."""


class Session(ABC):
    """A model file, opened and ready. Needs no torch."""

    @property
    @abstractmethod
    def threads(self) -> int | None:
        """How many threads the runtime says that it computes with; None where it does not say."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the runtime says of how it runs the model, beside `Prepared.facts`."""
        return {}

    @abstractmethod
    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        """A call that runs the network on these inputs, in the order of its forward, and returns a sequence of arrays
        in the order of its outputs."""


class Exported(Runtime):
    """A runtime of model files. `exporting` are the modules that only the export needs."""

    exporting: tuple[str, ...] = ()

    @abstractmethod
    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        """Write the model's files into `setting.folder`, and say what became of it (`Prepared.facts`, but for times and
        sizes). `inputs` are an example, batch included. Raises Unsupported.
        """

    @abstractmethod
    def open(self, setting: Setting) -> Session:
        """The model in `setting.folder`, with `setting.threads` threads. Imports no torch. Raises Unsupported."""

    def is_exported(self, setting: Setting) -> bool:
        """Whether the folder holds a whole export."""
        return (setting.folder / FACTS_FILE).exists()

    def exported(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> dict[str, Any]:
        """Export unless the folder holds it already. The facts, with `prepare_s` and `artefact_bytes`.

        Raises Unsupported, also for whatever the runtime's own exporter raises.
        """
        known = setting.folder / FACTS_FILE
        if self.is_exported(setting):
            return dict(json.loads(known.read_text()))
        for module in self.exporting:
            if importlib.util.find_spec(module) is None:
                remedy = f"pip install 'effbench[{self.extra}]'"
                raise Unsupported(f"{module}, which exporting for {self.name} needs, is not installed; {remedy}")
        setting.folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        try:
            facts = dict(self.export(network, inputs, setting))
        except (Unsupported, MemoryError):
            raise
        except Exception as error:  # exporters raise anything, and what they cannot take is a result of its own
            said = (text_of(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Unsupported(f"{self.name} cannot export it: {type(error).__name__}: {said}") from error
        facts["prepare_s"] = time.perf_counter() - start
        facts["artefact_bytes"] = sum(path.stat().st_size for path in setting.folder.rglob("*") if path.is_file())
        known.write_text(json.dumps(facts))
        return facts

    def load(self, inputs: Sequence[tuple[np.ndarray[Any, Any], ...]], setting: Setting) -> Prepared:
        """The exported model in `setting.folder` on these inputs. Imports no torch. Raises Unsupported."""
        facts = json.loads((setting.folder / FACTS_FILE).read_text())
        start = time.perf_counter()
        session = self.open(setting)
        facts["load_s"] = time.perf_counter() - start
        facts["threads"] = session.threads
        facts |= session.facts
        if setting.threads and session.threads not in (None, setting.threads):
            raise Unsupported(f"{self.name} uses {session.threads} threads where {setting.threads} were asked for")
        return Prepared(in_turn([session.bind(arrays) for arrays in inputs]), facts)

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        self.exported(network, inputs[0], setting)
        return self.load([as_arrays(each) for each in inputs], setting)


def as_arrays(inputs: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Tensors as arrays of the same values: bfloat16, which numpy does not have, becomes float32."""
    return tuple((each.float() if str(each.dtype) == "torch.bfloat16" else each).cpu().numpy() for each in inputs)
