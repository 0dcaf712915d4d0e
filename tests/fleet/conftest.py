"""What tests of fleets share: one process to fork from, certificates, a fleet that stays, a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fleet_forks import Forks
    from fleets import Fleet


@pytest.fixture(scope="session")
def fleet_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    for needed in ("distributed", "cryptography", "onnxruntime"):
        pytest.importorskip(needed)
    from fleet_forks import Forks

    found = Forks(tmp_path_factory.mktemp("fleet"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def certs(fleet_forks: Forks) -> Path:
    from fleets import make_certificates

    return make_certificates(fleet_forks.home / "certs")


@pytest.fixture(scope="session")
def bundle(fleet_forks: Forks) -> Path:
    """Launches of it end at once."""
    from tiny_bundles import tiny_bundle

    return tiny_bundle(fleet_forks.home / "bundle")


@pytest.fixture(scope="session")
def slow_bundle(fleet_forks: Forks) -> Path:
    """Launches of it take half a second or more: time to do something to them."""
    from tiny_bundles import tiny_bundle

    return tiny_bundle(fleet_forks.home / "slow", rounds=400)


@pytest.fixture(scope="session")
def fleet(fleet_forks: Forks, certs: Path) -> Iterator[Fleet]:
    """Three machines that stay."""
    from fleets import Fleet

    home = fleet_forks.home / "stays"
    home.mkdir()
    found = Fleet(fleet_forks, certs, home).start()
    yield found
    found.close()


@pytest.fixture
def new_fleet(fleet_forks: Forks, certs: Path, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Start a fleet of one's own, to be killed: as many machines as are named."""
    from fleets import Fleet

    made: list[Fleet] = []

    def start(*names: str, ttl: str | None = None) -> Fleet:
        made.append(Fleet(fleet_forks, certs, tmp_path, names, ttl=ttl))
        return made[-1].start()

    yield start
    for found in made:
        found.close()
