"""The contract of the command line: arguments, exit codes, JSON keys, help, completion, pipes, hostile names."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from nursery import HANGS_S
from shell import EFFBENCH, Done, effbench, environment, records, refusal, started, study_file, wait_until

from effbench.cli import app

ROOT = Path(__file__).resolve().parents[2]
COST_KEYS = {"params", "madds", "activations", "memory_access", "memory_access_bytes", "memory_access_levels", "status"}
LEVELS = {"layer", "eager", "pointwise", "epilogue"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a study of two tiny cells, and nothing of effbench's own."""
    folder = tmp_path_factory.mktemp("home")
    study_file(folder)
    return folder


@pytest.fixture(scope="module")
def study_run(home: Path) -> Done:
    """One whole study on the scripted clock; its folder has a space in its name."""
    return effbench("run", "tiny.py", "--device", "fake", "--json", "--out", "my run", cwd=home)


# --- wrong words -------------------------------------------------------------------------------------

RUN = "run tiny.py --device fake"
WRONG = {
    "run g2_group": ["no study named 'g2_group'", "Did you mean 'g2_groups'", "g4_elementwise", "ending in .py"],
    "run nowhere/mine.py": ["no study file nowhere/mine.py"],
    "run": ["--resume DIR", "effbench list studies"],
    "run tiny.py more": ["extra argument", "effbench run --help"],
    "run tiny.py --nosuch": ["--nosuch", "effbench run --help"],
    "runn tiny.py": [
        "no command named 'runn'",
        "Did you mean 'run'",
        "compare, profile, diff",
        "report, export, bundle, run-bundle, list, doctor",
    ],
    "profile resnet51": ["no model named 'resnet51'", "Did you mean 'resnet50'", "more", "path/file.py:factory"],
    "profile ''": ["no model named ''"],
    "compare resnet18 resnet51 --device fake": ["no model named 'resnet51'", "Did you mean 'resnet50'"],
    "compare resnet18 --device fake": ["two models or more"],
    "compare resnet18 resnet18 --device fake": ["named twice"],
    "compare": ["models", "effbench compare --help"],
    "run tiny.py --device fak": ["no device named 'fak'", "Did you mean 'fake'", "cpu, cuda, fake"],
    "run tiny.py --device cpu:1": ["no device named 'cpu:1'", "Did you mean 'cpu'"],
    f"{RUN} --runtime eagre": ["no runtime named 'eagre'", "Did you mean 'eager'"],
    f"{RUN} --dtype float31": ["no dtype named 'float31'", "Did you mean 'float32'", "bfloat16"],
    f"{RUN} --allocator x": ["no allocator policy named 'x'", "retain, system"],
    f"{RUN} --cache x": ["no cache policy named 'x'", "steady, cold, hot"],
    f"{RUN} --select group=1": ["no label of tiny named 'group'", "Did you mean 'groups'"],
    f"{RUN} --select groups=3": ["no groups in tiny named '3'", "Known: 1, 2"],
    f"{RUN} --select groups": ["LABEL=VALUE"],
    f"{RUN} --scale x2": ["no label of tiny named 'scale'", "groups"],
    "run g2_groups --device fake --scale x3": ["no scale in g2_groups named 'x3'", "x1, x2, x4"],
    "list modls": ["no list named 'modls'", "Did you mean 'models'", "studies, devices, runtimes"],
    f"{RUN} --batch 0": ["batch (=0) must be 1 or more"],
    f"{RUN} --batch -1": ["batch (=-1) must be 1 or more"],
    f"{RUN} --batch x": ["--batch", "integer"],
    "profile resnet18 --batch 0": ["batch (=0)"],
    f"{RUN} --threads -1": ["threads (=-1)"],
    f"{RUN} --threads 9999999": ["threads (=9999999)", "at most"],
    f"{RUN} --launches 0": ["launches (=0) must be 1 or more"],
    f"{RUN} --budget 0s": ["--budget 0s", "above zero"],
    f"{RUN} --budget abc": ["--budget abc", "60s, 5m or 2h"],
    f"{RUN} --budget -5s": ["--budget -5s", "above zero"],
    f"{RUN} --precision 0": ["--precision 0", "1% or 0.01"],
    f"{RUN} --precision 200%": ["--precision 200%"],
    f"{RUN} --precision abc": ["--precision abc"],
    "profile resnet18 --input 0x3": ["--input 0x3", "3x224x224"],
    "profile resnet18 --input 3x00x3": ["--input 3x00x3", "3x224x224"],
    "profile resnet18 --input abc": ["--input abc"],
    f"{RUN} --seed x": ["--seed", "integer"],
    f"{RUN} --seed -1": ["seed (=-1)"],
    f"{RUN} --out /dev/null/x": ["cannot write to /dev/null/x", "choose another --out"],
    f"{RUN} --out tiny.py": ["cannot write to tiny.py", "choose another --out"],
    "run --resume nowhere": ["no run at nowhere", "run.jsonl"],
    "run --resume nowhere --quick": ["leave out quick"],
    "run tiny.py --resume nowhere": ["no run at nowhere", "run.jsonl"],
    "diff nowhere nowhere": ["no run at nowhere"],
}


@pytest.mark.quick
@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_one_line_that_says_what_to_do(words: str, home: Path) -> None:
    import shlex

    before = sorted(home.rglob("*"))
    line = refusal(effbench(*shlex.split(words), cwd=home))
    for part in WRONG[words]:
        assert part in line
    assert sorted(home.rglob("*")) == before, "a refusal leaves nothing behind"


def test_cuda_without_cuda_names_the_reason(home: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    line = refusal(effbench("run", "tiny.py", "--device", "cuda", cwd=home))
    assert "'cuda' cannot be used" in line and "cpu" in line
    assert re.search("built without CUDA|driver|no .*GPU|device", line)


BROKEN = {
    "x = (": ("line 1", "never closed"),
    "\n\n1 / 0": ("line 3", "ZeroDivisionError: division by zero"),
    "raise ValueError('first\\nsecond')": ("line 1", "ValueError: first;"),
    "import sys\nsys.exit('bye')": ("line 2", "SystemExit: bye"),
    "import nowhere_to_be_found": ("line 1", "nowhere_to_be_found"),
    "EXPERIMENT = 3": ("defines no EXPERIMENT",),
    "\x1b[31m": ("line 1",),
}


@pytest.mark.parametrize("source", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_study_file_is_one_line_with_its_place(source: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    line = refusal(effbench("run", "mine.py", "--device", "fake", cwd=tmp_path))
    for part in ("mine.py", *BROKEN[source]):
        assert part in line


CHANGED = {
    "cases=(case(1), case(2))": {
        "cases=(case(1), case(1))": "two cases have the id 'groups=1'",
        "cases=()": "no cases",
        "cases=(case(2),)": "no case has groups=1",
        'cases=(case(1), Case("probe_groups", (8, 8, 8)))': "has no label 'groups'",
        'cases=(case(1), Case("probe_groups", (8, 0, 8), labels={"groups": 2}))': "input_shape (=(8, 0, 8))",
        'cases=(case(1), Case(3, (8, 8, 8), labels={"groups": 2}))': "model must be a name",
        'cases=(case(1), Case("a", (8, 8, 8), {"f": print}, labels={"groups": 2}))': "cannot be stored",
        'cases=(case(1), Case("prob", (8, 8, 8), labels={"groups": 2}))': "no model named 'prob'",
        'cases=(case(1), Case("gone.py:f", (8, 8, 8), labels={"groups": 2}))': "no file gone.py",
    },
}


@pytest.mark.parametrize(("new", "message"), [item for changes in CHANGED.values() for item in changes.items()])
def test_a_study_that_makes_no_sense_is_refused_before_it_runs(new: str, message: str, tmp_path: Path) -> None:
    (old,) = CHANGED
    path = study_file(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert message in refusal(effbench("run", "tiny.py", "--device", "fake", cwd=tmp_path))


# --- what scripts rely on ----------------------------------------------------------------------------


@pytest.mark.quick
def test_run_json_is_one_object_and_nothing_else(study_run: Done, home: Path) -> None:
    assert study_run.code == 0 and study_run.err == "", "no progress where nobody watches"
    found = study_run.json
    assert {"run_dir", "environment", "cells", "verdicts"} <= found.keys()
    assert [cell["id"] for cell in found["cells"]] == ["groups=1", "groups=2"]
    wanted = {
        "id",
        "labels",
        "latency_s",
        "throughput",
        "throughput_unit",
        "ratio",
        "paper",
        "bound",
        "flags",
        "skipped",
    }
    for cell in found["cells"]:
        assert wanted | COST_KEYS <= cell.keys()
        assert cell["latency_s"].keys() == {"median", "low", "high"} and cell["ratio"].keys() == {
            "point",
            "low",
            "high",
        }
        assert cell["skipped"] is None and cell["throughput_unit"] == "images/s"
    (verdict,) = found["verdicts"]
    assert {"claim", "scale", "verdict", "evidence"} <= verdict.keys()
    assert {file.name for file in (home / found["run_dir"]).iterdir()} >= {
        "run.jsonl",
        "table.md",
        "table.csv",
        "figure.png",
    }


def test_the_scripted_clock_says_what_the_costs_say(study_run: Done) -> None:
    """A tiny convolution is all launch overhead on the scripted clock: 2 µs a call plus its bytes over 20 GB/s."""
    for cell in study_run.json["cells"]:
        seconds = 2e-6 + max(cell["madds"] / 50e9, cell["memory_access_bytes"] / 20e9)
        assert cell["latency_s"]["median"] == pytest.approx(seconds, rel=0.02)
        assert cell["throughput"] == pytest.approx(1 / seconds, rel=0.02)


def test_the_run_can_be_loaded_and_names_its_command(study_run: Done, home: Path) -> None:
    header = records(home / "my run")[0]
    assert header["command"] == "effbench run tiny.py --device fake --json --out 'my run'"


def test_compare_json_with_networks_that_print_and_fail(home: Path) -> None:
    (home / "nets.py").write_text(
        "import os, sys\nfrom torch import nn\nprint('loading')\nos.system('echo from a child; echo its error >&2')\n"
        "class Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        print('running')\n        print('a warning', file=sys.stderr)\n        return super().forward(x)\n"
        "class Bad(Net):\n    def forward(self, x):\n        raise ValueError('no luck\\nat all')\n"
        "def one(): return Net(3, 4, 1)\ndef two(): return Net(3, 8, 1)\ndef bad(): return Bad(3, 4, 1)\n"
    )
    models = ["nets.py:one", "nets.py:two", "nets.py:bad", "nets.py:tow"]
    words = ["--device", "fake", "--quick", "--launches", "1", "--input", "3x8x8", "--out", "side", "--json"]
    done = effbench("compare", *models, *words, cwd=home)
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert {"run_dir", "environment", "cells"} <= found.keys()
    assert [cell["model"] for cell in found["cells"]] == models
    assert [cell["params"] for cell in found["cells"][:2]] == [3 * 4 + 4, 3 * 8 + 8]
    assert [cell["madds"] for cell in found["cells"][:2]] == [64 * 12, 64 * 24]
    one, two, bad, misspelt = (cell["skipped"] for cell in found["cells"])
    assert one is None and two is None
    assert "no luck" in bad and "at all" not in bad
    assert "did you mean 'two'" in misspelt


def test_profile_json_csv_and_layers_agree(home: Path) -> None:
    (home / "loud.py").write_text("from torch import nn\nprint('loading')\ndef net(): return nn.Conv2d(3, 4, 1)\n")
    whole = effbench("profile", "loud.py:net", "--input", "3x8x8", "--layers", "--json", cwd=home).json
    assert whole.keys() >= COST_KEYS | {"model", "input_shape", "dtype", "layers"}
    assert whole["memory_access_levels"].keys() == LEVELS
    assert whole["madds"] == 8 * 8 * 3 * 4 == sum(layer["madds"] for layer in whole["layers"])
    assert all({"name", "op"} <= layer.keys() for layer in whole["layers"])
    done = effbench("profile", "loud.py:net", "--input", "3x8x8", "--csv", cwd=home)
    heading, *rows = list(csv.reader(io.StringIO(done.out)))
    assert rows and all(len(row) == len(heading) for row in rows)
    assert ["madds", str(whole["madds"])] in [row[:2] for row in rows]


def test_diff_json_and_table(study_run: Done, home: Path) -> None:
    done = effbench("diff", "my run", "my run/run.jsonl", "--json", cwd=home)
    assert done.code == 0 and done.err == ""
    assert done.json.keys() == {"baseline", "candidate", "note", "comparisons"}
    assert [item["cell"] for item in done.json["comparisons"]] == ["groups=1", "groups=2"]
    for item in done.json["comparisons"]:
        assert item["change"]["point"] == 1.0 and item["verdict"] in ("same", "unsure")
    assert "| groups=2 |" in effbench("diff", "my run", "my run", cwd=home).out


def test_list_and_doctor_json(home: Path) -> None:
    done = effbench("list", "--json", cwd=home)
    assert done.json.keys() == {"models", "studies", "devices", "runtimes"} and done.err == ""
    assert {"resnet50", "shufflenet_v2_x1_0"} <= done.json["models"].keys()
    assert done.json["studies"].keys() == {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert effbench("list", "devices", "--json", cwd=home).json.keys() == {"devices"}
    done = effbench("doctor", "--json", cwd=home)
    assert done.code == 0 and done.err == ""
    assert done.json["findings"] and all(
        {"topic", "status", "why", "todo"} <= item.keys() for item in done.json["findings"]
    )


def test_a_finished_run_is_not_measured_again(study_run: Done, home: Path) -> None:
    before = (home / "my run" / "run.jsonl").read_bytes()
    done = effbench("run", "--resume", "my run", "--json", cwd=home)
    assert done.code == 0 and done.json["cells"] == study_run.json["cells"]
    assert (home / "my run" / "run.jsonl").read_bytes() == before


def test_a_folder_that_holds_a_run_is_not_written_over(study_run: Done, home: Path) -> None:
    before = (home / "my run" / "run.jsonl").read_bytes()
    line = refusal(effbench("run", "tiny.py", "--device", "fake", "--out", "my run", cwd=home))
    assert "already holds a run" in line and "--resume" in line
    assert (home / "my run" / "run.jsonl").read_bytes() == before


def test_figures_that_cannot_be_written_do_not_cost_the_result(study_run: Done, home: Path) -> None:
    shutil.copytree(home / "my run", home / "in the way", ignore=shutil.ignore_patterns("table.md"))
    (home / "in the way" / "table.md").mkdir()
    done = effbench("run", "--resume", "in the way", "--json", cwd=home)
    assert done.code == 2 and done.json["cells"] == study_run.json["cells"]
    assert done.err.count("\n") == 1 and "kept in in the way/run.jsonl" in done.err


# --- hostile names -----------------------------------------------------------------------------------


def test_hostile_labels_stay_text(tmp_path: Path) -> None:
    """Escape codes, HTML, pipes and formulas in labels and names: shown as text, and no file lands elsewhere."""
    path = study_file(tmp_path, name="../../../escape\x1b[2J")
    text = path.read_text().replace('title="Tiny"', r'title="<b>Tiny</b> $\bad{$ \x1b]0;owned\x07 | pipe"')
    text = text.replace(
        'labels={"groups": groups}', r'labels={"a|b\x1b[31m<script>": "x|y\x1b[5m\n<img>", "groups": groups}'
    )
    path.write_text(text)
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    done = effbench("run", "../../tiny.py", "--device", "fake", cwd=inside)
    assert done.code == 0, done.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.out + done.err)
    assert "<script>" not in done.out and "<img>" not in done.out and "<b>" not in done.out
    tables = re.findall(r"(?:^\|.*\|\n)+", done.out, re.M)
    assert tables
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    (run,) = (inside / "results" / "runs").iterdir()
    outside = [file for file in tmp_path.rglob("*") if file.is_file() and run not in file.parents]
    assert [file.name for file in outside if file.suffix != ".pyc"] == ["tiny.py"]
    assert (run / "run.jsonl").exists() and "\x1b" not in (run / "table.md").read_text()


def test_hostile_paths_stay_text(home: Path) -> None:
    line = refusal(effbench("profile", "\x1b[31mno|where.py\n:<b>", cwd=home))
    assert "[31mno|where.py :<b>" in line or "[31mno|where.py" in line


# --- help, completion, pipes -------------------------------------------------------------------------


def test_every_command_and_option_explains_itself() -> None:
    commands = typer.main.get_command(app.command_line()).commands  # type: ignore[attr-defined]
    assert sorted(commands) == sorted(app.COMMANDS)
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"  # type: ignore[attr-defined]


def test_help_and_refusals_come_without_torch(home: Path) -> None:
    """In one process, since what matters is what was imported, not how long it took."""
    calls = [[], ["--help"], ["--version"], *([name, "--help"] for name in app.COMMANDS)]
    calls += [
        ["list"],
        ["list", "models"],
        ["diff", "x", "y"],
        ["run", "nosuch"],
        ["profile", "nosuch"],
        ["run", "--resume", "x"],
    ]
    script = (
        "import sys\nfrom effbench.cli import main\n"
        f"codes = [main(words) for words in {calls!r}]\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "print(codes, heavy, file=sys.stderr)\nassert not heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith(str([0] * (len(calls) - 4) + [2] * 4))
    assert done.stdout.count("Usage: effbench") == 2 + len(app.COMMANDS)
    for name in app.COMMANDS:
        assert f"Usage: effbench {name} " in done.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("effbench run g", "g2_groups"),
        ("effbench profile shufflenet_v2_x1", "shufflenet_v2_x1_0"),
        ("effbench run g2_groups --device f", "fake"),
        ("effbench comp", "compare"),
        ("effbench run --resume results/runs/", "results/runs/mine"),
    ],
)
def test_completion_offers_names(typed: str, expected: str, home: Path) -> None:
    (home / "results" / "runs" / "mine").mkdir(parents=True, exist_ok=True)
    (home / "results" / "runs" / "mine" / "run.jsonl").touch()
    variables = {"_EFFBENCH_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    script = "import sys; sys.modules['torch'] = None; from effbench.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=home, env={**environment(), **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert expected in done.stdout.split()
    shutil.rmtree(home / "results")


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_stops_early_is_no_error(reader: str, home: Path) -> None:
    shell = f"set -o pipefail; {sys.executable} -m effbench list models | {reader}"
    done = subprocess.run(["bash", "-c", shell], cwd=home, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_one_line(home: Path) -> None:
    for words in (["list"], ["doctor", "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*EFFBENCH, *words], cwd=home, env=environment(), stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_terminal_without_unicode_gets_the_table_all_the_same(study_run: Done, home: Path) -> None:
    variables = {**environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*EFFBENCH, "diff", "my run", "my run"], cwd=home, env=variables, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    assert rb"\xd71.00" in done.stdout


def test_a_study_is_a_script_too(tmp_path: Path) -> None:
    words = ["--device", "fake", "--quick", "--launches", "1", "--scale", "x1", "--out", "run", "--json"]
    script = ROOT / "experiments" / "g2_groups.py"
    done = subprocess.run(
        [sys.executable, str(script), *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [cell["labels"]["groups"] for cell in json.loads(done.stdout)["cells"]] == [1, 2, 4, 8]
    command = records(tmp_path / "run")[0]["command"]
    assert command.startswith("effbench run ") and "g2_groups.py --device fake" in command, "it can be typed again"


# --- progress ----------------------------------------------------------------------------------------


def _screen(descriptor: int) -> Iterator[bytes]:
    while select.select([descriptor], [], [], 60)[0]:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # how a pseudo-terminal ends
            return
        if not data:
            return
        yield data


def test_a_terminal_sees_a_bar_with_the_time_left(home: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["run", "tiny.py", "--device", "fake", "--launches", "4", "--out", "watched", "--json"]
    with started(*words, cwd=home, terminal=theirs) as process:
        os.close(theirs)
        seen = b"".join(_screen(ours)).decode()
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(HANGS_S) == 0
    os.close(ours)
    assert re.search(r"\d+%", seen) and "left" in seen and re.search(r"launch \d/4", seen)
    assert re.search(r"\d:\d\d:\d\d", seen), "elapsed and remaining time"
    assert json.loads(out)["cells"], "and standard output is still one object"


def test_an_interrupt_of_a_command_that_has_nothing_to_save_is_said(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import pathlib, time, torch\n"
        "class Slow(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        pathlib.Path('here').touch()\n"
        "        time.sleep(60)\n"
    )
    with started("profile", "nets.py:Slow", cwd=tmp_path) as process:
        wait_until((tmp_path / "here").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANGS_S)
    assert (process.returncode, out, err) == (130, "", "effbench: interrupted\n")


def test_an_interrupt_that_the_network_raises_is_said_too(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): raise KeyboardInterrupt\n"
    )
    assert refusal(effbench("profile", "nets.py:Net", cwd=tmp_path), code=130) == "interrupted"


def test_an_interrupt_of_an_earlier_command_explains_no_error_of_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("effbench.cli.output._interrupts", [signal.SIGINT])
    monkeypatch.setattr(app, "command_line", lambda *_: 1 // 0)
    assert app.main(["list"]) == 70 and "internal error (ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_that_falls_into_an_exec_ends_as_any_other(tmp_path: Path) -> None:
    """Python remembers such an interrupt and would end by the signal, after we have answered it."""
    code = (
        "import sys, signal, effbench.cli\n"
        "def main():\n"
        "    left_open = open('x', 'w')\n"
        "    effbench.cli.left = left_open\n"
        "    try: exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt: print('told', file=sys.stderr); return 130\n"
        "effbench.cli.main = main\n"
        "from effbench.__main__ import start\n"
        "sys.exit(start())\n"
    )
    words = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "told\n")
