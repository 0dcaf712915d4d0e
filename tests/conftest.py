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

# torch.compile asks the compiler in each process which vector instructions it has, for 20 seconds of processor time.
# With this it believes what the processor says.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# A traced network makes hundreds of thousands of objects that live on. To look through them after every 700 new ones,
# as Python does by default, takes an eighth of the time of such tests.
gc.set_threshold(50_000, 20, 50)

LONG = """
    runtimes/test_contract gates/test_ab_gate docs/test_stories benchmarks/test_gpu zoo/test_every_network
    fleet/test_kills fleet/test_acceptance gates/test_ab_run faults/test_early_ends docs/test_documentation
    faults/test_kill docs/test_workflow gates/test_wrong_code cli/test_app cost/test_published_counts
    faults/test_surroundings cost/test_equivalent_calls cost/test_layers faults/test_storage zoo/test_load_model
    bundles/test_bundle test_pytest_plugin timing/test_side_effects test_api runtimes/test_torch_compile
    report/test_page cost/test_operators report/test_page_browser report/figures/test_figures faults/test_machine
    faults/test_files analysis/test_time_shares experiments/test_metric_predicts_speed cost/test_profile
    core/test_inputs core/test_plugins cost/test_memory_access faults/test_text cost/test_network_builds
    timing/test_slow_networks zoo/test_modern cost/test_roofline cost/test_example_inputs
    analysis/test_stats_on_clocks export/test_export zoo/test_shuffled runtimes/test_executorch
    benchmarks/test_decision_rules cost/test_unusual_networks timing/test_build_call
""".split()  # noqa: SIM905
"""The files that take longest, longest first: what begins last must not be what ends last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONG)}
    # A notebook takes as long as the longest of these files.
    items.sort(key=lambda item: -1 if item.path.suffix == ".ipynb" else place.get(item.path, len(LONG)))


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
        # Not `torch.manual_seed`: for every kind of device that is not here it keeps the whole stack as text, for
        # milliseconds in a test.
        sys.modules["torch"].default_generator.manual_seed(0)


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


_imported = 0


@pytest.fixture(autouse=True)
def frozen() -> None:
    """What was imported is no garbage. Whatever measures in this process collects garbage first, and to look for it in
    all of torch would take a second in each test.
    """
    global _imported
    if len(sys.modules) > _imported:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture(autouse=True)
def start_variables() -> Iterator[None]:
    """A test that leaves PYTHONPATH or the like changed would cost all later commands of its process their forks."""
    from nursery import fixed

    before = fixed(os.environ)
    yield
    if (after := fixed(os.environ)) != before:
        for name in after:
            del os.environ[name]
        os.environ.update(before)


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--golden"))


@pytest.fixture(scope="module")
def forked_launches() -> Iterator[None]:
    """For files whose tests start runs themselves and do not look at times: no launch imports torch anew."""
    from measuring import forked

    with forked():
        yield


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
