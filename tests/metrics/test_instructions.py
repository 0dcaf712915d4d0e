"""Instruction counts: each counter against an independent count, and the instructions gate on a small repository."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import CONFIG, repository, write
from runs import COST
from shell import effbench

from effbench.core.errors import EffbenchError, InvalidValue, Reason
from effbench.core.run import Metric
from effbench.gates import config, instruction_gate
from effbench.gates.result import CountCheck
from effbench.host.worker_process import Site, WorkerFailed, worker_environment
from effbench.metrics import base, instruction_counters, instructions
from effbench.metrics.instruction_counters import Method
from effbench.report.tables import gate

SOURCE = Path(instruction_counters.__file__).with_name("effcount.c")
PAGE_FAULTS = (1, 2)
"""PERF_TYPE_SOFTWARE and PERF_COUNT_SW_PAGE_FAULTS: an event that every Linux counts."""

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")


# --- the kernel's counter ---------------------------------------------------------------------------


def faults_counter() -> Any:
    try:
        return instruction_counters._Event(*PAGE_FAULTS)
    except EffbenchError as error:
        pytest.skip(str(error))


def touch(pages: int) -> None:
    """Memory of the system's own, so many times written to for the first time."""
    with mmap.mmap(-1, max(pages, 1) * mmap.PAGESIZE) as fresh:
        for page in range(pages):
            fresh[page * mmap.PAGESIZE] = 1


@needs_linux
def test_the_kernels_counter_counts_what_happens_between_two_calls_of_it() -> None:
    counter = faults_counter()
    touch(100)
    found = [counter.count(lambda n=n: touch(n))["instructions"] for n in (100, 0, 50, 100)]
    none = found[1]
    assert none < 20
    assert [value - none for value in found] == pytest.approx([100, 0, 50, 100], abs=3)
    counter.close()


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "perf_event_paranoid=2"), (errno.EPERM, "container"), (errno.ENOENT, "no such counter"),
     (errno.EMFILE, "EMFILE")],
)  # fmt: skip
def test_a_refusal_of_the_kernel_says_what_it_means(number: int, said: str) -> None:
    text = instruction_counters._explain_errno(number)
    assert said in text and errno.errorcode[number] in text


# --- the emulator -----------------------------------------------------------------------------------

LOOP = r"""
#include <stdlib.h>
#include <sys/prctl.h>
static void mark(void) { prctl(0x45464643, 0, 0, 0, 0); }
int main(int argc, char **words) {
    for (int i = 1; i < argc; i++) {
        long n = atol(words[i]);
        mark();
        __asm__ volatile("1: sub $1, %0\n\tjnz 1b" : "+r"(n) : : "cc");
        mark();
    }
    return 0;
}
"""


@needs_gcc
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the loop is written for x86-64")
def test_the_plugin_counts_every_instruction_of_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("needs qemu-user")
    (tmp_path / "loop.c").write_text(LOOP)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "loop", tmp_path / "loop.c"], check=True)
    found = instruction_counters._qemu_method(tmp_path)
    assert isinstance(found, Method), found
    counts = [1000, 1000, 2000, 31_000]
    environment = {**os.environ, **found.variables}
    subprocess.run([*found.command_prefix, tmp_path / "loop", *map(str, counts)], check=True, env=environment)
    rows = [line.split() for line in Path(found.settings["file"]).read_text().splitlines()]
    told = [int(after[0]) - int(before[0]) for before, after in zip(rows[::2], rows[1::2], strict=True)]
    assert [value - told[0] for value in told] == [2 * (n - counts[0]) for n in counts]
    assert 2000 < told[0] < 2100, "the loop, and the way from one mark to the other"
    assert rows[0][1:5] == ["-"] * 4, "only A64 is told apart"
    assert "qemu-x86_64" in found.version


# What each word is stands in the Arm Architecture Reference Manual; written down with an assembler.
A64 = {
    0xF9400020: "loads",  # ldr x0, [x1]
    0xF9000020: "stores",  # str x0, [x1]
    0xA9400440: "loads",  # ldp x0, x1, [x2]
    0xA9000440: "stores",  # stp x0, x1, [x2]
    0x58000040: "loads",  # ldr x0, #8
    0xB9800020: "loads",  # ldrsw x0, [x1]
    0x3DC00020: "loads",  # ldr q0, [x1]
    0x3D800020: "stores",  # str q0, [x1]
    0x4C407820: "loads",  # ld1 {v0.4s}, [x1]
    0x4C007820: "stores",  # st1 {v0.4s}, [x1]
    0xF8E10002: "loads",  # ldaddal x1, x2, [x0]
    0xC85FFC20: "loads",  # ldaxr x0, [x1]
    0xC802FC20: "stores",  # stlxr w2, x0, [x1]
    0x4E21CC40: "simd",  # fmla v0.4s, v2.4s, v1.4s
    0x1E212800: "simd",  # fadd s0, s0, s1
    0x14000002: "branches",  # b #8
    0x54000040: "branches",  # b.eq #8
    0xD65F03C0: "branches",  # ret
    0xB4000040: "branches",  # cbz x0, #8
    0x8B020020: "",  # add x0, x1, x2
    0xD2800020: "",  # mov x0, #1
    0x9B020C20: "",  # madd x0, x1, x2, x3
}

HARNESS = r"""
#include "%s"
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t i, void (*f)(qemu_plugin_id_t, struct qemu_plugin_tb *))
{ (void)i, (void)f; }
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *t, void (*f)(unsigned, void *),
                                          enum qemu_plugin_cb_flags g, void *d) { (void)t, (void)f, (void)g, (void)d; }
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t i, void (*f)(qemu_plugin_id_t, unsigned, int64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t)) { (void)i, (void)f; }
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *t) { (void)t; return 0; }
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *t, size_t i)
{ (void)t, (void)i; return NULL; }
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *i, void *d, size_t n) { (void)i, (void)d; return n; }
int main(int argc, char **words) {
    const char *names[] = {"", "loads", "stores", "simd", "branches", ""};
    for (int i = 1; i < argc; i++) {
        uint64_t kinds[KINDS] = {0};
        sort_a64(kinds, (uint32_t)strtoul(words[i], NULL, 16));
        for (int kind = 0; kind < KINDS; kind++)
            if (kinds[kind]) printf("%%s", names[kind]);
        puts("");
    }
    return 0;
}
"""


@needs_gcc
def test_instructions_of_arm_are_told_apart_by_their_encoding(tmp_path: Path) -> None:
    (tmp_path / "sort.c").write_text(HARNESS % SOURCE)
    built = ["gcc", "-Wall", "-Wextra", "-Werror", "-DAPI=3", "-o", str(tmp_path / "sort"), str(tmp_path / "sort.c")]
    subprocess.run(built, check=True)
    said = subprocess.run([tmp_path / "sort", *map(hex, A64)], capture_output=True, text=True, check=True).stdout
    assert dict(zip(A64, said.splitlines(), strict=True)) == A64


@pytest.mark.parametrize(
    ("version", "api"), [("qemu-x86_64 7.2.22", 1), ("qemu-aarch64 8.2.2", 1), ("qemu-x86_64 9.0.1", 2),
                         ("qemu-x86_64 9.1.0", 3), ("qemu-x86_64 10.0.3", 3)],
)  # fmt: skip
def test_each_qemu_gets_the_plugin_interface_that_it_has(version: str, api: int) -> None:
    assert instruction_counters._plugin_api(version) == api


def test_without_any_method_the_reason_names_all_three_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_counters, "_perf_method", lambda folder: "perf_event: forbidden")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = instruction_counters.find_method(tmp_path)
    assert isinstance(found, str)
    assert all(word in found for word in ("perf_event", "valgrind", "qemu", "apt install")) and "\n" not in found


# --- from counts to a reading -----------------------------------------------------------------------

counts = st.lists(st.integers(1_000_000, 10**12), min_size=1, max_size=5)


def rows(values: list[int]) -> list[dict[str, int]]:
    return [{"instructions": value, "syscalls": 3} for value in values]


@given(counts, counts, st.integers(0, 10_000))
@settings(deadline=None)
def test_a_reading_is_the_median_less_what_counting_adds(first: list[int], second: list[int], empty: int) -> None:
    found = instructions.summarise([rows(first), rows(second)], [rows([empty])] * 2)
    assert found["instructions_per_call"] == round(statistics.median(first + second)) - empty
    assert found["syscalls_per_call"] == 0 and "loads_per_call" not in found
    medians = sorted(statistics.median(values) for values in (first, second))
    assert found["repeatability"] == pytest.approx((medians[1] - medians[0]) / medians[1], rel=1e-6, abs=1e-6)
    assert found["calls"] == [first, second]


JOB = {"seed": 0, "device": "cpu", "device_options": {"threads": 2}, "mode": "infer"}


class Scripted:
    """A worker whose events are a list; an exception in it is raised."""

    script: list[list[Any]]
    started: list[tuple[dict[str, Any], dict[str, str], Site]]

    def __init__(self, job: Any, environment: Any, silence_s: float, site: Site) -> None:
        self.started.append((job, environment, site))
        self._events = self.script[len(self.started) - 1]

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def events(self) -> Iterator[dict[str, Any]]:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    settings = {"method": "qemu", "file": "x"}
    found = Method("qemu", "qemu-z80 1.0", ("emulate", "-fast"), settings, {"EMULATED": "z80"})
    monkeypatch.setattr(instruction_counters, "find_method", lambda folder: found)
    monkeypatch.setattr(instructions, "Worker", Scripted)
    Scripted.started, Scripted.script = [], []
    return Scripted


def told(cell: str, value: int) -> dict[str, Any]:
    return {"event": "counted", "cell": cell, "calls": rows([value]), "empty": rows([0])}


def test_two_processes_count_every_cell_on_one_thread_under_the_method(scripted: type[Scripted]) -> None:
    scripted.script = [[told("a", 1000), told("b", 5)], [told("a", 999), told("b", 5)]]
    found = instructions.measure_cells(JOB, [{"id": "a"}, {"id": "b"}], {"OMP_NUM_THREADS": "2", "HOME": "/"}, 1.0)
    assert found["a"].values["repeatability"] == pytest.approx(0.001)
    assert found["a"].values["method"] == "qemu" and found["b"].values["repeatability"] == 0
    assert len(scripted.started) == 2
    for job, environment, site in scripted.started:
        assert [cell["id"] for cell in job["cells"]] == ["a", "b"] and site.command_prefix == ("emulate", "-fast")
        assert environment["OMP_NUM_THREADS"] == "1" == environment["MKL_NUM_THREADS"]
        assert environment["PYTHONHASHSEED"] == "0" and environment["HOME"] == "/" and environment["EMULATED"] == "z80"


def test_a_cell_that_ends_its_process_costs_no_other_its_count(scripted: type[Scripted]) -> None:
    scripted.script = [
        [told("a", 10), {"event": "skip", "cell": "b", "reason": "it fell"}, WorkerFailed("ended by SIGKILL")],
        [told("a", 10), told("c", 10)],
    ]
    found = instructions.measure_cells(JOB, [{"id": name} for name in "abc"], {}, 1.0)
    assert found["a"].missing is None
    assert (found["b"].missing, found["c"].missing) == ("it fell", "ended by SIGKILL")
    assert [cell["id"] for cell in scripted.started[1][0]["cells"]] == ["a"]


def test_a_gpu_and_a_machine_without_a_method_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = {"id": "a"}
    gpu = instructions.measure_in_subprocess({**JOB, "device": "cuda:1", "cell": cell}, {}, 1.0)
    assert gpu.missing and "--device cpu" in gpu.missing
    monkeypatch.setattr(instruction_counters, "find_method", lambda folder: "nothing works")
    assert instructions.measure_in_subprocess({**JOB, "cell": cell}, {}, 1.0).missing == "nothing works"


def test_a_scripted_device_has_scripted_counts() -> None:
    cell = {"id": "a", "cost": {"madds": 1000, "memory_access_bytes": 24}}
    found = base.measure_in_subprocess({**JOB, "task": "instructions", "device": "fake", "cell": cell}, {}, 1.0)
    assert found.values["instructions_per_call"] == 1024 and found.values["repeatability"] == 0


NETWORKS = """
import mmap, os, signal
from torch import nn

class Touching(nn.Module):
    def __init__(self, pages):
        super().__init__()
        self.pages = pages

    def forward(self, x):
        with mmap.mmap(-1, max(self.pages, 1) * mmap.PAGESIZE) as fresh:
            for page in range(self.pages):
                fresh[page * mmap.PAGESIZE] = 1
        return x

class Falling(nn.Module):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGSEGV)

class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("no")

def few(): return Touching(20)
def many(): return Touching(120)
falling, raising = Falling, Raising
"""


@needs_linux
def test_real_workers_count_each_cell_in_a_fork_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With page faults for instructions, which need no emulator: what each network causes is known."""
    faults_counter().close()
    (tmp_path / "nets.py").write_text(NETWORKS)
    event = {"method": "perf_event", "kind": str(PAGE_FAULTS[0]), "event": str(PAGE_FAULTS[1])}
    monkeypatch.setattr(instruction_counters, "find_method", lambda folder: Method("perf_event", "1", ("env",), event))
    cells = [
        {"id": name, "model": f"nets.py:{name}", "arguments": {}, "dtype": "float32", "batch": 1, "runtime": "eager",
         "inputs": [{"shape": [4], "name": "", "dtype": ""}], "threads": 2, "memory_format": "contiguous",
         "mode": "infer", "folder": str(tmp_path / name), "cost": {}}
        for name in ("few", "falling", "raising", "many")
    ]  # fmt: skip
    seen: list[str] = []
    variables = worker_environment(1, "retain")
    found = instructions.measure_cells(JOB, cells, variables, 60.0, Site(tmp_path, (".",)), seen.append)
    assert seen == ["few", "falling", "raising", "many", "few", "many"]
    assert "status 11" in str(found["falling"].missing) and found["raising"].missing == "ValueError: no"
    few, many = (found[name].values["instructions_per_call"] for name in ("few", "many"))
    assert many - few == pytest.approx(100, abs=3)


# --- the gate ---------------------------------------------------------------------------------------


def metric(value: int, repeatability: float = 0.0) -> Metric:
    return Metric("instructions", {"instructions_per_call": value, "repeatability": repeatability})


@given(st.integers(10**6, 10**9), st.floats(0.5, 2.0), st.floats(0.001, 0.1))
@settings(deadline=None)
def test_exact_counts_are_judged_by_the_tolerance_alone(was: int, ratio: float, tolerance: float) -> None:
    now = round(was * ratio)
    found = instruction_gate.judge("a", metric(was), metric(now), tolerance)
    assert found.verdict == ("REGRESSION" if now / was > 1 + tolerance else "PASS")
    assert found.change is None and found.wall is None, "a count is no time"
    (shown,) = found.costs
    assert (shown.name, shown.found, shown.wanted) == ("instructions", now, was)


def test_counts_that_wander_more_than_the_tolerance_decide_nothing() -> None:
    found = instruction_gate.judge("a", metric(1_000_000, 0.01), metric(1_004_000, 0.01), 0.005)
    assert found.verdict == "INCONCLUSIVE" and "differ by up to 1 %" in found.reason
    assert (
        instruction_gate.judge("a", metric(1_000_000, 0.01), metric(1_010_000, 0.01), 0.005).verdict == "INCONCLUSIVE"
    )
    assert instruction_gate.judge("a", metric(1_000_000, 0.01), metric(1_020_000, 0.01), 0.005).verdict == "REGRESSION"


def test_what_a_side_cannot_count_is_judged_as_by_the_timed_gate() -> None:
    gone = Metric("instructions", missing="it fell")
    new = Metric("instructions", missing=Reason("there is no file", "absent"))
    assert instruction_gate.judge("a", new, metric(1), 0.005).verdict == "NEW"
    assert instruction_gate.judge("a", gone, metric(1), 0.005).verdict == "INCONCLUSIVE", "nothing to compare with"
    assert instruction_gate.judge("a", metric(1), gone, 0.005).verdict == "REGRESSION"
    assert instruction_gate.judge("a", gone, gone, 0.005).verdict == "INCONCLUSIVE"


def test_a_cost_that_must_be_equal_decides_before_the_instructions() -> None:
    madds = CountCheck("madds", 1_001, 1_000, rule="equal")
    found = instruction_gate.judge("a", metric(10**6), metric(10**6), 0.005, (madds,))
    assert found.verdict == "REGRESSION" and found.reason == "madds must be equal"
    assert [(item.name, item.found) for item in found.costs] == [("instructions", 10**6), ("madds", 1_001)]
    found = instruction_gate.judge("a", metric(10**6), metric(10**6), 0.005, (replace(madds, rule=""),))
    assert found.verdict == "PASS" and found.costs[1].found == 1_001, "it is told all the same"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tmp_path_factory.mktemp("user") / "project")


def test_one_more_addition_is_a_regression_and_the_counts_are_shown(project: Path, tmp_path: Path) -> None:
    write(project, extra=1)
    junit = tmp_path / "junit.xml"
    words = ("--against", "HEAD", "--device", "fake", "--count", "instructions", "--tolerance", "0.5%")
    done = effbench("check", *words, "--json", "--junit", junit, cwd=project)
    assert done.code == 1, done.err
    by_cell = {item["id"]: item for item in done.json["cells"]}
    assert {name: item["verdict"] for name, item in by_cell.items()} == {"small": "PASS", "wide": "REGRESSION"}
    # One addition of a number to 32x16x16 floats more: as many bytes read as written.
    (shown,) = [item for item in by_cell["wide"]["costs"] if item["name"] == "instructions"]
    assert shown["found"] - shown["wanted"] == 2 * 4 * 32 * 16 * 16
    assert f"×{shown['found'] / shown['wanted']:.4f}" in by_cell["wide"]["reason"]
    assert by_cell["wide"]["ratio"] is None and by_cell["wide"]["gate"] == "instructions"
    assert done.json["run_dir"] is None and 'classname="effbench.instructions"' in junit.read_text()


def test_the_same_code_passes_the_file_may_ask_for_it_and_no_time_is_printed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruction_gate, "_costs", lambda plan, sides, side: {cell.id: COST for cell in plan.cells})
    write(project, comment="# a comment\n")
    file = project / "effbench.toml"
    file.write_text(CONFIG.replace('tolerance = "3%"', 'count = "instructions"\ndevice = "fake"'))
    decision = instruction_gate.check(config.load(file), "HEAD", watch=lambda step: None)
    assert decision.exit_code == 0 and {item.verdict for item in decision.findings} == {"PASS"}
    assert {item.tolerance for item in decision.findings} == {config.COUNT_TOLERANCE} == {0.005}
    said = gate.markdown(decision)
    assert "×1.0000 instructions" in said and not re.search(r"\d (ms|µs|s)\b|time|latency", said)
    costs = (COST, replace(COST, madds=COST.madds + 1))
    monkeypatch.setattr(
        instruction_gate, "_costs", lambda plan, sides, side: {cell.id: costs[side] for cell in plan.cells}
    )
    for same, verdict in (("true", "REGRESSION"), ("false", "PASS")):
        file.write_text(CONFIG.replace('"3%"', f'"3%"\nsame_costs = {same}\ncount = "instructions"\ndevice = "fake"'))
        decision = instruction_gate.check(config.load(file), "HEAD", watch=lambda step: None)
        assert {item.verdict for item in decision.findings} == {verdict}, same
    file.write_text(CONFIG.replace('"3%"', '"3%"\ncount = "apples"'))
    with pytest.raises(InvalidValue, match=r'count = .apples.: expected "instructions"'):
        config.load(file)
    file.write_text(CONFIG)


def test_where_nothing_can_be_counted_the_gate_says_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project)
    asked = config.with_options(config.load(project / "effbench.toml"), {"count": "instructions"}, {})
    monkeypatch.setattr(instruction_counters, "find_method", lambda folder: "nothing works here; install valgrind")
    decision = instruction_gate.check(asked, "HEAD", watch=lambda step: None)
    assert decision.exit_code == 4 and {item.verdict for item in decision.findings} == {"ENVIRONMENT"}
    assert all("install valgrind" in item.reason for item in decision.findings)
    with pytest.raises(InvalidValue, match="--device cpu"):
        instruction_gate.check(config.with_options(asked, {"device": "cuda"}, {}), "HEAD", watch=lambda step: None)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--count", "instructions"), "--against"), (("--count", "apples", "--against", "HEAD"), "instructions")],
)
def test_wrong_words(project: Path, words: tuple[str, ...], said: str) -> None:
    done = effbench("check", *words, cwd=project)
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1
