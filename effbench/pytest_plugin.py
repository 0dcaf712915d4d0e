"""Provide pytest's fixture `effbench`: times and costs of a network in pytest-benchmark's table, files and comparisons.

    def test_speed(effbench):
        effbench.measure(model, (3, 224, 224))

    def test_budget():
        assert_cost(model, (3, 224, 224), max_madds="300M")

pytest loads this file in every suite where effbench is installed. It therefore imports nothing that is slow to import,
and adds no option, no marker and no output. It uses only pytest-benchmark's public interface (tested with 4.0 to 5.3).
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

if TYPE_CHECKING:
    from torch import nn

    from effbench.core.cost import Cost
    from effbench.core.run import Timing
    from effbench.devices import Device
    from effbench.gates.budgets import StoredProfile
    from effbench.timing.block_clock import BlockClock

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Speed:
    """The result of the fixture's `measure`. Its times are medians over `blocks`; None if nothing was timed.

    Attributes
    ----------
    costs, costs_missing
        Counts of the network; None if it cannot be counted, for the reason that `costs_missing` gives.
    calls
        Calls per block.
    blocks
        What the device reported about each block.
    is_steady
        Whether warm-up reached a steady state.
    environment
        The conditions, and their fingerprint.
    notes
        Side effects of the network: it writes into its input, keeps state between calls, draws random numbers, or
        changes a setting of the whole process.
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
        """Wall time in seconds per call, as in pytest-benchmark's table."""
        return self._median([block.wall_ns for block in self.blocks])

    @property
    def cpu_median_s(self) -> float | None:
        """CPU time in seconds per call: of the calling thread, or of the process if several threads compute."""
        return self._median([block.cpu_ns for block in self.blocks])

    @property
    def device_median_s(self) -> float | None:
        """Time between device events in seconds per call; None on a CPU."""
        return self._median([block.device_ns for block in self.blocks])

    @property
    def remarks(self) -> tuple[str, ...]:
        """Caveats of `cpu_median_s`: what the CPU clock misses of the network."""
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
        """The result as JSON-ready values.

        Returns
        -------
        dict
            With the keys of ``extra_info["effbench"]``.
        """
        return {
            "costs": self.costs.to_dict() if self.costs else None,
            **({"costs_missing": self.costs_missing} if self.costs_missing else {}),
            "calls": self.calls,
            "blocks": {
                name: [getattr(block, name) for block in self.blocks]
                for name in ("wall_ns", "cpu_ns", "process_ns", "device_ns", "minor_faults", "switches", "run_delay_ns")
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


def _without_internal_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Show errors of effbench at the line of the test, without effbench's own frames."""

    @functools.wraps(function)
    def shortened(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        from effbench.core.errors import EffbenchError

        try:
            return function(*args, **kwargs)
        except EffbenchError as error:
            from effbench.user_code.failure_reasons import GRADIENTS_ADVICE

            # If the network's own code raised, its line helps.
            raise error.with_traceback(None) from (error.__cause__ if str(error) == GRADIENTS_ADVICE else None)

    return shortened


# --- costs against budgets ---------------------------------------------------------------------------


@_without_internal_frames
def assert_cost(
    model: str | nn.Module,
    input_shape: Any = None,
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
    """Assert that a network's costs keep budgets, or equal a stored profile. Reads no clock.

    Parameters
    ----------
    model, input_shape, batch, dtype
        As for `effbench.profile`. What is left out is taken from `same_as`.
    max_madds, max_params, max_memory_access, max_memory_access_bytes, max_activations : int or str, optional
        Upper limits, as whole numbers or with a unit prefix (``"300M"``).
    same_as : str or Path, optional
        A file written by ``effbench profile --json``, whose costs must all be equal.

    Returns
    -------
    Cost
        The network's costs.

    Raises
    ------
    AssertionError
        In one line: each cost that is exceeded or unequal, its limit and the excess.
    InvalidValue
        If no limit is given. Also raises as `effbench.profile` does.
    """
    __tracebackhide__ = True
    from effbench import api
    from effbench.core import parsing, units
    from effbench.core.errors import InvalidValue
    from effbench.core.inputs import Input
    from effbench.gates import budgets
    from effbench.zoo import check_model

    check_model.require_model(model, "assert_cost")
    limits = {
        "madds": max_madds,
        "params": max_params,
        "memory_access": max_memory_access,
        "memory_access_bytes": max_memory_access_bytes,
        "activations": max_activations,
    }
    amounts = {name: units.amount(str(limit)) for name, limit in limits.items() if limit is not None}
    if same_as is None and not amounts:
        raise InvalidValue("assert_cost has nothing to hold to; say max_madds='300M' or same_as='profile.json'")
    name = model if isinstance(model, str) else type(model).__name__
    stored = _read_profile(same_as, name) if same_as is not None else None
    if stored and input_shape is None:
        input_shape = parsing.inputs(stored.inputs)
    found = api.profile(
        model,
        input_shape,
        batch=stored.batch if stored and batch is None else batch,
        dtype=(stored.dtype if stored else _dtype_of(model, input_shape)) if dtype is None else dtype,
    )
    conditions = budgets.conditions_text(found.inputs or (Input(found.input_shape),), found.batch, found.dtype)
    finding = budgets.judge(name, found.cost, amounts, stored, conditions)
    if finding.verdict != "PASS":
        raise AssertionError(f"{name}: {finding.reason}")
    return found.cost


def _read_profile(path: str | Path, name: str) -> StoredProfile:
    from effbench.core.errors import InvalidValue
    from effbench.gates import budgets

    try:
        document = json.loads(Path(path).read_bytes())  # UTF-8 or UTF-16, with or without a byte order mark
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{path} cannot be read ({error}); write it with `effbench profile MODEL --json`") from None
    profiles = budgets.read_profiles(document, str(path))
    found = profiles[0] if len(profiles) == 1 else budgets.find_profile(profiles, name, name)
    if found is None:
        raise InvalidValue(f"{path} holds no profile of {name}; name a file that holds one alone")
    return found


def _dtype_of(model: str | nn.Module, shape: Any) -> str:
    from effbench.core import inputs
    from effbench.timing import dtype_cast

    given = inputs.normalise(shape).dtype if shape is not None else ""
    return given or ("float32" if isinstance(model, str) else dtype_cast.own_dtype(model))


# --- the clock --------------------------------------------------------------------------------------


class Effbench:
    """The value of the fixture. Call `measure` once per test, `assert_cost` as often as needed."""

    assert_cost = staticmethod(assert_cost)

    def __init__(self, benchmark: Any, block_clock: BlockClock, sampling: Mapping[str, Any]) -> None:
        self._benchmark, self._block_clock, self._sampling = benchmark, block_clock, sampling
        self.is_used = False

    @_without_internal_frames
    def measure(
        self,
        model: str | nn.Module,
        input_shape: Any = None,
        *,
        batch: int | None = None,
        dtype: str | None = None,
        threads: int = 1,
        device: str | None = None,
        allocator: str = "retain",
    ) -> Speed:
        """Time a network in this process, in eval mode and inference mode, on seeded normal inputs.

        Each block of k calls (k is calibrated once, 5 ms or more) is one round of pytest-benchmark with k iterations,
        in wall time. CPU times, page faults, flags and costs are in ``extra_info["effbench"]``. Stops at a precision of
        1 %, after 60 rounds or `--benchmark-max-time`. With benchmarks disabled, the network is only called and times
        are None; under emulation the test is skipped. A copy of the module is measured if it can be copied. Its state
        and all random states are restored.

        Parameters
        ----------
        model, input_shape, batch
            As for `effbench.profile`: `input_shape` excludes the batch, or holds example tensors with it.
        dtype, device : str, optional
            Default to the module's own; to "float32" and "cpu" for a name.
        threads : int
            Intra-op threads; 0 for every core.
        allocator : str
            "retain": glibc keeps freed pages for the rest of the process; "system": glibc's defaults.

        Returns
        -------
        Speed
            Times in seconds per call, costs and notes.

        Raises
        ------
        InvalidValue
            If called twice in a test.
        EffbenchError
            If the network cannot be measured. Errors of the network itself are raised unchanged.
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
        network, inputs = _network_and_input(model, input_shape)
        prepared = in_process.prepare(
            network, inputs, batch=batch, dtype=dtype, device=device, threads=threads, is_ours=isinstance(model, str)
        )
        with prepared.conditions(allocator) as policy:
            if not self._benchmark.enabled:
                self._benchmark.pedantic(prepared.call)
                return Speed(prepared.costs, prepared.costs_missing, notes=prepared.notes)
            sampling, start_s = Sampling(**self._sampling), time.monotonic()
            calls, is_steady, blocks = in_process.time_blocks(prepared, sampling)
            used_s = time.monotonic() - start_s
            facts = _environment(prepared.device, prepared.threads, policy)
            self._block_clock.run_rounds(self._benchmark, prepared.call, blocks)
        speed = Speed(prepared.costs, prepared.costs_missing, calls, blocks, is_steady, facts, prepared.notes)
        self._benchmark.extra_info["effbench"] = speed.to_dict()
        if is_overrun(used_s, sampling.budget_s):
            # --benchmark-max-time limits the rounds but not the warm-up.
            overrun = {"used_s": round(used_s, 3), "budget_s": sampling.budget_s}
            self._benchmark.extra_info["effbench"]["over_budget"] = overrun
        return speed


def _network_and_input(model: str | nn.Module, shape: Any) -> tuple[nn.Module, Any]:
    """Return the network, built with seeded weights if it was named, and its input, or a default."""
    import torch

    from effbench import zoo
    from effbench.studies import model_comparison
    from effbench.timing import in_process
    from effbench.user_code import global_state
    from effbench.zoo import check_model, libraries, load_model

    check_model.require_model(model, "effbench.measure")
    if isinstance(model, str):
        model_comparison.require_models([model])
        with torch.random.fork_rng(devices=[]), global_state.settings_restored():
            torch.default_generator.manual_seed(in_process.SEED)
            network = zoo.resolve(model)
        shape = model_comparison.published_shape(model) if shape is None else shape
    else:
        network = model
    return network, (libraries.declared_shape(network) or load_model.DEFAULT_SHAPE) if shape is None else shape


def _environment(device: Device, threads: int, allocator: str) -> dict[str, Any]:
    """Return the fingerprint of the conditions, and the conditions."""
    from effbench import runtimes
    from effbench.host import facts as host_facts

    runtime_facts = {} if device.kind == "fake" else runtimes.get("eager").facts()
    found = host_facts.collect(
        device.facts(), "eager", threads=threads, allocator=allocator, runtime_facts=runtime_facts
    )
    facts = {name: found.facts[name] for name in host_facts.MUST_AGREE if found.facts.get(name) is not None}
    return {"fingerprint": found.facts["host.fingerprint"], "device": found.device, **facts}


# --- pytest -----------------------------------------------------------------------------------------


class _Fixtures:
    """The fixture for suites with pytest-benchmark."""

    @pytest.fixture
    def _effbench_block_clock(self, request: pytest.FixtureRequest) -> BlockClock:
        """Set the clock on the test before `benchmark` is created, by coming first among the fixtures of `effbench`."""
        from effbench.timing.block_clock import BlockClock

        block_clock, marker = BlockClock(), request.node.get_closest_marker("benchmark")
        options = dict(marker.kwargs) if marker else {}
        request.node.add_marker(pytest.mark.benchmark(**{**options, "timer": block_clock.block_clock}), append=False)
        return block_clock

    @pytest.fixture
    def effbench(
        self, request: pytest.FixtureRequest, _effbench_block_clock: BlockClock, benchmark: Any
    ) -> Iterator[Effbench]:
        """Measure a network and record its blocks and counts: effbench.measure(model, input_shape)."""
        marker = request.node.get_closest_marker("benchmark")
        marker_options = marker.kwargs if marker else {}
        min_rounds, budget_s = (
            marker_options.get(name, request.config.getoption(f"benchmark_{name}"))
            for name in ("min_rounds", "max_time")
        )
        sampling = {"min_rounds": int(min_rounds), "budget_s": float(budget_s)}
        fixture = Effbench(benchmark, _effbench_block_clock, sampling)
        yield fixture
        if not fixture.is_used or benchmark.stats is None:
            benchmark.skipped = True  # otherwise it warns of a test that only asserts costs


class _WithoutBenchmark:
    """The fixture for suites without pytest-benchmark: only tests that request it fail."""

    @pytest.fixture
    def effbench(self) -> None:
        """Needs pytest-benchmark, which is switched off here."""
        pytest.fail(
            "the fixture effbench needs pytest-benchmark: leave out -p no:benchmark, or add -p benchmark", pytrace=False
        )


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixture, on top of pytest-benchmark if that is loaded."""
    names = ("benchmark", "pytest_benchmark.plugin")  # by its entry point, by -p
    has_benchmark = any(config.pluginmanager.hasplugin(name) for name in names)
    config.pluginmanager.register(_Fixtures() if has_benchmark else _WithoutBenchmark(), "effbench-fixtures")
