"""Big and little cores: detection on recorded machines, and pinning of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import machines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CPU, Machine, plant
from shell import effbench, refusal

from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.measure_options import MeasureOptions
from effbench.core.study import Case, Experiment
from effbench.devices.cpu import Cpu
from effbench.host import core_clusters
from effbench.host.facts import collect, differences
from effbench.host.sysfiles import cpu_list
from effbench.studies import plan

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PI_5", [((0, 1, 2, 3), 1024, 2400)]),
        ("GRAVITON_2", [((0, 1, 2, 3), None, None)]),
        ("SNAPDRAGON_810", [((4, 5, 6, 7), None, 1958.4), ((0, 1, 2, 3), None, 1555.2)]),
        ("SNAPDRAGON_855", [((7,), 1024, 2841.6), ((4, 5, 6), 871, 2419.2), ((0, 1, 2, 3), 342, 1785.6)]),
        ("ASAHI_M1", [((4, 5, 6, 7), 1024, 3204), ((0, 1, 2, 3), 459, 2064)]),
    ],
)
def test_clusters_are_found_the_strongest_first(tmp_path: Path, name: str, expected: list[object]) -> None:
    here: Machine = getattr(machines, name)
    found = core_clusters.clusters(here.under(tmp_path))
    assert [(item.cores, item.capacity, item.mhz) for item in found] == expected


@pytest.mark.parametrize(("word", "cores"), [("big", (7,)), ("little", (0, 1, 2, 3)), ("all", ()), ("", ())])
@linux
def test_a_word_names_the_outermost_clusters(tmp_path: Path, word: str, cores: tuple[int, ...]) -> None:
    assert core_clusters.cores_of(word, machines.SNAPDRAGON_855.under(tmp_path)) == cores


@linux
def test_a_machine_of_one_kind_of_core_refuses_and_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="--cluster big: this machine has 4 cores of one kind; leave --cluster out"):
        core_clusters.cores_of("big", machines.PI_4.under(tmp_path / "pi"))
    with pytest.raises(InvalidValue, match="no list of its cores"):
        core_clusters.cores_of("big", tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'little'"):
        core_clusters.cores_of("litle", tmp_path)


def test_a_mac_chooses_its_cores_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InvalidValue, match="quality of service"):
        core_clusters.cores_of("big", tmp_path)


def test_cores_that_are_offline_are_in_no_cluster(tmp_path: Path) -> None:
    root = plant(machines.ASAHI_M1.under(tmp_path), {f"{CPU}/online": "0-1,4-7\n"})
    assert [item.cores for item in core_clusters.clusters(root)] == [(4, 5, 6, 7), (0, 1)]


def test_favoured_cores_of_one_kind_are_no_cluster(tmp_path: Path) -> None:
    """A desktop's best cores boost a little higher than the others."""
    clocks = [5_500_000, 5_400_000, 5_200_000, 5_100_000]
    files = {f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq": f"{khz}\n" for n, khz in enumerate(clocks)}
    assert len(core_clusters.clusters(plant(tmp_path, files))) == 1


@given(st.lists(st.sampled_from([0, 128, 446, 871, 1024]), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_every_core_is_in_one_cluster_and_stronger_ones_come_first(
    tmp_path_factory: pytest.TempPathFactory, capacities: list[int]
) -> None:
    files = {f"{CPU}/cpu{n}/cpu_capacity": f"{value}\n" for n, value in enumerate(capacities)}
    found = core_clusters.clusters(plant(tmp_path_factory.mktemp("cores"), files))
    assert sorted(core for item in found for core in item.cores) == list(range(len(capacities)))
    told = [{capacities[core] for core in item.cores} for item in found]
    assert all(len(group) == 1 for group in told)
    assert [value for group in told for value in group] == sorted(set(capacities), reverse=True)


@given(st.sets(st.integers(0, 300)))
@settings(deadline=None)
def test_cores_are_shown_as_the_kernel_reads_them(cores: set[int]) -> None:
    assert set(cpu_list(core_clusters.core_ranges(sorted(cores)))) == cores


def in_a_thread(work: object) -> list[object]:
    """What `work` gives or raises, in a thread of its own: pinning this one would pin every later test."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())  # type: ignore[operator]
        except EffbenchError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


@linux
def test_a_pinned_thread_and_what_it_starts_keep_to_the_cores() -> None:
    core = max(os.sched_getaffinity(0))

    def pinned() -> tuple[set[int], list[object]]:
        core_clusters.pin([core])
        return os.sched_getaffinity(0), in_a_thread(lambda: os.sched_getaffinity(0))

    before = os.sched_getaffinity(0)
    assert in_a_thread(pinned) == [({core}, [{core}])]
    assert os.sched_getaffinity(0) == before


@linux
def test_cores_that_are_not_to_be_had_are_named() -> None:
    (error,) = in_a_thread(lambda: core_clusters.pin([4090]))
    assert isinstance(error, EffbenchError) and "cores 4090" in str(error) and "taskset" in str(error)
    absent = max(os.sched_getaffinity(0)) + 100
    (error,) = in_a_thread(lambda: core_clusters.pin([min(os.sched_getaffinity(0)), absent]))
    assert isinstance(error, EffbenchError) and "the system gives" in str(error)


# --- the device -------------------------------------------------------------------------------------


@pytest.fixture
def big_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has four small cores and two big ones."""
    kinds = (core_clusters.Cluster((4, 5), 1024), core_clusters.Cluster((0, 1, 2, 3), 446))
    monkeypatch.setattr(core_clusters, "clusters", lambda *_: kinds)


@linux
@pytest.mark.usefixtures("big_little")
def test_no_threads_means_one_for_each_core_of_the_cluster() -> None:
    assert [Cpu(0, cluster=word).threads for word in ("big", "little")] == [2, 4]
    assert Cpu(1, cluster="little").threads == 1
    with pytest.raises(InvalidValue, match=r"threads \(=3\) are more than the 2 cores of --cluster big"):
        Cpu(3, cluster="big")
    case = Case("probe", (4, 8, 8), labels={"groups": 1})
    study = Experiment("one", "One", "c", "groups", (1,), 1, (case,))
    planned = plan.make(study, threads=0, device_options={"cluster": "little"})
    assert planned.threads == 4 and planned.device_options == {"cluster": "little", "threads": 4}
    with pytest.raises(InvalidValue, match="ask for fewer"):
        plan.make(study, threads=8, device_options={"cluster": "little"})


@linux
@pytest.mark.usefixtures("big_little")
def test_the_cluster_is_a_condition_of_a_run() -> None:
    little, free = Cpu(1, cluster="little").facts(), Cpu(1).facts()
    assert (little["cpu.cluster"], little["cpu.cluster_cores"]) == ("little", "0-3")
    assert "cpu.cluster" not in free
    conditions = [collect(facts, "eager", threads=1, allocator="retain", variables={}) for facts in (little, free)]
    assert [item.field for item in differences(*conditions)] == ["cpu.cluster", "cpu.cluster_cores"]


@linux
@pytest.mark.skipif(sys.platform == "linux" and len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_setup_pins_before_torch_is_there_and_its_threads_stay_on_the_cores() -> None:
    code = """
import json, os, sys
from effbench.host import core_clusters as clusters
first, second = sorted(os.sched_getaffinity(0))[:2]
clusters.clusters = lambda *_: (clusters.Cluster((first,), 1024), clusters.Cluster((second,), 446))
from effbench.devices.cpu import Cpu
real, seen = clusters.pin, []
clusters.pin = lambda cores: (seen.append("torch" in sys.modules), real(cores))
device = Cpu(0, cluster="little")
before = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
device.setup()
import torch
torch.randn(300, 300) @ torch.randn(300, 300)
tasks = [sorted(os.sched_getaffinity(int(name))) for name in set(os.listdir("/proc/self/task")) - before]
print(json.dumps([seen, [[second]] * len(tasks) == tasks, torch.get_num_threads(), device.facts()["cpu.cluster"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[False], True, 1, "little"]


def test_a_device_without_cores_to_choose_takes_no_cluster() -> None:
    with pytest.raises(InvalidValue, match="the device is cuda:1; leave --cluster out"):
        MeasureOptions(device="cuda:1", cluster="big")
    assert MeasureOptions(cluster="big").device_arguments == {"cluster": "big"}
    assert MeasureOptions().device_arguments == {}


@linux
@pytest.mark.skipif(len(core_clusters.clusters()) > 1, reason="this machine has several clusters")
def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    said = refusal(effbench("run", "g2_groups", "--cluster", "little", cwd=tmp_path))
    assert said.startswith("--cluster little: this machine has") and said.endswith("leave --cluster out")
