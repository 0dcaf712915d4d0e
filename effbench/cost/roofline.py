"""Roofline bounds: the least time of a network on a device, from its kernels' arithmetic and memory traffic. No torch.

The roofline of Williams, Waterman and Patterson (CACM 52(4), 2009), kernel by kernel: a network whose convolutions wait
for arithmetic and whose element-wise operators wait for memory is bound by the sum, not by one intensity of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from effbench.core.cost import Kernel
from effbench.core.peaks import Peaks


def bound_s(kernels: Iterable[Kernel], peaks: Peaks) -> float:
    """Seconds that one pass over these kernels takes at the least, one after another, on a device with these peaks.

    A multiply-add is 2 floating-point operations.
    """
    return sum(
        max(2 * kernel.madds / peaks.flops_per_s, kernel.traffic.bytes / peaks.bytes_per_s) for kernel in kernels
    )


def bounds_s(kernels: Mapping[str, Iterable[Kernel]], peaks: Peaks) -> dict[str, float]:
    """Return `bound_s` at each level of `Profile.kernels`."""
    return {level: bound_s(each, peaks) for level, each in kernels.items()}
