"""OpenVINO: facts about its graph, its threads, supported and refused precisions."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

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
def small(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Setting]:
    """The network converted once: what became of it, and where."""
    setting = Setting(tmp_path_factory.mktemp("openvino") / "cell")
    found = prepared(network, [fed(0)], setting)
    assert sorted(os.listdir(setting.folder)) == ["export.json", "model.bin", "model.xml"]
    return found, setting


def test_norm_and_relu_are_folded_and_the_shuffle_is_found(small: tuple[Prepared, Setting]) -> None:
    """The shuffle is one operator only where the sizes are fixed."""
    facts = small[0].facts
    assert facts["layers"]["Convolution"] == 2 and facts["layers"]["ShuffleChannels"] == 1
    assert not {"Const", "Input", "Output", "Eltwise", "Transpose"} & facts["layers"].keys()
    assert facts["operators"] == sum(facts["layers"].values())
    assert facts["pieces"] == 1 and facts["outside"] == {}


@pytest.mark.parametrize("threads", range(1, min(2, os.cpu_count() or 1) + 1))
def test_its_compiled_model_has_the_threads_and_settings_asked_for(
    small: tuple[Prepared, Setting], threads: int
) -> None:
    setting = replace(small[1], threads=threads)
    assert OpenVino().open(setting).threads == threads
    compiled = adapter._compile(setting)
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("CPU_DENORMALS_OPTIMIZATION") is True


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux says where a thread may run")
def test_the_thread_that_calls_is_not_left_pinned(small: tuple[Prepared, Setting]) -> None:
    before = os.sched_getaffinity(0)
    call = OpenVino().open(replace(small[1], threads=len(before))).bind(tuple(tensor.numpy() for tensor in fed(0)))
    for _ in range(3):
        call()
        assert os.sched_getaffinity(0) == before


def test_more_threads_than_the_machine_has_are_refused(small: tuple[Prepared, Setting]) -> None:
    """OpenVINO itself takes fewer and goes on."""
    many = 2 * (os.cpu_count() or 1) + 1
    with pytest.raises(Unsupported, match=f"threads where {many} were asked for"):
        OpenVino().load([tuple(tensor.numpy() for tensor in fed(0))], replace(small[1], threads=many))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_precision_that_the_cpu_lacks_is_refused_and_not_replaced(
    network: nn.Module, small: tuple[Prepared, Setting], dtype: str
) -> None:
    """Asked for float16 on a CPU that has only bfloat16, OpenVINO itself computes in bfloat16 and says nothing."""
    setting = replace(small[1], dtype=dtype)  # the same files: only the hint differs
    image, index = fed(0)
    if adapter.CAPABILITIES[dtype] in OpenVino().facts()["openvino.capabilities"]:
        found = prepared(network, [(image.to(getattr(torch, dtype)), index)], setting)
        with torch.inference_mode():
            assert 1e-5 < error(network(image, index), found.call()) < 3e-2
    else:
        with pytest.raises(Unsupported, match=f"no {dtype} on this CPU; use --dtype float32"):
            prepared(network, [(image, index)], setting)
