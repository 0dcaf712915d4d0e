"""The helper process that imports user code before a run: one process for input shapes and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import measuring
import pytest

import effbench
from effbench.core.errors import EffbenchError
from effbench.core.study import Case, Cell
from effbench.cost import count_in_subprocess, helper_process
from effbench.host.worker_process import Site, Worker

NETS = """
import os
with open("imports", "a") as log:
    print(os.getpid(), file=log)
from torch import nn

class Net(nn.Module):
    input_shape = (3, 10, 12)
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(3, width, 1)
    def forward(self, x):
        return self.layer(x)

def thin(): return Net(2)
def wide(): return Net(4)
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Worker]]:
    """The helper processes that were started."""
    found: list[Worker] = []

    class Recorded(Worker):
        def __init__(self, job: Mapping[str, Any], *rest: Any) -> None:
            super().__init__(job, *rest)
            found.append(self)

    monkeypatch.setattr(helper_process, "Worker", Recorded)
    with measuring.forked():
        yield found


def is_running(worker: Worker) -> bool:
    return worker._process.poll() is None


def test_a_comparison_starts_one_process_and_imports_the_file_in_it_once(
    started: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    results = effbench.compare("nets.py:thin", "nets.py:wide", device="fake", quick=True, launches=1, save=False)
    assert [cell.cost.madds for cell in results.cells] == [10 * 12 * 3 * 2, 10 * 12 * 3 * 4]
    assert [cell.cell.case.input_shape for cell in results.cells] == [(3, 10, 12)] * 2, "the shape that it says"
    (helper,) = started
    assert not is_running(helper)
    imports = (tmp_path / "imports").read_text().split()
    assert imports.count(str(helper._process.pid)) == 1, "its children build, and read the file again"


def test_a_process_that_does_not_survive_its_first_job_is_followed_by_another(
    started: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(EffbenchError, match="exit code 3"):
        effbench.measure("nets.py:net", device="fake", save=False)
    assert len(started) == 2 and not any(map(is_running, started))


def test_a_process_is_kept_for_its_own_site_and_no_longer_than_the_block(
    started: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    model, site = f"{tmp_path}/nets.py:thin", Site(tmp_path)
    cell = Cell(Case(model, (3, 4, 4)))
    with helper_process.reuse_process():
        assert count_in_subprocess.declared_shapes([model], site=site) == {model: (3, 10, 12)}
        assert is_running(started[0])
        (counted,) = count_in_subprocess.count_in_worker([cell], 60.0, site).values()
        assert isinstance(counted, count_in_subprocess.Counted) and counted.cost.madds == 4 * 4 * 3 * 2
        assert len(started) == 1 and not is_running(started[0])
        count_in_subprocess.declared_shapes([model], site=site)
        count_in_subprocess.count_in_worker([cell], 60.0)
        assert len(started) == 3 and not any(map(is_running, started)), "of another site"
        count_in_subprocess.declared_shapes([model], site=site)
        assert is_running(started[3])
        helper_process.end_idle_process()
        assert not is_running(started[3]), "a run may last for hours"
    count_in_subprocess.declared_shapes([model], site=site)
    assert not is_running(started[4]), "nobody asked for it to be kept"
