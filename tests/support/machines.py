"""Other machines' files: what /proc and /sys of real Arm machines say, as a root to read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CPU = "sys/devices/system/cpu"

A72 = "fp asimd evtstrm crc32 cpuid"
ARM_8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Core:
    """One core as Linux tells of it. Clocks in kHz; a capacity of 0 is not told."""

    part: int
    implementer: int = 0x41
    variant: int = 0
    revision: int = 1
    features: str = ARM_8_2
    bogomips: str = "108.00"
    capacity: int = 0
    max_khz: int = 0

    def entry(self, number: int) -> str:
        return (
            f"processor\t: {number}\nBogoMIPS\t: {self.bogomips}\nFeatures\t: {self.features}\n"
            f"CPU implementer\t: {self.implementer:#04x}\nCPU architecture: 8\nCPU variant\t: {self.variant:#x}\n"
            f"CPU part\t: {self.part:#05x}\nCPU revision\t: {self.revision}\n"
        )

    @property
    def midr(self) -> int:
        return self.implementer << 24 | self.variant << 20 | 0xF << 16 | self.part << 4 | self.revision


@dataclass(frozen=True)
class Machine:
    """A machine by its cores, with what stands below them in /proc/cpuinfo and what its board is called."""

    cores: Sequence[Core]
    below: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def under(self, root: Path, *, cpuinfo: bool = True, midr: bool = True) -> Path:
        files = {f"{CPU}/online": f"0-{len(self.cores) - 1}\n", **self.files}
        if cpuinfo:
            files["proc/cpuinfo"] = "\n".join(core.entry(n) for n, core in enumerate(self.cores)) + self.below
        for n, core in enumerate(self.cores):
            if midr:
                files[f"{CPU}/cpu{n}/regs/identification/midr_el1"] = f"0x{core.midr:016x}\n"
            if core.capacity:
                files[f"{CPU}/cpu{n}/cpu_capacity"] = f"{core.capacity}\n"
            if core.max_khz:
                files[f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq"] = f"{core.max_khz}\n"
        return plant(root, files)


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """These files under the root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def board(name: str) -> dict[str, str]:
    """A device tree's name of the board, ended by a zero byte."""
    return {"proc/device-tree/model": f"{name}\x00"}


PI_4 = Machine(
    [Core(0xD08, revision=3, features=A72, max_khz=1_800_000, capacity=1024)] * 4,
    "\nHardware\t: BCM2835\nRevision\t: c03114\nSerial\t\t: 10000000deadbeef\n"
    "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    board("Raspberry Pi 4 Model B Rev 1.4"),
)
PI_5 = Machine(
    [Core(0xD0B, variant=4, max_khz=2_400_000, capacity=1024)] * 4,
    "\nRevision\t: c04170\nSerial\t\t: 10000000deadbeef\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    board("Raspberry Pi 5 Model B Rev 1.0"),
)
GRAVITON_2 = Machine(
    [Core(0xD0C, variant=3, features=f"{ARM_8_2} ssbs", bogomips="243.75")] * 4,
    files={"sys/class/dmi/id/product_name": "m6g.xlarge\n", "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"},
)
GRAVITON_3 = Machine(
    [Core(0xD40, variant=1, features=f"{ARM_8_2} sve ssbs bf16", bogomips="2100.00")] * 4,
    files={"sys/class/dmi/id/product_name": "c7g.xlarge\n", "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"},
)
SNAPDRAGON_810 = Machine(
    [Core(0xD03, revision=2, features=A72, max_khz=1_555_200)] * 4
    + [Core(0xD07, variant=1, features=A72, max_khz=1_958_400)] * 4,
    "\nHardware\t: Qualcomm Technologies, Inc MSM8994\n",
)
"""The phone processor of the paper. Its kernel, 3.10, tells no capacities."""
SNAPDRAGON_855 = Machine(
    [Core(0x805, 0x51, 0xD, 14, capacity=342, max_khz=1_785_600)] * 4
    + [Core(0x804, 0x51, 0xD, 14, capacity=871, max_khz=2_419_200)] * 3
    + [Core(0x804, 0x51, 0xD, 14, capacity=1024, max_khz=2_841_600)],
    "\nHardware\t: Qualcomm Technologies, Inc SM8150\n",
)
"""Three clusters: four small cores, three big ones, one big one with a higher clock."""
ASAHI_M1 = Machine(
    [Core(0x022, 0x61, 1, 1, bogomips="48.00", capacity=459, max_khz=2_064_000)] * 4
    + [Core(0x023, 0x61, 1, 1, bogomips="48.00", capacity=1024, max_khz=3_204_000)] * 4,
    files=board("Apple MacBook Air (M1, 2020)"),
)
"""An Apple computer under Linux."""
