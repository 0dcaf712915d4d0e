"""What every test shares: the option that rewrites golden files."""

from __future__ import annotations

import os
import tempfile

import pytest

# What effbench keeps between runs it keeps here: no test reads or writes the user's own. Subprocesses inherit it.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"effbench-tests-{getattr(os, 'getuid', int)()}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite the golden files with what the tests saw")


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--golden"))
