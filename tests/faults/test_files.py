"""Malformed files: 20,000 run files and 4,000 effbench.toml, each read or refused in one line.

100,000 run files behind the mark `slow`, and as many as one likes with `make fuzz`.
"""

from __future__ import annotations

import json
import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_loader
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracing import untraced

from effbench.cli import output
from effbench.core.errors import EffbenchError
from effbench.gates import config
from effbench.runs.run_file import RUN_FILE

SEED = 20261122


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / RUN_FILE


@pytest.fixture(scope="module")
def whole(path: Path) -> bytes:
    return fuzz_loader.whole_file(path.parent / "run")


def test_the_file_to_be_harmed_is_whole_and_holds_every_kind_of_record(path: Path, whole: bytes) -> None:
    assert fuzz_loader.read(path, whole, depth=2)
    kinds = {json.loads(line)["kind"] for line in whole.splitlines()}
    assert kinds == {
        *("header", "cell", "calls", "skip", "launch", "warmup", "null", "probe", "end", "breakdown", "block"),
        *("complete", "verdicts", "facts"),
    }


def harm_and_read(part: int, files: int, path: Path, whole: bytes) -> None:
    """From one in twenty conclusions are drawn too, one in two hundred is printed in every way."""
    draw = random.Random(SEED + part)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read_of(numbers: range) -> int:
        read = 0
        for number in numbers:
            harm = fuzz_loader.harmed(whole, draw)
            try:
                read += fuzz_loader.read(path, harm, depth=2 if number % 200 == 0 else number % 20 == 0)
            except BaseException:
                print(harm)
                raise
        return read

    read = read_of(range(500))
    with untraced():
        read += read_of(range(500, files))
    assert files / 25 < read < files / 2.5, "harm that is always refused, or never, tries little"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB for files of 10 KB"


@pytest.mark.parametrize("part", range(4))
def test_a_harmed_file_is_a_run_or_refused_in_one_line(part: int, path: Path, whole: bytes) -> None:
    harm_and_read(part, 5_000, path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_harmed_files_are_runs_or_refused_in_one_line(part: int, path: Path, whole: bytes) -> None:
    harm_and_read(part, 25_000, path, whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), JSON)
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_is_a_run_or_refused(path: Path, whole: bytes, data: st.DataObject, value: Any) -> None:
    lines = [json.loads(line) for line in whole.splitlines()]
    places = list(fuzz_loader.places(data.draw(st.sampled_from(lines))))
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = value
    fuzz_loader.read(path, "\n".join(map(json.dumps, lines)).encode(), depth=1)


# --- effbench.toml -----------------------------------------------------------------------------------

TOML = """
[check]
device = "cpu"
threads = 1
batch = 4
dtype = "float32"
allocator = "retain"
tolerance = "3%"
launches = 5
budget = "10m"
alpha = 0.05
inconclusive = "fail"
same_costs = true
baseline = "runs/main"
paths = [".", "src"]

[models.small]
model = "nets.py:small"
input = ["3x32x32", "ids=16:int64"]
batch = 2
dtype = "float64"
arguments = {width = 8, deep = {a = [1, 2]}}
tolerance = 0.01
max_madds = "300M"
max_params = 4_000_000
max_memory_access = "20M"
"""

TOML_VALUES = (
    *("true", "false", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e999", "9" * 400, "0x10", "1_000", '""', '"x"'),
    *('"1e999s"', '"nan%"', '"-3%"', '"0s"', '"1e400M"', '"-1M"', '"99999999999999999999x1"', '"0x0x0"', '"3xx"'),
    *('"\\u0000"', '"\\u001b[2J"', "'''a\nb'''", "[]", "[1]", '["", 1]', "[[]]", "{}", "{a = 1}", "1979-05-27"),
    *("07:32:00", "1979-05-27T07:32:00Z", f'"{"x" * 3000}"', "[" * 400 + "]" * 400, "{a = " * 100 + "1" + "}" * 100),
)


def harmed_toml(draw: random.Random) -> str:
    lines = TOML.splitlines()
    for _ in range(draw.choice((1, 1, 2))):
        at, kind = draw.randrange(len(lines)), draw.randrange(6)
        name, _, _ = lines[at].partition(" = ")
        if kind <= 2 and name:
            lines[at] = f"{name} = {draw.choice(TOML_VALUES)}"
        elif kind == 3:
            lines.insert(
                at, draw.choice((f"x = {draw.choice(TOML_VALUES)}", "[x]", "[[models]]", '[models."a\\nb"]', "="))
            )
        elif kind == 4:
            lines[at] = lines[draw.randrange(len(lines))]
        else:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)] + chr(draw.randrange(1, 0xD800))
    return "\n".join(lines)


def test_a_harmed_configuration_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    draw, path, seen = random.Random(SEED), tmp_path / config.FILE, Counter[str]()
    path.write_text(TOML)
    assert config.load(path).subjects[0].budgets["madds"] == 300_000_000
    for _ in range(4_000):
        text = harmed_toml(draw)
        path.write_text(text, encoding="utf-8")
        try:
            found = config.load(path)
            for subject in found.subjects:
                found.tolerance_of(subject.name)
                found.located(subject)
            found.options()
            seen["read"] += 1
        except EffbenchError as error:
            assert len(output.plain(str(error))) < 1000, error
            seen[type(error).__name__] += 1
        except BaseException:
            print(text)
            raise
    assert min(seen.values()) > 50 and seen.keys() == {"read", "InvalidValue", "UnknownName"}
