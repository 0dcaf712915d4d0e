"""A fleet as its users have it: a scheduler and three machines as processes, TLS, on loopback.

The numbers are those of the list of acceptance tests in the specification of fleets.
"""

# ruff: noqa: E402 - what these import may be missing

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

for needed in ("distributed", "cryptography", "onnxruntime"):
    pytest.importorskip(needed)

from fleet_forks import Process
from fleets import HOST, NAMES, Fleet, until
from shell import records

from effbench.api import run_bundle
from effbench.cli import app
from effbench.core.errors import EffbenchError, UnknownName
from effbench.fleet import authority, certificates, session, tasks
from effbench.fleet.conductor import Progress
from effbench.runs import run_file


@pytest.fixture(scope="module")
def twelve(fleet: Fleet, bundle: Path) -> tuple[Path, list[Progress]]:
    """Four launches on each of the three machines."""
    out = fleet.order(bundle, launches=4)
    told: list[Progress] = []
    ended = fleet.conduct(out, told=told)
    assert {item.state for item in ended.values()} == {"complete"}, ended
    return out, told


def one_line(process: Process, code: int = 2, seconds: float = 60.0) -> str:
    """What a command that must refuse says."""
    assert process.wait(seconds) == code, process.err
    lines = process.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("effbench: ") and process.out == "", process.err
    return lines[0].removeprefix("effbench: ")


def launches(run: Path) -> list[tuple[int, int]]:
    """Number and slot of each launch, in the order in which they began."""
    return [(item["launch"], item["slot"]) for item in records(run) if item["kind"] == "launch"]


def spans(run: Path) -> list[tuple[datetime, datetime]]:
    """When each launch began and ended."""
    begun = {item["launch"]: item["start"] for item in records(run) if item["kind"] == "launch"}
    ended = {item["launch"]: item["end"] for item in records(run) if item["kind"] == "exit"}
    return [(datetime.fromisoformat(begun[one]), datetime.fromisoformat(ended[one])) for one in ended]


# --- a run on many machines ---------------------------------------------------------------------------


def test_three_labelled_machines_over_tls(fleet: Fleet) -> None:  # 1
    found = session.machines(fleet.place)
    assert fleet.place.address.scheme == "tls"
    assert {name: item["labels"] for name, item in found.items() if item["present"]} == {
        "pi5-a": {"board": "pi5"},
        "pi5-b": {"board": "pi5"},
        "gpu-1": {"device": "cuda", "board": "none"},
    }
    assert all(item["facts"]["effbench"] for item in found.values())


def test_a_label_chooses(fleet: Fleet, bundle: Path) -> None:  # 2
    out = fleet.order(bundle, "board=pi5", launches=1)
    assert {*fleet.conduct(out)} == {"pi5-a", "pi5-b"}
    assert sorted(path.name for path in out.iterdir() if path.name != ".fleet") == ["pi5-a", "pi5-b"]
    assert not (fleet.folder("gpu-1") / "runs" / fleet.on_machine(out, "pi5-a").name).exists()


def test_an_unknown_label_names_those_there(fleet: Fleet, bundle: Path) -> None:  # 3
    out = fleet.out()
    begun_s = time.monotonic()
    with pytest.raises(UnknownName, match=r"pi4.*board=none, board=pi5, device=cuda, gpu-1, pi5-a, pi5-b"):
        fleet.order(bundle, "board=pi4", out=out)
    assert time.monotonic() - begun_s < 10  # one that nobody has would be waited for, for ever
    words = ("run", "--bundle", bundle, "--on", "board=pi4", "--out", out)
    client = fleet.client(*words, "--scheduler", fleet.address, "--certs", fleet.certs / "alice")
    assert "'board=pi4'" in one_line(client) and not out.exists()


def test_every_machine_carries_out_every_launch(fleet: Fleet, twelve: tuple[Path, list[Progress]]) -> None:  # 4
    out, told = twelve
    for name in NAMES:
        assert launches(out / name) == [(number, number) for number in range(4)]
        assert [item.launches_done for item in told if item.machine == name and item.is_over] == [4]


def test_copies_are_equal_byte_for_byte(fleet: Fleet, twelve: tuple[Path, list[Progress]]) -> None:  # 5
    assert all(fleet.is_mirrored(twelve[0], name) for name in NAMES)


def test_copies_load_as_complete(twelve: tuple[Path, list[Progress]]) -> None:  # 6
    assert all(run_file.load(twelve[0] / name).complete for name in NAMES)


def test_machines_measure_at_the_same_time(twelve: tuple[Path, list[Progress]]) -> None:  # 7
    times = {name: spans(twelve[0] / name) for name in NAMES}
    last_begun = max(found[0][0] for found in times.values())
    assert last_begun < min(found[-1][1] for found in times.values())


def test_copies_are_reported_side_by_side(fleet: Fleet, twelve: tuple[Path, list[Progress]]) -> None:  # 17
    paths = [twelve[0] / name for name in NAMES]
    done = fleet.forks.start("client", "report", *paths, "--out", "-", "--format", "md", cwd=fleet.home)
    assert done.wait() == 0, done.err
    assert all(name in done.out for name in NAMES)


def test_steps_are_the_whole_run(fleet: Fleet, bundle: Path, twelve: tuple[Path, list[Progress]]) -> None:  # 26
    """One process that carries out four launches writes what four steps write: the order of the blocks, how many calls
    each has, its times (the fake device draws them by a seed), and the budget of each launch.
    """
    whole = fleet.home / "whole"
    run_bundle(bundle, device="fake", launches=4, out=whole, progress=False)
    own = {"created", "command", "start", "end", "conditions", "at_s", "environment", "budget_s"}

    def without_times(item: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in item.items() if key not in own}

    steps, once = records(twelve[0] / "pi5-a"), records(whole)
    assert [without_times(item) for item in steps] == [without_times(item) for item in once]
    assert len([item for item in steps if item["kind"] == "block"]) == 4 * 3 * 2
    budgets = [[item["budget_s"] for item in found if item["kind"] == "null"] for found in (steps, once)]
    assert budgets[0] == pytest.approx(budgets[1], rel=0.01) and budgets[0] == pytest.approx([30.0] * 4, rel=0.01)


def test_resuming_measures_only_what_is_missing(fleet: Fleet, bundle: Path) -> None:  # 11
    out = fleet.order(bundle, "pi5-a", launches=3)
    with pytest.raises(KeyboardInterrupt):
        fleet.conduct(out, told=_Until(lambda item: item.launches_done == 1))
    before = (out / "pi5-a" / "run.jsonl").read_bytes()
    assert 1 <= len(launches(out / "pi5-a")) < 3
    assert fleet.conduct(out)["pi5-a"].state == "complete"
    assert (out / "pi5-a" / "run.jsonl").read_bytes().startswith(before)
    assert launches(out / "pi5-a") == [(0, 0), (1, 1), (2, 2)] and fleet.is_mirrored(out, "pi5-a")
    again = (out / "pi5-a" / "run.jsonl").stat().st_mtime_ns
    assert fleet.conduct(out)["pi5-a"].state == "complete"
    assert (out / "pi5-a" / "run.jsonl").stat().st_mtime_ns == again


class _Until(list[Progress]):
    """Interrupts when a condition holds, as Ctrl-C would."""

    def __init__(self, condition: Callable[[Progress], bool]) -> None:
        super().__init__()
        self._condition = condition

    def append(self, item: Progress) -> None:
        super().append(item)
        if self._condition(item):
            raise KeyboardInterrupt


# --- more than one person -----------------------------------------------------------------------------


def test_two_people_take_turns_on_a_board(fleet: Fleet, bundle: Path) -> None:  # 13
    outs = [fleet.order(bundle, "pi5-a", by=by, launches=4) for by in ("alice@here", "bob@there")]
    clients = [fleet.resume(out) for out in outs]
    assert [client.wait() for client in clients] == [0, 0], [client.err for client in clients]
    assert all(fleet.is_mirrored(out, "pi5-a") for out in outs)
    times = sorted((*span, number) for number, out in enumerate(outs) for span in spans(out / "pi5-a"))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), "launches overlap"
    whose = [number for *_, number in times]
    both_there = whose[max(whose.index(0), whose.index(1)) - 1 : -[*whose[::-1]].index(1 - whose[-1]) or None]
    assert all(len({*three}) == 2 for three in zip(both_there, both_there[1:], both_there[2:], strict=False)), whose


def test_whoever_holds_the_lock_of_a_machine_is_waited_for(fleet: Fleet, bundle: Path) -> None:  # 14
    out = fleet.order(bundle, "board=pi5", launches=1)
    seen: list[Progress] = []
    with fleet.lock("pi5-a").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        class Told(list[Progress]):
            def append(self, item: Progress) -> None:
                seen.append(item)
                if item.state == "busy":
                    fcntl.flock(held, fcntl.LOCK_UN)

        ended = fleet.conduct(out, told=Told())
    assert {item.state for item in ended.values()} == {"complete"}
    busy = [item for item in seen if item.state == "busy"]
    assert [item.machine for item in busy] == ["pi5-a"] and str(fleet.lock("pi5-a")) in busy[0].why


def test_identical_orders_are_two_launches(fleet: Fleet, bundle: Path) -> None:  # 15
    out = fleet.order(bundle, "pi5-a", launches=2)
    fleet.conduct(fleet.order(bundle, "pi5-a", launches=1))  # the bundle is there
    order = json.dumps(fleet.stored(out, "pi5-a")["order"])

    async def twice() -> list[bytes]:
        async with fleet.place.connect() as connection:
            calls = (connection.call(tasks.step, order, 0, 0, machine="pi5-a", measures=True) for _ in range(2))
            return list(await asyncio.gather(*calls))

    said = [json.loads(answer.partition(b"\n")[0]) for answer in asyncio.run(twice())]
    assert sorted(answer["launches_done"] for answer in said) == [1, 2]
    assert launches(fleet.on_machine(out, "pi5-a")) == [(0, 0), (1, 1)]


def test_a_refused_order_costs_one_machine(fleet: Fleet, bundle: Path) -> None:  # 16
    out = fleet.order(bundle, launches=1)
    path = out / ".fleet" / "pi5-b.json"
    stored = json.loads(path.read_text())
    stored["order"]["options"]["runtime"] = "ncnn"  # which the bundle does not have
    path.write_text(json.dumps(stored))
    client = fleet.resume(out)
    assert client.wait() == 3, client.err
    assert [line for line in client.err.splitlines() if "failed" in line] == [
        "effbench: pi5-b: 0 of ? launches, failed: there is no runtime in this bundle named 'ncnn'. Known: onnxruntime."
    ]
    assert all(fleet.is_mirrored(out, name) for name in ("pi5-a", "gpu-1")) and not (out / "pi5-b").exists()


def test_a_folder_has_one_conductor(fleet: Fleet, bundle: Path) -> None:
    out = fleet.order(bundle, launches=1)
    with session.open_mirrors(out, session.stored_orders(out, ["gpu-1"])):
        assert one_line(fleet.resume(out)).startswith("another effbench fleet conducts gpu-1 of")


# --- what must not happen -----------------------------------------------------------------------------


def test_every_socket_is_at_the_address_that_was_given(fleet: Fleet, slow_bundle: Path) -> None:  # 20
    out = fleet.order(slow_bundle, launches=1)
    client = fleet.resume(out)
    seen, roles = set(), set()
    while client.poll() is None:
        time.sleep(0.03)
        for process in fleet.forks.running():
            try:
                found = [item for item in process.net_connections("inet") if item.status in ("LISTEN", "NONE")]
                roles.add(process.name())
            except Exception:  # it has ended
                continue
            seen |= {(process.name(), item.laddr.ip) for item in found}
    assert client.returncode == 0, client.err
    assert roles >= {"scheduler", "worker", "client", "step"}
    assert seen == {("scheduler", HOST), ("worker", HOST)}


def test_only_text_bytes_and_numbers_are_sent(fleet: Fleet) -> None:  # 21
    async def send(*arguments: Any) -> None:
        async with fleet.place.connect() as connection:
            sent: list[Any] = []
            connection._client.submit = lambda *words, **how: sent.append(words)
            try:
                await connection.call(*arguments, machine="pi5-a")
            finally:
                assert not sent

    for arguments in [(lambda: "",), (os.getpid,), (tasks.step, lambda: ""), (tasks.step, Path()), (tasks.step, 1.5)]:
        with pytest.raises(TypeError):
            asyncio.run(send(*arguments))


@pytest.mark.parametrize("words", [("scheduler", "--host", "0.0.0.0"), ("worker", "tcp://192.0.2.1", "--name", "a")])
def test_plain_tcp_is_for_loopback(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # 19
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "create_connection", opened)
    assert app.main(["fleet", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "plain TCP" in said and "effbench fleet certs" in said


@pytest.fixture(scope="module")
def strangers(fleet: Fleet) -> Path:
    """Certificates of another authority, and one of ours that has expired."""
    folder = fleet.home / "strangers"
    authority.create(folder / "others", ["alice"])
    with pytest.MonkeyPatch.context() as patch:
        long_ago = certificates.now() - authority.timedelta(days=2)
        shutil.copytree(fleet.certs, folder / "ours", ignore=lambda at, names: [n for n in names if n in NAMES])
        patch.setattr(authority, "_EARLIER", authority.timedelta(days=3))
        shutil.rmtree(folder / "ours" / "alice")
        really = authority._sign
        patch.setattr(authority, "_sign", lambda *given: really(*given[:4], long_ago))
        authority.create(folder / "ours", ["alice"])
    return folder


REFUSED = {
    "none": "needs certificates",
    "others": "signed by another CA",
    "ours": "expired on",
}


@pytest.mark.parametrize("which", REFUSED)
@pytest.mark.parametrize("who", ["client", "worker"])
def test_a_wrong_certificate_is_refused_in_a_line(fleet: Fleet, strangers: Path, who: str, which: str) -> None:  # 18
    given = () if which == "none" else ("--certs", strangers / which / "alice")
    if who == "client":
        process = fleet.client("status", "--scheduler", fleet.address, *given)
    else:
        more = (*given, "--folder", fleet.home / "never", "--lock", fleet.home / "lock")
        process = fleet.forks.start("worker", "fleet", "worker", fleet.address, "--name", "x", *more, cwd=fleet.home)
    assert REFUSED[which] in one_line(process, seconds=5)
    assert "x" not in session.machines(fleet.place)


@pytest.mark.parametrize("who", ["client", "worker"])
def test_a_certificate_that_only_the_scheduler_refuses(fleet: Fleet, strangers: Path, who: str) -> None:  # 18
    """Its owner trusts the fleet's authority, so that it cannot find the fault without asking."""
    own = strangers / f"mixed-{who}"
    shutil.copytree(strangers / "ours" / "alice", own)
    for name in ("cert.pem", "key.pem"):
        shutil.copy(strangers / "others" / "alice" / name, own / name)
    with (own / "ca.pem").open("ab") as file:
        file.write((strangers / "others" / "ca.pem").read_bytes())
    if who == "client":
        process = fleet.client("status", "--scheduler", fleet.address, "--certs", own)
    else:
        more = ("--certs", own, "--folder", fleet.home / "never", "--lock", fleet.home / "lock")
        process = fleet.forks.start("worker", "fleet", "worker", fleet.address, "--name", "x", *more, cwd=fleet.home)
    said = one_line(process, seconds=5)
    assert f"refuses {own}/cert.pem: it was signed by another CA than the server's" in said


# --- what can go wrong at a desk ----------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on(fleet: Fleet, slow_bundle: Path) -> None:
    out = fleet.order(slow_bundle, "gpu-1", launches=2)
    client = fleet.resume(out)
    run = fleet.on_machine(out, "gpu-1")
    until(lambda: (run / "run.jsonl").exists() and "block" in {item["kind"] for item in records(run)}, "it measures")
    client.signal(signal.SIGINT)
    assert client.wait() == 130, client.err
    assert client.err.splitlines()[-1] == (
        "effbench: interrupted; a launch that is under way ends and stays on its machine; go on with: "
        f"effbench fleet run --resume {out}"
    )
    assert "Traceback" not in client.err and not (out / "gpu-1").exists()
    until(lambda: "exit" in {item["kind"] for item in records(run)}, "the launch has ended")
    pulled = fleet.client("pull", out)
    assert pulled.wait() == 0, pulled.err
    assert fleet.is_mirrored(out, "gpu-1") and launches(out / "gpu-1") == [(0, 0)]
    done = fleet.resume(out)
    assert done.wait() == 0, done.err
    assert launches(out / "gpu-1") == [(0, 0), (1, 1)] and fleet.is_mirrored(out, "gpu-1")


def test_a_machine_that_was_set_up_anew(fleet: Fleet, bundle: Path) -> None:
    out = fleet.order(bundle, "board=pi5", launches=3)
    with pytest.raises(KeyboardInterrupt):
        fleet.conduct(out, told=_Until(lambda item: item.machine == "pi5-b" and item.launches_done == 1))
    until(lambda: _is_idle(fleet), "nothing is measured any more")
    shutil.rmtree(fleet.folder("pi5-b"))
    ended = fleet.conduct(out)
    assert ended["pi5-a"].state == "complete" and fleet.is_mirrored(out, "pi5-a")
    assert ended["pi5-b"].state == "failed" and "it was set up anew" in ended["pi5-b"].why
    assert "\n" not in ended["pi5-b"].why


def _is_idle(fleet: Fleet) -> bool:
    return all(item["doing"] is None for item in session.machines(fleet.place).values())


def test_a_full_disk_of_the_client(fleet: Fleet, bundle: Path) -> None:
    out = fleet.order(bundle, "pi5-a", launches=3)
    client = fleet.resume(out, file_limit=6000)  # the first launch fits, or just not
    assert client.wait() == 3, client.err
    assert "Traceback" not in client.err
    (said,) = [line for line in client.err.splitlines() if "failed" in line]
    assert f"cannot write to {out}/pi5-a/run.jsonl: File too large" in said
    assert fleet.conduct(out)["pi5-a"].state == "complete" and fleet.is_mirrored(out, "pi5-a")


def test_a_folder_that_cannot_be_written(fleet: Fleet, bundle: Path) -> None:
    (fleet.home / "file").touch()
    with pytest.raises(EffbenchError, match=r"^cannot write to .*Not a directory; choose another --out$"):
        fleet.order(bundle, "pi5-a", out=fleet.home / "file" / "out")


def test_patience_is_for_machines_that_stay_away(new_fleet: Callable[..., Fleet], bundle: Path) -> None:  # 10
    fleet = new_fleet("pi5-a", "pi5-b")
    out = fleet.order(bundle, launches=2)
    fleet.workers["pi5-b"].kill()
    begun_s = time.monotonic()
    client = fleet.resume(out, "--patience", "1s")
    assert client.wait() == 3, client.err
    assert time.monotonic() - begun_s < 20
    assert fleet.is_mirrored(out, "pi5-a") and not (out / "pi5-b").exists()
    assert "pi5-b: 0 of ? launches, missing: not there for 1" in client.err
    assert client.err.splitlines()[-1] == (
        f"effbench: not complete; go on later with: effbench fleet run --resume {out}"
    )
    fleet.start_worker("pi5-b")
    again = fleet.resume(out)
    assert again.wait() == 0, again.err
    assert fleet.is_mirrored(out, "pi5-b")
