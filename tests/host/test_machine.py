"""Detection of the processor, from recorded files of Arm machines and of emulators."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import machines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Machine, plant

from effbench.host import cpu_names, machine

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9B45\n"


@pytest.mark.parametrize(
    ("name", "model", "clusters", "board"),
    [
        ("PI_4", "Arm Cortex-A72", "4x1024", "Raspberry Pi 4 Model B Rev 1.4"),
        ("PI_5", "Arm Cortex-A76", "4x1024", "Raspberry Pi 5 Model B Rev 1.0"),
        ("GRAVITON_2", "Arm Neoverse-N1", None, "m6g.xlarge"),
        ("GRAVITON_3", "Arm Neoverse-V1", None, "c7g.xlarge"),
        ("SNAPDRAGON_810", "4x Arm Cortex-A53 + 4x Arm Cortex-A57", "4x1958.4 MHz + 4x1555.2 MHz", None),
        (
            "SNAPDRAGON_855",
            "4x Qualcomm Kryo 4xx Gold + 4x Qualcomm Kryo 4xx Silver",
            "1x1024 + 3x871 + 4x342",
            None,
        ),
        ("ASAHI_M1", "4x Apple M1 Firestorm + 4x Apple M1 Icestorm", "4x1024 + 4x459", "Apple MacBook Air (M1, 2020)"),
    ],
)
def test_an_arm_machine_is_known_without_a_model_name(
    tmp_path: Path, name: str, model: str, clusters: str | None, board: str | None
) -> None:
    here: Machine = getattr(machines, name)
    root = here.under(tmp_path)
    facts = machine.cpu(root)
    assert (facts["cpu.model"], facts["cpu.clusters"], machine.board(root)) == (model, clusters, board)
    assert facts["cpu.logical"] == len(here.cores)
    assert not machine.emulated(root, "aarch64")


def test_the_register_tells_the_part_where_cpuinfo_does_not(tmp_path: Path) -> None:
    """As old 64-bit Android kernels do: one model name, no part."""
    root = machines.PI_5.under(tmp_path, cpuinfo=False)
    plant(root, {"proc/cpuinfo": "Processor\t: AArch64 Processor rev 1 (aarch64)\nprocessor\t: 0\nprocessor\t: 1\n"})
    assert machine.cpu(root)["cpu.model"] == "Arm Cortex-A76"


def test_the_part_comes_before_the_model_name_of_a_32_bit_kernel(tmp_path: Path) -> None:
    entry = machines.PI_4.cores[0].entry(0) + "model name\t: ARMv7 Processor rev 3 (v7l)\n"
    assert machine.cpu(plant(tmp_path, {"proc/cpuinfo": entry}))["cpu.model"] == "Arm Cortex-A72"


def test_a_part_that_only_a_library_knows_is_called_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(brand: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(get_cpu_info=lambda: {"brand_raw": brand})

    entries = [{"CPU implementer": "0x41", "CPU part": "0xdff"}]
    for brand, expected in (("Cortex-A999", "Cortex-A999"), ("-", "Arm part 0xdff")):
        monkeypatch.setitem(sys.modules, "cpuinfo", library(brand))
        cpu_names.name_from_py_cpuinfo.cache_clear()
        assert cpu_names.processor_name(entries, fallback=cpu_names.name_from_py_cpuinfo) == expected
    known = [{"CPU implementer": "0x41", "CPU part": "0xd08"}]
    assert cpu_names.processor_name(known, fallback=lambda: "what nobody asked") == "Arm Cortex-A72"
    monkeypatch.setitem(sys.modules, "cpuinfo", types.SimpleNamespace())
    cpu_names.name_from_py_cpuinfo.cache_clear()
    assert cpu_names.name_from_py_cpuinfo() is None
    cpu_names.name_from_py_cpuinfo.cache_clear()


@given(st.integers(0, 0xFF), st.integers(0, 0xFFF), st.integers(0, 0xF), st.integers(0, 0xF))
@settings(deadline=None)
def test_register_and_cpuinfo_name_a_part_alike(implementer: int, part: int, variant: int, revision: int) -> None:
    core = machines.Core(part, implementer, variant, revision)
    entry = {"CPU implementer": f"{implementer:#x}", "CPU part": f"{part:#x}"}
    assert (
        cpu_names.processor_name([], [core.midr])
        == cpu_names.processor_name([entry])
        == cpu_names.part_name((implementer, part))
    )


@given(st.text(max_size=20), st.text(max_size=20))
@settings(deadline=None)
def test_numbers_that_are_none_name_nothing(implementer: str, part: str) -> None:
    found = cpu_names.identities([{"CPU implementer": implementer, "CPU part": part}])
    assert all(isinstance(item, int) for pair in found for item in pair)


# --- emulation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built_for", "files", "program", "expected"),
    [
        ("aarch64", {"proc/cpuinfo": X86}, None, True),  # qemu-user shows the host's file
        ("x86_64", {"proc/cpuinfo": X86}, None, False),
        ("i686", {"proc/cpuinfo": X86, "proc/sys/kernel/arch": "x86_64\n"}, None, False),
        ("aarch64", {"proc/sys/kernel/arch": "x86_64\n"}, None, True),
        ("armv8l", {"proc/sys/kernel/arch": "aarch64\n"}, None, False),
        ("x86_64", {"proc/sys/kernel/arch": "aarch64\n"}, None, True),  # Rosetta for Linux
        ("aarch64", {}, "/usr/bin/qemu-aarch64-static", True),
        ("x86_64", {"proc/cpuinfo": X86}, "/usr/bin/FEXInterpreter", True),
        ("x86_64", {"proc/cpuinfo": X86}, "/usr/bin/python3.11", False),
        ("x86_64", {"proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x61\nCPU part\t: 0x022\n"}, None, True),
        ("x86_64", {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: VirtualApple\n"}, None, True),
        (
            "x86_64",
            {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: QEMU TCG CPU version 2.5+\n"},
            None,
            True,
        ),
        ("aarch64", {"proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x00\nCPU part\t: 0x051\n"}, None, True),
        ("riscv64", {"proc/cpuinfo": "processor\t: 0\nuarch\t: sifive,u74-mc\n"}, None, False),
    ],
)
def test_a_program_that_is_translated_is_found_out(
    tmp_path: Path, built_for: str, files: dict[str, str], program: str | None, expected: bool
) -> None:
    root = plant(tmp_path, files)
    if program:
        link = root / "proc/thread-self/exe"
        link.parent.mkdir(parents=True)
        link.symlink_to(program)
    assert machine.emulated(root, built_for) is expected


def test_a_made_up_cpuinfo_hides_no_emulator(tmp_path: Path) -> None:
    """A root of qemu-user's own may hold an Arm machine's files; the kernel is still the host's."""
    root = machines.PI_5.under(tmp_path)
    assert not machine.emulated(root, "aarch64")
    assert machine.emulated(plant(root, {"proc/sys/kernel/arch": "x86_64\n"}), "aarch64")


def test_rosetta_says_so_itself(tmp_path: Path) -> None:
    assert machine.emulated(tmp_path, "x86_64", read_sysctl={"sysctl.proc_translated": "1"}.get)
    assert not machine.emulated(tmp_path, "arm64", read_sysctl={"sysctl.proc_translated": "0"}.get)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_this_interpreter_is_called_emulated_exactly_where_qemu_runs_it() -> None:
    """Asked of the kernel in another way: the name of the process, which qemu-user does not change."""
    code = "import platform, effbench.host.machine as m; print(m.emulated(m.HERE, platform.machine()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with open("/proc/thread-self/comm") as file:
        assert (done.stdout.strip() == "True") == file.read().startswith("qemu-")
