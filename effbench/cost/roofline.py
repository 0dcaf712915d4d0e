"""The time that a device cannot beat: each kernel's arithmetic or its memory traffic, whichever takes longer. No torch.

The roofline of Williams, Waterman and Patterson (CACM 52(4), 2009), kernel by kernel: a network whose convolutions wait
for arithmetic and whose element-wise operators wait for memory is bound by the sum, not by one intensity of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from effbench.core.cost import Traffic
from effbench.core.peaks import Peaks


@dataclass(frozen=True)
class Kernel:
    """Operators that run as one kernel at some level of fusion.

    Attributes
    ----------
    madds
        Multiply-adds.
    traffic
        Elements and bytes moved to and from memory.
    """

    madds: int
    traffic: Traffic

    def bound_s(self, peaks: Peaks) -> float:
        """Least time of this kernel, at 2 floating-point operations per multiply-add.

        Parameters
        ----------
        peaks
            Arithmetic and memory bandwidth of the device.

        Returns
        -------
        float
            Seconds: arithmetic or memory traffic, whichever takes longer.
        """
        return max(2 * self.madds / peaks.flops_per_s, self.traffic.bytes / peaks.bytes_per_s)


def bound_s(kernels: Iterable[Kernel], peaks: Peaks) -> float:
    """Seconds that one pass over these kernels takes at the least, one after another, on a device with these peaks."""
    return sum(kernel.bound_s(peaks) for kernel in kernels)


def bounds_s(kernels: Mapping[str, Iterable[Kernel]], peaks: Peaks) -> dict[str, float]:
    """`bound_s` at each level of `Profile.kernels`."""
    return {level: bound_s(each, peaks) for level, each in kernels.items()}
