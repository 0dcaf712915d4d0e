"""List the data-sheet peaks of some GPUs: dense arithmetic, without sparsity, and memory bandwidth.

Data sheets often print tensor-core figures "with sparsity", which doubles them; those are halved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """TFLOP/s by precision (a multiply-add is 2 operations) and GB/s; None if the GPU has no such unit."""

    fp32: float
    tf32: float | None
    bf16: float | None
    gb_per_s: float

    def tflops(self, precision: str) -> float | None:
        found: float | None = getattr(self, precision)
        return found


# Names as torch.cuda.get_device_name returns them. A GPU with another name gets no verdict: an H100 NVL or an H200 NVL
# has other clocks and memory than these.
SHEETS: Mapping[str, Sheet] = {
    # NVIDIA H100 Tensor Core GPU Datasheet: SXM 67 / 989* / 1,979*, 3.35 TB/s; * with sparsity
    "NVIDIA H100 80GB HBM3": Sheet(67, 494.5, 989.5, 3350),
    # The same sheet's earlier edition with the PCIe card: 51 / 756* / 1,513*, 2 TB/s
    "NVIDIA H100 PCIe": Sheet(51, 378, 756.5, 2000),
    # NVIDIA H200 Tensor Core GPU Datasheet: SXM 67 / 989* / 1,979*, 4.8 TB/s
    "NVIDIA H200": Sheet(67, 494.5, 989.5, 4800),
    # NVIDIA A100 Tensor Core GPU Datasheet: 19.5 / 156 / 312; 80 GB SXM 2,039 GB/s, 80 GB PCIe 1,935 GB/s, 40 GB 1,555
    "NVIDIA A100-SXM4-80GB": Sheet(19.5, 156, 312, 2039),
    "NVIDIA A100 80GB PCIe": Sheet(19.5, 156, 312, 1935),
    "NVIDIA A100-SXM4-40GB": Sheet(19.5, 156, 312, 1555),
    "NVIDIA A100-PCIE-40GB": Sheet(19.5, 156, 312, 1555),
    # NVIDIA L4 Tensor Core GPU Datasheet: 30.3 / 120* / 242*, 300 GB/s
    "NVIDIA L4": Sheet(30.3, 60, 121, 300),
    # NVIDIA T4 Tensor Core GPU product brief: 8.1, 320 GB/s; Turing has neither TF32 nor bfloat16
    "Tesla T4": Sheet(8.1, None, None, 320),
    # NVIDIA Ada GPU Architecture, appendix: RTX 4090 82.6 / 82.6 / 165.2 (float32 accumulation), 1,008 GB/s
    "NVIDIA GeForce RTX 4090": Sheet(82.6, 82.6, 165.2, 1008),
}

LEAST, MOST = 0.5, 1.1
"""Range of a plausible measured peak, as shares of the data sheet's. No library reaches 100 %. Above the range the
count of operations or the clock is wrong, or a float32 convolution used Winograd, which multiplies less than is
counted.
"""


def sheet_of(name: str | None) -> Sheet | None:
    return SHEETS.get((name or "").strip())


def is_believable(measured: float, promised: float) -> bool:
    return LEAST <= measured / promised <= MOST
