"""The recipes of docs/recipes/ and the pages about fleets: scripts run with stand-ins, other files are checked."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import pytest
import typer
import yaml
from nursery import HANGS_S
from packaging.requirements import Requirement
from shell import Done, effbench, environment, kinds, study_file

from effbench.cli.app import command_line
from effbench.runs import run_file

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECIPES = DOCS / "recipes"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("fleet", "fleet_security", "recipes")}


# --- machines that are folders ------------------------------------------------------------------------

RELAY = """#!{python} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as door:
    door.sendall(json.dumps([os.getcwd(), *sys.argv[1:]]).encode() + b"\\n")
    code, out, err = json.loads(door.makefile("rb").read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
"""An `effbench` for scripts, which asks this process for the command: it takes its libraries from a process that has
them imported (tests/support/nursery.py).
"""

SSH = """#!/bin/sh
[ "$1" = -n ] && shift
[ "$1" = pi@pi5-a ] || exit 255
cd "$THERE" || exit 255
HOME=$THERE sh -c "$2" < /dev/null
code=$?
case $2 in *run-bundle*) if [ -e "$THERE/../fails" ]; then
    rm "$THERE/../fails"
    exit 255
fi ;; esac
exit $code
"""
"""ssh to a folder. Where a file `fails` lies beside it, the connection breaks once at the end of a launch."""

SCP = """#!/bin/sh
[ "$1 $2" = "-q -r" ] || exit 1
exec cp -r "$3" "$THERE/${4#pi@pi5-a:}"
"""

SBATCH = """#!/bin/bash
echo "$@" >> submitted
array=0
while [[ $1 == -* ]]; do
    case $1 in
        --array=*) array=${1#--array=} ;;
        --dependency=afterok:*) [ "$(cat "ended-${1##*:}")" = 0 ] || exit 0 ;;
    esac
    shift
done
id=$(($(wc -l < submitted)))
echo "$id;cluster"
for task in $(seq ${array%-*} $(echo ${array#*-} | cut -d % -f 1)); do
    bash "$@" > "job-$id-$task" 2>&1
    echo $? > "ended-$id"
done
"""
"""Slurm with one node: each job of an array runs to its end. A job that depends on one that failed never runs."""

ADB = """#!/bin/sh
echo "$@" >> "$LOG"
case $* in *num_executions*) echo "executed, 1.5 ms" ;; esac
"""


@dataclass
class Bench:
    """A folder with stand-ins on its PATH."""

    folder: Path
    variables: dict[str, str]

    def run(self, script: str, *words: object, **variables: str) -> Done:
        done = subprocess.run(
            ["sh", str(RECIPES / script), *map(str, words)], cwd=self.folder, env={**self.variables, **variables},
            capture_output=True, text=True, timeout=HANGS_S,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where commands of `RELAY` are carried out, one at a time."""
    door = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                asked, _ = door.accept()
            except OSError:
                return
            with asked, asked.makefile("rb") as lines:
                cwd, *words = json.loads(lines.readline())
                done = effbench(*words, cwd=Path(cwd), variables={measuring.UNTIMED_LAUNCHES: "1"})
                asked.sendall(json.dumps([done.code, done.out, done.err]).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    yield door.getsockname()[1]
    door.shutdown(socket.SHUT_RDWR)
    door.close()
    thread.join()


@pytest.fixture
def bench(tmp_path: Path, port: int) -> Bench:
    programs = {"effbench": RELAY.format(python=sys.executable, port=port)}
    programs |= {"ssh": SSH, "scp": SCP, "sbatch": SBATCH, "adb": ADB}
    (tmp_path / "bin").mkdir()
    (tmp_path / "there").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    more = {"PATH": path, "THERE": str(tmp_path / "there"), "LOG": str(tmp_path / "log")}
    return Bench(tmp_path, {**environment(), **more})


# --- ssh ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("ncnn", "pnnx"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Conv2d(3, 2, 3)\n")
    words = ("bundle", "net.py:build", "--input", "3x8x8", "--runtime", "ncnn", "--out", "g2")
    done = effbench(*words, cwd=folder, variables={measuring.UNTIMED_LAUNCHES: "1"})
    assert done.code == 0, done.err
    return folder / "g2"


def test_a_run_by_ssh_is_measured_launch_by_launch_and_pulled(bench: Bench, bundle: Path) -> None:
    """Also where the connection breaks at the end of a launch, and where the machine was stopped in the middle of a
    line.
    """
    out = bench.folder / "a fleet" / "pi5-a"
    words = ("pi@pi5-a", bundle, out, "--launches", "3", "--quick", "--budget", "1s")
    lock = {"LOCK": "a lock"} if shutil.which("flock") else {}
    (bench.folder / "fails").touch()
    done = bench.run("ssh.sh", *words, **lock)
    assert done.code == 255 and "no connection to pi@pi5-a; the same command goes on later" in done.err, done
    (measured,) = (bench.folder / "there" / "effbench-runs").glob("*/run/run.jsonl")
    assert kinds(measured.parent).count("launch") == 1 and not (out / "run.jsonl").exists()

    done = bench.run("ssh.sh", *words, **lock)
    assert done.code == 0, done.err
    assert (bench.folder / "there" / "a lock").exists() == bool(lock)
    pulled = (out / "run.jsonl").read_bytes()
    assert pulled == measured.read_bytes() and run_file.load(out).complete
    assert kinds(out).count("launch") == kinds(out).count("end") == 3

    measured.write_bytes(pulled + b'{"kind":"blo')
    assert bench.run("ssh.sh", *words).code == 0
    assert (
        (out / "run.jsonl").read_bytes()
        == pulled
        == b"".join(measured.read_bytes().splitlines(True)[: pulled.count(b"\n")])
    )

    (out / "run.jsonl").write_bytes(b"{}\n" + pulled)
    done = bench.run("ssh.sh", *words)
    assert done.code == 2 and "is not the beginning of the run on pi@pi5-a; name another folder" in done.err
    measured.unlink()
    done = bench.run("ssh.sh", *words)
    assert done.code == 2 and "has not the run of" in done.err


def test_ssh_stops_at_any_other_code_and_passes_options_on(bench: Bench) -> None:
    """Options arrive as words, whatever they hold."""
    told = bench.folder / "there" / "told"
    program = bench.folder / "there" / "my effbench"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > told\nexit 4\n')
    program.chmod(0o755)
    (bench.folder / "b").mkdir()
    (bench.folder / "b" / "bundle.json").write_text("{}")
    odd = ["$(touch harm)", "it's", 'a "b"', ";touch harm"]
    done = bench.run("ssh.sh", "pi@pi5-a", "b", "out", *odd, EFFBENCH="./my effbench")
    assert done.code == 4, done
    words = told.read_text().splitlines()
    assert words[0] == "run-bundle" and words[2] == "--out" and words[4:] == [*odd, "--now", "1"]
    assert Path(bench.folder / "there" / words[1] / "bundle.json").is_file()
    assert not list(bench.folder.rglob("harm"))
    for wrong in (("pi@pi5-a", "nowhere", "out"), ("pi@pi5-a", "b")):
        done = bench.run("ssh.sh", *wrong)
        assert done.code == 2 and "sh ssh.sh MACHINE BUNDLE OUT" in done.err
    assert bench.run("ssh.sh", "pi@elsewhere", "b", "out").code == 255


# --- Slurm --------------------------------------------------------------------------------------------


def test_a_run_by_slurm_is_one_launch_a_job(bench: Bench) -> None:
    study_file(bench.folder)
    words = ("node17", "runs/node17", "3", "tiny.py", "--device", "fake")
    done = bench.run("slurm.sh", *words)
    assert done.code == 0 and done.out.splitlines() == [
        "first launch: job 1;cluster",
        "the other launches: array 2;cluster",
    ]
    first, others = (bench.folder / "submitted").read_text().splitlines()
    assert first.startswith("--parsable --nodelist=node17 ") and "--array" not in first
    assert "--nodelist=node17 --array=2-3%1 --dependency=afterok:1 " in others
    run = bench.folder / "runs" / "node17"
    assert run_file.load(run).complete and kinds(run).count("launch") == 3
    assert [path.read_text() for path in sorted(bench.folder.glob("ended-*"))] == ["0\n", "0\n"]
    stored = (run / "run.jsonl").read_bytes()
    assert bench.run("slurm.sh", *words).code == 0 and (run / "run.jsonl").read_bytes() == stored

    done = bench.run("slurm.sh", "node17", "runs/other", "3", "no_study")
    assert (bench.folder / "ended-5").read_text() == "2\n" and not (bench.folder / "ended-6").exists()
    assert not (bench.folder / "runs" / "other").exists()
    assert bench.run("slurm.sh", "node17").code == 2


def test_a_job_has_its_node_to_itself() -> None:
    options = re.findall(r"^#SBATCH (\S+)$", (RECIPES / "slurm.sbatch").read_text(), re.M)
    assert {"--nodes=1", "--ntasks=1", "--exclusive"} <= set(options)


# --- phones -------------------------------------------------------------------------------------------


def test_programs_run_on_a_phone_in_turn(bench: Bench) -> None:
    for number in (0, 1):
        program = bench.folder / "phone" / f"00{number}-executorch" / "model.pte"
        program.parent.mkdir(parents=True)
        program.touch()
    (bench.folder / "phone" / "bundle.json").write_text("{}")
    done = bench.run("phone.sh", "phone", "./executor_runner", "times", "2", "f0")
    assert done.code == 0, done.err
    ran = [line for line in (bench.folder / "log").read_text().splitlines() if "num_executions" in line]
    assert [re.findall(r"taskset (\w+) .* (\S+\.pte)", line)[0] for line in ran] == [
        ("f0", f"00{number}-executorch.pte") for _ in range(2) for number in (0, 1)
    ]
    files = {path.name: path.read_text() for path in (bench.folder / "times").iterdir()}
    assert files == {f"00{n}-executorch-{r}.txt": "executed, 1.5 ms\n" for n in (0, 1) for r in (1, 2)}
    assert bench.run("phone.sh", "nowhere", "x", "y").code == 2


# --- files that no test can run -----------------------------------------------------------------------

WORKFLOW = yaml.safe_load((RECIPES / "github.yml").read_text(encoding="utf-8"))
DOCKERFILE = (RECIPES / "Dockerfile").read_text(encoding="utf-8")
PLAY = yaml.safe_load((RECIPES / "board.yml").read_text(encoding="utf-8"))[0]


def test_the_workflow_is_valid_by_the_published_schema() -> None:
    words = ("--builtin-schema", "vendor.github-workflows", str(RECIPES / "github.yml"))
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_measures_on_each_label_and_runs_no_code_of_strangers() -> None:
    # YAML 1.1 reads the key `on` as true.
    assert set(WORKFLOW[True]) == {"workflow_dispatch", "schedule"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    measure, report = WORKFLOW["jobs"]["measure"], WORKFLOW["jobs"]["report"]
    assert measure["runs-on"] == ["self-hosted", "${{ matrix.machine }}"] and not measure["strategy"]["fail-fast"]
    assert measure["concurrency"] == {"group": "measure-${{ matrix.machine }}", "cancel-in-progress": False}
    assert report["needs"] == "measure" and report["if"].startswith("always()")
    for job in WORKFLOW["jobs"].values():
        for item in job["steps"]:
            assert "${{" not in item.get("run", ""), "an expression in a script would be executed"
    uploaded = [item["with"] for item in measure["steps"] if "upload" in item.get("uses", "")]
    assert [item["name"] for item in uploaded] == ["run-${{ matrix.machine }}"]


def test_the_report_of_the_workflow_is_made_of_what_the_jobs_upload(tmp_path: Path) -> None:
    """The last script, over folders as they are downloaded. It uses a stored run twice."""
    stored = ROOT / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores" / "g2_groups"
    for machine in ("pi5", "x86"):
        shutil.copytree(stored, tmp_path / "runs" / machine)
    script = next(item["run"] for item in WORKFLOW["jobs"]["report"]["steps"] if item.get("name") == "Report")
    command, rest = script.splitlines()
    words = [word for part in shlex.split(command)[1:] for word in sorted(glob(part, tmp_path)) or [part]]
    done = effbench(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert rest == 'cat report.md >> "$GITHUB_STEP_SUMMARY"'
    assert {"pi5", "x86"} <= set(re.findall(r"\w+", (tmp_path / "report.md").read_text()))


def glob(pattern: str, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.glob(pattern)] if "*" in pattern else []


def scripts_of_the_workflow() -> Iterator[str]:
    for job in WORKFLOW["jobs"].values():
        yield from (item["run"] for item in job["steps"] if "run" in item)


def test_the_dockerfile_has_two_stages_no_root_and_no_torch_unless_asked() -> None:
    lines = re.sub(r"^ *#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ").splitlines()
    steps = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    known = {"FROM", "ARG", "COPY", "SHELL", "RUN", "ENV", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT"}
    assert {name for name, _ in steps} == known
    assert [text for name, text in steps if name == "FROM"] == ["python:3.11-slim AS build", "python:3.11-slim"]
    assert ("ARG", 'TORCH=""') in steps and ("USER", "1000") in steps
    names = [name for name, _ in steps]
    assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")
    assert steps[-1] == ("ENTRYPOINT", '["effbench", "fleet", "worker"]')
    script = next(text for name, text in steps if name == "RUN")
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0
    without_torch = script.partition("else")[2]
    assert "torch" not in without_torch.replace("$TORCH", "") and "--no-deps" in without_torch


def test_requirements_that_are_written_out_are_those_of_the_package() -> None:
    """Of a worker, and of a bundle that is measured without torch."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    fleet = json.loads(re.search(r"^fleet = (\[.*\])$", project, re.M)[1])  # type: ignore[index]
    # cryptography makes certificates, which no worker does.
    (needed,) = (line for line in fleet if Requirement(line).name != "cryptography")
    assert all(f'"{needed}"' in text for text in (DOCKERFILE, (RECIPES / "board.yml").read_text(), PAGES["fleet"]))
    writing = (ROOT / "effbench" / "bundles" / "export.py").read_text(encoding="utf-8")
    bundled = re.findall(r'^        "([a-z]+(?:>=[\d.]+)?)",$', writing, re.M)
    assert {Requirement(line).name for line in bundled} == {"filelock", "msgspec", "numpy", "typer", "scipy"}
    assert all(line in DOCKERFILE.partition("else")[2] for line in bundled)


def test_the_playbook_keeps_the_key_and_asks_effbench_for_the_unit() -> None:
    tasks = {task["name"]: task for task in PLAY["tasks"]}
    key = tasks["Copy the certificate and key of this machine"]
    assert key["ansible.builtin.copy"]["mode"] == "0600" and key["no_log"] is True and "key.pem" in key["loop"]
    assert tasks["Make the folder of the certificate"]["ansible.builtin.file"]["mode"] == "0700"
    installed = [task["ansible.builtin.pip"] for task in PLAY["tasks"] if "ansible.builtin.pip" in task]
    assert len(installed) == 3 and "--no-deps" in installed[-1]["extra_args"]
    assert all(task.get("become_user") == "effbench" for task in PLAY["tasks"] if "ansible.builtin.pip" in task)
    assert tasks["Ask effbench for the unit of the service"]["ansible.builtin.command"]["cmd"].endswith("--systemd")
    modules = {name for task in [*PLAY["tasks"], *PLAY["handlers"]] for name in task if name.startswith("ansible.")}
    assert all(re.fullmatch(r"ansible\.builtin\.\w+", name) for name in modules)
    handlers = {handler["name"] for handler in PLAY["handlers"]}
    assert {task["notify"] for task in PLAY["tasks"] if "notify" in task} == handlers
    assert PLAY["hosts"] == "boards" and "[boards]" in (RECIPES / "boards.ini").read_text()


LINTERS: Mapping[str, tuple[str, ...]] = {
    "shellcheck": ("ssh.sh", "slurm.sh", "slurm.sbatch", "phone.sh"),
    "hadolint": ("Dockerfile",),
    "ansible-playbook": ("--syntax-check", "-i", "boards.ini", "board.yml"),
}


@pytest.mark.parametrize("linter", LINTERS)
def test_linters_that_are_installed_find_nothing(linter: str) -> None:
    if not shutil.which(linter):
        pytest.skip(f"{linter} is not installed")
    done = subprocess.run([linter, *LINTERS[linter]], cwd=RECIPES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the pages ----------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every effbench command of the pages and of the recipes' files."""
    indented = [line for page in PAGES.values() for line in re.findall(r"^ {4,}(effbench .*)$", page, re.M)]
    others = (DOCS / "commands.md", DOCS.parent / "README.md")  # whose other commands test_documentation.py runs
    indented += [line for page in others for line in re.findall(r"^ {4,}(effbench fleet .*)$", page.read_text(), re.M)]
    within = [line for page in PAGES.values() for line in re.findall(r"`(effbench [^`…]+)`", page.replace("\n", " "))]
    worker = PLAY["vars"]["worker"].replace("{% for label in labels %}", "").replace("{% endfor %}", "")
    scripts = [line for script in scripts_of_the_workflow() for line in script.splitlines() if "effbench " in line]
    scripts = [found for line in scripts for found in re.findall(r"^(?:env/bin/)?(effbench .*)$", line.strip())]
    found = [*indented, *within, re.sub(r".*?(?=effbench fleet)", "", re.sub(r"\{\{.*?\}\}", "x", worker)), *scripts]
    return sorted({re.split(r" {2,}#| \| ", line)[0].strip() for line in found})


@pytest.mark.parametrize("line", commands())
def test_each_command_is_one_that_effbench_takes(line: str) -> None:
    """Its words are parsed by the real command line, and nothing is started. A lone name of a command has no words."""
    _, *words = shlex.split(line)
    found: Any = typer.main.get_command(command_line())
    while words and hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    if any(word.startswith("-") for word in words) and "`" + line + "`" not in "".join(PAGES.values()):
        found.make_context("command", words)


def test_the_pages_have_commands() -> None:
    assert sum(line.startswith("effbench fleet ") for line in commands()) >= 15
    assert {line.split()[1] for line in commands()} >= {"fleet", "report", "diff", "bundle", "run-bundle", "doctor"}


def test_the_configuration_shown_is_one(tmp_path: Path) -> None:
    config = pytest.importorskip("effbench.fleet.config")
    (text,) = re.findall(r"^```toml\n(.*?)```", PAGES["fleet"], re.S | re.M)
    (tmp_path / "fleet.toml").write_text(text)
    found = config.load(tmp_path / "fleet.toml")
    assert found.scheduler == "tls://hub.lab:8786" and found.certs == tmp_path / "alice" and found.patience_s == 600
    assert found.options_for(["board=pi5"]) == {} and found.options_for(["device=cuda"]) == {"device": "cuda"}


def test_every_recipe_is_on_its_page_and_every_page_is_found() -> None:
    shown = set(re.findall(r"\]\(recipes/([\w.]+)\)", PAGES["recipes"]))
    assert shown == {path.name for path in RECIPES.iterdir()}
    assert shown == set(re.findall(r"\{literalinclude\} recipes/([\w.]+)", PAGES["recipes"]))
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}$", index, re.M) for name in PAGES)


def test_the_first_paragraph_says_what_a_participant_may_do() -> None:
    first = PAGES["fleet_security"].split("\n\n")[1]
    assert "Trust is symmetric" in first and "run code on every machine" in first
    assert "fleet_security.md" in PAGES["fleet"].partition("\n## ")[0]
