"""Name Arm processors, for which /proc/cpuinfo has no "model name" but the numbers of an identity register.

MIDR_EL1 holds the implementer in bits 31-24 and the part number in bits 15-4 (Arm Architecture Reference Manual, DDI
0487). The numbers are listed in technical reference manuals and in Linux's ``asm/cputype.h``. A core that reports the
identity of another (a Kryo 585 is a Cortex-A77) gets that core's name.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_IMPLEMENTERS = {
    0x41: "Arm", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x50: "APM",
    0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple", 0x6D: "Microsoft", 0xC0: "Ampere",
}  # fmt: skip
_PARTS: Mapping[int, Mapping[int, str]] = {
    0x41: {
        0xB76: "ARM1176", 0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0E: "Cortex-A17",
        0xC0F: "Cortex-A15", 0xD01: "Cortex-A32", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55",
        0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
        0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2",
        0xD49: "Neoverse-N2", 0xD4A: "Neoverse-E1", 0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C", 0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
        0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725", 0xD8E: "Neoverse-N3",
    },
    0x42: {0x100: "Brahma-B53", 0x516: "ThunderX2"},
    0x43: {0x0A1: "ThunderX", 0x0AF: "ThunderX2"},
    0x46: {0x001: "A64FX"},
    0x48: {0xD01: "TSV110 (Kunpeng 920)"},
    0x4E: {0x003: "Denver 2", 0x004: "Carmel", 0x010: "Olympus"},
    0x51: {
        0x001: "Oryon", 0x800: "Kryo 2xx Gold", 0x801: "Kryo 2xx Silver", 0x802: "Kryo 3xx Gold",
        0x803: "Kryo 3xx Silver", 0x804: "Kryo 4xx Gold", 0x805: "Kryo 4xx Silver",
    },
    0x61: {
        0x022: "M1 Icestorm", 0x023: "M1 Firestorm", 0x024: "M1 Pro Icestorm", 0x025: "M1 Pro Firestorm",
        0x028: "M1 Max Icestorm", 0x029: "M1 Max Firestorm", 0x032: "M2 Blizzard", 0x033: "M2 Avalanche",
        0x034: "M2 Pro Blizzard", 0x035: "M2 Pro Avalanche", 0x038: "M2 Max Blizzard", 0x039: "M2 Max Avalanche",
    },
    0x6D: {0xD49: "Cobalt 100 (Neoverse-N2)"},
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1A"},
}  # fmt: skip

Identity = tuple[int, int]
"""Implementer and part number."""


def identities(entries: Sequence[Mapping[str, str]], registers: Sequence[int] = ()) -> list[Identity]:
    """Return implementer and part number of each processor, from entries of /proc/cpuinfo or else from MIDR_EL1
    registers.

    Empty if neither has them, as on another architecture.
    """
    numbers = ((_hex(entry.get("CPU implementer")), _hex(entry.get("CPU part"))) for entry in entries)
    found = [(implementer, part) for implementer, part in numbers if implementer is not None and part is not None]
    return found or [(register >> 24 & 0xFF, register >> 4 & 0xFFF) for register in registers]


def processor_name(
    entries: Sequence[Mapping[str, str]],
    registers: Sequence[int] = (),
    fallback: Callable[[], str | None] = lambda: None,
) -> str | None:
    """Return the processor's name, such as ``4x Arm Cortex-A53 + 4x Arm Cortex-A57`` for unlike cores; None if unknown.

    Part numbers come before "model name", which on 32-bit Arm kernels only says "ARMv7 Processor". `fallback` is
    called for a part that our table does not have.
    """
    found = identities(entries, registers)
    if not found:
        model_names = (entries[0].get(key) for key in ("model name", "cpu", "uarch")) if entries else ()
        return next((re.sub(r"\s+", " ", text) for text in model_names if text), None)
    parts = Counter(map(part_name, found))
    if len(parts) == 1:
        (only,) = parts
        return only if _known(found[0]) else fallback() or only
    return " + ".join(f"{count}x {part}" for part, count in sorted(parts.items()))


def part_name(identity: Identity) -> str:
    """Return a name such as ``Arm Cortex-A76``, or ``Apple part 0x050`` for an unknown part."""
    implementer, part = identity
    maker = _IMPLEMENTERS.get(implementer, f"implementer {implementer:#04x}")
    return f"{maker} {_PARTS[implementer][part]}" if _known(identity) else f"{maker} part {part:#05x}"


@functools.cache
def name_from_py_cpuinfo() -> str | None:
    """Return py-cpuinfo's name of this machine's processor, or None. On Arm it calls lscpu, whose table is kept up to
    date.
    """
    try:
        import cpuinfo

        found = str(cpuinfo.get_cpu_info().get("brand_raw") or "")
    except Exception:  # py-cpuinfo raises a plain Exception on an unknown machine
        return None
    return found if found.strip("- ") else None


def _known(identity: Identity) -> bool:
    return identity[1] in _PARTS.get(identity[0], {})


def _hex(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None
