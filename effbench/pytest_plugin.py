"""pytest's fixture `effbench`: blocks and counts of a network inside pytest-benchmark's table, files and comparisons.

    def test_speed(effbench):
        effbench.measure(model, (3, 224, 224))

    def test_budget():
        assert_cost(model, (3, 224, 224), max_madds="300M")

pytest loads this file in every suite where effbench is installed, so it imports nothing that costs, and adds no option,
no marker and no output. Only pytest-benchmark's public interface is used; tried with its versions 4.0 to 5.3.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

if TYPE_CHECKING:
    from torch import nn

    from effbench.core.cost import Cost
    from effbench.core.run import Timing
    from effbench.devices import Call, Device
    from effbench.gates.budgets import Stored

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Speed:
    """What `measure` found. Seconds per call, medians over `blocks`; None where nothing was timed.

    `costs` is None where the network cannot be counted, and `costs_missing` the reason. `calls` is the number of calls
    in each block. `is_steady` says whether the warm-up reached a steady state. `notes` say what is odd about the
    network: it writes into its input, keeps state between calls, draws random numbers, or sets something for the whole
    process.
    """

    costs: Cost | None
    costs_missing: str = ""
    calls: int | None = None
    blocks: tuple[Timing, ...] = ()
    is_steady: bool | None = None
    environment: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def median_s(self) -> float | None:
        """Wall time, which is also pytest-benchmark's median."""
        return self._median([block.wall_ns for block in self.blocks])

    @property
    def cpu_median_s(self) -> float | None:
        """CPU time of the calling thread, or of the process where several threads compute."""
        return self._median([block.cpu_ns for block in self.blocks])

    @property
    def device_median_s(self) -> float | None:
        """Time between device events; None on a CPU."""
        return self._median([block.device_ns for block in self.blocks])

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be known before `cpu_median_s` is read: what the CPU clock misses of the network."""
        from effbench.analysis import cpu_share

        if self.device_median_s is not None or (self.environment or {}).get("run.threads", 1) != 1:
            return ()
        share = cpu_share.of_launches([[block for block in self.blocks if not block.flags] or self.blocks])
        return () if share is None or share.is_usual else (f"{share.flag}: {share.amount}",)

    def _median(self, spent_ns: list[int | None]) -> float | None:
        from effbench.analysis import stats

        known = [value for value in spent_ns if value is not None]
        return stats.median(known) / self.calls * 1e-9 if known and self.calls else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what stands under ``extra_info["effbench"]``."""
        return {
            "costs": self.costs.to_dict() if self.costs else None,
            **({"costs_missing": self.costs_missing} if self.costs_missing else {}),
            "calls": self.calls,
            "blocks": {
                name: [getattr(block, name) for block in self.blocks]
                for name in (
                    "wall_ns",
                    "cpu_ns",
                    "process_ns",
                    "device_ns",
                    "minor_faults",
                    "switches",
                    "run_delay_ns",
                )
            },
            "flags": dict(Counter(flag for block in self.blocks for flag in block.flags)),
            "steady": self.is_steady,
            "median_s": self.median_s,
            "cpu_median_s": self.cpu_median_s,
            "device_median_s": self.device_median_s,
            "remarks": list(self.remarks),
            "environment": dict(self.environment or {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def _for_people(verb: Callable[P, R]) -> Callable[P, R]:
    """An error for people shows the line of the test, not the way through effbench."""

    @functools.wraps(verb)
    def shortened(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        from effbench.core.errors import EffbenchError

        try:
            return verb(*args, **kwargs)
        except EffbenchError as error:
            from effbench.user_code.failure_reasons import GRADIENTS

            # Where the network's own code has raised, its line is what helps.
            raise error.with_traceback(None) from (error.__cause__ if str(error) == GRADIENTS else None)

    return shortened


# --- counts held to budgets -------------------------------------------------------------------------


@_for_people
def assert_cost(
    model: str | nn.Module,
    shape: Any = None,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    max_madds: int | str | None = None,
    max_params: int | str | None = None,
    max_memory_access: int | str | None = None,
    max_memory_access_bytes: int | str | None = None,
    max_activations: int | str | None = None,
    same_as: str | Path | None = None,
) -> Cost:
    """Hold a network's counts to budgets (``"300M"`` or whole numbers), or to a profile that was stored.

    `model`, `shape`, `batch` and `dtype` as for `effbench.profile`. `same_as` is a file with what
    ``effbench profile --json`` printed, to which every count must be equal; what is not said here is taken from it.
    No clock is read. Returns the counts.

    Raises AssertionError of one line with each count that is not kept, its limit and the excess; InvalidValue where
    there is nothing to hold to, and as `effbench.profile` does.
    """
    __tracebackhide__ = True
    from effbench import api
    from effbench.core import parsing, units
    from effbench.core.errors import InvalidValue
    from effbench.core.inputs import Input
    from effbench.gates import budgets
    from effbench.zoo import accepted

    accepted.model(model, "assert_cost")
    limits = {
        "madds": max_madds,
        "params": max_params,
        "memory_access": max_memory_access,
        "memory_access_bytes": max_memory_access_bytes,
        "activations": max_activations,
    }
    wanted = {name: units.amount(str(limit)) for name, limit in limits.items() if limit is not None}
    if same_as is None and not wanted:
        raise InvalidValue("assert_cost has nothing to hold to; say max_madds='300M' or same_as='profile.json'")
    name = model if isinstance(model, str) else type(model).__name__
    stored = _stored(same_as, name) if same_as is not None else None
    if stored and shape is None:
        shape = parsing.inputs(stored.fed.split(" and "))
    found = api.profile(
        model,
        shape,
        batch=stored.batch if stored and batch is None else batch,
        dtype=(stored.dtype if stored else _own_dtype(model, shape)) if dtype is None else dtype,
    )
    fed = " and ".join(map(str, found.inputs or (Input(found.input_shape),)))
    finding = budgets.judge(name, found.cost, wanted, stored, f"input {fed}, batch {found.batch}, {found.dtype}")
    if finding.verdict != "PASS":
        raise AssertionError(f"{name}: {finding.reason}")
    return found.cost


def _stored(path: str | Path, name: str) -> Stored:
    from effbench.core.errors import InvalidValue
    from effbench.gates import budgets

    try:
        document = json.loads(Path(path).read_bytes())  # as UTF-8 or UTF-16, with a byte order mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{path} cannot be read ({error}); write it with `effbench profile MODEL --json`") from None
    profiles = budgets.read(document, str(path))
    found = profiles[0] if len(profiles) == 1 else budgets.matching(profiles, name, name)
    if found is None:
        raise InvalidValue(f"{path} holds no profile of {name}; name a file that holds one alone")
    return found


def _own_dtype(model: str | nn.Module, shape: Any) -> str:
    from effbench.core import inputs
    from effbench.timing import in_process

    given = inputs.read(shape).dtype if shape is not None else ""
    return given or ("float32" if isinstance(model, str) else in_process.own_dtype(model))


# --- the clock --------------------------------------------------------------------------------------


class Effbench:
    """The fixture's value: `measure` once a test, `assert_cost` as often as wanted."""

    assert_cost = staticmethod(assert_cost)

    def __init__(self, benchmark: Any, replay: Replay, sampling: Mapping[str, Any]) -> None:
        self._benchmark, self._replay, self._sampling = benchmark, replay, sampling
        self.is_used = False

    @_for_people
    def measure(
        self,
        model: str | nn.Module,
        shape: Any = None,
        *,
        batch: int | None = None,
        dtype: str | None = None,
        threads: int = 1,
        device: str | None = None,
        allocator: str = "retain",
    ) -> Speed:
        """Time a network in this process, in eval and inference mode, on seeded normal inputs.

        `model` is a module, a name or ``"file.py:factory"``; `shape` excludes the batch and may describe several
        inputs, or holds example tensors, as for `effbench.profile`. `dtype` and `device` default to those of the
        tensors and of the module, to float32 and "cpu" for a name. `threads` 0 means every
        core. `allocator` "retain" makes glibc keep freed pages for the rest of the process, "system" leaves it alone.
        Everything else is left as it was: a copy of the module is measured (where
        nobody can copy it, the module itself, which is then put back); random states and the globals that its code
        writes to are restored.

        Each block of k calls (k calibrated once, 5 ms or more) is one round of pytest-benchmark with k iterations, on
        the wall clock; CPU times, page faults, flags and counts are in ``extra_info["effbench"]``. Stops at a precision
        of 1 %, after 60 rounds or `--benchmark-max-time`. Where benchmarks are disabled one plain call runs, and the
        times are None. Under emulation, where a time says nothing, the test is skipped.

        Raises InvalidValue when called twice in a test, EffbenchError and its kin, and what the network itself raises.
        """
        __tracebackhide__ = True
        from effbench.core.errors import InvalidValue
        from effbench.core.study import Sampling
        from effbench.host import machine
        from effbench.host.emulation import EMULATED
        from effbench.timing import in_process
        from effbench.timing.least_duration import is_overrun

        if self.is_used:
            self._benchmark.has_error = True
            raise InvalidValue("effbench.measure was called twice in one test; parametrize the test instead")
        self.is_used = True
        if machine.emulated(machine.HERE, platform.machine()) and device != "fake":
            pytest.skip(EMULATED)
        network, fed = _built(model, shape)
        prepared = in_process.prepare(
            network, fed, batch=batch, dtype=dtype, device=device, threads=threads, is_ours=isinstance(model, str)
        )
        with prepared.conditions(allocator) as policy:
            if not self._benchmark.enabled:
                self._benchmark.pedantic(prepared.call)
                return Speed(prepared.costs, prepared.costs_missing, notes=prepared.notes)
            sampling, begun_s = Sampling(**self._sampling), time.monotonic()
            calls, is_steady, blocks = in_process.blocks(prepared, sampling)
            used_s = time.monotonic() - begun_s
            facts = _environment(prepared.device, prepared.threads, policy)
            self._replay.record(self._benchmark, prepared.call, blocks)
        speed = Speed(prepared.costs, prepared.costs_missing, calls, blocks, is_steady, facts, prepared.notes)
        self._benchmark.extra_info["effbench"] = speed.to_dict()
        if is_overrun(used_s, sampling.budget_s):
            # --benchmark-max-time ends the rounds and not the warm-up.
            over = {"used_s": round(used_s, 3), "budget_s": sampling.budget_s}
            self._benchmark.extra_info["effbench"]["over_budget"] = over
        return speed


class Replay:
    """A clock for pytest-benchmark that tells the times of blocks measured before, so that its rounds are those."""

    def __init__(self) -> None:
        self._left: list[float] = []

    def block_clock(self) -> float:
        """Read at the start of a round: zero. At its end: what the block took, in seconds."""
        return self._left.pop()

    def record(self, benchmark: Any, call: Call, blocks: Sequence[Timing]) -> None:
        """Give pytest-benchmark the blocks. It calls once more on its own, and again where it was asked for cProfile.

        Raises InvalidValue where it reads another clock.
        """
        from effbench.core.errors import InvalidValue

        self._left = [reading for block in reversed(blocks) for reading in (block.wall_ns * 1e-9, 0.0)]
        left = self._left
        benchmark.pedantic(lambda: None if left else call(), rounds=len(blocks), iterations=blocks[0].calls)
        if left:
            benchmark.has_error = True
            raise InvalidValue("the fixture benchmark was made before effbench; let this test take only effbench")


def _built(model: str | nn.Module, shape: Any) -> tuple[nn.Module, Any]:
    """The network, with seeded weights where it is only named, and what it is fed where nothing was said."""
    import torch

    from effbench import zoo
    from effbench.studies import model_comparison
    from effbench.timing import in_process
    from effbench.user_code import global_state
    from effbench.zoo import accepted, external, libraries

    accepted.model(model, "effbench.measure")
    if isinstance(model, str):
        model_comparison.require([model])
        with torch.random.fork_rng(devices=[]), global_state.kept():
            torch.default_generator.manual_seed(in_process.SEED)
            network = zoo.resolve(model)
        shape = model_comparison.published_shape(model) if shape is None else shape
    else:
        network = model
    return network, (libraries.own_shape(network) or external.DEFAULT_SHAPE) if shape is None else shape


def _environment(device: Device, threads: int, allocator: str) -> dict[str, Any]:
    """The fingerprint, and the conditions it is made of."""
    from effbench import runtimes
    from effbench.host import facts as host_facts

    about = {} if device.kind == "fake" else runtimes.get("eager").facts()
    found = host_facts.collect(device.facts(), "eager", threads=threads, allocator=allocator, runtime_facts=about)
    facts = {name: found.facts[name] for name in host_facts.MUST_AGREE if found.facts.get(name) is not None}
    return {"fingerprint": found.facts["host.fingerprint"], "device": found.device, **facts}


# --- pytest -----------------------------------------------------------------------------------------


class _Fixtures:
    """On top of pytest-benchmark's fixture."""

    @pytest.fixture
    def _effbench_replay(self, request: pytest.FixtureRequest) -> Replay:
        """The clock has to be on the test before `benchmark` is made, so `effbench` takes this one first."""
        replay, marker = Replay(), request.node.get_closest_marker("benchmark")
        options = dict(marker.kwargs) if marker else {}
        request.node.add_marker(pytest.mark.benchmark(**{**options, "timer": replay.block_clock}), append=False)
        return replay

    @pytest.fixture
    def effbench(self, request: pytest.FixtureRequest, _effbench_replay: Replay, benchmark: Any) -> Iterator[Effbench]:
        """Measure a network and record its blocks and counts: effbench.measure(model, shape)."""
        marker = request.node.get_closest_marker("benchmark")
        chosen = marker.kwargs if marker else {}
        min_rounds, budget_s = (
            chosen.get(name, request.config.getoption(f"benchmark_{name}")) for name in ("min_rounds", "max_time")
        )
        sampling = {"min_rounds": int(min_rounds), "budget_s": float(budget_s)}
        fixture = Effbench(benchmark, _effbench_replay, sampling)
        yield fixture
        if not fixture.is_used or benchmark.stats is None:
            benchmark.skipped = True  # else it warns of a test that, say, only asserts costs


class _WithoutBenchmark:
    """Where pytest-benchmark is switched off, only the tests that want it fail."""

    @pytest.fixture
    def effbench(self) -> None:
        """Needs pytest-benchmark, which is switched off here."""
        pytest.fail(
            "the fixture effbench needs pytest-benchmark: leave out -p no:benchmark, or add -p benchmark", pytrace=False
        )


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixture, on top of pytest-benchmark where that is there."""
    names = ("benchmark", "pytest_benchmark.plugin")  # by its entry point, by -p
    there = any(config.pluginmanager.hasplugin(name) for name in names)
    config.pluginmanager.register(_Fixtures() if there else _WithoutBenchmark(), "effbench-fixtures")
