"""What the scheduler knows of its machines, as they come, tell, and go."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("distributed")

from effbench.fleet import presence
from effbench.fleet.machine import TOPIC
from effbench.fleet.presence import Presence


class World:
    """A scheduler whose machines and clock are scripted."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.presence = Presence(lambda: self.now_s)
        self.workers: dict[str, Any] = {}
        self.plugins = {Presence.name: self.presence}

    def come(self, name: str, address: str, **labels: str) -> None:
        resources = {"bench": 1.0, f"machine:{name}": 1.0, **{f"{key}:{value}": 1.0 for key, value in labels.items()}}
        self.workers[address] = SimpleNamespace(resources=resources)
        self.presence.add_worker(self, address)  # type: ignore[arg-type]

    def go(self, address: str) -> None:
        self.presence.remove_worker(self, address, stimulus_id="x", expected=True)  # type: ignore[arg-type]

    def tell(self, machine: str, event: str, **values: Any) -> None:
        self.presence.log_event(TOPIC, {"machine": machine, "event": event, **values})

    def seen(self, name: str) -> dict[str, Any]:
        return json.loads(presence.snapshot(self))[name]  # type: ignore[arg-type, no-any-return]


@pytest.fixture
def world() -> World:
    found = World()
    found.come("pi5-a", "tls://1", board="pi5")
    return found


def test_a_machine_comes_and_goes(world: World) -> None:
    world.tell("pi5-a", "hello", facts={"effbench": "0.4.0"})
    world.now_s += 5
    seen = world.seen("pi5-a")
    assert seen["present"] and seen["since_s"] == 5 and seen["labels"] == {"board": "pi5"}
    assert seen["facts"] == {"effbench": "0.4.0"} and seen["doing"] is None and seen["last_launch_s"] is None
    world.go("tls://1")
    world.now_s += 7
    seen = world.seen("pi5-a")
    assert not seen["present"] and seen["since_s"] == 7 and seen["facts"] == {"effbench": "0.4.0"}


def test_it_tells_what_it_does(world: World) -> None:
    world.tell("pi5-a", "begin", run="r1", by="alice", subject="g2")
    assert world.seen("pi5-a")["doing"] == {"run": "r1", "by": "alice", "subject": "g2"}
    world.tell("pi5-a", "progress", run="r1", done=0.5, doing="round 7")
    world.tell("pi5-a", "progress", run="r0", done=0.9, doing="of another run")
    assert world.seen("pi5-a")["doing"] == {
        "run": "r1",
        "by": "alice",
        "subject": "g2",
        "done": 0.5,
        "doing": "round 7",
    }
    world.tell("pi5-a", "end", run="r1", unfit="")
    world.now_s += 3
    assert world.seen("pi5-a")["doing"] is None and world.seen("pi5-a")["last_launch_s"] == 3


def test_one_that_dies_does_nothing_any_more(world: World) -> None:
    world.tell("pi5-a", "begin", run="r1", by="alice", subject="g2")
    world.go("tls://1")
    assert world.seen("pi5-a")["doing"] is None
    world.tell("pi5-a", "progress", run="r1", done=0.5, doing="too late")
    world.come("pi5-a", "tls://2", board="pi5")
    assert world.seen("pi5-a")["doing"] is None and world.seen("pi5-a")["present"]


def test_that_its_old_process_goes_is_no_news_of_the_new_one(world: World) -> None:
    world.come("pi5-a", "tls://2", board="pi5")
    world.tell("pi5-a", "begin", run="r1", by="alice", subject="g2")
    world.go("tls://1")
    assert world.seen("pi5-a")["present"] and world.seen("pi5-a")["doing"]


def test_strangers_are_passed_over(world: World) -> None:
    world.workers["tls://9"] = SimpleNamespace(resources={"GPU": 1.0})
    world.presence.add_worker(world, "tls://9")  # type: ignore[arg-type]
    world.go("tls://9")
    for said in (None, "text", {"machine": "nobody", "event": "begin"}, {"event": "begin"}):
        world.presence.log_event(TOPIC, said)
    world.presence.log_event("other", {"machine": "pi5-a", "event": "end"})
    assert list(json.loads(presence.snapshot(world))) == ["pi5-a"]  # type: ignore[arg-type]


def test_one_that_has_been_away_for_long_is_forgotten(world: World) -> None:
    world.go("tls://1")
    world.now_s += presence.KEPT_S + 1
    assert presence.snapshot(world) == "{}"  # type: ignore[arg-type]


def test_a_scheduler_of_no_fleet_has_no_machines() -> None:
    assert presence.snapshot(None) == ""
    assert presence.snapshot(SimpleNamespace(plugins={})) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("event", ["hello", "begin", "progress", "end"])
def test_what_cannot_be_read_stops_no_scheduler(world: World, event: str) -> None:
    world.tell("pi5-a", "begin", run="r1", by="alice", subject="g2")
    world.tell("pi5-a", event)
    assert world.seen("pi5-a")["present"]
