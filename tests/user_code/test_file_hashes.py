"""Source files of a run: their SHA-256 is recorded, and launches with other files are refused."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import hashlib
import importlib.util
import io
import json
import os
import runpy
import sqlite3
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from measuring import UNTIMED_LAUNCHES
from runs import run_of, study
from shell import effbench, records, refusal

from effbench.core.errors import EffbenchError, NotComparable
from effbench.gates.ab_run import _require_same_calls
from effbench.runs import run_file
from effbench.runs.recorder import Recording
from effbench.user_code import file_hashes


def sha(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was opened yet, and no file is new."""
    monkeypatch.setattr(file_hashes, "_opened", {})
    monkeypatch.setattr(file_hashes, "_written", set())
    monkeypatch.setattr(file_hashes, "_STARTED_S", float("inf"))


@pytest.mark.usefixtures("fresh")
def test_files_that_are_read_meanwhile_are_found_however_they_are_opened(tmp_path: Path) -> None:
    read = [tmp_path / name for name in ("plain.txt", "path.txt", "low.bin", "array.npy", "weights.pt", "jit.pt")]
    for path in read[:3]:
        path.write_text("1")
    np.save(read[3], np.zeros(3))
    torch.save({"w": torch.zeros(3)}, read[4])
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(read[5]))
    before = builtins.open, io.open, os.open, torch.jit.load
    with file_hashes.recording_reads(), file_hashes.recording_reads():
        with open(read[0]) as file:
            file.read()
        read[1].read_text()
        os.close(os.open(read[2], os.O_RDONLY))
        np.load(read[3])
        torch.load(read[4])
        torch.jit.load(str(read[5]))
        (tmp_path / "made.txt").write_text("its own")
        (tmp_path / "made.txt").read_text()
        with pytest.raises(FileNotFoundError):
            (tmp_path / "none.txt").read_text()
        (tmp_path / "gone.txt").write_text("")
    assert (builtins.open, io.open, os.open, torch.jit.load) == before
    (tmp_path / "later.txt").write_text("")
    (tmp_path / "later.txt").read_text()
    found = file_hashes.digests([], tmp_path)
    assert {name: told for name, told in found.items() if "/" not in name} == {path.name: sha(path) for path in read}


def _imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("not_kept", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WIDTH


@pytest.mark.usefixtures("fresh")
def test_files_are_found_past_the_functions_that_open_them(tmp_path: Path) -> None:
    """Whoever has kept `open`, opens by another function of Python, or below it."""
    for name in ("module.py", "cached.py", "ran.py", "later.txt"):
        (tmp_path / name).write_text("WIDTH = 3\n")
    for name in ("table.txt", "gaps.txt", "kept.txt"):
        (tmp_path / name).write_text("3\n")
    for name in ("mapped", "plus", "shared", "storage", "written_the_same", "read_first", "fd"):
        (tmp_path / name).write_bytes(b"12345678")
    for name in ("library.so", "operators.so"):
        (tmp_path / name).write_text("no library")
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as rows, rows:
        rows.execute("create table widths (width)")
    names = {path.name for path in tmp_path.iterdir()} - {"later.txt"}
    _imported(tmp_path / "cached.py")  # from now on only its byte code is opened
    kept_open = io.open
    with file_hashes.recording_reads():
        _imported(tmp_path / "module.py"), _imported(tmp_path / "cached.py"), runpy.run_path(str(tmp_path / "ran.py"))
        np.loadtxt(tmp_path / "table.txt"), np.genfromtxt(tmp_path / "gaps.txt"), np.memmap(tmp_path / "mapped")
        with kept_open(tmp_path / "kept.txt"), open(tmp_path / "plus", "r+b"):
            pass
        torch.from_file(str(tmp_path / "shared"), size=2)
        torch.UntypedStorage.from_file(str(tmp_path / "storage"), nbytes=8)
        for load, name in ((ctypes.CDLL, "library.so"), (torch.ops.load_library, "operators.so")):
            with pytest.raises(OSError, match=name):
                load(str(tmp_path / name))
        address = f"file:{tmp_path / 'rows.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as rows:
            rows.execute("select * from widths").fetchall()
        with open(tmp_path / "written_the_same", "r+b") as file:
            file.write(b"12345678")
        (tmp_path / "read_first").write_bytes((tmp_path / "read_first").read_bytes())
        folder = os.open(tmp_path, os.O_RDONLY)
        os.close(os.open("fd", os.O_RDONLY, dir_fd=folder))
        os.close(folder)
    (tmp_path / "later.txt").read_text()
    found = {name: told for name, told in file_hashes.digests([], tmp_path).items() if "/" not in name}
    assert found == {name: sha(tmp_path / name) for name in names}
    assert "from_file" not in vars(torch.UntypedStorage)


@pytest.mark.usefixtures("fresh")
def test_what_a_network_writes_itself_is_none_of_its_files(tmp_path: Path) -> None:
    old = ("log.txt", "appended.txt", "state.bin", "counter.txt", "by_others.txt", "mapped.bin", "rows.db")
    for name in old[:-1]:
        (tmp_path / name).write_text("12345678")
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as rows, rows:
        rows.execute("create table calls (number)")
    with file_hashes.recording_reads():
        (tmp_path / "log.txt").write_text("now")
        (tmp_path / "log.txt").read_text()
        for name, mode in (("appended.txt", "a+"), ("state.bin", "r+"), ("new.txt", "a+"), ("lock", "x+")):
            with open(tmp_path / name, mode) as file:
                file.write("87654321")
        (tmp_path / "new.txt").read_text()
        (tmp_path / "counter.txt").write_text((tmp_path / "counter.txt").read_text() + "1")
        (tmp_path / "by_others.txt").read_text()
        np.memmap(tmp_path / "mapped.bin", dtype="u1")[0] = 0
        with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as rows, rows:
            rows.execute("insert into calls values (1)")
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
            Path(file.name).read_bytes()
    (tmp_path / "by_others.txt").write_text("changed meanwhile")
    assert not [name for name in file_hashes.digests([], tmp_path) if "/" not in name]


@pytest.mark.usefixtures("fresh")
def test_modules_and_the_file_of_the_name_are_told_and_packages_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, helper = tmp_path / "nets.py", tmp_path / "lib" / "helper.py"
    helper.parent.mkdir()
    for path in (nets, helper):
        path.write_text(f"# {path}")
    for name, place in (("helper_of_ours", helper), ("gone", tmp_path / "gone.py"), ("torch_made", None)):
        module = ModuleType(name)
        module.__file__ = str(place) if place else None
        monkeypatch.setitem(__import__("sys").modules, name, module)
    monkeypatch.chdir(tmp_path)
    found = file_hashes.digests(["nets.py:small?width=2", "resnet50", "pickle:/tmp/none"])
    assert found["nets.py"] == sha(nets) and found["lib/helper.py"] == sha(helper) and "gone.py" not in found
    assert not any(part in name for name in found for part in ("site-packages", "effbench/timing", "/torch/"))
    assert str(helper) in file_hashes.digests([], tmp_path / "lib" / "deeper") or found, (
        "outside of the folder by its path"
    )
    assert "lib/helper.py" not in file_hashes.digests([], tmp_path, [str(helper.parent)])


@pytest.mark.usefixtures("fresh")
def test_names_tell_nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.bin").write_text("1")
    with file_hashes.recording_reads():
        (tmp_path / "weights.bin").read_text()
    found = file_hashes.digests([], tmp_path / "project")
    assert found["~/weights.bin"] == sha(tmp_path / "weights.bin")
    file_hashes.require_unchanged({"~/weights.bin": found["~/weights.bin"]})


def test_a_big_file_is_told_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"12345")
    monkeypatch.setattr(file_hashes, "MAX_HASHED_BYTES", 4)
    before = file_hashes.digest(path)
    assert before.startswith("size:5,changed:")
    os.utime(path, ns=(0, 1))
    with pytest.raises(NotComparable, match=r"w changed since .*its size and time of change was 5 B, \d+, is 5 B, 1\)"):
        file_hashes.require_same({"w": before}, {"w": file_hashes.digest(path)})
    assert file_hashes.digest(Path("/dev/null")) == ""


def test_another_digest_is_refused_and_a_file_that_is_not_read_again_is_not() -> None:
    file_hashes.require_same({"a": "sha256:1", "b": "sha256:2"}, {"a": "sha256:1", "c": "sha256:3"})
    with pytest.raises(NotComparable, match=r"^a and 1 more changed since the first launch .*SHA-256 was 1…, is 9…"):
        file_hashes.require_same({"a": "sha256:1", "b": "sha256:2"}, {"a": "sha256:9", "b": "sha256:8"})


def test_an_old_run_has_no_files_and_a_new_one_keeps_the_first(tmp_path: Path) -> None:
    def recording(folder: Path) -> tuple[Recording, run_file.RunWriter]:
        writer = run_file.RunWriter(folder)
        return Recording(SimpleNamespace(bundled=None), writer, tmp_path), writer  # type: ignore[arg-type]

    run = run_of({case.id: 1e-3 for case in study().cases})
    record, writer = recording(tmp_path / "run")
    with writer:
        writer.header(run, "0")
        for result in run.results:
            writer.cell(result)
        assert run_file.load(tmp_path / "run").files == {}
        for number, files in enumerate(({"a": "sha256:1"}, {"a": "sha256:1", "b": "sha256:2"}, {"b": "sha256:2"})):
            record.record_event(number, {"event": "files", "files": files})
        with pytest.raises(NotComparable, match="b changed"):
            record.record_event(3, {"event": "files", "files": {"b": "sha256:3"}})
        assert run_file.load(tmp_path / "run").files == {"a": "sha256:1", "b": "sha256:2"}
        writer.append("files", launch=0, files={"a": 7})
    with pytest.raises(EffbenchError, match="expected text, got a whole number"):
        run_file.load(tmp_path / "run")


def test_a_block_of_another_number_of_calls_is_an_error(tmp_path: Path) -> None:
    def block(calls: int) -> dict[str, Any]:
        timing = {"calls": calls, "wall_ns": 5, "flags": []}
        return {"event": "block", "round": 0, "position": 0, "cell": "x", "timing": timing}

    with run_file.RunWriter(tmp_path / "run") as writer:
        record = Recording(SimpleNamespace(bundled=None), writer, tmp_path)  # type: ignore[arg-type]
        record.record_event(0, {"event": "calls", "cell": "x", "calls": 3})
        record.record_event(0, block(3))
        for event in (block(4), {"event": "calls", "cell": "x", "calls": 4}):
            with pytest.raises(EffbenchError, match="a block of x came back with 4 calls, and every other has 3"):
                record.record_event(1, event)
    _require_same_calls({}, {"x": 3})
    _require_same_calls({"x": 3}, {"x": 3, "y": 1})
    with pytest.raises(EffbenchError, match="blocks of 3 and 4 calls of x"):
        _require_same_calls({"x": 3}, {"x": 4})


# --- real processes ---------------------------------------------------------------------------------

NETS = """
from pathlib import Path
from torch import nn

def small():
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU())

def wide():
    return nn.Linear(16, 64)
"""


def unfinished(run: Path) -> bytes:
    """Cut a finished run off after its first launch, as a kill does."""
    lines = (run / "run.jsonl").read_bytes().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "exit")
    (run / "run.jsonl").write_bytes(b"".join(lines[: end + 1]))
    return (run / "run.jsonl").read_bytes()


def test_a_run_whose_file_was_edited_is_not_resumed_until_it_is_put_back(tmp_path: Path) -> None:
    nets, run = tmp_path / "nets.py", tmp_path / "run"
    nets.write_text(NETS)
    words = ("compare", "nets.py:small", "nets.py:wide", "--input", "16", "--device", "fake", "--out", "run")
    assert effbench(*words, cwd=tmp_path).code == 0
    kept = unfinished(run)
    nets.write_text(NETS.replace("64", "6400"))
    said = refusal(effbench("run", "--resume", "run", cwd=tmp_path))
    assert "nets.py changed since the first launch" in said and "put it back" in said and said.endswith("kept in run")
    nets.unlink()
    assert "nets.py is no longer there" in refusal(effbench("run", "--resume", "run", cwd=tmp_path))
    assert (run / "run.jsonl").read_bytes() == kept
    nets.write_text(NETS)
    done = effbench("run", "--resume", "run", cwd=tmp_path)
    assert done.code == 0 and done.err == "" and run_file.load(run).complete
    nets.write_text(NETS.replace("64", "6400"))
    shown = effbench("run", "--resume", "run", cwd=tmp_path)
    assert shown.code == 0 and shown.out == done.out
    assert "nothing is measured; nets.py changed since" in shown.err and shown.err.count("\n") == 1


CHANGING = """
import subprocess
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.width = int(Path("width.txt").read_text())
        self.net = nn.Linear(16, self.width)

    def forward(self, x):
        self.calls += 1
        if self.calls == 30:
            subprocess.run(["sh", "-c", "echo 64 > width.txt"])  # as somebody else does meanwhile
        return self.net(x)
"""


def test_a_data_file_that_changes_between_two_launches_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(CHANGING)
    (tmp_path / "width.txt").write_text("16")
    done = effbench(
        "compare", "nets.py:Net", "shufflenet_v2_x0_5", "--input", "16", "--quick", "--launches", 2, "--out", "run",
        cwd=tmp_path, variables={UNTIMED_LAUNCHES: "1"},
    )  # fmt: skip
    assert done.code == 2, done
    assert "width.txt changed since the first launch" in done.err and "effbench run --resume run" in done.err
    kinds = [record["kind"] for record in records(tmp_path / "run")]
    assert kinds.count("end") == 1 and "complete" not in kinds
