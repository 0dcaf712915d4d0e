"""What a processor's own meter (RAPL) says of its energy, through Linux's power capping files.

Intel's and AMD's processors have it, Arm's have not, and virtual machines seldom pass it on. The files are root's since
2020, because the fine grain of the counters gives away what others compute (CVE-2020-8694).
"""

from __future__ import annotations

from pathlib import Path

from effbench.core.errors import EffbenchError

ROOT = Path("/sys/class/powercap")


def read(root: Path = ROOT) -> tuple[dict[str, int], dict[str, int]]:
    """The energy counters in microjoules by domain, and where each wraps around. Raises EffbenchError with the reason.

    Domains are every package and its memory (``package-0``, ``package-0 dram``).

    Cores and graphics are parts of a package, and "psys" of the platform holds it all: none of them is added.
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
            "this processor tells no energy (no intel-rapl in /sys/class/powercap), as in most virtual machines and on "
            "Arm; measure on the machine itself, or at the plug"
        )
    return counters, wraps
