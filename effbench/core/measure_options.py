"""The options of a measurement with defaults, help texts and checks, shared by API, command line, plans and gates."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args

from effbench.core import inputs, plugins
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.run import METRICS as METRICS
from effbench.core.study import Until

if TYPE_CHECKING:
    import torch

MemoryFormat = Literal["contiguous", "channels_last"]
Mode = Literal["infer", "train"]
Allocator = Literal["retain", "system"]
Cluster = Literal["all", "big", "little"]
CudaPrecision = Literal["fp32", "tf32"]
Cache = Literal["steady", "cold", "hot"]

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")
"""The dtypes of a measurement. int8 means a float32 model that the runtime quantises."""

MAX_THREADS = 1024
"""The largest accepted thread count. OpenMP aborts the process if it cannot start its threads."""


def option_metadata(text: str, *, error_name: str = "", choices: Sequence[str] = ()) -> dict[str, Any]:
    """Field metadata of an option: its help text, its `choices`, and the name that errors use for it."""
    return {"help": text, "error_name": error_name, "choices": tuple(choices)}


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure: every option that the command line, the Python API, studies, bundles and gates share.

    A `torch.device` or `torch.dtype` is replaced by its name. Raises UnknownName for a value that is none of the
    choices and InvalidValue for one that breaks a rule. `studies.plan.make` checks the names of devices and runtimes
    and the sampling.
    """

    device: str = field(
        default="cpu", metadata=option_metadata("Device to measure on: cpu, cuda, cuda:1, or fake (a scripted clock).")
    )
    runtime: str | None = field(
        default=None,
        metadata=option_metadata(
            "Runtime that executes the models (`effbench list runtimes`). Several, such as eager,onnxruntime, or all "
            "installed ones (all) are measured in the same rounds. Default: eager, unless the study says otherwise."
        ),
    )
    threads: int = field(default=1, metadata=option_metadata("CPU threads; 0 means every core this process may use."))
    cluster: Cluster = field(
        default="all",
        metadata=option_metadata(
            "CPU cores to pin to: big or little; all does not pin (Linux).",
            error_name="cluster",
            choices=get_args(Cluster),
        ),
    )
    batch: int | None = field(
        default=None, metadata=option_metadata("Images per call. Default: 1, unless the study says otherwise.")
    )
    dtype: str | None = field(
        default=None,
        metadata=option_metadata(
            "Data type to measure in: float32, float64, float16, bfloat16, or int8 where the runtime quantises.",
            error_name="dtype",
            choices=DTYPES,
        ),
    )
    memory_format: MemoryFormat = field(
        default="contiguous",
        metadata=option_metadata(
            "Memory format of weights and inputs: contiguous or channels_last.",
            error_name="memory format",
            choices=get_args(MemoryFormat),
        ),
    )
    mode: Mode = field(
        default="infer",
        metadata=option_metadata(
            "infer: a forward pass per call; train: forward, backward and an optimiser step.",
            error_name="mode",
            choices=get_args(Mode),
        ),
    )
    allocator: Allocator = field(
        default="retain",
        metadata=option_metadata(
            "glibc malloc policy in workers: retain keeps freed pages mapped, system leaves glibc's defaults.",
            error_name="allocator policy",
            choices=get_args(Allocator),
        ),
    )
    launches: int | None = field(
        default=None,
        metadata=option_metadata(
            "Fresh worker processes; a verdict needs 5. Default: 5, unless the study says otherwise; 3 with quick."
        ),
    )
    budget_s: float | None = field(
        default=None,
        metadata=option_metadata(
            "Time budget of the whole run. Default: 120 s, unless the study says otherwise; 45 s with quick."
        ),
    )
    spread_s: float | None = field(
        default=None,
        metadata=option_metadata(
            "Time from the begin of the first launch to that of the last; the machine is free in between. Default: no "
            "pause, unless the study says otherwise."
        ),
    )
    precision: float | None = field(
        default=None,
        metadata=option_metadata(
            "Stop a launch once every ratio is known to within this share. Default: 1 %, unless the study says "
            "otherwise."
        ),
    )
    until: Until | None = field(
        default=None,
        metadata=option_metadata(
            "When the run ends: launches (after a fixed number), faster (once it is decided which network is faster), "
            "or precision (once every ratio is known to --precision). Default: launches; of a comparison faster, "
            "unless launches, precision or quick are given.",
            error_name="stopping rule",
            choices=get_args(Until),
        ),
    )
    quick: bool = field(default=False, metadata=option_metadata("Short run of under a minute; gives no verdicts."))
    seed: int = field(default=0, metadata=option_metadata("Seed of weights, inputs and the order of rounds."))
    cuda_precision: CudaPrecision = field(
        default="fp32",
        metadata=option_metadata(
            "CUDA only: precision of float32 matrix products and cuDNN, fp32 or tf32.",
            error_name="precision",
            choices=get_args(CudaPrecision),
        ),
    )
    autotune: bool = field(
        default=False,
        metadata=option_metadata("CUDA only: let cuDNN time its algorithms and choose, as the paper did."),
    )
    cache: Cache = field(
        default="steady",
        metadata=option_metadata(
            "CUDA only: state of the L2 cache at each call, steady, cold or hot.",
            error_name="cache policy",
            choices=get_args(Cache),
        ),
    )
    metrics: tuple[str, ...] = field(
        default=(),
        metadata=option_metadata(
            "Secondary metrics, each measured in processes of its own: percentiles, peak_memory, energy, instructions, "
            "and those of plug-ins."
        ),
    )
    device_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=option_metadata(
            "Further arguments of the device's constructor (`effbench.devices.get`); they win over the options above."
        ),
    )

    def __post_init__(self) -> None:
        def set_field(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        set_field("device", _device_name(self.device))
        if self.dtype is not None:
            set_field("dtype", dtype_name(self.dtype))
        set_field("metrics", tuple(dict.fromkeys([self.metrics] if isinstance(self.metrics, str) else self.metrics)))
        for item in fields(self):
            value, choices = getattr(self, item.name), item.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise UnknownName(item.metadata["error_name"], str(value), choices)
        for metric in self.metrics:
            if metric not in METRICS and metric not in plugins.names(plugins.METRIC_GROUP):
                raise UnknownName("metric", str(metric), (*METRICS, *plugins.names(plugins.METRIC_GROUP)))
        if self.batch is not None:
            set_field("batch", inputs.whole_number(self.batch, "batch"))
        if isinstance(self.threads, int) and self.threads < 0:
            raise InvalidValue(f"threads (={self.threads}) must be 1 or more, or 0 for every core")
        set_field("threads", inputs.whole_number(self.threads, "threads", least=0))
        if self.threads > MAX_THREADS:
            raise InvalidValue(f"threads (={self.threads}) must be at most {MAX_THREADS}")
        set_field("seed", inputs.whole_number(self.seed, "seed", least=0))
        if self.seed >= 2**63:
            raise InvalidValue(f"seed (={self.seed}) must be 0 or more and below 2**63")
        if self.cluster != "all" and self.device != "cpu":
            raise InvalidValue(
                f"--cluster chooses cores of the CPU, and the device is {self.device}; leave --cluster out"
            )

    @classmethod
    def of(cls, given: Mapping[str, object], base: MeasureOptions | None = None) -> MeasureOptions:
        """The options with these values (`MeasureKeywords`), all others as in `base` or at their defaults."""
        values: dict[str, Any] = dict(given)
        return cls(**values) if base is None else replace(base, **values)

    @property
    def for_comparison(self) -> MeasureOptions:
        """The options for a comparison of models, which asks which is faster unless they say otherwise."""
        if self.until is not None or self.launches is not None or self.quick:
            return self
        return replace(self, until="faster" if self.precision is None else "precision")

    @property
    def sampling(self) -> dict[str, Any]:
        """The given options that are fields of `core.study.Sampling`."""
        names = ("launches", "budget_s", "spread_s", "precision", "until")
        asked = {name: getattr(self, name) for name in names}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def device_arguments(self) -> dict[str, Any]:
        """The options as arguments of the device's constructor."""
        if self.device.startswith("cuda"):
            own: dict[str, Any] = {"precision": self.cuda_precision, "autotune": self.autotune, "cache": self.cache}
        else:
            own = {} if self.cluster == "all" else {"cluster": self.cluster}
        return {**own, **self.device_options}


class BundleKeywords(TypedDict, total=False):
    """The options that a bundle's run takes, as typed keyword arguments (PEP 692)."""

    runtime: str | None
    threads: int
    cluster: Cluster
    allocator: Allocator
    launches: int | None
    budget_s: float | None
    spread_s: float | None
    precision: float | None
    quick: bool
    seed: int
    metrics: Sequence[str]
    device_options: Mapping[str, Any]


class MeasureKeywords(BundleKeywords, total=False):
    """Every field of `MeasureOptions` as a typed keyword argument (PEP 692)."""

    device: str | torch.device
    batch: int | None
    dtype: str | torch.dtype | None
    memory_format: MemoryFormat
    mode: Mode
    until: Until | None
    cuda_precision: CudaPrecision
    autotune: bool
    cache: Cache


BUNDLE_OPTIONS = tuple(item.name for item in fields(MeasureOptions) if item.name in BundleKeywords.__annotations__)

_F = TypeVar("_F", bound=Callable[..., Any])


def document_options(keywords: type, *holders: type) -> Callable[[_F], _F]:
    """Decorate a function of ``**options: Unpack[keywords]``, so that `help()` and completion show each option.

    `holders` are the dataclasses that have these fields, `MeasureOptions` first. The signature gets one keyword with
    its default for each field, and the docstring its description in place of ``**options``.
    """
    kinds = {name: getattr(kind, "__forward_arg__", str(kind)) for name, kind in keywords.__annotations__.items()}
    shown = [item for holder in holders for item in fields(holder) if item.name in kinds]

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)
        own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=_default(item), annotation=kinds[item.name]
            )
            for item in shown
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        described = "".join(f"{item.name} : {_type_text(item, kinds)}\n{_wrapped_help(item)}\n" for item in shown)
        told = re.search(r"^( *)\*\*options\n", function.__doc__ or "", re.M)
        if told is not None and function.__doc__ is not None:
            indented = textwrap.indent(described, told[1])
            function.__doc__ = function.__doc__.replace(told[0], indented)
        return function

    return decorate


def _type_text(item: Field[Any], kinds: Mapping[str, str]) -> str:
    """The type of an option as numpy's docstrings write it: ``{'infer', 'train'}`` where few values are allowed."""
    choices = item.metadata["choices"]
    return f"{{{', '.join(map(repr, choices))}}}" if choices and "torch" not in kinds[item.name] else kinds[item.name]


def _wrapped_help(item: Field[Any]) -> str:
    return textwrap.fill(item.metadata["help"], 110, initial_indent="    ", subsequent_indent="    ")


def help_of(name: str) -> str:
    """The help text of an option."""
    text: str = MeasureOptions.__dataclass_fields__[name].metadata["help"]
    return text


def default_of(name: str) -> Any:
    """The default of an option."""
    return _default(MeasureOptions.__dataclass_fields__[name])


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _device_name(device: Any) -> str:
    """ "cuda:1" for ``torch.device("cuda", 1)``, "cpu" for ``torch.device("cpu", 0)``."""
    return device if isinstance(device, str) else str(device).replace("cpu:0", "cpu")


def dtype_name(dtype: Any) -> str:
    """ "float16" for ``torch.float16``; text is returned unchanged."""
    return dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
