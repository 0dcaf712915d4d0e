"""Hostile environments: closed streams, signals, foreign modules and settings, no /proc. No result is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from nursery import HANGS_S
from shell import EFFBENCH, environment, kinds, started, study_file, wait_until

from effbench.cli import output
from effbench.core.errors import InvalidValue
from effbench.cost import forked_call
from effbench.devices import cpu
from effbench.gates import config
from effbench.gates.git_revision import Revision
from effbench.host import cgroups, noise
from effbench.report.figures import failures
from effbench.report.tables.table_model import one_line

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


@posix
@pytest.mark.parametrize(("most", "streams", "code"), [("1", "<&- >&- 2>&-", 1), ("100M", ">/dev/full 2>/dev/full", 0)])
def test_a_verdict_and_its_files_need_no_streams(tmp_path: Path, most: str, streams: str, code: int) -> None:
    words = f'exec "$0" -m effbench check lenet --max-madds {most} --junit out.xml {streams}'
    done = subprocess.run(["sh", "-c", words, sys.executable], cwd=tmp_path, env=environment(), timeout=HANGS_S)
    assert done.returncode == code
    assert (tmp_path / "out.xml").read_text().startswith("<testsuites")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of many launches that was stopped in the first: to go on with it takes no torch."""
    folder = tmp_path_factory.mktemp("begun")
    study_file(folder, "launches=900, min_rounds=6, max_rounds=6, warmup_s=0.0, max_warmup_s=0.05, block_s=0.001")
    with started("run", "tiny.py", "--device", "fake", "--out", "run", cwd=folder) as process:
        wait_until(lambda: (folder / "run" / "run.jsonl").exists() and "block" in kinds(folder / "run"), process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=HANGS_S)
    return folder


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_keeps_what_was_measured_and_leaves_nothing(
    begun: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, work = tmp_path / "tmp", tmp_path / "work"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    before = len(kinds(Path(shutil.copytree(begun, work)) / "run"))
    # Real processes: a fork of ours calls Python code where it forks, in which Python drops errors.
    words = [*EFFBENCH, "run", "--resume", "run"]
    number = getattr(signal, name)
    with subprocess.Popen(
        words,
        cwd=work,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # also where the tests run under nohup
    ) as process:
        wait_until(lambda: "block" in kinds(work / "run")[before:], process)
        below = psutil.Process(process.pid).children(recursive=True)
        for _ in range(3):  # who is impatient changes nothing
            process.send_signal(number)
        _, said = process.communicate(timeout=HANGS_S)
    assert process.returncode == 128 + number
    assert said.startswith("effbench: interrupted; ") and "finish with: effbench run --resume run" in said
    assert not list(own.glob("effbench-*")) and not psutil.wait_procs(below, 10)[1]


@posix
def test_names_that_the_locale_cannot_read(tmp_path: Path) -> None:
    """Of a file in effbench.toml, which is UTF-8; and of a bundle's folder, which runtimes take as text."""
    (tmp_path / "mün ☃").mkdir()
    (tmp_path / "mün ☃" / "nötz.py").write_text("from torch import nn\ndef build(): return nn.Conv2d(8, 8, 1)\n")
    (tmp_path / "effbench.toml").write_text(
        '[models."nötz"]\nmodel = "mün ☃/nötz.py:build"\ninput = "8x8x8"\nmax_madds = "4096"\n', "utf-8"
    )
    ascii_only = {**environment(), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
    words = [("check", "--json"), ("run-bundle", "mün ☃")]
    done = [
        subprocess.run(
            [*EFFBENCH, *each], cwd=tmp_path, env=ascii_only, capture_output=True, text=True, timeout=HANGS_S
        )
        for each in words
    ]
    assert done[0].returncode == 0 and json.loads(done[0].stdout)["verdict"] == "PASS", done[0]
    assert done[1].returncode == 2 and "set PYTHONUTF8=1, or move it" in done[1].stderr, done[1]


def test_nohup_stays_and_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    hup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with output.handle_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, hup)


def test_modules_beside_us_do_not_stand_in_for_others(tmp_path: Path) -> None:
    for name in ("random", "queue", "copy", "typing", "logging", "json", "typer", "shlex", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not me')\n")
    done = subprocess.run(
        [*EFFBENCH, "--version"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert (done.returncode, done.stdout[:9], done.stderr) == (0, "effbench ", "")


# --- figures ----------------------------------------------------------------------------------------


def test_a_figure_that_fails_is_named_and_costs_nothing_else() -> None:
    def fails() -> dict[str, int]:
        raise ValueError("no such font\nmore")

    with pytest.warns(RuntimeWarning, match=r"^no figures: ValueError: no such font$"):
        assert failures.draw_or_warn(fails) == {}
    assert failures.draw_or_warn(lambda: {"figure": 1}) == {"figure": 1}


@pytest.mark.parametrize("variable", ["MPLBACKEND", "MATPLOTLIBRC"])
def test_what_stops_matplotlib_does_not_stop_our_figures(tmp_path: Path, variable: str) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\n")
    value = {"MPLBACKEND": "nosuch", "MATPLOTLIBRC": str(tmp_path)}[variable]
    code = (
        "import os; from effbench.report.figures import failures, style; failures.load_matplotlib();"
        f" style.new_figure(1, 'a', 'b').savefig({str(tmp_path / 'a.png')!r});"
        f" assert os.environ['{variable}'] == {value!r}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path.parent,
        env={**environment(), variable: value},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").stat().st_size


# --- the system -------------------------------------------------------------------------------------


def without_proc(*words: object, **named: object) -> None:
    raise FileNotFoundError(2, "No such file or directory: '/proc/stat'")


def test_no_proc_is_nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "process_iter", without_proc)
    monkeypatch.setattr(psutil, "Process", without_proc)
    assert noise._process_times() is None
    seconds = forked_call._seconds_computed(os.getpid())
    assert seconds is None if sys.platform != "linux" else seconds is not None and seconds > 0


def test_a_child_whose_time_cannot_be_seen_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(forked_call, "_seconds_computed", lambda pid: None)
    monkeypatch.setattr(forked_call, "IDLE_S", 0.5)
    assert forked_call.run(lambda: time.sleep(1.5) or 7) == 7


@pytest.mark.parametrize(
    ("quota", "threads", "expected", "said"),
    [
        (None, 0, 4, None),
        (0.5, 0, 1, "may use 0.5 cores (docker: --cpus), so 1 thread will stand still"),
        (0.5, 1, 1, "may use 0.5 cores"),
        (1.5, 0, 2, "may use 1.5 cores (docker: --cpus), so 2 threads will stand still"),
        (2.0, 0, 2, "may use 2 of 4 cores (docker: --cpus), so this is 2 threads"),
        (2.0, 2, 2, None),
        (2.0, 3, 3, "so 3 threads will stand still"),
        (8.0, 0, 4, None),
        (8.0, 99, 99, "99 threads on 4 cores take turns"),
        (None, 99, 99, "99 threads on 4 cores take turns"),
    ],
)
def test_threads_and_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int, expected: int, said: str | None
) -> None:
    monkeypatch.setattr(cpu, "allowed_cores", lambda: 4)
    monkeypatch.setattr(cgroups, "quota", lambda: None if quota is None else cgroups.Quota(quota))
    assert cpu.thread_count(threads) == expected
    found = cpu.thread_warning(threads)
    assert found is None if said is None else found is not None and said in found


def test_a_quota_is_found_without_proc_and_a_strange_file_is_none(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    assert cgroups.quota(tmp_path) == cgroups.Quota(1.5)
    for text in ("max", "max 100000", "", "x y", "5 0"):
        (group / "cpu.max").write_text(text)
        assert cgroups.quota(tmp_path) == cgroups.Quota(None)


# --- text -------------------------------------------------------------------------------------------

TABLE = '[models.small]\nmodel = "nets.py:net"\n# ä\n'


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + TABLE.encode(), TABLE.replace("\n", "\r\n").encode("utf-8-sig")])
def test_a_byte_order_mark_is_read_over(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "effbench.toml").write_bytes(data)
    assert [subject.name for subject in config.load(tmp_path / "effbench.toml").subjects] == ["small"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TABLE.encode("utf-16"), "is UTF-16"),
        (TABLE.encode("utf-16-be"), "is UTF-16"),
        (TABLE.encode() + b"\0", "or no text; save it as UTF-8"),
        (TABLE.encode("latin-1"), "is not UTF-8: byte 0xe4 in line 3; save it as UTF-8"),
    ],
)
def test_text_of_another_encoding_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "effbench.toml").write_bytes(data)
    with pytest.raises(InvalidValue, match=said):
        config.load(tmp_path / "effbench.toml")


def test_a_path_that_the_locale_cannot_read_is_shown() -> None:
    typed = os.fsencode("rün☃").decode("ascii", "surrogateescape")
    assert output.plain(typed) == one_line(typed) == "rün☃"
    assert str(Revision(typed, "1a2b3c4d5")) == "rün☃ (1a2b3c4)"
    assert one_line("half \ud800") == "half  "
    assert output.plain("a\udcffb") == "a�b"
    assert output.plain("half \ud800") == "half ?"
