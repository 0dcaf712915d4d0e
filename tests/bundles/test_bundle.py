"""Bundles: export, runs without torch, and refusal of corrupt or malicious bundles."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import validate
from shell import QUICKLY, Done, records, refusal, study_file
from torchless import effbench as torchless

import effbench
from effbench import api
from effbench.bundles import bundle, export
from effbench.cli import app
from effbench.cli import bundle as cli_bundle
from effbench.core.errors import EffbenchError, InvalidValue
from effbench.core.measure_options import MeasureOptions
from effbench.core.study import Analysis
from effbench.host.worker_process import WorkerFailed
from effbench.runs import run_file
from effbench.studies import catalog

for needed in ("torch", "onnxruntime", "onnxscript", "ncnn", "pnnx"):
    pytest.importorskip(needed)

CELLS = [f"runtime={runtime},groups={groups}" for runtime in ("onnxruntime", "ncnn") for groups in (1, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """Two cells of a study under two runtimes."""
    folder = tmp_path_factory.mktemp("bundle")
    study = catalog.load(str(study_file(folder, QUICKLY)))
    assert not isinstance(study, Analysis)
    return api.bundle(study, folder / "made", runtime="onnxruntime,ncnn", batch=2, command="effbench bundle …")


@pytest.fixture
def copied(made: bundle.Bundle, tmp_path: Path) -> Path:
    """The same bundle, to be spoilt."""
    return Path(shutil.copytree(made.directory, tmp_path / "copied"))


@pytest.fixture(scope="module")
def measured(made: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run of the bundle where nothing is installed that its requirements do not name."""
    folder = tmp_path_factory.mktemp("board")
    done = torchless("run-bundle", made.directory, "--budget", "2s", "--out", "run", cwd=folder)
    assert done.code == 0, done.err
    return folder / "run", done


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    """A command in this process."""
    capsys.readouterr()
    code = app.main([*map(str, words)])
    said = capsys.readouterr()
    return Done(code, said.out, said.err)


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite what the bundle in this folder says of itself."""
    path = folder / bundle.BUNDLE_FILE
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))


# --- what is in it ------------------------------------------------------------------------------------


def test_a_bundle_holds_models_inputs_and_what_eager_float32_returned(made: bundle.Bundle) -> None:
    import torch

    from effbench import zoo

    assert [(model.cell.runtime, model.cell.id) for model in made.models] == [
        (runtime, f"groups={groups}") for runtime in ("onnxruntime", "ncnn") for groups in (1, 2)
    ]
    for model in made.models:
        assert model.skipped is None and model.cell.batch == 2
        place = made.directory / model.folder
        assert {path.name for path in place.iterdir()} == set(model.files) >= {"export.json", "inputs.npz"}
        with np.load(place / "inputs.npz") as fed, np.load(place / "expected.npz") as wanted:
            inputs, expected = fed["arr_0"], wanted["arr_0"]
        assert inputs.shape == (2, 8, 8, 8) and expected.dtype == np.float32
        torch.manual_seed(0)
        network = zoo.build(model.cell.case.model, **model.cell.case.arguments).eval()
        with torch.inference_mode():
            returned = network(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(expected, returned, rtol=1e-5, atol=1e-6)
        assert model.facts["output_error"] < 1e-4


def test_its_costs_are_those_of_the_original_networks(made: bundle.Bundle, measured: tuple[Path, Done]) -> None:
    run = run_file.load(measured[0])
    for model, result in zip(made.models, run.results, strict=True):
        case = model.cell.case
        profile = effbench.profile(case.model, case.input_shape, batch=2, arguments=case.arguments)
        assert model.cost == result.cost == profile.cost
        groups = case.arguments["groups"]
        # Two 1x1 convolutions of 8 channels on 8x8, two images: h·w·c1·c2/g each, were they all that there is.
        assert profile.cost.madds % (2 * 8 * 8 * 8 * 8 // groups) == 0
        assert result.cell.case.model == case.model and result.cell.batch == 2


def test_what_the_other_machine_needs_is_written_down(made: bundle.Bundle) -> None:
    from importlib.metadata import version

    wanted = (made.directory / "requirements.txt").read_text().splitlines()
    packages = [line for line in wanted if not line.startswith("#")]
    assert packages[-2:] == [f"onnxruntime=={version('onnxruntime')}", f"ncnn=={version('ncnn')}"]
    assert not any(line.startswith(("torch", "pandas", "matplotlib")) for line in packages)
    assert "effbench run-bundle ." in (made.directory / "README.txt").read_text()
    assert made.versions["torch"] and made.versions["effbench"] == effbench.__version__


def test_one_model_is_not_many(made: bundle.Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    cli_bundle._show(made)
    cli_bundle._show(replace(made, models=made.models[:1]))
    first, *_, last = [line for line in capsys.readouterr().out.splitlines() if " for " in line]
    assert first.startswith(f"{len(made.models)} models for ") and last.startswith("1 model for ")
    assert f": {len(made.models)} models for" in (made.directory / "README.txt").read_text()


def test_executorch_needs_torch_on_the_other_machine_too() -> None:
    from effbench import runtimes

    assert "torch" in runtimes.get("executorch").modules


# --- without torch ------------------------------------------------------------------------------------


def test_without_torch_a_bundle_gives_an_ordinary_run(made: bundle.Bundle, measured: tuple[Path, Done]) -> None:
    folder, done = measured
    run = run_file.load(folder)
    assert run.complete and [result.cell.id for result in run.results] == CELLS
    assert all(result.blocks and result.skipped is None for result in run.results)
    facts = run.environment.facts
    assert facts["run.bundle"] == made.digest and facts["run.device_options"]["torch"] is False
    assert run.environment.runtime == "onnxruntime,ncnn"
    assert {"onnxruntime.version", "ncnn.version"} <= facts.keys() and "torch.threads" not in facts
    probes = run.launches[0].probes[CELLS[0]]
    assert probes["output_error"] < 1e-4 and "prepare_s" not in probes and probes["load_s"] > 0
    assert "no figures: matplotlib is not installed here" in done.err
    assert {path.name for path in folder.iterdir()} >= {"table.md", "table.csv", "verdicts.md"}
    assert not list(folder.glob("*.png"))


def test_every_round_visits_every_runtime(measured: tuple[Path, Done]) -> None:
    run = run_file.load(measured[0])
    seen: dict[tuple[int, int], list[str]] = {}
    for result in run.results:
        for block in result.blocks:
            seen.setdefault((block.launch, block.round), []).append(block.cell)
    assert len(seen) >= 6 and all(sorted(cells) == sorted(CELLS) for cells in seen.values())
    references = {result.cell.id: run.experiment.reference_of(result.cell.case) for result in run.results}
    assert {cell: reference.id for cell, reference in references.items() if reference} == {
        cell: cell.replace("groups=2", "groups=1") for cell in CELLS
    }


def test_the_hiding_hides(tmp_path: Path) -> None:
    done = torchless("-c", "import torch", cwd=tmp_path, command=(sys.executable,))
    assert done.code == 1 and "No module named 'torch'" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("run", "g2_groups", "--quick"),
        ("compare", "lenet5", "alexnet"),
        ("profile", "lenet5"),
        ("check", "lenet5", "--max-madds", "1M"),
        ("doctor", "--peaks"),
        ("bundle", "lenet5", "--out", "there"),
    ],
    ids=lambda words: words[0],
)
def test_what_needs_torch_says_so_in_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    said = refusal(torchless(*words, cwd=tmp_path))
    assert said.startswith("this needs torch, which is not installed here; pip install torch")
    assert {path.name for path in tmp_path.iterdir()} == {"hiding"}


def test_without_the_requirements_the_first_of_them_is_named(tmp_path: Path) -> None:
    said = refusal(torchless("run-bundle", ".", cwd=tmp_path, without=("typer",)))
    assert said == "this needs typer, which is not installed here; pip install typer"


def test_without_scipy_it_is_measured_and_shown_elsewhere(
    made: bundle.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "run-bundle",
        made.directory,
        "--runtime",
        "onnxruntime",
        "--budget",
        "1s",
        "--launches",
        "1",
        "--out",
        "a",
    )
    done = torchless(*words, cwd=tmp_path, without=("scipy", "ncnn"))
    assert done.code == 0 and done.out.startswith("raw     a") and "no tables: scipy is not installed" in done.err
    again = torchless("run-bundle", made.directory, "--resume", "a", "--json", cwd=tmp_path, without=("scipy",))
    assert again.json == {"run_dir": "a"}
    validate(again.json, "run_dir")
    run = run_file.load(tmp_path / "a")
    # One runtime is no label: the run compares with any other of that runtime.
    assert run.complete and [result.cell.id for result in run.results] == ["groups=1", "groups=2"]
    assert run.environment.runtime == "onnxruntime"


# --- on any machine -----------------------------------------------------------------------------------


def test_its_run_has_a_fixed_number_of_launches(made: bundle.Bundle) -> None:
    """Even where its study stops by itself: the machine that measures it may lack scipy, which decides."""
    sampling = replace(made.experiment.sampling, until="faster", launches=4)
    planned, _ = bundle.make_plan(replace(made, experiment=replace(made.experiment, sampling=sampling)))
    assert (planned.sampling.until, planned.sampling.launches) == ("launches", 4)


def test_its_run_is_one_for_report_diff_and_export(
    measured: tuple[Path, Done], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured[0]
    compared = command(capsys, "diff", run, run, "--json")
    assert compared.code == 0, compared.err
    assert {item["cell"] for item in compared.json["comparisons"]} == set(CELLS)
    written = command(capsys, "report", run, "--out", tmp_path / "page.html")
    assert written.code == 0 and "onnxruntime" in (tmp_path / "page.html").read_text()
    exported = command(capsys, "export", run, "--format", "csv")
    assert exported.code == 0 and all(f'"{cell}"' in exported.out for cell in CELLS)


def test_a_run_of_no_bundle_is_not_finished_from_one(made: bundle.Bundle, tmp_path: Path) -> None:
    """Its runtime, which the bundle does not have, is not what is wrong."""
    effbench.measure("mobilenet_v2_x0_35", (3, 32, 32), device="fake", launches=2, out=tmp_path / "run")
    with pytest.raises(EffbenchError, match="was not measured from a bundle; go on with: effbench run --resume"):
        effbench.run_bundle(made.directory, resume=tmp_path / "run")


def test_what_the_api_is_given_wrong_is_named(made: bundle.Bundle, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"there is no option named 'lanches'\. Did you mean 'launches'"):
        effbench.run_bundle(made.directory, lanches=2)  # type: ignore[call-arg]
    with pytest.raises(InvalidValue, match="bundle takes names of models"):
        effbench.bundle(object(), tmp_path / "new", runtime="onnxruntime")  # type: ignore[arg-type]


def test_an_interrupted_run_is_finished_from_its_bundle(
    made: bundle.Bundle, measured: tuple[Path, Done], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, lines = tmp_path / "begun", records(measured[0])
    end = next(number for number, record in enumerate(lines) if record["kind"] == "end")
    begun.mkdir()
    (begun / "run.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines[: end + 1]))
    hint = refusal(command(capsys, "run", "--resume", begun))
    assert f"go on with: effbench run-bundle BUNDLE --resume {begun}" in hint
    described(copied, lambda text: text.update(seed=1))
    assert "with the bundle it was begun with" in refusal(command(capsys, "run-bundle", copied, "--resume", begun))
    assert "leave out threads" in refusal(
        command(capsys, "run-bundle", made.directory, "--resume", begun, "--threads", "2")
    )
    with pytest.raises(InvalidValue) as refused:
        effbench.run_bundle(
            made.directory, resume=begun, launches=9, out=tmp_path / "new", runtime=None, progress=False
        )
    assert str(refused.value) == "resume goes on with the options of the stored run; leave out launches, out"
    assert f"from another bundle; go on with: effbench run-bundle BUNDLE --resume {begun}" in refusal(
        command(capsys, "run-bundle", copied, "--resume", begun)
    )
    done = command(capsys, "run-bundle", made.directory, "--resume", begun)
    assert done.code == 0, done.err
    run = run_file.load(begun)
    assert run.complete and len(run.launches) == run.sampling.launches == 2


def test_an_output_that_is_another_is_a_skip_and_the_others_go_on(
    made: bundle.Bundle, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copied / made.models[0].folder / "expected.npz"
    with np.load(place) as found:
        other = found["arr_0"][:, ::-1]
    np.savez(place, other)
    described(copied, lambda text: text["cells"][0]["files"].update({"expected.npz": bundle.sha256(place)}))
    words = ("--runtime", "onnxruntime", "--launches", "1", "--budget", "1s", "--out", tmp_path / "run", "--json")
    done = command(capsys, "run-bundle", copied, *words)
    assert done.code == 0, done.err
    first, second = done.json["cells"]
    assert first["skipped"].startswith("its output differs from eager float32 by")
    assert second["skipped"] is None and second["latency_s"]["median"] > 0
    assert first["madds"] == 2 * second["madds"]


# --- a folder from elsewhere --------------------------------------------------------------------------


def swap(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """Put another value at a place of the description."""

    def change(text: Any) -> None:
        for step in path[:-1]:
            text = text[step]
        text[path[-1]] = to

    return change


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a newer schema": (swap("bundle", to=99), "was written with schema 99, and this effbench reads up to 1; upgrade"),
    "no schema": (lambda text: text.pop("bundle"), "missing 'bundle'"),
    "a schema of words": (swap("bundle", to="1"), "it has no schema number"),
    "a path upwards": (swap("cells", 0, "folder", to="../../elsewhere"), "'../../elsewhere' may lie outside"),
    "an absolute path": (swap("cells", 0, "folder", to="/etc"), "'/etc' may lie outside"),
    "a file upwards": (
        lambda text: text["cells"][0]["files"].update({"../../x": "0" * 64}),
        "'../../x' may lie outside of the bundle",
    ),
    "the folder itself": (swap("cells", 0, "folder", to="."), "'.' may lie outside"),
    "a folder that is a number": (swap("cells", 0, "folder", to=3), "does not describe a bundle"),
    "another runtime": (swap("cells", 0, "cell", "runtime", to="onnxruntime,ncnn"), "there is no runtime"),
    "another dtype": (swap("cells", 0, "cell", "case", "dtype", to="complex64"), "there is no dtype 'complex64'"),
    "a cell too few": (lambda text: text["cells"].pop(), "its cells are not those of its study"),
    "no cells": (swap("cells", to=[]), "its cells are not those of its study"),
    "no batch": (swap("cells", 0, "cell", "batch", to=0), "a batch needs at least one image"),
    "costs that are words": (
        swap("cells", 0, "cost", "madds", to="many"),
        "cells[0].cost.madds: expected a whole number",
    ),
    "no expected output": (lambda text: text["cells"][0]["files"].pop("expected.npz"), "has no expected.npz"),
    "a study of nothing": (swap("experiment", to=None), "does not describe a bundle"),
    "deep": (swap("versions", to=[[]]), "does not describe a bundle"),
    "files that are missing": (
        lambda text: text["cells"][0]["files"].update({"weights.bin": "0" * 64}),
        "weights.bin is missing, or is not a file of the bundle's own; copy the bundle again",
    ),
    "another hash": (
        lambda text: text["cells"][3]["files"].update({"model.param": "0" * 64}),
        "model.param is not what was exported: its SHA-256 differs; copy the bundle again",
    ),
}


@pytest.mark.parametrize("change, said", SPOILT.values(), ids=list(SPOILT))
def test_a_spoilt_bundle_is_one_line_and_nothing_is_written(
    change: Callable[[dict[str, Any]], Any],
    said: str,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    described(copied, change)
    before = sorted(tmp_path.rglob("*"))
    assert said in refusal(command(capsys, "run-bundle", copied, "--out", tmp_path / "run"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"bundle": 1}', "[" * 100_000, '{"bundle": NaN}'])
def test_what_is_no_description_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / bundle.BUNDLE_FILE).write_text(text)
    assert "copy it again" in refusal(command(capsys, "run-bundle", tmp_path))


def test_a_model_that_was_changed_or_leads_elsewhere_is_refused(
    made: bundle.Bundle, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copied / made.models[0].folder / "model.onnx"
    original = model.read_bytes()
    model.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert "model.onnx is not what was exported" in refusal(command(capsys, "run-bundle", copied))
    # A runtime of which nothing was changed still runs: only what is measured is looked at.
    bundle.verify(bundle.load(copied), bundle.make_plan(bundle.load(copied), MeasureOptions(runtime="ncnn"))[1])
    (tmp_path / "elsewhere").write_bytes(original)
    model.unlink()
    model.symlink_to(tmp_path / "elsewhere")
    assert "is not a file of the bundle's own" in refusal(command(capsys, "run-bundle", copied))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "facts", ["[1]", "{", '{"pieces": NaN}', '{"outside": [1]}', '{"artefact_bytes": "big"}', '{"bound": 5}']
)
def test_what_an_export_said_must_fit_into_a_run(facts: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = copied / bundle.load(copied).models[0].folder / "export.json"
    place.write_text(facts)
    described(copied, lambda text: text["cells"][0]["files"].update({"export.json": bundle.sha256(place)}))
    assert f"{place} does not describe a model (" in refusal(command(capsys, "run-bundle", copied))


def test_a_runtime_that_is_not_here_is_named_with_the_remedy(made: bundle.Bundle, tmp_path: Path) -> None:
    words = ("run-bundle", made.directory, "--runtime", "ncnn", "--out", "run")
    said = refusal(torchless(*words, cwd=tmp_path, without=("ncnn",)))
    requirements = made.directory / "requirements.txt"
    assert said == (f"nothing could be measured; groups=1: ncnn is not installed; pip install -r {requirements}")
    assert {path.name for path in tmp_path.iterdir()} == {"hiding"}


def test_a_runtime_that_is_not_here_is_a_skip_beside_one_that_is(
    made: bundle.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effbench import runtimes

    monkeypatch.setattr(
        runtimes, "why_unavailable", lambda name: "ncnn is not installed; x" if name == "ncnn" else None
    )
    planned, models = bundle.make_plan(made)
    assert planned.bundled is not None and set(planned.bundled.absent) == {CELLS[2], CELLS[3]}
    assert set(models) == set(planned.bundled.models) == set(CELLS)


def test_the_folder_of_a_model_that_was_not_exported_is_not_looked_at(copied: Path) -> None:
    described(
        copied, lambda text: text["cells"][0].update(skipped="an odd operator", folder="../../x", files={"/x": ""})
    )
    planned, models = bundle.make_plan(bundle.load(copied))
    assert planned.bundled is not None and dict(planned.bundled.absent) == {CELLS[0]: "an odd operator"}
    bundle.verify(bundle.load(copied), models)


def test_wrong_words(made: bundle.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("run-bundle", tmp_path), f"there is no bundle at {tmp_path} (bundle.json: No such file or directory); make"),
        (
            ("run-bundle", made.directory, "--runtime", "openvino"),
            "there is no runtime in this bundle named 'openvino'",
        ),
        (("run-bundle", made.directory, "--threads", "-1"), "threads (=-1) must be 1 or more"),
        (("bundle", "--out", tmp_path / "b"), "name the models to bundle, or a study with --study"),
        (
            ("bundle", "lenet5", "--scale", "x1", "--out", tmp_path / "b"),
            "--scale and --select choose cells of a study",
        ),
        (("bundle", "--study", "g2_groups", "--input", "3x8x8", "--out", tmp_path / "b"), "leave --input out"),
        (("bundle", "--study", "metric_predicts_speed", "--out", tmp_path / "b"), "measures nothing"),
        (("bundle", "lenet5", "--runtime", "eager", "--out", tmp_path / "b"), "eager runs no model files"),
        (("bundle", "lenet5", "--runtime", "onyx", "--out", tmp_path / "b"), "there is no runtime named 'onyx'"),
        (("bundle", "lenet6", "--out", tmp_path / "b"), "there is no model named 'lenet6'"),
        (("bundle", "lenet5", "--out", made.directory), "is there already; name a folder of the bundle's own"),
    ):
        assert said in refusal(command(capsys, *words)), words
    assert not list(tmp_path.iterdir())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_description_holds_it_is_a_bundle_or_one_sentence(
    data: st.DataObject, made: bundle.Bundle, tmp_path: Path
) -> None:
    text = json.loads((made.directory / bundle.BUNDLE_FILE).read_text())
    changed = copy.deepcopy(text)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(changed))))
        swap(*place, to=data.draw(JSON))(changed)
    (tmp_path / bundle.BUNDLE_FILE).write_text(json.dumps(changed))
    try:
        planned, models = bundle.make_plan(bundle.load(tmp_path))
        assert planned.bundled is not None
        for folder in planned.bundled.models.values():
            assert Path(folder).is_relative_to(tmp_path.resolve())
        bundle.verify(bundle.load(tmp_path), models)
    except EffbenchError as error:
        assert "\n" not in str(error)[:60]


# --- while it is made ---------------------------------------------------------------------------------


class Scripted:
    """A worker that only says what it was told to say: one list a process, an exception where that process dies."""

    def __init__(self, processes: list[list[Any]], jobs: list[dict[str, Any]]) -> None:
        self.processes, self.jobs = processes, jobs

    def __call__(self, job: dict[str, Any], *rest: object) -> Scripted:
        self.jobs.append(job)
        return self

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *rest: object) -> None:
        return None

    def events(self) -> Iterator[dict[str, Any]]:
        for event in self.processes.pop(0):
            if isinstance(event, Exception):
                raise event
            if event["event"] == "working":
                place = next(spec["folder"] for spec in self.jobs[-1]["cells"] if spec["id"] == event["cell"])
                Path(place).mkdir(exist_ok=True)
                for name in ("export.json", "inputs.npz", "expected.npz"):
                    (Path(place) / name).write_text("{}")
            yield event


def bundle_of(processes: list[list[Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(export, "Worker", Scripted(processes, jobs))
    return lambda: api.bundle(["lenet5", "alexnet", "nin"], folder / "b", runtime="onnxruntime"), jobs


def working(cell: str) -> dict[str, Any]:
    return {"event": "working", "cell": f"model={cell}"}


def test_one_model_is_given_as_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, jobs = bundle_of([[working("lenet5"), {"event": "prepared"}]], tmp_path, monkeypatch)
    found = effbench.bundle("lenet5", tmp_path / "b", runtime="onnxruntime")
    assert [model.cell.id for model in found.models] == ["model=lenet5"] == [spec["id"] for spec in jobs[0]["cells"]]


def test_an_exporter_that_dies_costs_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = WorkerFailed("the process was ended by SIGSEGV")
    make, jobs = bundle_of(
        [
            [{"event": "ready"}, working("lenet5"), working("alexnet"), died],
            [working("nin"), {"event": "prepared"}],
        ],
        tmp_path,
        monkeypatch,
    )
    found = make()
    assert [model.skipped for model in found.models] == [None, str(died), None]
    assert [[spec["id"] for spec in job["cells"]] for job in jobs] == [
        ["model=lenet5", "model=alexnet", "model=nin"],
        ["model=nin"],
    ]
    assert found.models[1].cost is not None and not found.models[1].folder
    assert {path.name for path in found.directory.iterdir()} == {
        *("bundle.json", "README.txt", "requirements.txt", "000-onnxruntime", "002-onnxruntime")
    }
    planned, _ = bundle.make_plan(found)
    assert planned.bundled is not None and dict(planned.bundled.absent) == {"model=alexnet": str(died)}


REFUSED = [
    event
    for name, reason in (("lenet5", "an odd operator"), ("alexnet", "another"), ("nin", "a third"))
    for event in (working(name), {"event": "skip", "cell": f"model={name}", "reason": reason})
]


@pytest.mark.parametrize(
    "processes, said",
    [
        (
            [[*REFUSED, {"event": "prepared"}]],
            "nothing could be exported; model=lenet5 for onnxruntime: an odd operator",
        ),
        ([[WorkerFailed("exit code 1")]], "the exporting process could not start: exit code 1"),
        ([[{"event": "error", "message": "no such device"}]], "no such device"),
    ],
    ids=["every cell", "at once", "an error"],
)
def test_a_bundle_that_fails_leaves_nothing(
    processes: list[list[Any]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = bundle_of(processes, tmp_path, monkeypatch)
    with pytest.raises(EffbenchError) as refused:
        make()
    assert str(refused.value) == said
    assert not list(tmp_path.iterdir())


# --- the page -----------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "bundles.md").read_text(encoding="utf-8")
LINES = sorted(set(re.findall(r"^    (effbench .*?)(?: +#.*)?$", PAGE, re.M)))


@pytest.mark.parametrize("line", LINES)
def test_each_command_of_the_page_is_one_that_effbench_takes(line: str) -> None:
    _, name, *words = shlex.split(line)
    typer.main.get_command(app.command_line()).commands[name].make_context(name, words)  # type: ignore[attr-defined]


def test_the_page_has_commands() -> None:
    assert {line.split()[1] for line in LINES} >= {"bundle", "run-bundle", "report", "diff", "export"}
