"""The Python API as a notebook uses it: names and modules, frames, figures, and modules of the user's own."""

from __future__ import annotations

import math
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import study
from torch import nn

import effbench
from effbench.core.errors import EffbenchError, InvalidValue, ModelError, StorageError, UnknownName
from effbench.runs import run_file, runner

pytestmark = pytest.mark.usefixtures("forked_launches")

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores"
FAST = {"launches": 1, "budget_s": 0.5}


class Block(nn.Module):
    """A user's own network, defined where the test runs, as in a notebook cell."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


@pytest.mark.quick
def test_profile_takes_names_and_modules() -> None:
    named = effbench.profile("shufflenet_v2")
    assert named.cost.params == 2_278_604, "torchvision's num_params"
    assert named.model == "shufflenet_v2" and tuple(named.input_shape) == (3, 224, 224)
    module = effbench.profile(Block(), (3, 10, 12))
    assert module.cost.madds == 10 * 12 * 3 * 8 * 9
    assert module.cost.params == 3 * 8 * 9 + 8
    assert effbench.profile(Block(), (3, 10, 12), batch=3).cost.madds == 3 * module.cost.madds
    assert len(module.to_frame()) == len(module.ops) > 0


def test_profile_errors_are_for_people() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'shufflenet_v2'"):
        effbench.profile("shuflenet_v2")
    with pytest.raises(ModelError):
        effbench.profile(Block(), (4, 10, 12))


@pytest.mark.quick
def test_measuring_a_module_of_the_users_own(tmp_path: Path) -> None:
    results = effbench.measure(Block(), (3, 32, 32), out=tmp_path / "run", **FAST)
    (cell,) = results.cells
    assert cell.cell.id == "model=Block"
    assert cell.latency and 0 < cell.latency.point < 1
    assert cell.cost and cell.cost.madds == 32 * 32 * 3 * 8 * 9
    frame = results.to_frame()
    assert list(frame["model"]) == ["Block"] and math.isclose(frame["latency_s"][0], cell.latency.point)
    blocks = results.blocks_frame()
    assert len(blocks) == cell.blocks and (blocks["wall_ns"] > 0).all()
    assert not list(tmp_path.rglob("*.pkl")), "a pickle must not lie in a run's folder"
    with pytest.raises(EffbenchError, match="Python session"):
        cut = (tmp_path / "run" / "run.jsonl").read_text().splitlines(keepends=True)[:6]
        (tmp_path / "cut").mkdir()
        (tmp_path / "cut" / "run.jsonl").write_text("".join(cut))
        from effbench import api

        api.resume(tmp_path / "cut")


def test_comparing_two_of_one_class(tmp_path: Path) -> None:
    results = effbench.compare(Block(4), Block(64), input_shape=(3, 48, 48), out=tmp_path / "run", **FAST)
    assert [cell.cell.id for cell in results.cells] == ["model=Block", "model=Block-2"]
    assert results.cells[1].ratio and results.cells[1].ratio.point > 1.5, "16 times the work"
    for _, blocks in results.blocks_frame().groupby(["launch", "round"]):
        assert sorted(blocks["position"]) == [0, 1] and set(blocks["cell"]) == {"model=Block", "model=Block-2"}
    assert not results.verdicts
    figure = results.plot()
    assert len(figure.axes) >= 3
    assert "Block-2" in str(results)


def test_running_a_study_object_and_reading_it_back(tmp_path: Path) -> None:
    experiment = study()
    real = experiment.with_cases(
        type(case)(
            "probe_groups",
            (16, 8, 8),
            {"channels": 16, "groups": case.labels["groups"], "blocks": 1},
            labels=case.labels,
        )
        for case in experiment.cases
    )
    results = effbench.run(real, device="fake", launches=2, out=tmp_path / "run")
    assert {verdict.claim for verdict in results.verdicts} == {"slower", "ordered"}
    files = results.write()
    assert all(path.is_file() and path.stat().st_size > 100 for path in files.values())
    again = effbench.load(tmp_path / "run")
    assert again.run == results.run and again.verdicts == results.verdicts
    assert again.to_dict()["cells"][2]["ratio"] == results.to_dict()["cells"][2]["ratio"]
    assert results.plot().axes


def test_results_go_to_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {effbench.measure("lenet5", device="fake", launches=1).directory for _ in range(2)}
    assert len(folders) == 2
    assert all(folder and folder.parent == Path("results/runs") for folder in folders)


def test_misuse_is_named() -> None:
    with pytest.raises(InvalidValue, match="two models"):
        effbench.compare("resnet18")
    with pytest.raises(InvalidValue, match="named twice"):
        effbench.compare("resnet18", "resnet18")
    with pytest.raises(StorageError):
        effbench.load("no/such/run")

    class Local(Block):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(EffbenchError, match=r"cannot be sent to a worker process.*path/file.py:factory"):
        effbench.measure(Local(), (3, 8, 8))


def test_a_label_that_is_called_like_a_measured_column_keeps_its_values() -> None:
    """G1 varies a ratio, and a ratio is what is measured."""
    frame = effbench.load(REFERENCE / "g1_channel_ratio").to_frame()
    assert list(frame["ratio_label"][:4]) == ["1:1", "1:2", "1:6", "1:12"]
    assert frame["ratio"][0] == 1.0


def test_a_mapping_names_the_models(tmp_path: Path) -> None:
    networks = {"thin": nn.Conv2d(3, 2, 1), "wide": nn.Conv2d(3, 4, 1)}
    options: dict[str, Any] = {"device": "fake", "quick": True, "launches": 1, "out": tmp_path / "run"}
    results = effbench.compare(networks, input_shape=(3, 8, 8), **options)
    assert [cell.cell.case.labels["model"] for cell in results.cells] == ["thin", "wide"]
    assert [cell.cost.madds for cell in results.cells] == [3 * 2 * 64, 3 * 4 * 64]
    with pytest.raises(InvalidValue, match="two models or more, and was given 1"):
        effbench.compare({"thin": networks["thin"]}, device="fake")


def test_a_run_that_is_not_saved_leaves_nothing_and_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    options: dict[str, Any] = {"device": "fake", "quick": True, "launches": 1, "metrics": ["percentiles"]}
    results = effbench.compare("lenet5", "nin", save=False, **options)
    assert not list(here.iterdir()) and not list(scratch.glob("effbench*"))
    assert results.run.path is None and results.directory is None and results.run.complete
    assert list(results.to_frame()["model"]) == ["lenet5", "nin"]
    assert results.to_dict()["run_dir"] is None and "lenet5" in str(results) and results.plot().axes
    assert len(results.blocks_frame()) == sum(cell.blocks for cell in results.cells)
    with pytest.raises(StorageError, match="name a directory"):
        results.write()
    assert results.write(tmp_path / "kept")["table.csv"].is_file()
    with pytest.raises(InvalidValue, match="out names kept"):
        effbench.measure("lenet5", device="fake", out="kept", save=False)


def stop_at(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before this block is written."""
    really, blocks = run_file.RunWriter.block, iter(range(1000))

    def stopped(self: run_file.RunWriter, item: Any) -> None:
        if next(blocks) == block:
            raise KeyboardInterrupt
        really(self, item)

    monkeypatch.setattr(run_file.RunWriter, "block", stopped)


def test_ctrl_c_names_the_folder_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt) as stopped:
            effbench.measure("lenet5", device="fake", launches=2, out=folder)
    assert str(stopped.value) == (
        f"interrupted; what was measured is in {folder}; finish it with effbench.resume({folder!r})"
    )
    results = effbench.resume(folder)
    assert results.run.complete and results.cells[0].blocks > 5


@pytest.mark.parametrize("save", [True, False])
def test_only_a_run_that_is_saved_can_be_resumed(save: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[bool] = []

    def execute(*_: Any, can_resume: bool, **options: Any) -> None:
        seen.append(can_resume)
        raise EffbenchError("enough")

    monkeypatch.setattr(runner, "execute", execute)
    with pytest.raises(EffbenchError, match="enough"):
        effbench.measure("lenet5", device="fake", save=save, **({"out": tmp_path / "run"} if save else {}))
    assert seen == [save]


def test_ctrl_c_says_what_is_left_of_a_module_and_of_a_run_that_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match=r"effbench\.load\('run'\) reads it"):
        effbench.measure(Block(), (3, 8, 8), device="fake", out="run")
    assert not effbench.load("run").run.complete
    stop_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="nothing is kept, since save=False"):
        effbench.measure("lenet5", device="fake", save=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
