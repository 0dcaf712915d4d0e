"""What every runtime can do: turn a network and its inputs into a call that a device can time."""

from __future__ import annotations

import importlib.util
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import Unsupported as Unsupported
from effbench.devices.base import Call

if TYPE_CHECKING:
    from torch import Tensor, nn


class TraceDiffers(Unsupported):
    """A trace returns something else than the network that it was taken of."""


@dataclass(frozen=True)
class Setting:
    """The conditions under which a runtime prepares a cell.

    `device` is the kind ("cpu", "cuda"); `threads` is 0 where it has no meaning. A `dtype` of "int8" asks the runtime
    to quantise a float32 network itself. `folder` is this cell's own: what is written there is found again by later
    launches, and is gone when the run ends. On a GPU `index` says which, `tf32` whether float32 may be multiplied as
    TF32, `autotune` whether algorithms of convolutions are tried out: torch follows them by itself, a runtime with
    kernels of its own is told here.
    """

    folder: Path
    device: str = "cpu"
    threads: int = 1
    dtype: str = "float32"
    memory_format: str = "contiguous"
    mode: str = "infer"
    index: int = 0
    tf32: bool = False
    autotune: bool = False


@dataclass(frozen=True)
class Prepared:
    """A network ready to run.

    `call` runs it once and returns its outputs: a tensor or an array, or a sequence or mapping of them. `facts` say
    what became of it, each where it is known: `prepare_s` (seconds of export and compilation), `load_s`,
    `artefact_bytes`, `pieces` (calls that the runtime makes of the network, 1 for a single fused graph), `operators`
    (how many it runs in all), `outside` (operators that stayed outside of the runtime's own kernels, name to count),
    `threads` (as the runtime itself reports them).
    """

    call: Call
    facts: Mapping[str, Any] = field(default_factory=dict)


class Runtime(ABC):
    """How a network is executed. Adapters are final; heavy imports belong inside their methods."""

    name: str
    summary: str
    """What it is, in a few words, for lists."""
    modules: tuple[str, ...] = ()
    """What must be importable to run a network, beside torch."""
    extra: str = ""
    """The extra of effbench that installs it."""
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    memory_formats: tuple[str, ...] = ("contiguous",)
    modes: tuple[str, ...] = ("infer",)
    no_graph: str | None = None
    """Why a GPU's probe is not to capture its calls as a CUDA graph (`Device.probe`); None where it may."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Version and settings under dotted names, for the environment record. Asked in the process that measures."""

    @abstractmethod
    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        """A call that runs one pass, each time on the next of `inputs`, as the setting's mode says.

        `network` and `inputs` are already on their device, in their floating dtype and memory format, the network in
        eval mode (train mode for "train"). Raises Unsupported.
        """

    def missing(self) -> str | None:
        """What has to be installed before this runtime can be used here; None where it can."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; pip install 'effbench[{self.extra}]'"
        return None

    def require(self, setting: Setting) -> None:
        """Raises Unsupported, with the reason and what to do, for a setting that this runtime does not have."""
        absent = self.missing()
        if absent:
            raise Unsupported(absent)
        for what, value, known in (
            ("device", setting.device, self.devices),
            ("dtype", setting.dtype, self.dtypes),
            ("memory format", setting.memory_format, self.memory_formats),
            ("mode", setting.mode, self.modes),
        ):
            if value not in known:
                raise Unsupported(f"{self.name} has no {what} {value}; it has {', '.join(known)}")


def in_turn(calls: Sequence[Call]) -> Call:
    """One call that makes the next of these each time, with nothing to look up where there is only one."""
    if len(calls) == 1:
        return calls[0]
    turn = itertools.cycle(calls)
    return lambda: next(turn)()
