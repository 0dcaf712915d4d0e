"""What ``--json`` prints, against the schemas in docs/schema. What takes long is validated where it is tested."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import shell
from schemas import SCHEMAS, validate

import effbench
from effbench.report.cell_row import CellRow
from effbench.runs.run_file import RUN_FILE

ROOT = Path(__file__).parents[2]
REFERENCE = sorted((ROOT / "results" / "reference").rglob(RUN_FILE))

FREE = ("labels", "prepared", "peak_memory", "energy", "instructions", "environment")
"""Keys whose values may be anything, or have more than one type."""

NETS = """
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())

def wider():
    return net(8)
"""
CONFIG = '[models.net]\nmodel = "nets.py:net"\ninput = "3x8x8"\nmax_madds = "10M"\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shell.study_file(folder)
    (folder / "nets.py").write_text(NETS)
    (folder / "effbench.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def told(home: Path) -> Callable[..., Any]:
    """The object that a command prints; each command runs once."""
    seen: dict[tuple[str, ...], Any] = {}

    def run(*words: str) -> Any:
        if words not in seen:
            done = shell.effbench(*words, "--json", cwd=home)
            assert done.code == 0, done.err
            seen[words] = done.json
        return copy.deepcopy(seen[words])

    return run


RUN = ("run", "tiny.py", "--device", "fake", "--percentiles", "--out", "run")
COMPARE = (
    "compare",
    "nets.py:net",
    "nets.py:wider",
    "--input",
    "3x8x8",
    "--device",
    "fake",
    "--quick",
    "--out",
    "compared",
)


DECIDED = (*(word for word in COMPARE[:-1] if word != "--quick"), "decided")
"""A comparison that stops by itself."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", RUN),
        ("run", COMPARE),
        ("run", DECIDED),
        ("profile", ("profile", "lenet5")),
        ("profile", ("profile", "nets.py:net", "--input", "3x8x8", "--layers", "--crosscheck")),
        ("check", ("check", "--save-costs", "costs.json")),
        ("doctor", ("doctor",)),
        ("doctor", ("doctor", "--peaks", "--device", "fake")),
        ("list", ("list",)),
        ("list", ("list", "runtimes")),
        ("bundle", ("bundle", "nets.py:net", "--input", "3x8x8", "--out", "bundled")),
    ],
    ids=str,
)
def test_what_a_command_prints_is_what_its_schema_says(name: str, words: tuple[str, ...], told: Any) -> None:
    if name == "bundle":
        pytest.importorskip("onnxruntime")
    validate(told(*words), name)


def test_only_a_run_that_stops_by_itself_has_a_decision(told: Any) -> None:
    assert told(*RUN)["decision"] is None and told(*COMPARE)["decision"] is None
    decision = told(*DECIDED)["decision"]
    assert decision["until"] == "faster" and decision["looks"] == [3, 4, 6, 9, 13]
    assert [item["reference"] for item in decision["answers"]] == ["model=nets.py:net"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diff", ("diff", "run", "run")),
        ("report", ("report", "run", "--format", "md")),
        ("export", ("export", "run", "--format", "csv", "--out", "cells.csv")),
    ],
)
def test_what_is_printed_of_a_stored_run(name: str, words: tuple[str, ...], told: Any) -> None:
    told(*RUN)
    validate(told(*words), name)


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: str(path.parent.name))
def test_every_stored_run_is_told_by_the_schema(path: Path) -> None:
    """Breakdowns, batch sweeps, rankings, several runtimes: what no quick run has."""
    validate(json.loads(json.dumps(effbench.load(path).to_dict())), "run")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, (dict, list)) and key not in FREE:
            yield from places(inner)


@pytest.mark.parametrize("name", ["profile", "run"])
def test_a_number_that_is_text_is_refused_wherever_it_stands(name: str, told: Any) -> None:
    document = told(*(RUN if name == "run" else ("profile", "lenet5")))
    validator, tried = jsonschema.Draft202012Validator(SCHEMAS[name]), 0
    for holder, key in places(document):
        value = holder[key]
        if type(value) in (int, float) and key not in ("slower", "faster"):  # labels, which may be text
            holder[key] = str(value)
            assert not validator.is_valid(document), (holder, key)
            holder[key] = value
            tried += 1
    assert tried > 20 and validator.is_valid(document)


def test_a_missing_key_and_one_that_is_not_explained_are_found(told: Any) -> None:
    document, validator = told(*RUN), jsonschema.Draft202012Validator(SCHEMAS["run"])
    for name in SCHEMAS["run"]["$defs"]["cell"]["required"]:
        less = copy.deepcopy(document)
        del less["cells"][0][name]
        assert not validator.is_valid(less), name
    document["cells"][0]["unheard_of"] = 1
    assert validator.is_valid(document), "a script's copy of the schema outlives new keys"
    with pytest.raises(jsonschema.ValidationError, match="unheard_of"):
        validate(document, "run")


def test_the_columns_of_a_row_stand_in_the_schema_with_their_meaning_and_type() -> None:
    """Where a key holds an interval or a list, its column is one plain value of it."""
    found = SCHEMAS["run"]["$defs"]["cell"]["properties"]
    for name, column in msgspec.json.schema(CellRow)["$defs"]["CellRow"]["properties"].items():
        kinds = [kind["type"] for kind in column.get("anyOf", [column])]
        nested = "$ref" in found[name] or found[name]["type"] == "array"
        assert nested or found[name]["type"] == (kinds if len(kinds) > 1 else kinds[0]), name
        assert name in ("flags", "notes") or found[name]["description"] == column["description"], name


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
