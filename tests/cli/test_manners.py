"""Frequent mistakes on the command line: a file without a model's name, a family of names, a study beside --resume.

Also warnings of user code.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shell import effbench, kinds, refusal, study_file
from torch import nn

from effbench import zoo
from effbench.core.errors import EffbenchError, UnknownName
from effbench.studies import model_comparison
from effbench.zoo import model_files, suggest_factories

NETS = """
import functools
from functools import partial
from torch import nn
from torch.nn import Linear
from torch.nn.functional import relu as borrowed

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(3, width)
    def forward(self, x):
        return self.layer(x)

class Block(nn.Module):
    def __init__(self, inside, outside): super().__init__()

class Config: pass
class _Hidden(Net): pass
def small(width=2): return Net(width)
def sized(width): return Net(width)
def _private(): return Net()
def main():
    def inner(): return 3
    inner()
def nothing() -> None: return None
def number() -> int: return 3
async def later(): return Net()
def one_by_one(): yield Net()
@functools.lru_cache
def cached(): return Net()
half = partial(Net, 2)
needy = partial(Block, 2)
ready = nn.Sequential(nn.Linear(3, 5))
again = ready
WIDTH = 3
"""
WRITTEN = ["Net", "Block?inside=…&outside=…", "small", "cached", "half", "ready"]


def told(word: str) -> str:
    with pytest.raises(EffbenchError) as raised:
        model_comparison.require_models([word])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    return str(raised.value)


# --- a file for a network -----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("nets_here", "package_here", "effbench_user_nets"):
            del sys.modules[name]


def test_a_file_or_module_lists_what_it_makes(here: Path):
    (here / "nets_here.py").write_text(NETS)
    (here / "package_here").mkdir()
    (here / "package_here" / "__init__.py").write_text("")
    (here / "package_here" / "deep.py").write_text(NETS)
    for word in ("nets_here.py", "./nets_here.py", f"{here}/nets_here.py", "nets_here", "package_here.deep"):
        expected = ", ".join(f"{word}:{name}" for name in WRITTEN)
        assert told(word).endswith(f"name a network in it: {expected}"), word
        assert told(f"{word}:").endswith(expected), "a colon alone names nothing"
    assert "package_here.deep:function" in told("package_here")
    for name in ("small", "Net", "cached", "half", "ready"):
        assert isinstance(zoo.resolve(f"nets_here.py:{name}"), nn.Module), "what is listed builds"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "makes no network; add a function that returns one"),
        ("import sys; sys.exit(3)\n", r"sys.exit(3); correct it first"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_thing\n", "imports 'no_such_thing', which is not installed"),
        ("\n".join(f"def net{n}(): return {n}" for n in range(40)), "net11 and 28 more"),
    ],
)
def test_a_file_that_makes_none_or_fails_or_makes_many(text: str, said: str, here: Path):
    (here / "file.py").write_text(text)
    assert said in told("file.py")


@pytest.mark.parametrize("word", ["nowhere.py", "nowhere.py:", "nowhere.py:net", "nowhere.pt", "nowhere.onnx:net"])
def test_a_file_that_is_not_there(word: str, here: Path):
    assert "there is no file nowhere." in told(word)


@pytest.mark.parametrize("word", ["no.such.module", "nets_there", "torch", "", ":", "x" * 5000, "x" * 5000 + ".onnx"])
def test_a_word_that_is_nothing_stays_an_unknown_name(word: str, here: Path):
    with pytest.raises(UnknownName, match="there is no model named"):
        model_comparison.require_models([word])
    assert "path/file.py:factory" in told(word)


@pytest.mark.parametrize("command", ["profile", "compare nin", "check --max-params 1", "bundle --out made"])
def test_every_command_says_so_in_one_line_and_writes_nothing(command: str, tmp_path: Path):
    (tmp_path / "nets.py").write_text("def net(): return 3\n")
    line = refusal(effbench(*command.split(), "nets.py", cwd=tmp_path))
    assert line == "nets.py is a file; name a network in it: nets.py:net"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"nets.py"}


# --- a model file for a network -----------------------------------------------------------------------

LAYER = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())


class Trap:
    """What a stranger's pickle may hold."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def script(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(LAYER), path)


def program(path: Path) -> None:
    torch.export.save(torch.export.export(LAYER, (torch.zeros(1, 3, 4, 4),)), path)


def cut(path: Path) -> None:
    torch.save(LAYER, path)
    path.write_bytes(path.read_bytes()[:700])


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/b.txt", "c")


def tensors(path: Path) -> None:
    header = json.dumps({"a": {}, "b": {}, "__metadata__": {}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


WEIGHTS, CHECKPOINT = LAYER.state_dict(), {"model": LAYER.state_dict(), "epoch": 3, "best": 0.5}
FILES = {
    "weights.pt": (lambda path: torch.save(WEIGHTS, path), "holds weights without a network (a state dict"),
    "weights.pth": (lambda path: torch.save(CHECKPOINT, path), "holds weights without a network"),
    "old.pt": (lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False), "holds weights without"),
    "whole.pt": (lambda path: torch.save(LAYER, path), "whole pickled network (Sequential of torch.nn.modules.conta"),
    "oldnet.pt": (lambda path: torch.save(LAYER, path, _use_new_zipfile_serialization=False), "whole pickled network"),
    "script.pt": (script, "is a TorchScript network; in a file, write `def net(): return torch.jit.load('script.pt')`"),
    "script.pth": (script, "is a TorchScript network"),
    "program.pt2": (program, "torch.export.load('program.pt2').module()"),
    "trap.pt": (lambda path: path.write_bytes(pickle.dumps({"a": Trap()})), "runs code of whoever wrote it"),
    "trap2.pt": (lambda path: torch.save({"w": torch.zeros(2), "a": Trap()}, path), "runs code of whoever wrote it"),
    "trap.pkl": (lambda path: path.write_bytes(pickle.dumps(Trap())), "runs code of whoever wrote it"),
    "cut.pt": (cut, "is a broken zip archive"),
    "zipped.pt": (archive, "is a zip archive that torch did not write"),
    "text.pt": (lambda path: path.write_text("hello"), "is no file that torch wrote"),
    "empty.pth": (lambda path: path.write_bytes(b""), "is no file that torch wrote"),
    "w.safetensors": (tensors, "holds weights without a network (2 tensors, safetensors)"),
    "broken.safetensors": (lambda path: path.write_bytes(b"12"), "ends like weights in safetensors and is none"),
    **{
        name: (lambda path: path.write_bytes(b"xx"), said)
        for name, said in {
            "net.onnx": "is an ONNX graph",
            "net.ONNX": "is an ONNX graph",
            "net.tflite": "is a TensorFlow Lite model",
            "net.pte": "is an ExecuTorch program",
            "net.engine": "is a TensorRT engine",
            "net.keras": "is a Keras model",
            "net.gguf": "holds weights without a network (GGUF)",
            "net.xml": "is an OpenVINO model",
            "net.ipynb": "is a notebook",
            "net.yaml": "is a configuration",
            "notes.txt": "is a file, and no network",
            "no_ending": "is a file, and no network",
        }.items()
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_model_file_is_named_for_what_it_is(name: str, here: Path):
    make, said = FILES[name]
    make(here / name)
    line = told(name)
    assert line.startswith(f"{name} ") and said in line
    assert "path/file.py:" in line, "and says what to write"
    assert told(f"{name}?width=2") == line
    if name.partition(".")[2] in ("pt", "onnx", "pt2"):
        assert told(f"{name}:net") == line
    assert not (here / "sprung").exists(), "no file of a stranger is unpickled"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("bundle.json", "is a bundle; measure it with effbench run-bundle folder"),
        ("run.jsonl", "is a stored run; show it with effbench report folder"),
        ("saved_model.pb", "is a TensorFlow SavedModel"),
        ("some.py", "is a folder; name a network in one of its files, such as folder/some.py:function"),
        ("notes.txt", "is a folder; write a file"),
    ],
)
def test_a_folder_is_named_for_what_it_is(file: str, said: str, here: Path):
    (here / "folder").mkdir()
    (here / "folder" / file).write_text("")
    assert said in told("folder")
    assert said.partition(" with ")[0].partition(", such")[0] in told("folder/")


def test_a_network_of_the_zoo_is_not_taken_for_a_folder_of_its_name(here: Path):
    (here / "resnet18").mkdir()
    (here / "lenet5.py").write_text("")
    model_comparison.require_models(["resnet18", "lenet5"])


def test_the_command_names_a_checkpoint(tmp_path: Path):
    torch.save(WEIGHTS, tmp_path / "net.pt")
    assert "holds weights without a network" in refusal(effbench("profile", "net.pt", cwd=tmp_path))
    assert "holds weights without a network" in refusal(effbench("compare", "net.pt", "nin", cwd=tmp_path))


def test_every_ending_has_words(tmp_path: Path):
    for ending in model_files.SUFFIXES:
        (tmp_path / f"a{ending}").write_bytes(b"")
        assert model_files.description(str(tmp_path / f"a{ending}"))
    assert suggest_factories.advice("no_such_module_at_all") is None


# --- a family for a name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "name"),
    [("lenet", "lenet5"), ("LeNet", "lenet5"), ("inception", "inception_v3"), ("efficientnet", "efficientnet_b0")],
)
def test_a_family_of_one_is_its_network(word: str, name: str):
    assert zoo.entry(word) is zoo.entry(name)
    model_comparison.require_models([word])
    assert isinstance(zoo.build(word), nn.Module)


@pytest.mark.parametrize(
    ("word", "some"),
    [
        ("resnet", ["resnet18", "resnet50", "resnet152"]),
        ("ResNet", ["resnet18"]),
        ("vgg", ["vgg11", "vgg16_bn", "vgg19"]),
        ("densenet", ["densenet121", "densenet201"]),
        ("mobilenet", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"]),
        ("mobilenet_v3", ["mobilenet_v3_large", "mobilenet_v3_small"]),
        ("shufflenet", ["shufflenet_v1", "shufflenet_v2"]),
        ("squeezenet", ["squeezenet1_0", "squeezenet1_1"]),
        ("se_resnet", ["se_resnet18"]),
    ],
)
def test_a_family_of_several_lists_them(word: str, some: list[str]):
    line = told(word)
    listed = line.partition("name one: ")[2].split(", ")
    assert f"'{word}' is a family of models" in line
    assert set(some) <= set(listed)
    for name in listed:
        assert zoo.entry(name).kind == "network" and name.startswith(word.lower())


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("resnet1", "resnet18"),
        ("resnet19", "resnet18"),
        ("mobilnet", "mobilenet_v2"),
        ("ResNet50", "resnet50"),
        ("vg", ""),
    ],
)
def test_a_typing_error_is_no_family(word: str, near: str):
    line = told(word)
    assert "there is no model named" in line and (not near or f"Did you mean '{near}'?" in line)


def test_a_family_of_a_library_lists_its_networks():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    assert "resnet18, " in told("torchvision:resnet") and "is a family of torchvision networks" in told(
        "torchvision:vgg"
    )
    assert "more" in told("timm:vit"), "of hundreds not all"


def test_the_commands_take_a_family(tmp_path: Path):
    assert effbench("profile", "lenet", "--json", cwd=tmp_path).json["params"] == zoo.entry("lenet5").params
    assert "is a family of models" in refusal(effbench("profile", "vgg", cwd=tmp_path))
    assert "is a family of models" in refusal(effbench("compare", "lenet", "vgg", cwd=tmp_path))


# --- a study beside --resume --------------------------------------------------------------------------


def test_a_named_study_is_resumed_where_the_folder_holds_it(tmp_path: Path):
    study_file(tmp_path)
    (tmp_path / "other.py").write_text((tmp_path / "tiny.py").read_text().replace("'tiny'", "'other'"))
    done = effbench("run", "tiny.py", "--device", "fake", "--out", "kept", cwd=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "kept" / "run.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    cut_at = max(number for number, line in enumerate(lines) if b'"kind":"launch"' in line)
    path.write_bytes(b"".join(lines[:cut_at]))
    line = refusal(effbench("run", "other.py", "--resume", "kept", cwd=tmp_path))
    assert line == "kept holds a run of tiny, not of other; leave out other.py to finish that run"
    assert "holds a run of tiny, not of g2_groups" in refusal(
        effbench("run", "g2_groups", "--resume", "kept", cwd=tmp_path)
    )
    assert "leave out launches" in refusal(
        effbench("run", "tiny.py", "--resume", "kept", "--launches", "3", cwd=tmp_path)
    )
    assert "no run at" in refusal(effbench("run", "tiny.py", "--resume", "nowhere", cwd=tmp_path))
    done = effbench("run", "tiny.py", "--resume", "kept", cwd=tmp_path)
    assert done.code == 0, done.err
    assert kinds(tmp_path / "kept")[-1] == "complete"


# --- warnings of a user's code ------------------------------------------------------------------------

WARNS = """
import warnings
warnings.warn("You are loading an old checkpoint.\\nSecond line.\\n" + "x" * 2000, FutureWarning)
from torch import nn
def net(width=4):
    for _ in range(3):
        warnings.warn("Initializing zero-element tensors is a no-op", UserWarning)
    warnings.warn("y" * 2000)
    print("printed by the user")
    return nn.Linear(3, width)
"""


@pytest.mark.parametrize(
    "command",
    [
        "profile warns.py:net --input 3 --json",
        "profile warns.py:net --input 3 --json --crosscheck",
        "check warns.py:net --input 3 --max-params 1M --json",
        "compare warns.py:net warns.py:net?width=2 --input 3 --device fake --quick --json",
    ],
)
def test_each_warning_of_a_users_code_is_one_line_once(command: str, tmp_path: Path):
    (tmp_path / "warns.py").write_text(WARNS)
    done = effbench(*command.split(), cwd=tmp_path)
    assert done.code == 0, done.err
    json.loads(done.out)
    lines = [line for line in done.err.splitlines() if "printed by the user" not in line]
    assert len(lines) == len(set(lines)) <= 3
    for line in lines:
        assert line.startswith("effbench: warning: ") and len(line) < 300, line
    if command.startswith("profile"):
        assert "effbench: warning: You are loading an old checkpoint." in lines
        assert "effbench: warning: Initializing zero-element tensors is a no-op" in lines
