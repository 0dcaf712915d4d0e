"""Define what every runtime implements: turning a network and its inputs into a call that a device can time."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import Unsupported as Unsupported
from effbench.devices.base import Call
from effbench.host import optional_packages

if TYPE_CHECKING:
    from torch import Tensor, nn


class TraceDiffers(Unsupported):
    """A trace returns other values than the network that was traced."""


@dataclass(frozen=True)
class Setting:
    """The conditions under which a runtime prepares a cell.

    Attributes
    ----------
    folder
        The cell's own folder. Files written there are found by later launches and deleted when the run ends.
    device
        Kind of device: "cpu" or "cuda".
    threads
        Intra-op threads; 0 if the device has none.
    dtype
        "int8" asks the runtime to quantise a float32 network itself.
    memory_format
        "contiguous" or "channels_last".
    mode
        "infer" or "train".
    index
        Index of the GPU.
    tf32, autotune
        Whether float32 may be computed as TF32, and whether convolution algorithms are benchmarked. torch follows its
        own switches; a runtime with its own kernels must follow these.
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
    """A network that is ready to be timed.

    Attributes
    ----------
    call
        Runs the network once and returns its outputs: a tensor or array, or a sequence or mapping of them.
    facts
        What is known of the prepared network: `prepare_s` (seconds of export and compilation), `load_s` (seconds),
        `artefact_bytes`, `pieces` (graphs that the runtime splits the network into, 1 for one fused graph), `operators`
        (how many it runs in all), `outside` (operators that run outside of the runtime's own kernels, name to count),
        `threads` (as the runtime reports them).
    """

    call: Call
    facts: Mapping[str, Any] = field(default_factory=dict)


class Runtime(ABC):
    """A way to execute a network.

    To add a runtime, implement this class in one file of `effbench/runtimes/` and list it in
    `effbench/runtimes/__init__.py`. Another package lists it as an entry point in the group ``effbench.runtimes``.
    Implementations are final. Heavy imports belong inside their methods.

    Attributes
    ----------
    name
        Name on the command line and in run files; of another package, that of its entry point.
    summary
        A short description for lists.
    modules
        Modules that must be importable to run a network, besides torch.
    extra
        The extra of effbench that installs `modules`; ``""`` for a runtime of another package.
    devices
        Kinds of device that it supports: ``"cpu"``, ``"cuda"``.
    dtypes
        Data types that it supports, of `core.measure_options.DTYPES`.
    memory_formats
        Memory formats that it supports: ``"contiguous"``, ``"channels_last"``.
    modes
        Modes that it supports: ``"infer"``, ``"train"``.
    why_no_graph
        Why the probe of a GPU must not capture calls as a CUDA graph (`devices.base.Device.probe`); None if it may.
    settle_s
        Seconds by which a warm-up may exceed `Sampling.max_warmup_s`, for a runtime that may still compile or tune in
        its first calls. Taken only while a cell is not steady, and only within its part of the launch's budget.
    """

    name: str
    summary: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    memory_formats: tuple[str, ...] = ("contiguous",)
    modes: tuple[str, ...] = ("infer",)
    why_no_graph: str | None = None
    settle_s: float = 0.0

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the version and the settings, for the environment of the run.

        Called in the process that measures.

        Returns
        -------
        dict
            JSON values by dotted name, such as ``"onnxruntime.version"``.
        """

    @abstractmethod
    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        """Turn a network and its inputs into a call.

        Parameters
        ----------
        network : nn.Module
            On its device, with its dtype and memory format; in train mode for mode "train", else in eval mode.
        inputs : sequence of tuple of Tensor
            Inputs to rotate through, on the same device. Each call uses the next tuple.
        setting : Setting
            The conditions to prepare for.

        Returns
        -------
        Prepared
            The call and what is known of the prepared network.

        Raises
        ------
        Unsupported
            If the runtime cannot run this network under this setting.
        """

    def why_unavailable(self) -> str | None:
        """Return why this runtime cannot be used on this machine.

        Returns
        -------
        str or None
            The reason and what to install; None if it can be used.
        """
        for module in self.modules:
            if not optional_packages.has(module):
                return f"{module} is not installed; {self.remedy}"
        return None

    @property
    def remedy(self) -> str:
        """How to install a missing module. Runtimes of other packages belong to no extra of effbench."""
        return f"pip install 'effbench[{self.extra}]'" if self.extra else "install the package that provides it"

    def require(self, setting: Setting) -> None:
        """Check that this runtime is installed and supports a setting.

        Parameters
        ----------
        setting : Setting
            The conditions to check.

        Raises
        ------
        Unsupported
            If it does not. The message is the reason and what to do.
        """
        absent = self.why_unavailable()
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


def call_on(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Call:
    """Return a call of `function` with these arguments. A single one is passed without unpacking, which takes time."""
    if len(arguments) == 1:
        (single,) = arguments
        return lambda: function(single)
    return lambda: function(*arguments)


def round_robin(calls: Sequence[Call]) -> Call:
    """Return one call that makes the next of these calls each time. A single call is returned as it is, without
    overhead.
    """
    if len(calls) == 1:
        return calls[0]
    next_call = itertools.cycle(calls)
    return lambda: next(next_call)()
