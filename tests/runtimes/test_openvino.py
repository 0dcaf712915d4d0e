"""OpenVINO: facts about its graph, supported and refused precisions, no network traffic."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_files import error, fed, prepared_by
from torch import Tensor, nn

from effbench import runtimes
from effbench.runtimes import Prepared, Setting, Unsupported
from effbench.runtimes import openvino as adapter
from effbench.runtimes.openvino import OpenVino

# Asked without importing it: that is the adapter's to do, as its import otherwise reports over the network.
pytestmark = pytest.mark.skipif(
    bool(runtimes.why_unavailable("openvino")), reason=str(runtimes.why_unavailable("openvino"))
)


class Small(nn.Module):
    """Two inputs of different kinds, outputs by name; norms and ReLUs to fold, a channel shuffle to find."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.names = nn.Embedding(5, 16)

    def forward(self, image: Tensor, index: Tensor) -> dict[str, Tensor]:
        y = self.first(image)
        n, c, h, w = y.shape
        y = self.second(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        return {"sum": y.mean((2, 3)) + self.names(index), "map": y}


prepared = partial(prepared_by, "openvino")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def small(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prepared, Setting, Any]]:
    """The network converted once: what became of it, where, and what eager returns for each input."""
    root = tmp_path_factory.mktemp("openvino")
    setting = Setting(root / "cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("TMPDIR", str(root))
        found = prepared(network, [fed(0), fed(1)], setting)
    assert os.listdir(root) == ["cell"], "nothing is left outside of the cell's folder"
    assert sorted(os.listdir(root / "cell")) == ["export.json", "model.bin", "model.xml"]
    with torch.inference_mode():
        yield found, setting, [network(*fed(0)), network(*fed(1))]


def test_it_computes_what_eager_does_on_each_input_in_turn(small: tuple[Prepared, Setting, Any]) -> None:
    found, _, expected = small
    for wanted in (*expected, *expected):
        assert error(wanted, found.call()) < 1e-4
    assert error(expected[1], found.call()) > 1e-2, "the other input was due"


def test_norm_and_relu_are_folded_and_the_shuffle_is_found(small: tuple[Prepared, Setting, Any]) -> None:
    """The shuffle is one operator only where the sizes are fixed."""
    facts = small[0].facts
    assert facts["layers"]["Convolution"] == 2 and facts["layers"]["ShuffleChannels"] == 1
    assert not {"Const", "Input", "Output", "Eltwise", "Transpose"} & facts["layers"].keys()
    assert facts["operators"] == sum(facts["layers"].values())
    assert facts["pieces"] == 1 and facts["outside"] == {}


@pytest.mark.parametrize("threads", range(1, min(2, os.cpu_count() or 1) + 1))
def test_its_compiled_model_has_the_threads_and_settings_asked_for(
    small: tuple[Prepared, Setting, Any], threads: int
) -> None:
    setting = replace(small[1], threads=threads)
    assert OpenVino().open(setting).threads == threads
    compiled = adapter._compile(setting)
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("CPU_DENORMALS_OPTIMIZATION") is True


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux says where a thread may run")
def test_the_thread_that_calls_is_not_left_pinned(small: tuple[Prepared, Setting, Any]) -> None:
    before = os.sched_getaffinity(0)
    call = OpenVino().open(replace(small[1], threads=len(before))).bind(tuple(tensor.numpy() for tensor in fed(0)))
    for _ in range(3):
        call()
        assert os.sched_getaffinity(0) == before


def test_more_threads_than_the_machine_has_are_refused(small: tuple[Prepared, Setting, Any]) -> None:
    """OpenVINO itself takes fewer and goes on."""
    many = 2 * (os.cpu_count() or 1) + 1
    with pytest.raises(Unsupported, match=f"threads where {many} were asked for"):
        OpenVino().load([tuple(tensor.numpy() for tensor in fed(0))], replace(small[1], threads=many))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_precision_that_the_cpu_lacks_is_refused_and_not_replaced(
    network: nn.Module, small: tuple[Prepared, Setting, Any], dtype: str
) -> None:
    """Asked for float16 on a CPU that has only bfloat16, OpenVINO itself computes in bfloat16 and says nothing."""
    setting = replace(small[1], dtype=dtype)  # the same files: only the hint differs
    image, index = fed(0)
    if adapter.CAPABILITIES[dtype] in OpenVino().facts()["openvino.capabilities"]:
        found = prepared(network, [(image.to(getattr(torch, dtype)), index)], setting)
        assert 1e-5 < error(small[2][0], found.call()) < 3e-2
    else:
        with pytest.raises(Unsupported, match=f"no {dtype} on this CPU; use --dtype float32"):
            prepared(network, [(image, index)], setting)


def test_a_missing_operator_is_named_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Eigenvalues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).abs()

    with pytest.raises(Unsupported, match=r"No conversion rule .*aten.linalg_eig.*; use another runtime") as caught:
        prepared(Eigenvalues(), [(torch.eye(4),)], Setting(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_it_runs_without_torch_and_calls_nobody(small: tuple[Prepared, Setting, Any], tmp_path: Path) -> None:
    """Its own import sends a message home, from a thread, and keeps an identity in the home folder."""
    _, setting, expected = small
    np.savez(tmp_path / "io", *(tensor.numpy() for tensor in (*fed(0), *expected[0].values())))
    code = (
        "import socket, sys, threading\n"
        "sys.modules['torch'] = None\n"
        "asked = []\n"
        "sys.addaudithook(lambda event, _: asked.append(event) if event.startswith('socket.') else None)\n"
        "import numpy as np\nfrom pathlib import Path\nfrom effbench import runtimes\n"
        "image, index, *expected = np.load(sys.argv[1]).values()\n"
        "setting = runtimes.Setting(Path(sys.argv[2]))\n"
        "found = runtimes.get('openvino').load([(image, index)], setting).call()\n"
        "assert threading.active_count() == 1 and not asked, (threading.enumerate(), asked)\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "print(max(abs(a - b).max() for a, b in zip(expected, found, strict=True)))"
    )
    home = tmp_path / "home"
    home.mkdir()
    told = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "io.npz"), str(setting.folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=told)
    assert done.stderr == "" and float(done.stdout) < 1e-4
    assert os.listdir(home) == []
