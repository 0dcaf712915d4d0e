"""Models that are not ours: torchvision's and timm's by name, packages and files, and what is missing said in one line.

Sizes and parameter counts are those that the libraries publish, written out here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nursery import HANGS_S
from shell import effbench, environment, refusal

from effbench import api, zoo
from effbench.core.errors import ModelError, UnknownName
from effbench.cost import count_in_subprocess
from effbench.zoo import libraries, load_model


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def fresh(code: str, folder: Path) -> str:
    """What a new process prints: importing a library is done once in each."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- inputs that the libraries publish ----------------------------------------------------------------


@needs("torchvision")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("inception_v3", (3, 299, 299)),
        ("efficientnet_b0", (3, 224, 224)),
        ("efficientnet_b7", (3, 600, 600)),
        ("regnet_y_128gf", (3, 224, 224)),
        ("regnet_y_128gf?weights=IMAGENET1K_SWAG_E2E_V1", (3, 384, 384)),
        ("vit_h_14", (3, 224, 224)),
        ("vit_b_16?image_size=160", (3, 160, 160)),
        ("fcn_resnet50", (3, 520, 520)),
        ("r3d_18", (3, 16, 112, 112)),
        ("mvit_v2_s", (3, 16, 224, 224)),
        ("fasterrcnn_resnet50_fpn", None),
    ],
)
def test_torchvision_publishes_the_input(name: str, shape: tuple[int, ...] | None):
    assert load_model.published_shape(f"torchvision:{name}") == shape


@needs("timm", "torchvision")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 224, 224)),
        ("resnet18.a1_in1k", (3, 224, 224)),
        ("tf_efficientnet_b4", (3, 380, 380)),
        ("inception_v4", (3, 299, 299)),
        ("vit_base_patch16_224?img_size=384", (3, 384, 384)),
        ("efficientnet_b0?in_chans=4", (4, 224, 224)),
    ],
)
def test_timm_publishes_the_input(name: str, shape: tuple[int, ...]):
    assert load_model.published_shape(f"timm:{name}") == shape
    assert api.profile(f"timm:{name}").input_shape == shape


def test_a_stranger_publishes_nothing():
    assert load_model.published_shape("torch.nn:Linear") is None


@needs("timm", "torchvision")
def test_a_network_of_timm_in_memory_still_knows_its_input():
    network = zoo.resolve("timm:inception_v4")
    assert libraries.declared_shape(network) == (3, 299, 299)
    network.input_shape = "large"
    assert libraries.declared_shape(network) == (3, 299, 299), "what is no shape is not believed"


# --- building -----------------------------------------------------------------------------------------


@needs("timm", "torchvision")
@pytest.mark.parametrize(
    ("spec", "params"),
    [
        ("torchvision:resnet18", 11_689_512),
        ("torchvision:resnet18?num_classes=10", 11_689_512 - 990 * 513),
        ("torchvision:regnet_y_400mf", 4_344_144),
        ("timm:resnet18?num_classes=10", 11_689_512 - 990 * 513),
        ("timm:mobilenetv2_100", 3_504_872),
    ],
)
def test_libraries_build_by_name_with_arguments(spec: str, params: int):
    network = count_in_subprocess.build_on_meta(spec, {})
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    assert all(parameter.is_meta for parameter in network.parameters()), "no weight takes memory to be counted"


@needs("torchvision")
def test_nothing_is_downloaded_for_a_backbone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    assert api.profile("torchvision:deeplabv3_mobilenet_v3_large").cost.params > 1e7


@needs("torchvision", "timm")
@pytest.mark.parametrize(
    ("spec", "params"),
    [
        ("torchvision:resnet18?weights=DEFAULT", 11_689_512),
        ("torchvision:resnet18?weights=ResNet18_Weights.IMAGENET1K_V1", 11_689_512),
        ("torchvision:resnet18?pretrained=True", 11_689_512),
        ("torchvision:densenet121?weights=DEFAULT", 7_978_856),
        ("torchvision:googlenet?weights=DEFAULT", 6_624_904),  # without the two heads that help it to learn
        ("torchvision:r3d_18?weights=DEFAULT", 33_371_472),  # 400 classes of Kinetics
        ("torchvision:fcn_resnet50?weights=DEFAULT", 35_322_218),
        ("torchvision:deeplabv3_mobilenet_v3_large?weights=DEFAULT", 11_029_328),
        ("timm:resnet18?pretrained=True", 11_689_512),
        ("timm:resnet18?pretrained=True&num_classes=10", 11_689_512 - 990 * 513),
        ("timm:tf_efficientnetv2_s.in21k?pretrained=True", 21_458_488 + 20_843 * 1281),  # 21,843 classes
    ],
)
def test_a_count_downloads_no_weights_and_is_of_the_network_that_they_are_for(
    spec: str, params: int, monkeypatch: pytest.MonkeyPatch
):
    for place in ("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "urllib.request.urlopen"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("a download"))
    network = count_in_subprocess.build_on_meta(spec, {})
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    load = torch.nn.Module.load_state_dict
    layer = torch.nn.Linear(2, 2)
    assert layer.load_state_dict(layer.state_dict()).missing_keys == [] and load.__module__.startswith("torch")


@needs("torchvision")
def test_a_measurement_has_the_weights_that_were_asked_for(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: asked.append(url) or fetched
    )
    fetched = zoo.resolve("torchvision:squeezenet1_1").state_dict()
    network = zoo.resolve("torchvision:squeezenet1_1?weights=DEFAULT")
    assert len(asked) == 1 and "squeezenet1_1" in asked[0]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in fetched.items())
    count_in_subprocess.build_on_meta("torchvision:squeezenet1_1?weights=DEFAULT", {})
    assert len(asked) == 1


@needs("torchvision")
def test_the_command_profiles_without_a_download(tmp_path: Path):
    done = effbench("profile", "torchvision:squeezenet1_1?weights=DEFAULT", "--json", cwd=tmp_path)
    assert done.code == 0 and done.json["params"] == 1_235_496, done.err
    assert done.err == ""


def test_a_tied_weight_stays_tied_without_memory(tmp_path: Path):
    file = tmp_path / "tied.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.size = int(torch.arange(5).sum())\n"  # not on meta: it looks at a value
        "        weight = nn.Parameter(torch.zeros(self.size, self.size))\n"
        "        self.a, self.b = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)\n"
        "        self.a.weight = weight\n        self.b.weight = weight\n"
        "    def forward(self, x):\n        return self.b(self.a(x))\n"
    )
    network = count_in_subprocess.build_on_meta(f"{file}:Tied", {})
    assert network.a.weight is network.b.weight and network.a.weight.is_meta
    found = api.profile(f"{file}:Tied", (10,))
    assert (found.cost.params, found.cost.madds) == (100, 200)


@needs("timm", "torchvision")
@pytest.mark.parametrize(
    ("first", "then"),
    [("timm:resnet18", "torchvision:resnet18"), ("own", "timm:resnet18")],
)
def test_libraries_load_in_a_fresh_process_in_any_order(first: str, then: str, tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "from torchvision.models import resnet18\nimport timm\n"
        "def net(width=1.0): return timm.create_model('resnet18') if width < 1 else resnet18()\n"
    )
    specs = [f"{tmp_path / 'own.py'}:net?width=0.5" if spec == "own" else spec for spec in (first, then)]
    code = (
        "from effbench import zoo\n"
        f"for spec in {specs!r}:\n"
        "    print(sum(p.numel() for p in zoo.resolve(spec).parameters()))\n"
        "import torchvision.ops\n"
    )
    assert fresh(code, tmp_path).split() == ["11689512"] * 2


@needs("torchvision")
def test_a_package_of_the_current_folder_may_import_torchvision(tmp_path: Path):
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text(
        "from torchvision.models import shufflenet_v2_x0_5\n"
        "def build(classes=1000): return shufflenet_v2_x0_5(num_classes=classes)\n"
    )
    done = effbench("profile", "nets.small:build?classes=10", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["params"] == 1_366_792 - 990 * 1025


def test_an_operator_is_defined_once_and_any_other_failure_goes_through(tmp_path: Path):
    code = (
        "from effbench.zoo.libraries import with_missing_schemas\n"
        "tries = []\n"
        "def load():\n"
        "    tries.append(1)\n"
        "    if len(tries) < 3:\n"
        '        raise RuntimeError(f\'operator torchvision::{["nms", "qnms"][len(tries) - 1]} does not exist\')\n'
        "    return len(tries)\n"
        "print(with_missing_schemas(load))\n"
        "absent = 'operator torchvision::{} does not exist'.format\n"
        "for text in (absent('nms'), absent('new'), 'other'):\n"
        "    def load(): raise RuntimeError(text)\n"
        "    try:\n        with_missing_schemas(load)\n"
        "    except RuntimeError as error:\n        print(error == error and str(error) == text)\n"
    )
    assert fresh(code, tmp_path).split() == ["3", "True", "True", "True"]


# --- what is wrong or missing -------------------------------------------------------------------------


@needs("timm", "torchvision")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", r"no torchvision network named 'resnet81'.*Did you mean 'resnet18'"),
        ("timm:mobilenetv2_10", r"no timm network named 'mobilenetv2_10'.*Known: .*mobilenetv2_100"),
        ("timm:resnet18.a1_in1", r"no tag of resnet18 named 'a1_in1'.*Did you mean 'a1_in1k'"),
    ],
)
def test_an_unknown_name_gives_the_nearest(spec: str, message: str):
    for ask in (api.profile, zoo.resolve, lambda spec: api.measure(spec, quick=True)):
        with pytest.raises(UnknownName, match=message) as raised:
            ask(spec)
        assert "\n" not in str(raised.value)


@needs("timm", "torchvision")
def test_commands_refuse_an_unknown_name_before_anything_runs(tmp_path: Path):
    for command in (("profile", "timm:resnet81"), ("compare", "shufflenet_v2", "timm:resnet81", "--quick")):
        assert "no timm network named 'resnet81'" in refusal(effbench(*command, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_one_line(library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library} is not installed; pip install 'effbench\[{library}\]'"
    with pytest.raises(ModelError, match=message):
        api.profile(f"{library}:resnet18")
    file = tmp_path / "own.py"
    file.write_text(f"import {library}\n")
    with pytest.raises(ModelError, match=rf"imports '{library}', which is not installed; pip install 'effbench\["):
        zoo.resolve(f"{file}:net")


def test_a_library_without_its_own_needs_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for known in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, known)
    (tmp_path / "timm.py").write_text("import no_such_hub\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"timm needs 'no_such_hub'.*effbench\[timm\]"):
        zoo.resolve("timm:resnet18")
    (tmp_path / "timm.py").write_text("raise ImportError('undefined symbol: one\\ntwo')\n")
    importlib.invalidate_caches()
    with pytest.raises(ModelError, match=r"timm does not load beside this torch: ImportError: undefined symbol: one;"):
        zoo.resolve("timm:resnet18")


@pytest.mark.parametrize("spec", ["{folder}/needy.py:net", "needy:net", "needy_package.deep:net"])
def test_what_a_users_code_needs_is_named(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needy.py").write_text("import no_such_package.layers\n")
    (tmp_path / "needy_package").mkdir()
    (tmp_path / "needy_package" / "__init__.py").write_text("")
    (tmp_path / "needy_package" / "deep.py").write_text("from no_such_package import layers\n")
    with pytest.raises(ModelError, match=r"imports 'no_such_package', which is not installed; pip install no_such_pac"):
        zoo.resolve(spec.format(folder=tmp_path))


@needs("torchvision")
def test_a_network_of_torchvision_is_compared_with_a_users(tmp_path: Path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(width=4): return nn.Conv2d(3, width, 1)\n")
    models = ("own.py:net?width=2", "torchvision:squeezenet1_1")
    done = effbench("compare", *models, "--device", "fake", "--quick", "--json", cwd=tmp_path)
    first, second = json.loads(done.out)["cells"]
    assert first["madds"] == 224 * 224 * 3 * 2
    assert (second["params"], second["input_shape"]) == (1_235_496, [3, 224, 224])


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("src/foo/zoo.py:backbone", "name it foo.zoo:backbone and set PYTHONPATH=src"),
        ("src/foo/sub/deep.py:backbone", "name it foo.sub.deep:backbone and set PYTHONPATH=src"),
        ("src/foo/lazy.py:backbone", "name it foo.lazy:backbone and set PYTHONPATH=src"),
        ("src/foo/absolute.py:backbone", "name it foo.absolute:backbone and set PYTHONPATH=src"),
        ("plain/zoo.py:backbone", "name it plain.zoo:backbone"),
    ],
)
def test_a_file_of_a_package_is_told_its_module_name(
    spec: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its relative imports fail as long as it is named as a file; under the name that is told they work."""
    blocks = "import torch\nclass Block(torch.nn.ReLU):\n    pass\n"
    give = "def backbone():\n    return Block()\n"
    files = {
        "src/foo/__init__.py": "",
        "src/foo/blocks.py": blocks,
        "src/foo/sub/__init__.py": "",
        "src/foo/zoo.py": f"from .blocks import Block\n{give}",
        "src/foo/sub/deep.py": f"from ..blocks import Block\n{give}",
        "src/foo/lazy.py": "def backbone():\n    from .blocks import Block\n    return Block()\n",
        "src/foo/absolute.py": f"from foo.blocks import Block\n{give}",
        "plain/blocks.py": blocks,
        "plain/zoo.py": f"from .blocks import Block\n{give}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is a part of the package") as refused:
        load_model.load(spec)
    assert advice in str(refused.value)
    known = set(sys.modules)
    try:
        monkeypatch.syspath_prepend(tmp_path / "src")
        told = advice.split()[2]
        assert type(load_model.load(told)).__name__ == "Block"
    finally:
        for name in set(sys.modules) - known:
            del sys.modules[name]


def test_a_module_that_lacks_something_else_is_not_told_to_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "foo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "zoo.py").write_text("from math import nothing\nfrom .blocks import Block\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="cannot import name 'nothing' from 'math'"):
        load_model.load("foo/zoo.py:backbone")


def test_a_factory_that_raises_without_a_word_is_told_by_the_type(tmp_path: Path) -> None:
    file = tmp_path / "silent.py"
    file.write_text("def build():\n    raise RuntimeError()\n")
    with pytest.raises(ModelError, match=r"silent\.py:build raises RuntimeError; called with no arguments$"):
        load_model.load(f"{file}:build")
