"""pytest's fixture `effbench`: blocks and counts of a network inside pytest-benchmark's table, files and comparisons.

    def test_speed(effbench):
        effbench.measure(model, (3, 224, 224))

    def test_budget():
        assert_cost(model, (3, 224, 224), max_madds="300M")

pytest loads this file in every suite where effbench is installed, so it imports nothing that costs, and adds no option,
no marker and no output. Only pytest-benchmark's public interface is used; tried with its versions 4.0 to 5.3.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

if TYPE_CHECKING:
    from torch import nn

    from effbench.core import Block, Cost, Timing
    from effbench.decision import Costed
    from effbench.devices import Call, Device

_CELL = "test"
_SEED = 0

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Speed:
    """What `measure` found. Seconds per call, medians over `blocks`; None where nothing was timed.

    `costs` is None where the network cannot be counted, and `costs_missing` the reason. `calls` is the number of calls
    in each block. `is_steady` says whether the warm-up reached a steady state.
    """

    costs: Cost | None
    costs_missing: str = ""
    calls: int | None = None
    blocks: tuple[Timing, ...] = ()
    is_steady: bool | None = None
    environment: Mapping[str, Any] | None = None

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

    def _median(self, spent_ns: list[int | None]) -> float | None:
        from effbench import stats

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
                for name in ("wall_ns", "cpu_ns", "device_ns", "minor_faults", "switches", "run_delay_ns")
            },
            "flags": dict(Counter(flag for block in self.blocks for flag in block.flags)),
            "steady": self.is_steady,
            "median_s": self.median_s,
            "cpu_median_s": self.cpu_median_s,
            "device_median_s": self.device_median_s,
            "environment": dict(self.environment or {}),
        }


def _for_people(verb: Callable[P, R]) -> Callable[P, R]:
    """An error for people shows the line of the test, not the way through effbench."""

    @functools.wraps(verb)
    def shortened(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        from effbench.errors import EffbenchError

        try:
            return verb(*args, **kwargs)
        except EffbenchError as error:
            raise error.with_traceback(None) from None

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
    same_as: str | Path | Mapping[str, Any] | None = None,
) -> Cost:
    """Hold a network's counts to budgets (``"300M"`` or whole numbers), or to a profile that was stored.

    `model`, `shape`, `batch` and `dtype` as for `effbench.profile`. `same_as` is what ``effbench profile --json``
    printed, as a file or an object: params, madds, activations and memory access must be equal, and what is not said
    here (shape, batch, dtype) is taken from it. Nothing is run and no clock is read. Returns the counts.

    Raises AssertionError of one line with count, limit and excess; InvalidValue where nothing is asked, and as
    `effbench.profile` does.
    """
    __tracebackhide__ = True
    from effbench import api
    from effbench.errors import InvalidValue

    budgets = {
        "madds": max_madds,
        "params": max_params,
        "memory_access": max_memory_access,
        "memory_access_bytes": max_memory_access_bytes,
        "activations": max_activations,
    }
    wanted = {name: value for name, value in budgets.items() if value is not None}
    if same_as is None and not wanted:
        raise InvalidValue("assert_cost was given nothing to hold to; say max_madds='300M' or same_as='profile.json'")
    stored = _stored_profile(same_as) if same_as is not None else {}
    cost = api.profile(
        model,
        stored.get("input_shape") if shape is None else shape,
        batch=batch or stored.get("batch", 1),
        dtype=dtype or stored.get("dtype") or _own_dtype(model),
    ).cost
    costed = _costed(cost, wanted, stored)
    broken = [_excess(item) for item in costed if not item.is_kept]
    if cost.status == "partial" and any(item.name != "params" for item in costed):
        missed = ", ".join(f"{name} ({calls}×)" for name, calls in cost.uncounted.items())
        broken.append(f"counts are incomplete, since there is no formula for {missed}")
    if broken:
        raise AssertionError(f"{model if isinstance(model, str) else type(model).__name__}: {'; '.join(broken)}")
    return cost


def _costed(cost: Cost, budgets: Mapping[str, int | str], stored: Mapping[str, Any]) -> list[Costed]:
    from effbench import units
    from effbench.decision import Costed

    limits = {name: units.amount(str(value)) for name, value in budgets.items()}
    equal = [
        Costed(name, getattr(cost, name), stored[name], "equal")
        for name in ("params", "madds", "activations", "memory_access", "memory_access_bytes")
        if name in stored
    ]
    return [*[Costed(name, getattr(cost, name), limit, "at most") for name, limit in limits.items()], *equal]


def _excess(item: Costed) -> str:
    from effbench import units

    assert item.found is not None and item.wanted is not None, "both are always known here"
    more = item.found - item.wanted
    share = f" ({units.digits(100 * abs(more) / item.wanted)} %)" if item.wanted else ""
    limit = "the budget is" if item.rule == "at most" else "the stored profile has"
    found, wanted = (f"{value:,} ({units.count(value)})" for value in (item.found, item.wanted))
    return f"{item.name} {found}, {limit} {wanted}: {abs(more):,} too {'many' if more > 0 else 'few'}{share}"


def _stored_profile(given: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    from effbench.errors import InvalidValue

    if isinstance(given, Mapping):
        return given
    try:
        found = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidValue(f"{given} cannot be read ({error}); write it with `effbench profile MODEL --json`") from None
    if not isinstance(found, dict) or not isinstance(found.get("madds"), int):
        raise InvalidValue(f"{given} holds no profile; write it with `effbench profile MODEL --json`")
    return found


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
        batch: int = 1,
        dtype: str | None = None,
        threads: int = 1,
        device: str | None = None,
        allocator: str = "retain",
    ) -> Speed:
        """Time a network in this process, in eval and inference mode, on seeded normal inputs.

        `model` is a module, a name or ``"file.py:factory"``; `shape` excludes the batch and may describe several
        inputs, as for `effbench.profile`. `dtype` and `device` default to the module's own, to float32 and "cpu" for a
        name. `threads` 0 means every core. `allocator` "retain" makes glibc keep freed pages for the rest of the
        process, "system" leaves it alone. Everything else, the module too, is left as it was.

        Each block of k calls (k calibrated once, 5 ms or more) is one round of pytest-benchmark with k iterations, on
        the wall clock; CPU times, page faults, flags and counts are in ``extra_info["effbench"]``. Stops at a precision
        of 1 %, after 60 rounds or `--benchmark-max-time`. Where benchmarks are disabled one plain call runs, and the
        times are None.

        Raises InvalidValue when called twice in a test, EffbenchError and its kin, and what the network itself raises.
        """
        __tracebackhide__ = True
        from effbench.errors import InvalidValue

        if self.is_used:
            raise InvalidValue("effbench.measure was called twice in one test; parametrize the test instead")
        self.is_used = True
        prepared = _prepare(model, shape, batch, dtype, device, threads)
        with prepared.conditions(allocator) as allocated:
            if not self._benchmark.enabled:
                self._benchmark.pedantic(prepared.call)
                return Speed(prepared.costs, prepared.costs_missing)
            calls, is_steady, blocks = _time(prepared, self._sampling)
            facts = _environment(prepared.device, prepared.threads, allocated)
            speed = Speed(prepared.costs, prepared.costs_missing, calls, tuple(blocks), is_steady, facts)
            self._replay.record(self._benchmark, prepared.call, blocks)
            self._benchmark.extra_info["effbench"] = speed.to_dict()
        return speed


class Replay:
    """A clock for pytest-benchmark that tells the times of blocks measured before, so that its rounds are those."""

    def __init__(self) -> None:
        self._left: list[float] = []

    def block_clock(self) -> float:
        """Read at the start of a round: zero. At its end: what the block took, in seconds."""
        return self._left.pop()

    def record(self, benchmark: Any, call: Call, blocks: list[Timing]) -> None:
        """Give pytest-benchmark the blocks. It calls once more on its own, and again where it was asked for cProfile.

        Raises InvalidValue where it reads another clock.
        """
        from effbench.errors import InvalidValue

        self._left = [reading for block in reversed(blocks) for reading in (block.wall_ns * 1e-9, 0.0)]
        left = self._left
        benchmark.pedantic(lambda: None if left else call(), rounds=len(blocks), iterations=blocks[0].calls)
        if left:
            benchmark.has_error = True
            raise InvalidValue("the fixture benchmark was made before effbench; let this test take only effbench")


@dataclass(frozen=True)
class _Prepared:
    """A network ready to be called on its device, and what it costs."""

    device: Device
    call: Call
    network: nn.Module
    threads: int
    costs: Cost | None
    costs_missing: str

    @contextlib.contextmanager
    def conditions(self, allocator: str) -> Iterator[str]:
        """Those of a launch, and afterwards everything of torch's and Python's as it was.

        Yields the allocator's policy, which may be another than the one that was asked for.
        """
        import torch

        modes = [(module, module.training) for module in self.network.modules()]
        threads, flushing = torch.get_num_threads(), _flushes_denormals()
        tracer, profiler, collecting = sys.gettrace(), sys.getprofile(), gc.isenabled()
        kept = allocator == "retain" and self.device.kind == "cpu" and _keep_freed_pages()
        try:
            self.network.eval()
            if self.device.kind == "cuda":
                self.device.setup()
            else:
                # What a worker does in setup(), less the inter-op threads, which a process can set only once.
                torch.set_num_threads(self.threads)
                torch.set_flush_denormal(True)
            sys.settrace(None)
            sys.setprofile(None)
            gc.collect()
            gc.disable()
            with torch.inference_mode():
                yield "retain" if kept else "system"
        finally:
            sys.settrace(tracer)
            sys.setprofile(profiler)
            if collecting:
                gc.enable()
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushing)
            for module, mode in modes:
                module.training = mode


def _prepare(
    model: str | nn.Module, shape: Any, batch: int, dtype: str | None, device: str | None, threads: int
) -> _Prepared:
    import torch

    from effbench import api, devices, feeding, lineup, runtimes, zoo
    from effbench.errors import ModelError
    from effbench.zoo import external, libraries

    named = isinstance(model, str)
    if isinstance(model, str):
        lineup.require([model])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SEED)
            network = zoo.resolve(model)
        shape = lineup.published_shape(model) if shape is None else shape
    else:
        network = model
    shape = (libraries.own_shape(network) or external.DEFAULT_SHAPE) if shape is None else shape
    kind = dtype or _own_dtype(network)
    device = device or _own_device(network)
    place = devices.get(device, **({"threads": threads} if devices.kind_of(device) == "cpu" else {}))
    try:
        costs, missing = api.profile(network, shape, batch=batch, dtype=kind).cost, ""
    except ModelError as error:
        if place.kind == "fake":
            raise
        costs, missing = None, str(error)
    if place.kind == "fake":
        assert costs is not None
        return _Prepared(place, place.bind(None, costs.to_dict()), network, threads or 1, costs, missing)
    # `.to` moves a module in place, and this one may be somebody's.
    if not named and (kind != _own_dtype(network) or device != _own_device(network)):
        network = copy.deepcopy(network)
    network = place.place(network)
    if kind != _own_dtype(network):
        network = network.to(getattr(torch, kind))
    args, by_name = feeding.make(feeding.described(shape), batch, kind, seed=_SEED)
    passed = feeding.positional(network, args, by_name) if by_name else args
    inputs = tuple(place.place(item) if isinstance(item, torch.Tensor) else item for item in passed)
    call = place.bind(runtimes.get("eager").prepare(network, [inputs]), {})
    return _Prepared(place, call, network, getattr(place, "threads", 1), costs, missing)


def _time(prepared: _Prepared, options: Mapping[str, Any]) -> tuple[int, bool, list[Timing]]:
    """Warm up, then blocks until enough is known: calls in a block, whether the state was steady, the blocks."""
    from effbench.core import Block, Sampling
    from effbench.measurement import loop

    sampling = Sampling(min_rounds=int(options["min_rounds"]), budget_s=float(options["max_time"]))
    warm, calls = loop.warm_up(prepared.device, prepared.call, _CELL, None, sampling)
    task = loop.Slice(0, _SEED, 0, sampling.budget_s, {})
    told: Iterator[Block | str] = loop.rounds(prepared.device, {_CELL: prepared.call}, {_CELL: calls}, sampling, task)
    return calls, warm.steady, [item.timing for item in told if isinstance(item, Block)]


def _own_dtype(model: str | nn.Module) -> str:
    """The dtype of the first weight that is a number with a fraction; float32 without one."""
    if isinstance(model, str):
        return "float32"
    kinds = (weight.dtype for weight in (*model.parameters(), *model.buffers()) if weight.is_floating_point())
    return str(next(kinds, "float32")).removeprefix("torch.")


def _own_device(network: nn.Module) -> str:
    place = next((str(weight.device) for weight in (*network.parameters(), *network.buffers())), "cpu")
    return "cuda" if place == "cuda:0" else place


def _flushes_denormals() -> bool:
    """Asked of the processor, since torch can set it and not say it."""
    import torch

    return bool((torch.full((1,), 1e-310, dtype=torch.float64) * 1).item() == 0)


@functools.cache
def _keep_freed_pages() -> bool:
    """Make glibc keep big freed blocks in this process, as a worker's environment does; False where it cannot."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # <malloc.h>
    # One of the two alone does not keep them. An older glibc takes no threshold above 32 MB.
    done = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 32 << 20)
    return bool(done and mallopt(trim_threshold, (1 << 31) - 1) and mallopt(top_pad, 64 << 20))


def _environment(device: Device, threads: int, allocator: str) -> dict[str, Any]:
    """The fingerprint, and the conditions it is made of."""
    from effbench import environment, runtimes

    about = {} if device.kind == "fake" else runtimes.get("eager").facts()
    found = environment.collect(device.facts(), "eager", threads=threads, allocator=allocator, runtime_facts=about)
    facts = {name: found.facts[name] for name in environment.MUST_AGREE if found.facts.get(name) is not None}
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
        options = {
            name: chosen.get(name, request.config.getoption(f"benchmark_{name}")) for name in ("min_rounds", "max_time")
        }
        fixture = Effbench(benchmark, _effbench_replay, options)
        yield fixture
        if not fixture.is_used or benchmark.stats is None:
            benchmark.skipped = True  # else it warns of a test that, say, only asserts costs


class _WithoutBenchmark:
    """Where pytest-benchmark is switched off, only the tests that want it fail."""

    @pytest.fixture
    def effbench(self) -> None:
        """Needs pytest-benchmark, which is switched off here."""
        pytest.fail("the fixture effbench needs pytest-benchmark; leave out -p no:benchmark", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixture, on top of pytest-benchmark where that is there."""
    there = config.pluginmanager.hasplugin("benchmark")
    config.pluginmanager.register(_Fixtures() if there else _WithoutBenchmark(), "effbench-fixtures")
