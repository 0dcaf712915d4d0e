"""The environment of a run: system files of other machines, conditions that must agree, private data left out."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_machines import PI_4, pi, plant, read, server

from effbench import runtimes
from effbench.core.errors import NotComparable
from effbench.core.run import Environment
from effbench.gates.ab_run import AbRun
from effbench.host import facts as host_facts
from effbench.host import machine
from effbench.host.facts import MUST_AGREE, collect, differences, fingerprint, require_comparable

# --- readers ----------------------------------------------------------------------------------------


def test_a_server_is_read_in_full(tmp_path: Path) -> None:
    facts = machine.cpu(server(tmp_path))
    assert facts["cpu.model"] == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert (facts["cpu.logical"], facts["cpu.physical"], facts["cpu.sockets"], facts["cpu.allowed"]) == (8, 4, 2, 4)
    assert (facts["cpu.mhz_base"], facts["cpu.mhz_max"], facts["cpu.mhz_now"]) == (2000, 3200, 3100)
    assert (facts["cpu.l1d_bytes"], facts["cpu.l3_bytes"]) == (48 * 1024, 36 * 1024**2)
    assert "cpu.l1_bytes" not in facts  # the instruction cache is none of ours
    assert facts["cpu.governor"] == "6x performance + 2x powersave"
    assert facts["cpu.boost"] is True
    assert facts["cpu.numa_nodes"] == 2


def test_a_raspberry_pi_has_no_model_name_and_still_a_model(tmp_path: Path) -> None:
    root = pi(tmp_path)
    facts = read(root).facts
    assert facts["cpu.model"] == "Arm Cortex-A72"
    assert facts["host.board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert facts["cpu.logical"] == 4
    assert facts["cpu.governor"] == "ondemand"
    assert facts["cpu.boost"] is None and facts["cpu.mhz_now"] is None and facts["cpu.quota"] is None
    assert machine.temperatures(root) == {"cpu-thermal": 48.312}
    assert "deadbeef" not in json.dumps(dict(facts))


def test_clusters_of_unlike_cores_are_told_apart(tmp_path: Path) -> None:
    cpus = [PI_4.format(n=n).replace("0xd08", "0xd05" if n < 4 else "0xd0b") for n in range(6)]
    files = {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "446\n" if n < 4 else "1024\n" for n in range(6)}
    facts = machine.cpu(plant(tmp_path, {"proc/cpuinfo": "\n".join(cpus), **files}))
    assert facts["cpu.model"] == "4x Arm Cortex-A55 + 2x Arm Cortex-A76"
    assert facts["cpu.clusters"] == "2x1024 + 4x446"


def test_an_unknown_part_is_named_by_its_numbers(tmp_path: Path) -> None:
    entry = PI_4.format(n=0).replace("0x41", "0x99").replace("0xd08", "0x7a")
    assert machine.cpu(plant(tmp_path, {"proc/cpuinfo": entry}))["cpu.model"] == "implementer 0x99 part 0x07a"


def test_a_mac_answers_through_sysctl_and_nothing_else(tmp_path: Path) -> None:
    answers = {"machdep.cpu.brand_string": "Apple M2", "hw.logicalcpu": "8", "hw.physicalcpu": "8"}
    kinds = {"hw.nperflevels": "2", "hw.perflevel0.logicalcpu": "4", "hw.perflevel0.name": "Performance"}
    kinds |= {"hw.perflevel1.logicalcpu": "4", "hw.perflevel1.name": "Efficiency"}
    known = {"cpu.model": "Apple M2", "cpu.logical": 8, "cpu.physical": 8}
    assert machine.cpu(tmp_path, read_sysctl=answers.get) == {**known, "cpu.clusters": None}
    assert (
        machine.cpu(tmp_path, read_sysctl={**answers, **kinds}.get)["cpu.clusters"] == "4x Performance + 4x Efficiency"
    )
    facts = read(tmp_path).facts
    for name in ("memory.total_bytes", "cpu.quota", "host.hypervisor", "host.container", "host.load_1m"):
        assert facts[name] is None, name


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 40\nnr_throttled 7\n",
            },
            machine.Quota(1.5, 40, 7),
        ),
        (  # the tightest ancestor rules
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            machine.Quota(0.5, None, None),
        ),
        (  # version 1, seen from inside a container: the path of the host does not exist here
            {
                "proc/self/cgroup": "4:memory:/docker/f00\n3:cpu,cpuacct:/docker/f00\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 2\n",
            },
            machine.Quota(2.0, 9, 2),
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            machine.Quota(None, None, None),
        ),
        ({}, None),
    ],
)
def test_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], expected: machine.Quota | None) -> None:
    assert machine.quota(plant(tmp_path, files)) == expected


def test_container_and_hypervisor_show(tmp_path: Path) -> None:
    root = plant(server(tmp_path, extra=" hypervisor"), {".dockerenv": "", "sys/class/dmi/id/sys_vendor": "QEMU\n"})
    facts = read(root).facts
    assert (facts["host.container"], facts["host.hypervisor"]) == ("docker", "QEMU")


def test_a_vendor_alone_is_no_hypervisor(tmp_path: Path) -> None:
    root = plant(server(tmp_path), {"sys/class/dmi/id/sys_vendor": "Dell Inc.\n"})
    assert read(root).facts["host.hypervisor"] is None


def test_emulated_arm_sees_the_cpuinfo_of_its_host(tmp_path: Path) -> None:
    assert machine.emulated(server(tmp_path / "x86"), "aarch64")
    assert not machine.emulated(server(tmp_path / "x86"), "x86_64")
    assert not machine.emulated(pi(tmp_path / "pi"), "aarch64")


@given(st.sets(st.integers(0, 200)))
@settings(deadline=None)
def test_cpu_lists_round_trip(numbers: set[int]) -> None:
    ordered = sorted(numbers)
    runs: list[list[int]] = []
    for n in ordered:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    spec = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    assert list(machine.cpu_list(spec)) == ordered


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=60)
def test_no_cpuinfo_makes_a_reader_raise(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    root = plant(tmp_path_factory.mktemp("odd"), {"proc/cpuinfo": "processor : 0\n" + content, "proc/stat": content})
    machine.cpu(root)
    machine.cpu_ticks(root)
    machine.hypervisor(root)


# --- what is recorded -------------------------------------------------------------------------------


def test_facts_are_flat_json_scalars(tmp_path: Path) -> None:
    found = collect(
        {"name": "cuda:1", "gpu": {"name": "T", "clocks": {"sm": 1}}, "gpu.reasons": ["a", "b"]},
        "eager",
        threads=4,
        allocator="system",
        runtime_facts={"torch.version": "2.9.1"},
        root=server(tmp_path),
        variables={},
    )
    assert found.device == "cuda:1"
    assert (
        found.facts["gpu.clocks.sm"] == 1 if "gpu.clocks.sm" in found.facts else "device.gpu.clocks.sm" in found.facts
    )
    assert found.facts["gpu.reasons"] == "a b"
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in found.facts.values())
    assert all("." in name for name in found.facts)
    assert json.loads(json.dumps(dict(found.facts))) == dict(found.facts)


def test_variables_are_chosen_and_lose_their_folders(tmp_path: Path) -> None:
    variables = {
        "OMP_NUM_THREADS": "4",
        "MALLOC_TRIM_THRESHOLD_": "1",
        "LD_PRELOAD": "/home/Ada Lovelace/lib/libjemalloc.so.2:/opt/x.so",
        "DNNL_VERBOSE": "/home/ada",
        "HOME": "/home/ada",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "USER": "ada",
    }
    facts = read(tmp_path, variables=variables).facts
    kept = {name: value for name, value in facts.items() if name.startswith("env.")}
    assert kept == {
        "env.OMP_NUM_THREADS": "4",
        "env.MALLOC_TRIM_THRESHOLD_": "1",
        "env.LD_PRELOAD": "libjemalloc.so.2 x.so",
        "env.DNNL_VERBOSE": "(a path)",
    }


def test_this_machine_gives_nobody_away() -> None:
    import getpass
    import socket

    told = json.dumps(dict(collect({"name": "cpu"}, "eager", threads=1, allocator="retain", runtime_facts={}).facts))
    assert str(Path.home()) + "/" not in told
    assert not re.search(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", told)
    for secret in (socket.gethostname(), getpass.getuser()):
        # A host called "vm" or a user called "root" occurs in honest words as well.
        assert len(secret) <= 4 or secret not in told


def test_torch_describes_itself() -> None:
    torch = pytest.importorskip("torch")
    facts = runtimes.get("eager").facts()
    assert facts["torch.version"] == torch.__version__
    assert facts["torch.threads"] == torch.get_num_threads()
    assert facts["torch.float32_matmul_precision"] in ("highest", "high", "medium")


def test_importing_environment_and_doctor_brings_neither_torch_nor_psutil() -> None:
    code = (
        "import sys, effbench.host.facts, effbench.doctor; print([m for m in ('torch', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_checkout_tells_commit_and_dirt(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert host_facts.checkout(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    assert host_facts.checkout(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert host_facts.checkout(tmp_path)[1] is True


# --- what must agree --------------------------------------------------------------------------------

BASE = Environment("cpu", "eager", {"cpu.model": "A", "torch.version": "2.6.0+cpu", "run.threads": 1, "cpu.mhz_now": 1})


def with_facts(**changes: Any) -> Environment:
    return replace(BASE, facts={**BASE.facts, **{key.replace("__", "."): value for key, value in changes.items()}})


def test_alike_runs_have_no_differences() -> None:
    other = with_facts(torch__version="2.6.1", cpu__mhz_now=2)
    assert differences(BASE, other) == ()
    require_comparable(BASE, other)


def test_every_difference_is_named_in_one_line() -> None:
    other = replace(with_facts(cpu__model="B", torch__version="2.7.0"), runtime="onnxruntime")
    assert [d.field for d in differences(BASE, other)] == ["runtime", "cpu.model", "torch.version"]
    with pytest.raises(NotComparable) as error:
        require_comparable(BASE, other)
    message = str(error.value)
    assert "runtime (eager / onnxruntime)" in message and "cpu.model (A / B)" in message
    assert "torch.version (2.6 / 2.7)" in message and "\n" not in message


def test_a_fact_of_one_side_only_differs() -> None:
    (found,) = differences(BASE, with_facts(gpu__driver="570.1"))
    assert (found.baseline, found.candidate) == (None, "570.1")
    assert str(found) == "gpu.driver (not recorded / 570.1)"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("gpu__cudnn", 91002, 91300),
        ("gpu__power_limit_w", 700.0, 350.0),
        ("gpu__sm_mhz_application", 1980, 1410),
        ("gpu__memory_mhz_application", 2619, 1593),
        ("gpu__ecc", True, False),
        ("gpu__fp16_reduced_precision_reduction", True, False),
        ("gpu__bf16_reduced_precision_reduction", True, False),
        ("gpu__fp16_accumulation", False, True),
    ],
)
def test_a_gpu_set_otherwise_is_another_condition(name: str, before: Any, after: Any) -> None:
    (found,) = differences(with_facts(**{name: before}), with_facts(**{name: after}))
    assert found.field == name.replace("__", ".")
    assert fingerprint(with_facts(**{name: before})) != fingerprint(with_facts(**{name: after}))


def test_two_interpreters_may_bring_their_own_cuda_and_cudnn_and_nothing_else_of_a_gpu() -> None:
    def sides(*candidates: Environment, python: str = "python") -> Any:
        parties = [SimpleNamespace(record=SimpleNamespace(stored=stored)) for stored in candidates]
        return SimpleNamespace(_sides=parties, _sites=[SimpleNamespace(python=python)])

    one = with_facts(gpu__cuda="12.4", gpu__cudnn=90100, gpu__driver="580.1")
    other = with_facts(gpu__cuda="13.0", gpu__cudnn=91300, gpu__driver="580.1")
    AbRun._require_same_conditions(sides(one, other))
    with pytest.raises(NotComparable, match=r"gpu\.cudnn"):
        AbRun._require_same_conditions(sides(one, other, python=""))
    with pytest.raises(NotComparable, match=r"gpu\.power_limit_w"):
        limited = replace(other, facts={**other.facts, "gpu.power_limit_w": 350.0})
        AbRun._require_same_conditions(sides(one, limited))


def test_onnxruntime_for_gpus_is_a_package_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is a condition of the run all the same."""

    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.30.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = collect({"device.name": "cuda"}, "eager,onnxruntime", threads=0, allocator="system", variables={})
    assert found.facts["runtime.version"] == "1.30.0" and found.facts["onnxruntime.version"] == "1.30.0"
    assert "numpy.version" not in found.facts


STORED = sorted((Path(__file__).parents[2] / "results").rglob("run.jsonl"))


def test_stored_runs_keep_the_fingerprint_that_they_were_stored_with() -> None:
    """What is compared grows; a CPU's run is still the one that a dashboard knows by its print. Those before 0.4 were
    stored under a shorter list."""
    compared = 0
    for path in STORED:
        with path.open() as file:
            each = json.loads(file.readline())["environment"]
        stored = Environment(each["device"], each["runtime"], each["facts"])
        assert differences(stored, stored) == ()
        if each["facts"]["effbench.version"] not in ("0.1.0", "0.3.0"):
            assert fingerprint(stored) == each["facts"]["host.fingerprint"]
            compared += 1
    assert compared


values = st.one_of(st.none(), st.integers(0, 2), st.sampled_from(["2.6.0", "2.6.9", "2.7", "x"]))
environments = st.builds(
    Environment,
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from(["eager", "compile"]),
    st.dictionaries(st.sampled_from(sorted({*MUST_AGREE, "cpu.mhz_now"} - {"device", "runtime"})), values, max_size=4),
)


@given(environments, environments)
@settings(deadline=None)
def test_fingerprints_agree_exactly_where_nothing_differs(a: Environment, b: Environment) -> None:
    assert differences(a, a) == ()
    assert (fingerprint(a) == fingerprint(b)) == (differences(a, b) == ())
    assert [d.field for d in differences(a, b)] == [d.field for d in differences(b, a)]


def test_the_fingerprint_is_recorded_and_ignores_the_weather(tmp_path: Path) -> None:
    root = server(tmp_path)
    first = read(root)
    plant(root, {"proc/loadavg": "9.00 9.00 9.00 1/200 1\n"})
    second = read(root)
    assert first.facts["host.fingerprint"] == second.facts["host.fingerprint"] == fingerprint(second)
    assert read(root, threads=2).facts["host.fingerprint"] != first.facts["host.fingerprint"]
