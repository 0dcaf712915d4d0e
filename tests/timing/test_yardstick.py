"""The yardstick: two fixed convolutions that ride in every launch."""

from __future__ import annotations

import sys

import pytest

from effbench.devices import get
from effbench.devices.cpu import Cpu
from effbench.timing import yardstick


def test_its_rounds_end_with_its_share_of_the_launch_but_not_before_three() -> None:
    import torch

    before = torch.get_num_threads()
    for spent_s, rounds in ((0.0, yardstick.LEAST_ROUNDS), (1e6, yardstick.ROUNDS)):
        blocks = yardstick.time_blocks(Cpu(), spent_s)
        assert {name: len(timings) for name, timings in blocks.items()} == {"dense": rounds, "depthwise": rounds}
    timings = [timing for each in blocks.values() for timing in each]
    assert all(timing.wall_ns > 0 and timing.calls >= 1 for timing in timings)
    assert torch.get_num_threads() == before


def test_nothing_that_a_network_sets_changes_it() -> None:
    import torch

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(yardstick._convolution(Cpu(), 64, 1, 1)())
        state = torch.initial_seed()
        assert state == seed, "the seed of the networks is untouched"
    assert torch.equal(*found)
    torch.set_default_dtype(torch.float64)
    try:
        found.append(yardstick._convolution(Cpu(), 64, 1, 1)())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[2].dtype == torch.float32 and torch.equal(found[1], found[2])
    assert found[0].shape == (1, 64, 56, 56)


def test_without_torch_and_on_a_scripted_clock_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yardstick.time_blocks(get("fake"), 10.0) == {}
    assert yardstick.time_blocks(Cpu(torch=False), 10.0) == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert yardstick.time_blocks(Cpu(), 10.0) == {}
