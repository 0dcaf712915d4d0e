"""Which metric predicts published speed: the shipped data against published counts and a recount, and the command."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nursery import HANGS_S
from schemas import validate
from shell import effbench, environment, refusal

from effbench import api
from effbench.analysis import stats
from effbench.core.cost import LEVELS
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.peaks import Peaks
from effbench.core.study import Analysis
from effbench.studies import catalog

pytestmark = pytest.mark.bulk

DATA = Path(__file__).parents[2] / "experiments" / "data" / "timm_throughput"
NAME = "metric_predicts_speed"

# Parameters (exact) and multiply-adds in 10⁹ of the same networks as torchvision publishes them, at 224 pixels.
PUBLISHED = {
    "resnet18": (11689512, 1.814),
    "resnet50": (25557032, 4.089),
    "vgg16": (138357544, 15.47),
    "densenet121": (7978856, 2.834),
    "mobilenetv2_100": (3504872, 0.301),
    "resnext50_32x4d": (25028904, 4.23),
    "wide_resnet50_2": (68883240, 11.398),
    "vit_base_patch16_224": (86567656, 17.564),
    "convnext_tiny": (28589128, 4.456),
    "swin_tiny_patch4_window7_224": (28288354, 4.491),
}


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def costs() -> dict[tuple[str, str], dict[str, str]]:
    return {(row["model"], row["img_size"]): row for row in rows("costs.csv")}


# --- the data ------------------------------------------------------------------------------------------


def test_every_published_row_is_counted_or_named_as_missing(costs: dict[tuple[str, str], dict[str, str]]) -> None:
    """1444, 1443 and 1440 rows, as published."""
    missing = {(row["model"], row["img_size"]) for row in rows("missing.csv")}
    bounds = {(row["run"], row["factor"], row["model"], row["img_size"]) for row in rows("bounds.csv")}
    published = {run["run"]: rows(run["file"]) for run in rows("runs.csv")}
    assert [len(lines) for lines in published.values()] == [1444, 1443, 1440]
    for run, lines in published.items():
        keys = {(row["model"], row["infer_img_size"]) for row in lines}
        assert len(keys) == len(lines)
        assert keys <= set(costs) | missing
        assert keys - missing == {(model, size) for name, factor, model, size in bounds if (name, factor) == (run, "1")}
    assert not missing & set(costs)
    assert len(missing) <= 0.01 * len(costs), "99 % of networks are counted"


@pytest.mark.parametrize("model", PUBLISHED)
def test_costs_are_those_torchvision_publishes(model: str, costs: dict[tuple[str, str], dict[str, str]]) -> None:
    params, billions = PUBLISHED[model]
    row = costs[model, "224"]
    assert int(row["params"]) == params
    assert int(row["madds"]) / 1e9 == pytest.approx(billions, abs=1.001e-3)


def test_costs_obey_what_holds_for_every_network(costs: dict[tuple[str, str], dict[str, str]]) -> None:
    """Fusing never adds traffic, and a convolution or product that writes its output moves at least that much."""
    for key, row in costs.items():
        moved = {level: int(row[f"{level}_weights"]) + int(row[f"{level}_activations"]) for level in LEVELS}
        assert moved["eager"] >= moved["pointwise"] >= moved["epilogue"] >= moved["layer"], key
        assert moved["layer"] >= int(row["activations"]), key
        assert row["status"] == "complete", key
        for level in LEVELS:
            # All but a few index tensors are float32.
            assert int(row[f"{level}_activation_bytes"]) == pytest.approx(
                4 * int(row[f"{level}_activations"]), rel=0.05
            )


def test_bounds_are_at_least_each_roof_and_at_most_both(costs: dict[tuple[str, str], dict[str, str]]) -> None:
    """max(Σ arithmetic, Σ traffic) ≤ Σ max ≤ Σ arithmetic + Σ traffic, at the published batch and the run's peaks."""
    runs = {run["run"]: run for run in rows("runs.csv")}
    batches = {
        (name, row["model"], row["infer_img_size"]): int(row["infer_batch_size"])
        for name, run in runs.items()
        for row in rows(run["file"])
    }
    for bound in rows("bounds.csv"):
        run, cost = runs[bound["run"]], costs[bound["model"], bound["img_size"]]
        batch = batches[bound["run"], bound["model"], bound["img_size"]]
        factor = {"0.333": 1 / 3, "1": 1.0, "3": 3.0}[bound["factor"]]
        arithmetic = 2 * int(cost["madds"]) / (factor * float(run["flops_per_s"]))
        for level in LEVELS:
            moved = int(cost[f"{level}_weight_bytes"]) / batch + int(cost[f"{level}_activation_bytes"])
            traffic = moved * float(run["bytes_per_element"]) / 4 / float(run["bytes_per_s"])
            least, most = max(arithmetic, traffic), arithmetic + traffic
            assert least * (1 - 1e-4) <= float(bound[level]) <= most * (1 + 1e-4), (bound, level)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("model", ["resnet18", "mobilevitv2_050", "test_vit"])
def test_a_recount_gives_what_is_shipped(model: str, costs: dict[tuple[str, str], dict[str, str]]) -> None:
    """Costs by the command's own path; bounds from a profile at the published batch, whole instead of per image."""
    from effbench.cost.roofline import bounds_s

    shipped = [row for (name, _), row in costs.items() if name == model]
    for row in shipped:
        side = int(row["img_size"])
        found = api.profile(f"timm:{model}", (3, side, side))
        assert str(found.cost.madds) == row["madds"] and str(found.cost.activations) == row["activations"]
        for level, traffic in found.cost.memory_access_levels.items():
            assert [str(traffic.weights), str(traffic.activations)] == [
                row[f"{level}_weights"],
                row[f"{level}_activations"],
            ]
    run = rows("runs.csv")[1]
    published = next(row for row in rows(run["file"]) if row["model"] == model)
    side, batch = int(published["infer_img_size"]), int(published["infer_batch_size"])
    halved = float(run["bytes_per_s"]) * 4 / float(run["bytes_per_element"])
    whole = bounds_s(
        api.profile(f"timm:{model}", (3, side, side), batch=batch).kernels, Peaks(float(run["flops_per_s"]), halved)
    )
    key = (run["run"], "1", model, str(side))
    (bound,) = [row for row in rows("bounds.csv") if (row["run"], row["factor"], row["model"], row["img_size"]) == key]
    for level in LEVELS:
        assert float(bound[level]) == pytest.approx(whole[level] / batch, rel=1e-4)


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole analysis in a process that can import neither torch nor timm.

    A tenth of the draws of each interval: they take two thirds of the time, and the claims below leave more room.
    """
    folder = tmp_path_factory.mktemp("analysis")
    code = (
        "import sys; sys.modules.update(torch=None, timm=None, torchvision=None); from functools import partial;"
        "from effbench.analysis import stats; from effbench.cli import main;"
        "stats.cluster_interval = partial(stats.cluster_interval, draws=100);"
        f"sys.exit(main(['run', {NAME!r}, '--json', '--out', 'here']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert all((folder / path).stat().st_size for path in document["files"].values())
    table = folder / document["files"]["table.csv"]
    assert table.read_text().startswith("device,predicted from,median error (share)")
    return document


def test_files_and_claim_are_told(said: dict[str, Any]) -> None:
    validate(said, "analysis")
    assert said["analysis"] == NAME
    assert set(said["files"]) >= {"table.md", "table.csv", "figure.png", "figure.svg"}
    assert [sample["networks"] for sample in said["samples"]] == [
        len(rows(run["file"])) - len(rows("missing.csv")) for run in rows("runs.csv")
    ]
    assert len(said["notes"]) >= len(said["samples"])


def errors_of(said: dict[str, Any], run: str) -> dict[tuple[str, ...], dict[str, float]]:
    (sample,) = [sample for sample in said["samples"] if sample["name"] == run]
    return {tuple(score["metrics"]): score["median_error"] for score in sample["scores"]}


def test_memory_access_predicts_where_multiply_adds_do_not(said: dict[str, Any]) -> None:
    """The claim, as wide as its intervals: no overlap on the graphics card, in eager mode and compiled."""
    for run, level in (("rtx4090_eager", "eager"), ("rtx4090_compiled", "pointwise")):
        errors = errors_of(said, run)
        joined = errors["multiply-adds", f"memory access, {level}"]
        assert joined["high"] < errors["multiply-adds",]["low"] / 2
        assert joined["point"] < errors["multiply-adds", "activations"]["point"]
        assert errors[f"roofline bound, {level}",]["high"] < errors["multiply-adds",]["low"] / 2


def test_the_level_that_predicts_best_is_the_one_the_runtime_reaches(said: dict[str, Any]) -> None:
    """Eager mode makes every pass; a compiler fuses, so that what it saves no longer costs time."""
    eager, compiled = errors_of(said, "rtx4090_eager"), errors_of(said, "rtx4090_compiled")
    for what in ("roofline bound, {}", "memory access, {}"):
        own, fused = what.format("eager"), what.format("pointwise")
        keys = [(own,), (fused,)] if "bound" in what else [("multiply-adds", own), ("multiply-adds", fused)]
        assert eager[keys[0]]["point"] < eager[keys[1]]["point"]
        assert compiled[keys[1]]["point"] < compiled[keys[0]]["point"]


def test_every_number_is_a_share_or_a_correlation(said: dict[str, Any]) -> None:
    for sample in said["samples"]:
        for score in sample["scores"]:
            for name in ("within_25_percent", "kendall_tau", "spearman"):
                assert -1 <= score[name]["low"] <= score[name]["point"] <= score[name]["high"] <= 1
            assert 0 < score["median_error"]["low"] <= score["median_error"]["high"]
            assert min(score["coefficients_s"]) >= 0


def test_sizes_takes_each_network_once() -> None:
    study = catalog.load(NAME)
    assert isinstance(study, Analysis)
    published = study.analyse.__globals__["published"]
    once = published("smallest")
    for sample, run in zip(once, rows("runs.csv"), strict=True):
        assert len(sample.times_s) == len({row["model"] for row in rows(run["file"])})
    eager = published("all")[0]
    # test_vit at 160 pixels and batch 1024 is the first row: 188343.61 images/s.
    (cost,) = [row for row in rows("costs.csv") if (row["model"], row["img_size"]) == ("test_vit", "160")]
    assert eager.times_s[0] == pytest.approx(1 / 188343.61)
    assert eager.metrics["memory access, eager"][0] == pytest.approx(
        int(cost["eager_weights"]) / 1024 + int(cost["eager_activations"])
    )


# --- runs of one's own ---------------------------------------------------------------------------------

NETWORKS = [
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "mobilenet_v2_x1_0",
    "mobilenet_v1_x0_25",
    "mobilenet_v1_x0_5",
    "shufflenet_v1_g3_x0_5",
    "shufflenet_v1_g3_x1_0",
    "resnet18",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison on the scripted clock, whose times follow the eager memory access."""
    folder = tmp_path_factory.mktemp("home")
    options = ("--device", "fake", "--input", "3x64x64", "--launches", 1, "--quick", "--out", "many")
    done = effbench("compare", *NETWORKS, *options, cwd=folder)
    assert done.code == 0, done.err
    return folder


def test_a_stored_comparison_is_analysed_the_same_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "cluster_interval", partial(stats.cluster_interval, draws=10))
    monkeypatch.chdir(home)
    found = api.analyse(NAME, select={"runs": ["many"]})
    (sample,) = found.to_dict()["samples"]
    assert (sample["networks"], sample["families"]) == (8, 5)
    scores = {tuple(score["metrics"]): score for score in sample["scores"]}
    assert scores["memory access, eager",]["kendall_tau"]["point"] == pytest.approx(1.0)
    assert scores["memory access, eager",]["median_error"]["point"] < 0.1
    assert scores["multiply-adds",]["median_error"]["point"] > 0.2


WRONG = {
    "--device cpu": ["measures nothing", "leave out device"],
    "--quick": ["measures nothing", "leave out quick"],
    "--select run=x": ["no selection of metric_predicts_speed named 'run'", "Did you mean 'runs'", "sizes"],
    "--select sizes=smalest": ["Did you mean 'smallest'"],
    "--select sizes=all,smallest": ["takes one of all, smallest"],
    "--select sizes=all --select runs=many": ["leave it out beside runs"],
    "--select runs=nowhere": ["nowhere"],
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_get_one_line(words: str, home: Path) -> None:
    line = refusal(effbench("run", NAME, *words.split(), cwd=home))
    for part in WRONG[words]:
        assert part in line


def test_each_verb_of_the_python_api_sends_to_the_other() -> None:
    with pytest.raises(InvalidValue, match=r"effbench\.analyse"):
        api.run(NAME)
    with pytest.raises(InvalidValue, match=r"effbench\.run"):
        api.analyse("g2_groups")
    with pytest.raises(UnknownName, match="selection of metric_predicts_speed"):
        api.analyse(NAME, select={"nothing": ["x"]})


def test_the_scores_hang_little_on_how_families_fall_into_folds() -> None:
    """Five other assignments of families to folds move the headline by a few per cent at most."""
    from effbench.analysis import prediction

    study = catalog.load(NAME)
    eager = study.analyse.__globals__["published"]("all")[0]  # type: ignore[union-attr]
    joined = [eager.metrics["multiply-adds"], eager.metrics["memory access, eager"]]
    for columns, low, high in ((joined[:1], 0.35, 0.55), (joined, 0.08, 0.14)):
        for seed in range(5):
            predicted = prediction.out_of_fold(columns, eager.times_s, eager.families, seed)
            errors = sorted(abs(guess / time - 1) for guess, time in zip(predicted, eager.times_s, strict=True))
            assert low < errors[len(errors) // 2] < high
            assert all(map(math.isfinite, errors))


def test_it_tells_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its intervals take seconds, so a bar is due: one step a published run, never backwards, never done too early."""
    monkeypatch.setattr(stats, "cluster_interval", partial(stats.cluster_interval, draws=10))
    told: list[tuple[float, str]] = []
    api.analyse(NAME, select={"sizes": ["smallest"]}, watch=lambda step: told.append((step.done, step.doing)))
    shares = [done for done, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
    assert [doing for _, doing in told][:3] == [
        "fitting RTX 4090, eager AMP",
        "fitting RTX 4090, compiled AMP",
        "fitting Core i7-12700H, compiled",
    ]
