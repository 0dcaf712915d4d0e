"""What a conductor does with the answers of machines, from answers that are made up."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

from effbench.bundles.bundle import BUNDLE_FILE, Bundle
from effbench.core.study import Case, Experiment
from effbench.fleet.conductor import Conductor, Progress, Timing
from effbench.fleet.mirror import Mirror, StoredOrder
from effbench.fleet.orders import Order
from effbench.runs import schema

FACTS = {"effbench": "0.5.0", "schema": schema.SCHEMA}


class Made:
    """A connection to machines whose answers are made up: a list for each function, the last one for ever."""

    def __init__(self, facts: Mapping[str, Any] = FACTS, **answers: list[Any]) -> None:
        self.facts, self.answers, self.calls = dict(facts), answers, list[str]()

    async def machines(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"pi5-a": {"present": True, "facts": self.facts, "doing": None}}

    async def call(self, function: Any, *arguments: Any, machine: str, measures: bool = False) -> Any:
        await asyncio.sleep(0)
        self.calls.append(function.__name__)
        left = self.answers[function.__name__]
        answer = left.pop(0) if len(left) > 1 else left[0]
        said = json.dumps(answer)
        return said.encode() + b"\n" if function.__name__ == "step" else said


def standing(**changes: Any) -> dict[str, Any]:
    nothing = {"size": 0, "launches_done": 0, "launches": 2, "complete": False, "wait_s": 0.0, "has_prefix": True}
    return {**nothing, **changes}


def conduct(folder: Path, made: Made, bundle: Bundle | None = None, **times: float) -> Progress:
    order = Order("r", "pi5-a", study="" if bundle else "g2_groups", bundle=bundle.digest if bundle else "")
    bundles = {"pi5-a": bundle} if bundle else {}
    (folder / ".fleet").mkdir()
    with Mirror(folder, StoredOrder(order, "tcp://127.0.0.1:1")) as mirror:
        timing = Timing(**{"patience_s": 5.0, "busy_s": 0.01, "look_s": 0.01, **times})
        conductor = Conductor(made, [mirror], bundles, timing=timing)  # type: ignore[arg-type]
        return asyncio.run(asyncio.wait_for(conductor.run(), 20))["pi5-a"]


def test_a_machine_that_writes_another_schema_is_refused_before_it_measures(tmp_path: Path) -> None:
    made = Made({**FACTS, "effbench": "0.9.0", "schema": schema.SCHEMA + 1})
    found = conduct(tmp_path, made)
    assert found.state == "failed" and "effbench 0.9.0" in found.why and f"schema {schema.SCHEMA + 1}" in found.why
    assert made.calls == []


@pytest.mark.parametrize("state", ["busy", "unfit"])
def test_a_machine_that_stays_unfit_is_given_up_as_the_environment(tmp_path: Path, state: str) -> None:
    made = Made(standing=[standing()], step=[{"state": state, "why": "too hot: 91 °C (soc)"}])
    found = conduct(tmp_path, made, patience_s=0.1)
    assert found.state == "unfit" and found.why.startswith("too hot: 91 °C (soc), for ")
    assert made.calls.count("step") >= 2, "it was asked again before it was given up"


def test_a_machine_that_is_fit_again_goes_on(tmp_path: Path) -> None:
    steps = [{"state": "busy", "why": "others"}] * 3 + [{"state": "complete"}]
    made = Made(standing=[standing()] * 4 + [standing(complete=True)], step=steps)
    assert conduct(tmp_path, made).state == "complete"


@pytest.mark.parametrize(("times", "state"), [(1, "complete"), (2, "failed")])
def test_a_bundle_that_was_damaged_on_the_way_is_sent_once_more(tmp_path: Path, times: int, state: str) -> None:
    place = tmp_path / "bundle"
    place.mkdir()
    (place / BUNDLE_FILE).write_bytes(b"{}")
    study = Experiment("s", "S", "", "model", ("m",), "m", (Case("m", (1,), labels={"model": "m"}),))
    bundle = Bundle(place, study, (), {}, hashlib.sha256(b"{}").hexdigest())
    damaged = {"error": "bundle.json of the bundle was damaged on the way", "kind": "CorruptBundle"}
    made = Made(
        standing=[standing(), standing(complete=True)],
        missing_files=[{"missing": [BUNDLE_FILE]}],
        put=[{}],
        seal=[damaged] * times + [{}],
        step=[{"state": "complete"}],
    )
    found = conduct(tmp_path, made, bundle)
    assert found.state == state, found.why
    assert made.calls.count("put") == 2
    assert "damaged on the way" in found.why or state == "complete"


def test_three_deaths_in_a_row_are_the_end(tmp_path: Path) -> None:
    made = Made(standing=[standing()], step=[{"state": "died", "why": "the process of the launch ended with signal 9"}])
    found = conduct(tmp_path, made)
    assert found.state == "failed" and found.why.endswith("ended with signal 9; failed 3 times in a row")
    assert made.calls.count("step") == 3
