"""Read the energy counters of an x86 processor (RAPL) through Linux's powercap files.

Intel and AMD processors have them, Arm processors do not, and virtual machines rarely pass them on. Since 2020 only
root may read them, because their fine resolution reveals what others compute (CVE-2020-8694).
"""

from __future__ import annotations

from pathlib import Path

from effbench.core.errors import EffbenchError

ROOT = Path("/sys/class/powercap")


def read(root: Path = ROOT) -> tuple[dict[str, int], dict[str, int]]:
    """Return the energy counters in microjoules by domain, and the value at which each wraps around.

    The domains are every package and its memory (``package-0``, ``package-0 dram``). Cores and graphics are parts of a
    package and "psys" contains the whole platform, so none of these is counted. Raises EffbenchError with the reason.
    """
    counters, wraps, names = {}, {}, {}
    try:
        for zone in sorted(root.glob("intel-rapl:*")):
            name = names[zone.name] = (zone / "name").read_text().strip()
            if name.startswith("package"):
                domain = name
            elif name == "dram":
                domain = f"{names.get(zone.name.rpartition(':')[0], zone.name)} dram"
            else:
                continue
            counters[domain] = int((zone / "energy_uj").read_text())
            wraps[domain] = int((zone / "max_energy_range_uj").read_text())
    except PermissionError:
        raise EffbenchError(
            "only root may read this processor's energy; allow it with: sudo chmod a+r "
            "/sys/class/powercap/intel-rapl:*/energy_uj"
        ) from None
    except (OSError, ValueError) as error:
        raise EffbenchError(f"this processor's energy cannot be read ({error}); measure at the plug") from None
    if not counters:
        raise EffbenchError(
            "this processor has no energy counters (no intel-rapl in /sys/class/powercap), as in most virtual machines "
            "and on Arm; measure on the machine itself, or at the plug"
        )
    return counters, wraps
