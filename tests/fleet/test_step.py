"""The program of one launch: one line of JSON in, lines of JSON out, whatever it is given."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from shell import records
from tiny_bundles import tiny_bundle

from effbench.bundles import bundle as stored_bundle
from effbench.fleet import machine_lock, readiness, step

RUN = "20261129-101500-tiny-3fa9c1d2"


class Machine:
    """A machine's folder with a bundle, and steps that are carried out in this process."""

    def __init__(self, home: Path, rounds: int = 3) -> None:
        self.home, self.folder, self.lock = home, home / "machine", home / "lock"
        made = tiny_bundle(home / "bundle", rounds)
        self.digest = stored_bundle.load(made).digest
        shutil.copytree(made, self.folder / "bundles" / self.digest)
        self.run = self.folder / "runs" / RUN

    def order(self, **changes: Any) -> bytes:
        order = {"run": RUN, "machine": "a", "bundle": self.digest, "options": {"device": "fake", "launches": 2}}
        return json.dumps({**order, "folder": str(self.folder), "lock": str(self.lock), **changes}).encode() + b"\n"

    def step(self, order: bytes) -> tuple[int, list[dict[str, Any]]]:
        out = io.StringIO()
        code = step.carry_out(io.BytesIO(order), out)
        return code, [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_each_step_is_one_launch(machine: Machine) -> None:
    code, said = machine.step(machine.order())
    assert code == 5 and [item["event"] for item in said[:-1]] == ["progress"] * (len(said) - 1)
    assert said[-1] | {"size": 0} == {
        "event": "end",
        "state": "more",
        "why": "",
        "launches_done": 1,
        "launches": 2,
        "complete": False,
        "wait_s": 0.0,
        "size": 0,
    }
    assert said[-1]["size"] == (machine.run / "run.jsonl").stat().st_size
    code, said = machine.step(machine.order())
    assert code == 0 and (said[-1]["state"], said[-1]["launches_done"]) == ("complete", 2)
    before = (machine.run / "run.jsonl").read_bytes()
    assert machine.step(machine.order())[0] == 0 and (machine.run / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (b"", "must be an order"),
        (b"nonsense\n", "must be an order"),
        (b"[1]\n", "must be an order"),
        (b'{"run": "x"}\n', "this is no order"),
        (b'{"run": "../x", "machine": "a", "study": "s"}\n', "cannot be the name"),
        ({"options": {"device": "fake", "launchs": 2}}, "no option in an order named 'launchs'"),
        ({"options": {"device": "fake", "launches": "two"}}, ""),
        ({"options": {"device": "nowhere"}}, "nowhere"),
        ({"bundle": "0" * 64}, "there is no bundle at"),
        ({"bundle": "", "study": "g9"}, "no study named 'g9'"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, order: bytes | dict[str, Any], why: str
) -> None:
    monkeypatch.setattr(readiness, "why_busy", lambda: "")
    code, said = machine.step(order if isinstance(order, bytes) else machine.order(**order))
    assert code == 2 and [item["event"] for item in said] == ["end"]
    assert said[0]["state"] == "error" and why in said[0]["why"] and "\n" not in said[0]["why"]
    assert not machine.run.exists()


def test_a_machine_that_is_in_use_is_busy(machine: Machine) -> None:
    with machine_lock.try_lock(machine.lock) as is_free:
        assert is_free
        code, said = machine.step(machine.order())
    assert code == 4 and said[-1]["state"] == "busy" and str(machine.lock) in said[-1]["why"]
    assert machine.step(machine.order())[0] == 5


@pytest.mark.parametrize(("state", "why"), [("unfit", "too hot: 90 °C (cpu)"), ("busy", "others keep 1.5 cores busy")])
def test_a_machine_that_is_not_fit_measures_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, state: str, why: str
) -> None:
    monkeypatch.setattr(readiness, "why_unfit", lambda: why if state == "unfit" else "")
    monkeypatch.setattr(readiness, "why_busy", lambda: why if state == "busy" else "")
    code, said = machine.step(machine.order(options={"launches": 2}))
    assert code == 4 and (said[-1]["state"], said[-1]["why"]) == (state, why)
    assert not machine.run.exists()


def test_a_run_that_was_stopped_before_its_first_launch_begins_again(machine: Machine) -> None:
    machine.step(machine.order())
    path = machine.run / "run.jsonl"
    first = path.read_bytes().splitlines(keepends=True)
    for left in (b"", first[0][:50], b"".join(first[:2]) + first[2][:9]):
        path.write_bytes(left)
        code, said = machine.step(machine.order())
        assert code == 5 and said[-1]["launches_done"] == 1
        assert [item["kind"] for item in records(machine.run)].count("header") == 1


def test_it_ends_when_its_input_ends(tmp_path: Path) -> None:
    """A real process, that is measuring, and whose input then ends: it ends in order, and so does what it started."""
    machine = Machine(tmp_path, rounds=100_000)
    words = [sys.executable, "-m", "effbench.fleet.step"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(machine.order())
        process.stdin.flush()
        while b"round" not in process.stdout.readline():
            assert process.poll() is None
        process.stdin.close()
        begun_s = time.monotonic()
        assert process.wait(30) == step.INTERRUPTED
        assert time.monotonic() - begun_s < 10
        assert process.stdout.read().count(b'"end"') == 0
    limit = time.monotonic() + 10
    path = machine.run / "run.jsonl"
    while (size := path.stat().st_size) != (time.sleep(0.2), path.stat().st_size)[1]:
        assert time.monotonic() < limit, "something still measures"
    assert size


def test_whoever_reads_the_last_line_may_end_the_input(machine: Machine) -> None:
    """The exit code stays: that the input ends after the last line interrupts nothing."""
    machine.step(machine.order())
    machine.step(machine.order())
    given, ours = os.pipe()
    out, theirs = os.pipe()
    child = os.fork()
    if not child:  # so that the process whose signals are looked at is none of pytest's
        os.dup2(given, 0)
        os.close(ours)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream = _Slow(os.fdopen(theirs, "w"))
        code = 99
        try:
            sys.stdin = os.fdopen(0)
            code = step.carry_out(None, stream)  # type: ignore[arg-type]
            time.sleep(0.3)  # the signal comes by now
        finally:
            os._exit(code)
    os.close(given)
    os.close(theirs)
    os.write(ours, machine.order())
    with os.fdopen(out) as said:
        assert json.loads(said.readline())["state"] == "complete"
        os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Slow:
    """An output that is read at once, but whose writing takes a while, as on a busy machine."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        time.sleep(0.2)

    def flush(self) -> None:
        time.sleep(0.1)


# --- an order in a file, as `effbench fleet step < order.json` ---


def step_from_file(home: Path, **order: Any) -> tuple[int, dict[str, Any]]:
    """Carry out an order from a file. Returns the exit code and the last line."""
    path = home / "order.json"
    path.write_text(json.dumps({"run": "r", "machine": "m", "study": "g2_groups", **order}) + "\n")
    with path.open() as source:
        done = subprocess.run(
            [sys.executable, "-m", "effbench.fleet.step"], stdin=source, capture_output=True, text=True, timeout=100
        )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_an_order_in_a_file_is_carried_out(tmp_path: Path) -> None:
    options = {"device": "fake", "launches": 2, "quick": True}
    places = {"folder": str(tmp_path / "fleet"), "lock": str(tmp_path / "lock")}
    code, end = step_from_file(tmp_path, arguments={"scale": "x1"}, options=options, **places)
    assert (code, end["state"], end["launches_done"]) == (5, "more", 1), end


@pytest.mark.parametrize("wrong", [{"folder": 5}, {"folder": "a\0b"}, {"lock": ["x"]}])
def test_a_place_that_is_no_path(tmp_path: Path, wrong: dict[str, Any]) -> None:
    code, end = step_from_file(tmp_path, **wrong)
    assert (code, end["state"]) == (2, "error") and end["why"].endswith("expected a path"), end
