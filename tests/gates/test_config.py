"""effbench.toml: the meaning of every key, and one-line errors for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.core.errors import EffbenchError, InvalidValue, StorageError, UnknownName
from effbench.core.inputs import Input
from effbench.core.measure_options import MeasureOptions
from effbench.gates import config
from effbench.gates.config import Config, Subject

pytestmark = pytest.mark.quick

WHOLE = """
[check]
device = "cpu"
threads = 2
tolerance = "5%"
launches = 4
budget = "3m"
alpha = 0.01
inconclusive = "pass"
same_costs = true
baseline = "stored/main"

[models.small]
model = "nets.py:small?depth=3"
input = ["3x32x32", "mask=1x32x32:bool"]
batch = 8
dtype = "bfloat16"
arguments = { width = 16, norm = "batch" }
tolerance = 0.1
max_madds = "1.5M"
max_params = 20_000

[models.mobilenet_v2]
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "effbench.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_key_means_what_it_says(tmp_path: Path) -> None:
    found = config.load(written(tmp_path, WHOLE))
    small = Subject(
        "small",
        "nets.py:small?depth=3",
        (Input((3, 32, 32)), Input((1, 32, 32), "mask", "bool")),
        8,
        "bfloat16",
        {"width": 16, "norm": "batch"},
        0.1,
        {"madds": 1_500_000, "params": 20_000},
    )
    assert found == Config(
        subjects=(small, Subject("mobilenet_v2", "mobilenet_v2")),
        folder=tmp_path,
        device="cpu",
        threads=2,
        tolerance=0.05,
        launches=4,
        budget_s=180.0,
        alpha=0.01,
        inconclusive="pass",
        same_costs=True,
        baseline="stored/main",
    )
    assert [found.tolerance_of(name) for name in ("small", "mobilenet_v2")] == [0.1, 0.05]
    assert found.options() == MeasureOptions(threads=2, launches=4, budget_s=180.0)


def test_a_relative_model_file_lies_beside_the_configuration(tmp_path: Path) -> None:
    found = config.load(written(tmp_path, WHOLE))
    small, zoo = found.subjects
    assert found.located(small) == f"{tmp_path}/nets.py:small?depth=3"
    assert found.located(zoo) == "mobilenet_v2"
    for spec in ("/abs/nets.py:small", "package.nets:small", "timm:resnet18", "torchvision:resnet18?weights=None"):
        assert found.located(Subject("x", spec)) == spec
    assert Config().located(Subject("x", "sub/../nets.py:f")) == "nets.py:f"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("threads = -1", "threads = -1: expected a whole number, 0 for every core"),
        ("threads = true", "threads = True: expected a whole number"),
        ('threads = "2"', "threads = '2': expected a whole number"),
        ("tolerance = 3", "tolerance = 3: expected a share such as"),
        ('tolerance = "300%"', "tolerance = '300%': expected a share such as"),
        ("tolerance = nan", "tolerance = nan: expected a share"),
        ("alpha = 1.0", "alpha = 1.0: expected a share"),
        ("launches = 0", "launches = 0: expected a whole number of 1 or more"),
        ("launches = 2.5", "launches = 2.5: expected a whole number"),
        ('budget = "soon"', "budget = 'soon': expected a time such as"),
        ("budget = inf", "budget = inf: expected a time"),
        ("device = 1", "device = 1: expected a device such as"),
        ('dtype = "float8"', "dtype = 'float8': expected one of float32"),
        ("dtype = []", "expected one of float32"),
        ('inconclusive = "ignore"', 'inconclusive = \'ignore\': expected "fail" or "pass"'),
        ('same_costs = "yes"', "same_costs = 'yes': expected true or false"),
        ("baseline = {}", "baseline = {}: expected the path of a stored run or profile"),
        ("[models.m]\nmax_madds = -1", "[models.m] max_madds = -1: expected a count such as"),
        ('[models.m]\nmax_madds = "many"', "[models.m] max_madds = 'many': expected a count such as"),
        ("[models.m]\nmax_params = 1.5", "max_params = 1.5: expected a count such as"),
        ("[models.m]\nmodel = 3", "model = 3: expected a model such as"),
        ('[models.m]\ninput = "3x0x4"', "input = '3x0x4': expected an input such as"),
        ("[models.m]\ninput = []", "input = []: expected an input such as"),
        ("[models.m]\ninput = [[3, 32, 32]]", "expected an input such as"),
        ("[models.m]\nbatch = 0", "batch = 0: expected a whole number of 1 or more"),
        ("[models.m]\narguments = 3", "arguments = 3: expected a table"),
        ("[models.m]\narguments = { since = 2020-01-01 }", "expected a table of keyword arguments for the model"),
        ("[models.m]\narguments = { width = inf }", "expected a table of keyword arguments for the model"),
        ("[models]\nm = 3", "models must be tables"),
        ("[models.yardstick]", "effbench reserves 'yardstick' for its own model"),
        ('[models.""]', "it is empty"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_was_expected(tmp_path: Path, line: str, expected: str) -> None:
    text = line if line.startswith("[") else f"[check]\n{line}"
    with pytest.raises(InvalidValue) as refused:
        config.load(written(tmp_path, text))
    message = str(refused.value)
    assert str(tmp_path / "effbench.toml") in message and expected in message and "\n" not in message


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("[check]\ntolerence = 0.1", "'tolerence'. Did you mean 'tolerance'? Known: "),
        ("[models.m]\nmax_mads = 1", "'max_mads'. Did you mean 'max_madds'?"),
        ("[model.m]", "table in"),
        ("tolerance = 0.1", "there is no table in"),
    ],
)
def test_an_unknown_key_is_guessed_and_the_known_ones_listed(tmp_path: Path, text: str, guess: str) -> None:
    with pytest.raises(UnknownName) as refused:
        config.load(written(tmp_path, text))
    assert guess in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [b"[check", b"\xff\xfe[check]", b"a = 1\na = 2", b"check = 1", b"models = []", b"a = " + b"[" * 20_000,
     b"[check]\nthreads = " + b"9" * 5000, b"\x00"],
)  # fmt: skip
def test_what_is_not_such_a_file_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(EffbenchError) as refused:
        config.load(written(tmp_path, text))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="check the path"):
        config.load(tmp_path / "absent.toml")
    with pytest.raises(StorageError, match="check the path"):
        config.load(tmp_path)


def test_where_the_configuration_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValue, match=r"no MODEL and no effbench\.toml here; .*\[models\.small\]"):
        config.find()
    assert config.find(models=("a.py:f",)).subjects == (Subject("a.py:f", "a.py:f"),)
    written(tmp_path, WHOLE)
    assert [subject.name for subject in config.find().subjects] == ["small", "mobilenet_v2"]
    assert config.find(models=("small",)).subjects[0].budgets["params"] == 20_000
    # A model that it does not have is not held to its options.
    assert config.find(models=("small", "resnet18")) == Config(
        (Subject("small", "small"), Subject("resnet18", "resnet18"))
    )
    mixed = config.find(Path("effbench.toml"), ("small", "resnet18"))
    assert mixed.threads == 2 and mixed.subjects[1] == Subject("resnet18", "resnet18")
    with pytest.raises(InvalidValue, match="named twice"):
        config.find(models=("resnet18", "resnet18"))


def test_what_is_typed_wins(tmp_path: Path) -> None:
    found = config.load(written(tmp_path, WHOLE))
    typed = {"threads": 1, "batch": 2, "tolerance": 0.2, "launches": None, "inputs": (Input((3, 8, 8)),)}
    said = config.with_options(found, typed, {"madds": 7})
    assert (said.threads, said.launches, said.batch) == (1, 4, 2)
    assert [subject.batch for subject in said.subjects] == [2, 2]
    assert [said.tolerance_of(name) for name in ("small", "mobilenet_v2")] == [0.2, 0.2]
    assert said.subjects[0].budgets == {"madds": 7, "params": 20_000} and said.subjects[1].budgets == {"madds": 7}
    assert said.subjects[1].inputs == (Input((3, 8, 8)),)


_KEYS = st.sampled_from([*config._CHECK, *config._MODEL, "else"])
_VALUES = st.one_of(
    st.booleans().map(lambda value: str(value).lower()),
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(lambda value: repr(value) if value == value else "nan"),
    st.sampled_from(["[]", "{}", '["3x8x8"]', "2020-01-01", '"\\u001b[31m"', '"1e9"', '"3x8x8"', '"5%"', '"cpu"']),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\\'), max_size=12).map(
        lambda text: f'"{text}"'
    ),
)


@settings(deadline=None, max_examples=300)
@given(table=st.sampled_from(["check", "models.m"]), key=_KEYS, value=_VALUES)
def test_any_value_under_any_key_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, table: str, key: str, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "effbench.toml"
    path.write_text(f"[{table}]\n{key} = {value}\n", encoding="utf-8")
    try:
        assert isinstance(config.load(path), Config)
    except EffbenchError as error:
        assert "\n" not in str(error) and str(path) in str(error)
