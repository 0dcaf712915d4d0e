"""ncnn through pnnx: facts about the converted graph, its float32, its batch axis, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from effbench import runtimes
from effbench.runtimes import Prepared, Setting, Unsupported

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

from effbench.runtimes.ncnn import _to_array

NCNN = runtimes.get("ncnn")
FILES = {"model.param", "model.bin", "axes.json", "export.json"}


class Shuffling(nn.Module):
    """Split, depthwise, concat and shuffle as in ShuffleNetV2; token numbers as a second input; nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)
        self.words = nn.Embedding(2, 6)

    def forward(self, image: Tensor, words: Tensor) -> dict[str, Any]:
        kept, worked = self.stem(image).chunk(2, dim=1)
        joined = torch.cat((kept, self.depthwise(worked)), dim=1)
        n, c, h, w = joined.shape
        shuffled = joined.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return {"features": shuffled, "heads": [self.head(shuffled.mean((2, 3))), self.words(words)]}


def fed(batch: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(batch)
    draw = lambda: torch.randn(batch, 3, 9, 7, generator=generator)  # noqa: E731
    return [(draw(), torch.randint(0, 2, (batch, 4), generator=generator)) for _ in range(2)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    with torch.inference_mode():  # as the worker builds it
        return Shuffling().eval()


@pytest.fixture(scope="module")
def setting(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("ncnn") / "cell")


@pytest.fixture(scope="module")
def prepared(network: nn.Module, setting: Setting) -> Prepared:
    with torch.inference_mode():
        return NCNN.prepare(network, fed(2), setting)


def test_what_a_call_returned_stays(prepared: Prepared) -> None:
    """Outputs may be views of ncnn's memory, which nothing else may be given while they are looked at."""
    first = [prepared.call(), prepared.call()]
    kept = [[array.copy() for array in outputs] for outputs in first]
    for _ in range(20):
        prepared.call()
    assert all(
        np.array_equal(one, other) for pair in zip(first, kept, strict=True) for one, other in zip(*pair, strict=True)
    )


def test_what_became_of_it_follows_from_the_network(prepared: Prepared, setting: Setting) -> None:
    """Norm and ReLU are folded into the stem; the view, transpose and reshape are one layer."""
    layers = {"Convolution": 1, "ConvolutionDepthWise": 1, "Slice": 1, "Concat": 1, "ShuffleChannel": 1}
    layers |= {"Reduction": 1, "InnerProduct": 1, "Embed": 1}
    facts = prepared.facts
    assert facts["layers"] == layers
    assert (facts["pieces"], facts["operators"], facts["outside"]) == (1, 8, {})
    assert facts["threads"] == 1 and facts["prepare_s"] > 0 and facts["load_s"] > 0
    assert {path.name for path in setting.folder.iterdir()} == FILES
    weights = (3 * 9 * 8 + 8) + (9 * 4 + 4) + (8 * 5 + 5) + 2 * 6
    assert facts["artefact_bytes"] >= (setting.folder / "model.bin").stat().st_size >= 4 * weights


def test_it_computes_in_float32_whatever_the_processor_could(setting: Setting, prepared: Prepared) -> None:
    options = NCNN.open(setting)._net.opt  # type: ignore[attr-defined]
    half = {name: getattr(options, name) for name in dir(options) if "fp16" in name or "bf16" in name}
    assert half and not any(half.values())


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("never\non this input")


def test_a_network_that_fails_while_traced_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"^ncnn cannot export it: ValueError: never$"):
        NCNN.prepare(Refusing(), [(torch.randn(1, 3),)], Setting(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_inputs_that_it_cannot_be_fed(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=f"ncnn takes no {dtype}; feed it"):
        NCNN.prepare(nn.Identity(), [(torch.ones(1, 3).to(dtype),)], Setting(tmp_path))


@pytest.mark.parametrize("name", ["model.param", "model.bin"])
def test_half_a_file_is_refused(name: str, tmp_path: Path, setting: Setting, prepared: Prepared) -> None:
    for path in setting.folder.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.name == name else content)
    with pytest.raises(Unsupported, match=r"^ncnn cannot load model.param: ."):
        NCNN.load([], replace(setting, folder=tmp_path))  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 4))
def test_the_batch_axis_is_put_back(sides: list[int], batch: int) -> None:
    """For every number of dimensions, with and without a batch; ncnn's own conversion is the other opinion."""
    import ncnn

    given_array = np.random.default_rng(0).normal(size=(batch, *sides)).astype(np.float32)
    mat = ncnn.Mat(given_array, batch_index=0).clone()
    found = _to_array((0, mat), 0)
    del mat
    np.testing.assert_array_equal(found, given_array)
    mat = ncnn.Mat(given_array, batch_index=0).clone()
    np.testing.assert_array_equal(_to_array((0, mat), 0), mat.numpy(batch_index=0))
    np.testing.assert_array_equal(_to_array((0, ncnn.Mat(given_array).clone()), 233), given_array)


def test_a_failed_extraction_is_no_output() -> None:
    with pytest.raises(RuntimeError, match="code -100"):
        _to_array((-100, None), 0)
