"""fleet.toml: what every key means, where it is found, and one line for everything else."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from effbench.core.errors import EffbenchError, InvalidValue, StorageError, UnknownName
from effbench.core.measure_options import MeasureOptions
from effbench.fleet import config
from effbench.fleet.config import FleetConfig, load

pytestmark = pytest.mark.quick

WHOLE = """
scheduler = "tls://hub.lab:8786"
certs = "~/.config/effbench/alice"
patience = "10m"

[options."device=cuda"]
device = "cuda"
budget = "90s"
launches = 7
metrics = ["energy", "percentiles"]

[options.gpu-1]
budget = 30
spread = "2h"
precision = "2%"
autotune = true
memory_format = "channels_last"
dtype = "float16"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a current folder without any file."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(here)
    return home


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_key_means_what_it_says(home: Path) -> None:
    found = load(written(Path("lab.toml"), WHOLE))
    assert found.scheduler == "tls://hub.lab:8786"
    assert found.certs == home / ".config" / "effbench" / "alice"
    assert found.patience_s == 600
    assert list(found.options) == ["device=cuda", "machine=gpu-1"]
    assert found.options_for(["device=cuda", "machine=gpu-1", "arch=arm64"]) == {
        "device": "cuda",
        "budget_s": 30,
        "launches": 7,
        "metrics": ("energy", "percentiles"),
        "spread_s": 7200,
        "precision": 0.02,
        "autotune": True,
        "memory_format": "channels_last",
        "dtype": "float16",
    }
    assert found.options_for(["device=cuda"])["budget_s"] == 90
    assert found.options_for(["gpu-1"]) == found.options["machine=gpu-1"]
    assert found.options_for(["board=pi5", "pi5-a"]) == {}


def test_tables_are_merged_in_the_order_of_the_file() -> None:
    text = '[options.a]\nthreads = 1\nseed = 1\n[options."b=c"]\nthreads = 2\n[options."machine=a"]\nseed = 3\n'
    found = load(written(Path("lab.toml"), text))
    for labels in (["b=c", "a"], ["a", "b=c"]):
        assert found.options_for(labels) == {"threads": 2, "seed": 3}


def test_every_measuring_option_can_be_given() -> None:
    assert {target for target, *_ in config._OPTIONS.values()} == {
        item.name for item in fields(MeasureOptions) if item.name != "device_options"
    }


def test_without_a_file_there_are_defaults() -> None:
    assert load() == FleetConfig(scheduler="tcp://127.0.0.1:8786", certs=None, patience_s=600, options={})


def test_where_the_file_is_looked_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = written(tmp_path / "given.toml", 'scheduler = "given"')
    written(home / ".config" / "effbench" / "fleet.toml", 'scheduler = "home"')
    assert load().scheduler == "home"
    written(tmp_path / "xdg" / "effbench" / "fleet.toml", 'scheduler = "xdg"')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load().scheduler == "xdg"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert load().scheduler == "home"
    written(Path("fleet.toml"), 'scheduler = "here"')
    assert load().scheduler == "here"
    assert load(given).scheduler == "given"


def test_a_relative_folder_of_certificates_is_relative_to_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "lab" / "fleet.toml", 'certs = "certs/alice"')
    assert load(path).certs == tmp_path / "lab" / "certs" / "alice"
    assert load(written(path, 'certs = "/etc/alice"')).certs == Path("/etc/alice")


def test_a_file_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(StorageError, match=r"cannot read other\.toml"):
        load(Path("other.toml"))


WRONG = [
    ("scheduler = 3", "lab.toml: scheduler = 3: expected an address"),
    ('scheduler = " "', "expected an address"),
    ("certs = []", "lab.toml: certs = []: expected a folder"),
    ('certs = "~nobody-of-this-name/x"', "lab.toml: certs = "),
    ('patience = "soon"', "lab.toml: patience = 'soon': expected a time such as"),
    ("patience = 0", "expected a time"),
    ("patience = inf", "expected a time"),
    ("patience = true", "expected a time"),
    ("options = 3", "lab.toml: options must be tables by label"),
    ("[options]\nbudget = '3s'", "options must be tables by label"),
    ('[options."Board=pi5"]', 'lab.toml: [options."Board=pi5"]: label Board=pi5'),
    ('[options."a=b"]\nbudget = "x"', "lab.toml: [options.\"a=b\"] budget = 'x': expected a time"),
    ('[options."a=b"]\nprecision = 2', "expected a share"),
    ('[options."a=b"]\nlaunches = "5"', "expected a whole number"),
    ('[options."a=b"]\nthreads = true', "expected a whole number"),
    ('[options."a=b"]\nquick = 1', "expected true or false"),
    ('[options."a=b"]\nruntime = 1', "expected text"),
    ('[options."a=b"]\nmetrics = "energy"', "expected a list of names"),
    ('[options."a=b"]\ncache = "warm"', "expected one of steady, cold, hot"),
    ('[options."a=b"]\nthreads = 5000', 'lab.toml: [options."a=b"]: threads (=5000) must be at most'),
    ('[options."a=b"]\nmetrics = ["speed"]', "there is no metric named 'speed'"),
    ("scheduler", "lab.toml is not TOML"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_value_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        load(written(Path("lab.toml"), text))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('schedular = "x"', "no key in lab.toml named 'schedular'. Did you mean 'scheduler'?"),
        (
            '[options."a=b"]\nbudget_s = 3',
            "no key in [options.\"a=b\"] of lab.toml named 'budget_s'. Did you mean 'budget'?",
        ),
        ('[options."a=b"]\ndevice_options = {}', "named 'device_options'"),
        ("[option.a]", "Did you mean 'options'?"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(UnknownName) as caught:
        load(written(Path("lab.toml"), text))
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"scheduler = '\xff'", b"\0"])
def test_a_file_of_another_encoding(content: bytes) -> None:
    Path("lab.toml").write_bytes(content)
    with pytest.raises(EffbenchError, match="save it as UTF-8"):
        load(Path("lab.toml"))
