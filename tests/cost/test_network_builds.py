"""Building models by name: without weight values where that is safe, with the source files that they import."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from nursery import HANGS_S
from torch import nn

from effbench import api
from effbench.core.errors import ModelError
from effbench.cost.network_builds import _writes_forbidden, build_network

FILE = """
import os, random
import numpy as np
import torch
from torch import nn

TABLE = torch.arange(8.0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x * TABLE)

def plain():
    return Net()

def saves():
    net = Net()
    torch.save(net.state_dict(), "by_torch.pt")
    return net

def writes():
    net = Net()
    with open("by_open.txt", "w") as file:
        file.write(str(net.layer.weight))
    return net

def arrays():
    net = Net()
    np.save("by_numpy.npy", net.layer.weight.detach().numpy())
    return net

def late():
    import late_module
    return late_module.Net()

def looks():
    net = Net()
    return net if net.layer.weight.sum().item() < 1e9 else None

def draws():
    random.random()
    return Net()

def leaves():
    raise SystemExit(3)

def crashes():
    assert os.getpid() != TESTS, "built in the process of the tests, which it would end"
    os.kill(os.getpid(), 11)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late_module.py").write_text(FILE, encoding="utf-8")
    path = tmp_path / "saving_nets.py"
    path.write_text(f"{dedent(FILE)}\nTESTS = {os.getpid()}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["plain", "saves", "writes", "arrays", "late", "looks", "draws"])
def test_every_factory_is_counted_on_shapes(nets: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(nets.parent))
    cost = api.profile(f"{nets}:{name}", (8,)).cost
    assert (cost.madds, cost.traced_on) == (64, "meta")


def test_a_factory_that_saves_its_network_saves_one_with_values(nets: Path) -> None:
    for name in ("saves", "writes"):
        api.profile(f"{nets}:{name}", (8,))
    saved = torch.load(nets.parent / "by_torch.pt")
    assert {value.device.type for value in saved.values()} == {"cpu"}
    assert "meta" not in (nets.parent / "by_open.txt").read_text(encoding="utf-8")


def test_constants_of_a_module_have_values_afterwards(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(nets.parent))
    api.profile("saving_nets:late", (8,))
    try:
        assert sys.modules["saving_nets"].TABLE.device.type == "cpu"
        assert "late_module" not in sys.modules, "what a factory imports stays in the process that it ran in"
    finally:
        sys.modules.pop("saving_nets", None)


def test_what_ends_the_process_is_said(nets: Path) -> None:
    with pytest.raises(ModelError, match=r"sys.exit\(3\)"):
        api.profile(f"{nets}:leaves", (8,))
    with pytest.raises(ModelError, match="SIGSEGV"):
        api.profile(f"{nets}:crashes", (8,))


def test_other_threads_write_while_a_network_is_built(nets: Path) -> None:
    """And so do modules that are imported meanwhile."""
    with _writes_forbidden():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(Path("log.txt").write_text, "line").result()
        with pytest.raises(Exception, match="no values"):
            Path("weights.txt").write_text("meta")
    assert not Path("weights.txt").exists()
    Path("weights.txt").write_text("values")


SAVES: dict[str, Callable[[Path], Any]] = {
    "torch.save": lambda path: torch.save({}, path),
    "torch.jit.save": lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path),
    "open to write": lambda path: path.open("w").close(),
    "open to read and write": lambda path: path.open("w+").close(),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_nothing_is_saved_while_a_network_is_built_and_all_is_afterwards(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "weights"
    with _writes_forbidden(), pytest.raises(Exception, match="no values"):
        save(path)
    assert not path.exists()
    save(path)
    assert path.exists()


def test_what_is_none_of_the_networks_is_written_meanwhile(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(str(nets.parent))
    with _writes_forbidden():
        with tempfile.TemporaryFile() as file:
            file.write(b"scratch")
        logging.FileHandler("log.txt").close()
        with open("/dev/null", "w") as file:
            file.write("nowhere")
        importlib.import_module("late_module")
    sys.modules.pop("late_module")
    assert list(nets.parent.glob("__pycache__/late_module*")) and Path("log.txt").exists()


def test_a_fresh_process_counts_and_compiles() -> None:
    """Initialisers import torch's compiler stack, which looks for a folder to write to."""
    code = """
        import effbench, torch
        assert effbench.profile("inception_v3").cost.status == "complete"
        assert torch.compile(torch.nn.Linear(3, 3), backend="eager")(torch.ones(1, 3)).shape == (1, 3)
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=HANGS_S)


def test_a_parameter_of_two_layers_is_counted_once_where_only_parameters_are_on_meta(tmp_path: Path):
    """The constructor computes with a tensor, so that the whole network cannot be on meta."""
    file = tmp_path / "nets.py"
    file.write_text(
        dedent(
            """
            import torch
            from torch import nn
            class Tied(nn.Module):
                def __init__(self):
                    super().__init__()
                    width = int(torch.ones(4).sum())
                    shared = nn.Parameter(torch.zeros(width, width))
                    self.first, self.second = nn.Linear(4, width, bias=False), nn.Linear(width, 4, bias=False)
                    self.first.weight = self.second.weight = shared
                    self.own = nn.Parameter(torch.zeros(3))
                    del shared
                def forward(self, x):
                    return self.second(self.first(x))
            """
        )
    )
    network = build_network("parameters", f"{file}:Tied", {})
    assert isinstance(network, nn.Module)
    assert network.first.weight is network.second.weight and network.first.weight.is_meta
    assert api.profile(f"{file}:Tied", (4,)).cost.params == 4 * 4 + 3
