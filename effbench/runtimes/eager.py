"""Run a network in eager PyTorch: as written under inference mode, or as a training step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from effbench.runtimes import training_step
from effbench.runtimes.base import Prepared, Runtime, Setting, call_on, round_robin

if TYPE_CHECKING:
    from torch import Tensor, nn


class Eager(Runtime):
    """Eager PyTorch. The worker enters inference mode once per launch, so that a call costs nothing but the network."""

    name = "eager"
    summary = "PyTorch as written"
    devices = ("cpu", "cuda")
    dtypes = ("float32", "float64", "float16", "bfloat16")
    memory_formats = ("contiguous", "channels_last")
    modes = ("infer", "train")

    def facts(self) -> dict[str, Any]:
        import torch

        parallel = torch.__config__.parallel_info()
        mkldnn: Any = torch.backends.mkldnn  # its functions have no type annotations
        return {
            "torch.version": str(torch.__version__),
            "torch.threads": torch.get_num_threads(),
            "torch.interop_threads": torch.get_num_interop_threads(),
            "torch.parallel_backend": _first_match(r"ATen parallel backend: (.+)", parallel),
            "torch.openmp": _first_match(r"^OpenMP (\d+)", parallel),
            "torch.mkl": _first_match(r"Math Kernel Library Version (\S+)", parallel),
            "torch.onednn": _first_match(r"MKL-DNN v(\S+)", parallel),
            "torch.cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch.mkldnn": bool(mkldnn.is_available() and mkldnn.enabled),
            "torch.float32_matmul_precision": _matmul_precision(torch),
            "torch.cuda_build": torch.version.cuda,
        }

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        if setting.mode == "train":
            return Prepared(training_step.training_call(network, inputs))
        return Prepared(round_robin([call_on(network, arguments) for arguments in inputs]))


def _matmul_precision(torch: Any) -> str | None:
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:  # raised if the model mixed torch's old and new precision switches
        return None


def _first_match(pattern: str, where: str) -> str | None:
    found = re.search(pattern, where, re.M)
    return found[1].strip() if found else None
