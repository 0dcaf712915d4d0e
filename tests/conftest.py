"""What tests share: the option that rewrites golden files, the process that fault tests fork."""

from __future__ import annotations

import compileall
import gc
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from forks import Forks

# What effbench keeps between runs it keeps here: no test reads or writes the user's own. Subprocesses inherit it.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"effbench-tests-{getattr(os, 'getuid', int)()}")

# Hundreds of commands import the same 200 files. Where Python keeps no bytecode, as in many containers, each would
# compile them anew, for a second of processor time.
if sys.dont_write_bytecode and "PYTEST_XDIST_WORKER" not in os.environ:
    compileall.compile_dir(Path(__file__).parent.parent / "effbench", quiet=2)

# One thread a process, set before torch is loaded: two test processes of two threads would wait on each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = (
    *("test_benchmarks_gpu", "test_documentation", "test_stories", "test_runtime_contract", "test_faults"),
    *("test_cost_operators", "test_every_network", "test_coverage", "test_faults_files", "test_faults_kill"),
    *("test_against", "test_metric_predicts_speed", "test_origins_gate", "test_cli", "test_workflow", "test_slow"),
    *("test_pytest_plugin", "test_surroundings", "test_cost_memory", "test_duel", "test_every_experiment"),
    *("test_manners", "test_compiled", "test_breakdown", "test_external", "test_zoo_shuffled", "test_check"),
    *("test_plots", "test_effects", "test_cost_properties", "test_faults_text", "test_builds", "test_modes"),
    *("test_faults_storage", "test_inputs", "test_api", "test_executorch", "test_cost_fusion", "test_bundle"),
    *("test_instructions", "test_page", "test_page_browser", "test_zoo_modern", "test_faults_machine"),
)
"""The files that take longest, longest first: what begins last must not be what ends last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files with what the tests saw")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests marked `bulk` run without coverage, and so do the fixtures that they are the first to ask for."""
    from tracing import untraced

    with untraced() if item.get_closest_marker("bulk") else nullcontext():
        return (yield)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run: one that fails for some draws fails for good, or never."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """ONNX Runtime flushes them in the thread that opens a model, and leaves it so: right for a worker, not for us."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """A worker switches the garbage collector off for good, also one that a test runs in this process."""
    yield
    gc.enable()


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--golden"))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """The process that runs under fault tests are forked from."""
    from forks import Forks

    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    found.close()


@pytest.fixture
def fresh_forks(forks: Forks) -> None:
    """Nothing of the test before is left in its folder."""
    forks.empty()
