"""Record the machine and its packages, and run the repository's GPU tests on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import signal
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu import processes
from benchmarks.gpu.context import Context

NEEDED = {"torch": "torch", "numpy": "numpy", "typer": "typer", "filelock": "filelock", "scipy": "scipy"}
"""Required packages: without one of them effbench measures nothing, or (scipy) gives no intervals and no verdicts."""

WANTED = {
    "matplotlib": "figures",
    "pandas": "tables as frames",
    "psutil": "other processes, the size of a CPU's peak buffers",
    "rich": "a progress bar",
    "cloudpickle": "networks of a Python session",
    "cpuinfo": "the processor's name",
    "jinja2": "HTML pages",
    "pynvml": "clocks, power, energy",
    "fvcore": "profile --crosscheck",
    "triton": "do_bench, torch.compile",
    "torchvision": "torchvision: networks",
    "timm": "timm: networks",
    "onnxruntime": "the onnxruntime runtime",
    "onnxscript": "the onnxruntime runtime",
    "pytest": "the contract tests",
    "hypothesis": "the contract tests",
    "pytest_timeout": "the contract tests",
}
"""Optional packages, with what they are for."""

TESTS = processes.ROOT / "tests"


def is_here(name: str) -> bool:
    """Whether a package can probably be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def environment(context: Context) -> None:
    """Record versions, the GPU, missing packages with their use, and the findings of `effbench doctor`."""
    missing = [name for name in NEEDED if not is_here(name)]
    context.outcome.check("packages without which nothing is measured", not missing, ", ".join(missing) or "all here")
    absent = {name: what for name, what in WANTED.items() if not is_here(name)}
    found_text = ", ".join(f"{name} ({what})" for name, what in absent.items())
    context.outcome.check("packages that are not here", "note", found_text or "none")
    context.outcome.number("python", platform.python_version())
    for name in ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "nvidia-ml-py", "timm", "torchvision", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            context.outcome.number(name, importlib.metadata.version(name))
    if not missing:
        _device(context)
    printed = context.folder / "doctor.json"
    code, message = context.command(["doctor", "--json"], printed)
    findings = []
    with suppress(OSError, ValueError, KeyError):
        findings = json.loads(printed.read_text(encoding="utf-8"))["findings"]
    context.outcome.check(
        "effbench doctor", code == 0 and bool(findings), message if code else f"{len(findings)} topics"
    )
    for item in findings:
        if item["status"] == "warn":
            context.outcome.check(f"doctor: {item['topic']}", "note", item["value"], reason=item["todo"])


def _device(context: Context) -> None:
    from effbench import __file__ as place
    from effbench import devices

    is_ours = Path(place).resolve().is_relative_to(processes.ROOT)
    context.outcome.check("effbench is this checkout's", is_ours, "" if is_ours else place, "this checkout")
    try:
        device = devices.get(context.device)
        if context.kind == "cuda":
            device.setup()
        facts = device.facts()
    except Exception as error:  # any error of the device is a finding of this step
        message = (str(error).strip() or "without words").splitlines()[0]
        context.outcome.check(f"device {context.device}", False, f"{type(error).__name__}: {message}", "a device")
        return
    for name, value in facts.items():
        context.outcome.number(name, value)
    context.outcome.check(f"device {context.device}", True, facts.get("gpu.name") or context.device)
    if context.kind == "cuda":
        watched = facts.get("gpu.nvml")
        context.outcome.check("NVML", watched == "read", watched, "read")


def contract(context: Context) -> None:
    """Run the tests marked cuda; on other devices one device test, to check that running tests works."""
    for name in ("pytest", "hypothesis", "pytest_timeout"):
        if not is_here(name):
            context.outcome.skip("contract tests", f"{name} is not installed; carry it as a wheel")
            return
    files = sorted(path for path in TESTS.glob("**/test_*.py") if "mark.cuda" in path.read_text(encoding="utf-8"))
    # pytest starts faster without plug-ins and needs fewer packages.
    unused = ("cacheprovider", "randomly", "anyio", "hydra_pytest", "nbmake", "xdist", "xdist.looponfail")
    arguments = [*(f"-pno:{name}" for name in unused), "-q", "-x" if context.is_tiny else "--maxfail=50"]
    if context.kind == "cuda":
        chosen = ["-m", "cuda", *(str(path) for path in files)]
    else:
        chosen = ["-k", f"{context.kind} and (knows or forward)", str(TESTS / "devices" / "test_contract.py")]
    report = context.folder / "tests.xml"
    report.unlink(missing_ok=True)
    # A test that failed in an earlier attempt has a check of its own, which nothing would replace.
    context.outcome.checks = []
    child = processes.start(
        "pytest",
        [*arguments, f"--rootdir={processes.ROOT}", f"--junitxml={report}", *chosen],
        out=context.folder / "tests.log",
        errors=context.folder / "tests.log",
        folder=processes.ROOT,
    )
    code = child.wait(max(1.0, context.left_s()))
    if code is None:
        child.end(signal.SIGINT, 2.0)
        context.cut_short("tests that were left", "the time was up")
    _read(context, report, code)


def _read(context: Context, report: Path, code: int | None) -> None:
    """Write one check per failed test, and one for all that passed."""
    passed, failed, skipped = 0, 0, 0
    cases: list[ElementTree.Element] = []
    with suppress(OSError, ElementTree.ParseError):
        cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            failed += 1
            context.outcome.check(name, False, (bad[0].get("message") or "failed").strip().splitlines()[0][:200])
        elif any(child.tag == "skipped" for child in case):
            skipped += 1
        else:
            passed += 1
    ended = {None: "stopped at the time limit", 0: "ended"}.get(code, f"exit code {code}")
    context.outcome.number("tests", {"passed": passed, "failed": failed, "skipped": skipped})
    found_text = f"{passed} passed, {failed} failed, {skipped} skipped, {ended}"
    context.outcome.check("contract tests", passed > 0 and not failed and code in (0, None), found_text, "all passed")
