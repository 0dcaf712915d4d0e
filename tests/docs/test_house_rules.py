"""Conventions of the source code: vocabulary, names, docstrings, module sizes."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import effbench
from effbench.cli import COMMANDS
from effbench.cli.app import command_line
from effbench.core.errors import UnknownName

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "effbench").rglob("*.py"), *(ROOT / "experiments").glob("*.py")])


RETIRED = {
    "gates.duel": "gates.ab_run",
    "gates.rule": "gates.decision_rule",
    "gates.counted": "gates.instruction_gate",
    "gates.against": "gates.ab_gate",
    "measurement.here": "timing.in_process",
    "measurement.keeping": "timing.reference_io",
    "measurement.agreement": "timing.output_check",
    "measurement.metrics": "metrics.base",
    "report.ink": "report.figures.style",
    "report.grid": "report.tables.table_model",
    "report.beside": "report.tables.metric_columns",
    "report.captions": "report.text",
    "bundles.stored": "bundles.bundle",
    "bundles.writing": "bundles.export",
    "runtimes.quiet": "runtimes.capture_output",
    "cost.isolate": "cost.sandbox",
    "commands": "cli",
    "console": "cli.output",
    "words": "cli.options",
    "feeding": "core.inputs",
    "counts": "core.cost",
    "claims": "analysis.verdicts",
    "lineup": "studies.model_comparison",
    "unrest": "host.noise",
    "processors": "host.cpu_names",
    "storage": "runs.run_file",
    "zoo.external": "zoo.load_model",
    "runs.launches": "runs.launch_history",
    "reading": "runs.schema",
    "recording": "runs.recorder",
    "metrics.operator_profile": "metrics.operator_timing",
    "metrics.latency_percentiles": "metrics.percentiles",
}
"""Names of modules that riddled, with those that took their place."""


@pytest.mark.parametrize("old", RETIRED)
def test_no_module_has_a_retired_name_again(old: str) -> None:
    parts, package = old.split("."), ROOT / "effbench"
    place = package.joinpath(*parts)
    assert not place.with_suffix(".py").exists() and not list(place.glob("*.py"))
    new = package.joinpath(*RETIRED[old].split("."))
    assert new.with_suffix(".py").exists() or (new / "__init__.py").exists()
    named = re.compile(rf"effbench[./]{re.escape(old).replace(chr(92) + '.', '[./]')}(\.py)?(?!\w)")
    tracked = [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert not [path.name for path in tracked if named.search(path.read_text(encoding="utf-8"))]


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_one_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    words = {word for name in identifiers(tree) for word in name.lower().split("_")}
    assert not words & {"mac", "macs", "gmacs"}, "say madds for multiply-adds, memory_access for memory access cost"
    assert ast.get_docstring(tree), "the top of a file says its one job"
    assert len(text.splitlines()) <= 420, "modules stay around 300 lines"
    assert path.name != "utils.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings(path: Path) -> None:
    """Every class, and every function longer than a formula: its name and types say the rest."""
    bare = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if path.parent.name != "experiments" and len(node.body) > 2 and not ast.get_docstring(node)
    ]
    assert not bare


def test_the_public_names_are_there_and_are_no_modules() -> None:
    """A submodule of the same name would hide one as soon as something imports it."""
    import effbench.api
    import effbench.cli.app
    import effbench.runs.worker

    for name in set(effbench.__all__) - {"__version__"}:
        found = getattr(effbench, name)
        assert inspect.isfunction(found) or inspect.isclass(found), name
        assert not (ROOT / "effbench" / f"{name}.py").exists() and not (ROOT / "effbench" / name).exists()
    assert set(effbench.__all__) <= set(dir(effbench))
    with pytest.raises(AttributeError, match="no attribute 'profil'"):
        effbench.profil  # noqa: B018


def test_the_listed_commands_are_the_real_ones() -> None:
    import typer

    group = typer.main.get_command(command_line())
    assert tuple(group.commands) == tuple(COMMANDS)  # type: ignore[attr-defined]


def test_importing_costs_no_torch() -> None:
    """Reading and judging stored runs, and the command's help, must start in milliseconds."""
    code = (
        "import sys, effbench, effbench.cli.app, effbench.runs.run_file, effbench.analysis.summary;"
        "import effbench.analysis.verdicts, effbench.analysis.run_diff;"
        "import effbench.studies.plan, effbench.studies.catalog, effbench.zoo, effbench.host.facts, effbench.api;"
        "import effbench.report.tables.diff, effbench.report.tables.doctor, effbench.report.tables.profile;"
        "import effbench.report.json_document, effbench.report.page;"
        "effbench.zoo.names(); effbench.studies.catalog.titles();"
        "heavy = ('torch', 'pandas', 'matplotlib', 'numpy', 'scipy', 'rich', 'jinja2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_guess_and_list() -> None:
    error = UnknownName("study", "g2_group", ["g1_channel_ratio", "g2_groups"])
    assert (
        str(error)
        == "there is no study named 'g2_group'. Did you mean 'g2_groups'? Known: g1_channel_ratio, g2_groups."
    )
    assert "Did you mean" not in str(UnknownName("study", "zzz", ["abc"]))


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(effbench.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_nothing_shipped_names_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/work/|/root/|(?<!\w)\.library|shared/(paper|design|zoo|measurement|counting)")
    for name in tracked.stdout.split():
        path = ROOT / name
        if name == "tests/docs/test_house_rules.py" or not path.is_file() or path.suffix in (".png",):
            continue
        found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{name}: {found}"
