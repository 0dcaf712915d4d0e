"""Compare effbench's device time with three others: triton's do_bench, torch's Timer, and the profiler's kernel times.

Two clocks are compared only if both measure the same. do_bench overwrites the L2 cache before every call, so it is
compared with the cold policy. Timer and the sum of kernels run back to back on one input, so they are compared with the
hot policy. Timer reads the host's clock. It is comparable only if the device is the bottleneck; otherwise both must
report that it is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.outcome import median

MAX_DIFFERENCE = 0.03
BLOCK_NS = 20_000_000
REPEATS = 5
HOST_BOUND, DEVICE_BOUND = 1.2, 1.05
"""Limits of Timer's time over the kernels' sum: above the first a workload is host-bound, below the second
device-bound.

effbench uses the same ratios for cells.
"""

# (images, channels in, channels out, side, kernel, stride, groups, channels_last). On a card of 50 TFLOP/s and 3 TB/s
# each but the small one takes 0.1 to 3 ms: long against an event's resolution and the gap between two kernels.
CONVOLUTIONS: Mapping[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "1x1": (64, 256, 256, 56, 1, 1, 1, False),
    "3x3": (32, 128, 128, 56, 3, 1, 1, False),
    "depthwise": (64, 256, 256, 56, 3, 1, 256, False),
    "grouped": (64, 256, 256, 56, 1, 1, 8, False),
    "strided": (64, 128, 256, 56, 3, 2, 1, False),
    "big": (128, 512, 512, 14, 3, 1, 1, False),
    "small": (1, 32, 32, 14, 1, 1, 1, False),
    "channels_last": (32, 128, 128, 56, 3, 1, 1, True),
}
NETWORKS = {"resnet50": 64, "mobilenet_v2": 128}
"""Batch sizes at which no GPU waits for Python."""


def agreement(context: Context) -> None:
    if context.kind == "fake":
        _scripted(context)
        return
    torch = importlib.import_module("torch")
    devices = importlib.import_module("effbench.devices")
    options = {"threads": 1} if context.kind == "cpu" else {}
    device = devices.get(context.device, **options)
    device.setup()
    cold = None
    if context.kind == "cuda":
        cold = devices.get(context.device, cache="cold", warm_up_s=0.0)
        cold.setup()
    names = [*CONVOLUTIONS, *NETWORKS]
    for name in (names[0], "small", "mobilenet_v2") if context.is_tiny else names:
        if context.left_s() < 2:
            context.cut_short(f"device time of {name}", "too little of the step's time was left for it")
            continue
        try:
            with torch.inference_mode():
                _compare(context, name, _call(name, device, context), device, cold)
        except Exception as error:  # a failing peer must not stop the other rows
            message = (str(error).strip() or "without words").splitlines()[0][:200]
            context.outcome.check(f"device time of {name}", False, f"{type(error).__name__}: {message}", "a time")
        device.empty_cache()


def _scripted(context: Context) -> None:
    """Compare the scripted clock with the roofline that it follows, over a thousand blocks of one call."""
    fake = importlib.import_module("effbench.devices.fake")
    device = fake.Fake()
    for name, cost in {
        "arithmetic": {"madds": 5e8, "memory_access_bytes": 1e6},
        "traffic": {"madds": 1e6, "memory_access_bytes": 1e8},
    }.items():
        call = device.bind(None, cost)
        found = median([device.time_block(call, 10).wall_ns / 10 for _ in range(1000)])
        expected = 2_000 + max(cost["madds"] / 50, cost["memory_access_bytes"] / 20)
        _within(context, f"{name}: the scripted clock", found * 1e-9, expected * 1e-9)


def _call(name: str, device: Any, context: Context) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    if name in NETWORKS:
        zoo = importlib.import_module("effbench.zoo")
        network = zoo.build(name)
        image = torch.randn(1 if context.kind == "cpu" else NETWORKS[name], 3, 224, 224)
    else:
        images, inner, outer, side, kernel, stride, groups, is_last = CONVOLUTIONS[name]
        network = torch.nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        image = torch.randn(1 if context.kind == "cpu" else images, inner, side, side)
        if is_last:
            network = network.to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
    network, image = device.place(network).eval(), device.place(image)
    return lambda: network(image)


def _compare(context: Context, name: str, call: Callable[[], Any], device: Any, cold: Any) -> None:
    """Time one workload with every clock in turn, repeatedly, so that drift of the device's clock affects all alike."""
    seconds: dict[str, list[float]] = {}
    device.time_block(call, 3)
    once_ns = device.time_block(call, 3).wall_ns / 3
    block_ns = BLOCK_NS if not context.is_tiny else BLOCK_NS // 4
    calls = max(2, min(1000, round(block_ns / once_ns)))
    on_gpu = context.kind == "cuda"
    for _ in range(2 if context.is_tiny else REPEATS):
        _add(seconds, "effbench", _per_call(device.time_block(call, calls), on_gpu))
        _add(seconds, "Timer", _timer(call, block_ns * 1e-9))
        if on_gpu:
            _add(seconds, "effbench, cold cache", _per_call(cold.time_block(call, max(2, calls // 4)), on_gpu))
            _add(seconds, "do_bench", _do_bench(call))
    if on_gpu:
        _add(seconds, "kernels", _kernels(call, min(calls, 50), device))
    found = {clock: median(values) for clock, values in seconds.items()}
    probe = dict(device.probe(call, calls))
    host_bound = "kernels" in found and found["Timer"] / found["kernels"] > HOST_BOUND
    context.outcome.number(name, {**found, "calls": calls, "bound": probe.get("bound")})
    if "effbench" not in found:
        context.outcome.check(f"device time of {name}", False, "none: the host could not keep ahead", "a time")
        return
    if on_gpu:
        found_text = {True: "host-bound", False: "not host-bound"}
        ours = probe.get("bound") == "host"
        context.outcome.check(
            f"{name}: what limits it",
            ours == host_bound,
            f"effbench {found_text[ours]} ({probe.get('bound')}), Timer over kernels {found_text[host_bound]}",
            "the same by both",
        )
    if host_bound:
        why = "the host is what is waited for here: its clock says nothing of the device"
        context.outcome.check(f"{name}: Timer", "note", _ratio(found["effbench"], found["Timer"]), reason=why)
        if "kernels" in found:
            # Gaps of some microseconds between kernels count as device time between events, but not in the profiler.
            context.outcome.check(f"{name}: kernels", "note", _ratio(found["effbench"], found["kernels"]), reason=why)
        return
    for peer in ("Timer", "kernels"):
        if peer == "Timer" and "kernels" in found and found["Timer"] / found["kernels"] > DEVICE_BOUND:
            why = "the device waits for the host now and then, which the host's clock counts"
            context.outcome.check(f"{name}: Timer", "note", _ratio(found["effbench"], found["Timer"]), reason=why)
        elif peer in found:
            _within(context, f"{name}: {peer}", found["effbench"], found[peer])
        elif peer == "kernels" and on_gpu:
            context.outcome.skip(f"{name}: kernels", "the profiler saw no kernel")
    if on_gpu and "do_bench" in found and "effbench, cold cache" in found:
        _within(context, f"{name}: do_bench", found["effbench, cold cache"], found["do_bench"])
    elif on_gpu:
        context.outcome.skip(f"{name}: do_bench", "triton cannot be imported, or the cold cache gave no time")


def _within(context: Context, what: str, ours: float, theirs: float) -> None:
    judged = not (context.is_tiny and context.kind == "cpu")
    apart = abs(ours / theirs - 1)
    wanted = f"<= {100 * MAX_DIFFERENCE:.0f} % apart" if judged else ""
    context.outcome.check(what, apart <= MAX_DIFFERENCE if judged else "note", _ratio(ours, theirs), wanted)


def _ratio(ours: float, theirs: float) -> str:
    return f"{1e6 * ours:.4g} us against {1e6 * theirs:.4g} us, ratio {ours / theirs:.3f}"


def _add(seconds: dict[str, list[float]], clock: str, value: float | None) -> None:
    if value:
        seconds.setdefault(clock, []).append(value)


def _per_call(timing: Any, on_gpu: bool) -> float | None:
    spent = timing.device_ns if on_gpu else timing.wall_ns
    return None if spent is None else spent / timing.calls * 1e-9


def _timer(call: Callable[[], Any], least_s: float) -> float:
    benchmark = importlib.import_module("torch.utils.benchmark")
    # Timer itself waits for the GPU at the end of every block.
    measured = benchmark.Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=5 * least_s)
    return float(measured.median)


def _do_bench(call: Callable[[], Any]) -> float | None:
    with suppress(ImportError):
        testing = importlib.import_module("triton.testing")
        return float(testing.do_bench(call, warmup=20, rep=60, return_mode="median")) * 1e-3
    return None


def _kernels(call: Callable[[], Any], calls: int, device: Any) -> float | None:
    """Return the seconds of a call in kernels, summed by torch's profiler; None if it saw none."""
    profiler = importlib.import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA, profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            call()
        device.synchronize()
    # Kernels only: the device time of an operator counts its kernels a second time.
    spent = [
        event.self_device_time_total
        for event in profiled.key_averages()
        if "CUDA" in str(event.device_type) and not event.key.startswith(("aten::", "ProfilerStep"))
    ]
    return sum(spent) / calls * 1e-6 if sum(spent) > 0 else None
