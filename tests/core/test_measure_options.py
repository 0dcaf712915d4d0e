"""Measuring options: each reaches the plan from the command line, the API, effbench.toml and bundles alike."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import study_file

import effbench
from effbench import api
from effbench.bundles import bundle as bundles
from effbench.bundles.bundle import Bundle, Model
from effbench.cli import main
from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.measure_options import BUNDLE_OPTIONS, MeasureKeywords, MeasureOptions
from effbench.core.study import Case, Cell, Experiment
from effbench.gates import checked_models, config
from effbench.runs import runner
from effbench.runs.destination import Destination, RunKeywords
from effbench.studies import plan
from effbench.studies.plan import Plan

REACHES: dict[str, tuple[Any, list[str], Callable[[Plan], Any], Any]] = {
    "device": ("fake", ["--device", "fake"], lambda made: made.device, "fake"),
    "runtime": ("onnxruntime", ["--runtime", "onnxruntime"], lambda made: made.runtime, "onnxruntime"),
    "threads": (2, ["--threads", "2"], lambda made: made.threads, 2),
    "cluster": ("big", ["--cluster", "big"], lambda made: made.device_options["cluster"], "big"),
    "batch": (3, ["--batch", "3"], lambda made: made.cells[0].batch, 3),
    "dtype": ("bfloat16", ["--dtype", "bfloat16"], lambda made: made.cells[0].case.dtype, "bfloat16"),
    "memory_format": (
        "channels_last",
        ["--memory-format", "channels_last"],
        lambda made: made.cells[0].memory_format,
        "channels_last",
    ),
    "mode": ("train", ["--mode", "train"], lambda made: made.cells[0].mode, "train"),
    "allocator": ("system", ["--allocator", "system"], lambda made: made.allocator, "system"),
    "launches": (7, ["--launches", "7"], lambda made: made.sampling.launches, 7),
    "budget_s": (90.0, ["--budget", "90s"], lambda made: made.sampling.budget_s, 90.0),
    "spread_s": (5400.0, ["--spread", "1.5h"], lambda made: made.sampling.spread_s, 5400.0),
    "precision": (0.05, ["--precision", "5%"], lambda made: made.sampling.precision, 0.05),
    "until": ("precision", ["--until", "precision"], lambda made: made.sampling.until, "precision"),
    "quick": (True, ["--quick"], lambda made: made.sampling.min_rounds, plan.QUICK["min_rounds"]),
    "seed": (4, ["--seed", "4"], lambda made: made.seed, 4),
    "cuda_precision": ("tf32", ["--cuda-precision", "tf32"], lambda made: made.device_options["precision"], "tf32"),
    "autotune": (True, ["--autotune"], lambda made: made.device_options["autotune"], True),
    "cache": ("cold", ["--cache", "cold"], lambda made: made.device_options["cache"], "cold"),
    "metrics": (
        ("percentiles", "peak_memory", "energy", "instructions"),
        ["--percentiles", "--peak-memory", "--energy", "--count", "instructions"],
        lambda made: made.metrics,
        ("percentiles", "peak_memory", "energy", "instructions"),
    ),
    "device_options": ({"noise": 0.5}, [], lambda made: made.device_options["noise"], 0.5),
}
"""Each option: a value that is not its default, how it is typed, and what it becomes in a plan."""

ON_CUDA = ("cuda_precision", "autotune", "cache")


class Planned(Exception):
    """The plan is made."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Plan]:
    """The plans that would have been carried out, on a machine with two kinds of cores and a GPU."""
    found: list[Plan] = []

    def execute(planned: Plan, *_: Any, **__: Any) -> None:
        found.append(planned)
        raise EffbenchError("planned")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr("effbench.devices.require_cuda", lambda name: 0)
    monkeypatch.setattr("effbench.host.core_clusters.cores_of", lambda word, *_: (0, 1, 2, 3) if word == "big" else ())
    return found


def test_the_table_of_this_test_has_every_option() -> None:
    assert list(REACHES) == [item.name for item in fields(MeasureOptions)] and set(BUNDLE_OPTIONS) < set(REACHES)
    for name, (value, *_) in REACHES.items():
        assert getattr(MeasureOptions(), name) != value


def test_the_keywords_are_the_fields() -> None:
    for keywords, holder in ((MeasureKeywords, MeasureOptions), (RunKeywords, Destination)):
        assert set(keywords.__annotations__) == {item.name for item in fields(holder)}


@pytest.mark.parametrize("name", REACHES)
@pytest.mark.parametrize("how", ["run", "measure", "compare"])
def test_an_option_of_the_api_reaches_the_plan(name: str, how: str, made: list[Plan], tmp_path: Path) -> None:
    value, _, found, expected = REACHES[name]
    options = {"device": "cuda:1"} if name in ON_CUDA else {}
    ask = {
        "run": lambda **given: effbench.run(str(study_file(tmp_path)), **given),
        "measure": lambda **given: effbench.measure("lenet5", **given),
        "compare": lambda **given: effbench.compare("lenet5", "alexnet", **given),
    }[how]
    with pytest.raises(EffbenchError, match="planned"):
        ask(**options, **{name: value})
    assert found(made[0]) == expected


@pytest.mark.parametrize("name", [name for name, (_, words, *_) in REACHES.items() if words])
@pytest.mark.parametrize("command", ["run tiny.py", "compare lenet5 alexnet"])
def test_an_option_that_is_typed_reaches_the_plan(name: str, command: str, made: list[Plan], tmp_path: Path) -> None:
    study_file(tmp_path)
    _, words, found, expected = REACHES[name]
    device = ["--device", "cuda:1"] if name in ON_CUDA else []
    assert main([*command.split(), *words, *device]) == 2
    assert found(made[0]) == expected


@pytest.mark.parametrize(
    ("words", "until", "launches"),
    [
        ([], "faster", 13),
        (["--budget", "60s"], "faster", 13),
        (["--precision", "2%"], "precision", 13),
        (["--launches", "4"], "launches", 4),
        (["--quick"], "launches", 3),
        (["--until", "faster", "--launches", "20"], "faster", 20),
        (["--until", "launches"], "launches", 5),
        (["--until", "faster", "--quick"], "faster", 13),
    ],
)
def test_a_comparison_ends_when_it_is_decided_unless_another_end_is_asked_for(
    words: list[str], until: str, launches: int, made: list[Plan]
) -> None:
    assert main(["compare", "lenet5", "alexnet", *words]) == 2
    assert (made[0].sampling.until, made[0].sampling.launches) == (until, launches)
    assert main(["compare", "lenet5", "alexnet", "--until", "soon"]) == 2 and len(made) == 1, "no such end"


def test_every_other_run_has_a_fixed_number_of_launches(made: list[Plan], tmp_path: Path) -> None:
    study_file(tmp_path)
    assert main(["run", "tiny.py", "--precision", "2%"]) == 2
    with pytest.raises(EffbenchError, match="planned"):
        effbench.measure(["lenet5", "alexnet"])
    assert [item.sampling.until for item in made] == ["launches", "launches"]


@pytest.mark.parametrize("name", ["device", "threads", "batch", "dtype", "allocator", "launches", "budget_s", "seed"])
def test_a_gate_takes_it_from_the_file_and_from_what_is_typed(name: str, made: list[Plan], tmp_path: Path) -> None:
    value, words, found, expected = REACHES[name]
    assert main(["check", "lenet5", "--save-baseline", "kept", *words]) == 2
    assert found(_of_subject(made[0])) == expected
    if name == "seed":
        return  # of the command line alone
    key, text = ("budget", '"90s"') if name == "budget_s" else (name, f'"{value}"' if isinstance(value, str) else value)
    file = tmp_path / "effbench.toml"
    file.write_text(f"[check]\n{key} = {text}\n[models.lenet5]\n")
    read = config.load(file)
    assert found(_of_subject(checked_models.make_plan(read, checked_models.study(read)))) == expected


def _of_subject(made: Plan) -> Plan:
    """The plan without the yardstick, which has a batch and a dtype of its own."""
    from dataclasses import replace

    return replace(made, cells=tuple(cell for cell in made.cells if cell.case.labels["model"] != config.YARDSTICK))


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("name", BUNDLE_OPTIONS)
def test_an_option_of_a_bundles_run_reaches_the_plan(
    name: str, typed: bool, made: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("lenet5", (1, 28, 28), labels={"model": "lenet5"})
    study = Experiment("one", "One", "", "model", ("lenet5",), "lenet5", (case,))
    models = tuple(Model(Cell(case, runtime=runtime), skipped="no") for runtime in ("ncnn", "onnxruntime"))
    monkeypatch.setattr(bundles, "load", lambda place: Bundle(Path(place), study, models, {}, "digest"))
    value, words, found, expected = REACHES[name]
    if typed and words:
        assert main(["run-bundle", "made", *words]) == 2
    else:
        with pytest.raises(EffbenchError, match="planned"):
            effbench.run_bundle("made", **{name: value})
    assert found(made[0]) == expected
    assert made[0].device_options["torch"] is False, "a bundle needs none"


def test_objects_of_torch_stand_for_their_names() -> None:
    named = MeasureOptions(device="cuda:1", dtype="float16")
    assert MeasureOptions(device=torch.device("cuda", 1), dtype=torch.float16) == named  # type: ignore[arg-type]
    assert MeasureOptions(device=torch.empty(0).device).device == "cpu"  # type: ignore[arg-type]
    assert MeasureOptions(device=torch.device("cpu", 0)).device == "cpu"  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"no dtype named 'complex64'.*float32, float64, float16, bfloat16, int8"):
        MeasureOptions(dtype=torch.complex64)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no device named 'mps'"):
        effbench.measure("lenet5", device=torch.device("mps"))
    half = effbench.profile("lenet5", dtype=torch.float16)
    assert half.cost.memory_access_bytes * 2 == effbench.profile("lenet5").cost.memory_access_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_format": "nhwc"}, "no memory format named 'nhwc'.*contiguous, channels_last"),
        ({"mode": "trian"}, "Did you mean 'train'"),
        ({"cluster": "huge"}, "no cluster named 'huge'.*all, big, little"),
        ({"cuda_precision": "bf16"}, "no precision named 'bf16'.*fp32, tf32"),
        ({"cache": "warm"}, "no cache policy named 'warm'.*steady, cold, hot"),
        ({"metrics": ["energie"]}, "no metric named 'energie'. Did you mean 'energy'"),
        ({"metrics": "energie"}, "no metric named 'energie'"),
        ({"batch": 1.5}, r"batch \(=1.5\) must be a whole number"),
        ({"threads": 5000}, "at most 1024"),
        ({"seed": 2**63}, "below 2"),
        ({"device": "cuda", "cluster": "big"}, "the device is cuda; leave --cluster out"),
    ],
)
def test_a_value_that_is_no_choice_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidValue, UnknownName), match=message):
        MeasureOptions(**options)


@pytest.mark.parametrize("function", [api.measure, api.compare, api.run, api.run_bundle, api.resume, api.analyse])
def test_help_and_completion_show_every_keyword(function: Callable[..., Any]) -> None:
    signature, text = inspect.signature(function), inspect.getdoc(function) or ""
    kinds = {item.kind for item in signature.parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds and "**options" not in text
    described = re.findall(r"^\*?(\w+)(?: : .*)?\n    \S", text.partition("Returns\n")[0], re.M)
    assert described == list(signature.parameters)
    for name in {item.name for item in fields(MeasureOptions)} & set(signature.parameters):
        assert signature.parameters[name].default == getattr(MeasureOptions(), name)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("budget", "budget_s"), ("sav", "save"), ("memoryformat", "memory_format")]
)
def test_a_keyword_that_is_no_option_is_named_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"there is no option named '{wrong}'\. Did you mean '{meant}'"):
        effbench.measure("resnet18", **{wrong: 1})  # type: ignore[arg-type]
