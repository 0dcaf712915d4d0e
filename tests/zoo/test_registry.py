"""The registry of models: names, aliases, other widths, error messages, import time."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from effbench import zoo
from effbench.core.errors import InvalidValue, ModelError, UnknownName
from effbench.zoo import _blocks, _registry, load_model

FAMILIES = sorted({entry.family for entry in _registry.all_entries().values()})


def test_the_catalogue_read_from_source_is_what_the_decorators_register():
    for family in FAMILIES:
        importlib.import_module(f"effbench.zoo.{family}")
    assert _registry.all_entries() == _registry.REGISTERED
    assert set(FAMILIES) >= {"resnet", "mobilenet_v1", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "probes"}


def test_listing_names_imports_no_torch():
    code = (
        "import sys; from effbench import zoo; assert 'shufflenet_v2' in zoo.names();"
        "zoo.entry('mobilenet_v2_x0_6'); import effbench.zoo.equal_cost; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_name_taken_twice_raises(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_registry, "REGISTERED", {})
    _registry.register("one", aliases=("first",))(test_a_name_taken_twice_raises)
    for taken in ("one", "first"):
        with pytest.raises(ValueError, match=f"'{taken}' is registered twice"):
            _registry.register(taken)(test_a_name_taken_twice_raises)


def test_a_decorator_that_is_not_literal_is_refused_not_run(tmp_path: Path):
    file = tmp_path / "family.py"
    file.write_text("@register('a', params=print('ran'))\ndef a(): ...\n")
    with pytest.raises(ValueError, match="malformed"):
        _registry.read_entries(file)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("shufflenet_v1", "shufflenet_v1_g3_x1_0"),
        ("shufflenet_v1_g8", "shufflenet_v1_g8_x1_0"),
        ("shufflenet_v1_x0_5", "shufflenet_v1_g3_x0_5"),
        ("shufflenet_v2", "shufflenet_v2_x1_0"),
        ("mobilenet_v1", "mobilenet_v1_x1_0"),
        ("mobilenet_v2", "mobilenet_v2_x1_0"),
        ("mobilenet_v2_x1", "mobilenet_v2_x1_0"),
    ],
)
def test_other_words_for_one_network(word: str, name: str):
    assert zoo.entry(word) is zoo.entry(name)


@pytest.mark.parametrize("word", ["mobilenet_v2_x0_6", "mobilenet_v1_x0_33", "shufflenet_v1_g4_x1_5"])
def test_an_unregistered_width_builds_and_claims_no_count(word: str):
    assert word not in zoo.names()
    entry = zoo.entry(word)
    assert (entry.name, entry.params, entry.madds_million) == (word, None, None)
    assert "no count published" in entry.source
    assert isinstance(zoo.build(word, num_classes=7), nn.Module)


def test_arguments_reach_the_builder():
    network = zoo.build("shufflenet_v2_x0_5", num_classes=7, in_channels=1)
    assert network.fc.out_features == 7
    assert network.stem[0].in_channels == 1
    assert zoo.resolve("shufflenet_v2_x0_5?num_classes=7", {}).fc.out_features == 7
    assert zoo.resolve("shufflenet_v2_x0_5?num_classes=7", {"num_classes": 9}).fc.out_features == 9


@pytest.mark.parametrize(
    ("word", "arguments", "error", "message"),
    [
        ("shufflenet_v2_x0_6", {}, InvalidValue, r"`width` \(=0.6\) .*use 0.5 or 1.0"),
        ("shufflenet_v1_g5_x1_0", {}, InvalidValue, r"`groups` \(=5\) .*use 3 or 4"),
        ("mobilenet_v2_x0_0", {}, InvalidValue, r"`width` \(=0.0\) .*use 0.35"),
        ("mobilenet_v1_x99", {}, InvalidValue, r"`width` \(=99\) .*use 1.0"),
        ("resnet18", {"depth": 19}, InvalidValue, r"`depth` \(=19\) .*use 18"),
        ("resnet18", {"colour": 1}, InvalidValue, "colour.*takes depth, num_classes, in_channels"),
        ("probe_groups", {}, InvalidValue, "channels.*takes channels, groups"),
        ("probe_groups", {"channels": 180, "groups": 8}, InvalidValue, "use 184 or 176"),
        ("resnet18", {"num_classes": -1}, ModelError, "cannot be built"),
        ("resnet20", {}, UnknownName, "Did you mean 'resnet"),
        ("mobilenet_v2_x{width}", {}, UnknownName, "no model named"),
        ("shuflenet_v2", {}, UnknownName, "Did you mean 'shufflenet_v2'"),
    ],
)
def test_wrong_words_get_one_line_with_a_way_out(word: str, arguments: dict, error: type, message: str):
    with pytest.raises(error, match=message) as raised:
        zoo.resolve(word, arguments)
    assert "\n" not in str(raised.value)


@settings(deadline=None)
@example(11.2, 8)
@example(0.1, 8)
@given(st.floats(0.01, 5000), st.sampled_from((1, 4, 8, 12, 32)))
def test_rounded_widths_are_multiples_near_the_wish_and_never_far_below(value: float, divisor: int):
    rounded = _blocks.make_divisible(value, divisor)
    assert rounded % divisor == 0
    assert rounded >= divisor
    assert rounded >= 0.9 * value
    assert abs(rounded - value) <= divisor


@settings(deadline=None)
@given(st.sampled_from((1, 2, 3, 4, 8)), st.floats(0.05, 4))
def test_every_width_of_shufflenet_v1_can_be_laid_out(groups: int, width: float):
    import torch

    with torch.device("meta"):
        zoo.build("shufflenet_v1", groups=groups, width=width)


# --- networks of the user -----------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from neighbour import WIDTH\n"
        "@dataclass\n"
        "class Settings:\n    width: int = WIDTH\n"
        "def network(width=Settings().width, kind='plain'):\n"
        "    if kind == 'broken': raise RuntimeError('first line\\nsecond line')\n"
        "    return nn.Linear(width, 2)\n"
        "class Net(nn.Linear):\n    def __init__(self, width=3): super().__init__(width, 2)\n"
        "ready = nn.Linear(4, 2)\n"
        "def number(): return 3\n"
        "three = 3\n"
    )
    return file


@pytest.mark.parametrize(
    ("factory", "features"),
    [("network", 5), ("network?width=6", 6), ("network?width=6&kind=plain", 6), ("Net?width=9", 9), ("ready", 4)],
)
def test_a_network_of_a_file(own: Path, factory: str, features: int):
    assert zoo.resolve(f"{own}:{factory}").in_features == features
    assert str(own.parent) not in sys.path


def test_a_network_of_an_installed_module_and_of_the_current_folder(own: Path, monkeypatch: pytest.MonkeyPatch):
    assert zoo.resolve("torch.nn:Linear?in_features=3&out_features=2").in_features == 3
    monkeypatch.chdir(own.parent)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert zoo.resolve("own:network", {"width": 8}).in_features == 8


def test_a_network_in_memory_travels_by_pickle(tmp_path: Path):
    cloudpickle = pytest.importorskip("cloudpickle")

    class Local(nn.Linear):
        pass

    (tmp_path / "net.pkl").write_bytes(cloudpickle.dumps(Local(3, 2)))
    assert zoo.resolve(f"pickle:{tmp_path / 'net.pkl'}").in_features == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{own}:netwrok", "did you mean 'network'"),
        ("{own}:zzz", "it has .*network"),
        ("{own}:number", "gives a int, not a torch.nn.Module"),
        ("{own}:three", "is a int"),
        ("{own}:network?kind=broken", "raises RuntimeError: first line; called with kind='broken'"),
        ("{own}:network?colour=1", "raises TypeError.*colour"),
        ("{own}:ready?width=1", "finished network"),
        ("{own}:", "write package.module:factory"),
        ("{own}x.py:network", "there is no file"),
        ("no_such_package.models:network", "there is no module 'no_such_package'"),
        ("torch.nn:Linnear", "did you mean 'Linear'"),
        ("{broken}:network", "loading the file fails: SyntaxError"),
        ("{leaving}:network", "loading the file fails: ValueError: wrong"),
        ("pickle:{own}", "cannot be read"),
        ("pickle:{own}.gone", "cannot be read: FileNotFoundError"),
    ],
)
def test_what_goes_wrong_with_a_user_network_is_one_line(own: Path, spec: str, message: str):
    broken, leaving = own.with_name("broken.py"), own.with_name("leaving.py")
    broken.write_text("def network(:\n")
    leaving.write_text("raise ValueError('wrong\\nin detail')\n")
    with pytest.raises(ModelError, match=message) as raised:
        load_model.load(spec.format(own=own, broken=broken, leaving=leaving))
    assert "\n" not in str(raised.value)
    assert str(own.parent) not in sys.path


def test_a_path_without_a_factory_is_told_how_to_write_it(own: Path):
    with pytest.raises(UnknownName, match=r"path/file\.py:factory"):
        zoo.resolve(str(own))
