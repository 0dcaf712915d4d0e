"""Run a network under torch.compile with TorchInductor: one graph per network, compiled for its shapes."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from effbench.core.errors import message_of
from effbench.devices import cpu
from effbench.runtimes import training_step
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, call_on, round_robin
from effbench.runtimes.eager import Eager

if TYPE_CHECKING:
    from torch import Tensor, nn

FACTS_FILE = "compiled.json"
"""What the first launch found. A launch that loads the compiled graph from the cache cannot see its code."""

MAX_TRIED_INPUTS = 8
"""Most inputs that are tried before anything is timed. All have the same shape, dtype and layout, which is all that a
compiled graph guards on; on a GPU hundreds may rotate.
"""

_NOT_COMPILED = "torch.compile left it to eager; unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE"

_TOOLS = "tools"
"""Subfolder of a cell for what belongs to the compiler and to no network."""

_GENERATED = ("cpp_", "triton_")
"""Prefixes of the names of inductor's generated kernels."""


class Compiled(Runtime):
    """``torch.compile(network, fullgraph=True, dynamic=False)``: a graph break is an error and never runs eagerly
    unnoticed.

    Freezing (folding weights into constants) is off unless ``TORCHINDUCTOR_FREEZING=1``, as for every user of
    torch.compile; its value is a fact of the run. Frozen graphs are not cached, so each launch compiles again.
    """

    name = "compile"
    summary = "torch.compile with TorchInductor, each network one graph"
    devices = ("cpu", "cuda")
    dtypes = ("float32", "float64", "float16", "bfloat16")
    memory_formats = ("contiguous", "channels_last")
    modes = ("infer", "train")
    settle_s = 3.5
    """A late compilation took 1.5 s and more of the warm-up, which then ended after 4 to 6 calls: 5 of the 95 warm-ups
    in the stored runs, all in first launches.
    """

    def why_unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed; pip install torch"
        if shutil.which(_compiler()) is None:
            return f"there is no C++ compiler '{_compiler()}'; install one (apt install g++), or name yours in CXX"
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            return "Python.h is missing, which the code made by inductor includes; apt install python3-dev"
        return None

    def require(self, setting: Setting) -> None:
        super().require(setting)
        if setting.device == "cuda" and importlib.util.find_spec("triton") is None:
            raise Unsupported("triton is not installed, which compiles for a GPU; pip install triton")

    def facts(self) -> dict[str, Any]:
        from torch._inductor import config

        settings: Any = config
        return Eager().facts() | {
            "inductor.freezing": bool(settings.freezing),
            "inductor.max_autotune": bool(settings.max_autotune),
            "inductor.cudagraphs": bool(settings.triton.cudagraphs),
            "inductor.simd_bits": settings.cpp.simdlen,
            "inductor.compiler": _compiler_version(),
        }

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        """Compile the network and return a call of it.

        `prepare_s` and `artefact_bytes` are those of the run's first launch. A later launch reports its own time in
        `load_s`, and in `cached` whether it loaded the graph from the cache.

        `operators` counts the kernels launched per call, `outside` those that inductor did not generate. For training,
        forward and backward are compiled as two `pieces`; loss and optimiser stay eager. Raises Unsupported.
        """
        import torch
        from torch._dynamo.exc import TorchDynamoException

        entry = function_with_own_code(network)
        compiled = torch.compile(entry, backend="inductor", fullgraph=True, dynamic=False)
        try:
            with _compiling_into(setting.folder / _TOOLS):
                _warm_up_compiler(setting.device)
            with _compiling_into(setting.folder), _generated_code() as codes:
                hits = _cache_hits()
                start = time.perf_counter()
                if setting.mode == "train":
                    call = training_step.training_call(_CompiledForTraining(network, compiled), inputs)
                else:
                    call = round_robin([call_on(compiled, arguments) for arguments in inputs])
                call()
                seconds = time.perf_counter() - start
                # Whatever recompiles, for another input or at the second call, must do so before a timed block.
                for _ in range(2 * min(len(inputs), MAX_TRIED_INPUTS) - 1):
                    call()
        except TorchDynamoException as error:
            raise Unsupported(f"torch.compile cannot take it: {_dynamo_message(error)}") from error
        except RuntimeError as error:
            if "no compiled frames" not in message_of(error):
                raise
            raise Unsupported(_NOT_COMPILED) from error
        if compiled_versions(entry) == 0:
            raise Unsupported(_NOT_COMPILED)
        facts = _load_or_store_facts(setting.folder, seconds, codes, cached=_cache_hits() > hits)
        return Prepared(call, facts | {"threads": torch.get_num_threads()})


@dataclass(frozen=True)
class _CompiledForTraining:
    """A network's parameters with its compiled forward pass, which brings the compiled backward pass along."""

    network: nn.Module
    compiled: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    def parameters(self) -> Iterator[Tensor]:
        return self.network.parameters()


def function_with_own_code(network: nn.Module) -> Callable[..., Any]:
    """Return a function that runs the network and has its own code object.

    Dynamo stores compiled versions under the code object that was called and tries them one after the other. With a
    shared code object each further network of a class is found more slowly, until a limit is reached.
    """

    def forward(*arguments: Any) -> Any:
        return network(*arguments)

    forward.__code__ = forward.__code__.replace()
    return forward


def compiled_versions(entry: Callable[..., Any]) -> int | None:
    """Return how many compiled versions dynamo keeps for this function; None if this torch does not report it."""
    from torch._dynamo import eval_frame

    listed: Any = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    return len(listed(entry.__code__)) if listed else None


def count_kernels(code: str) -> tuple[int, Counter[str]]:
    """Count the kernel launches of one call of a graph, from the Python code that inductor generated.

    Returns the number of inductor's own kernels, and the others by name.
    """
    own, others = 0, Counter[str]()
    bodies = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef) and node.name == "call"]
    for node in (inner for body in bodies for inner in ast.walk(body)):
        path = _dotted_name(node.func) if isinstance(node, ast.Call) else ()
        if path[:1] and path[0].startswith(_GENERATED):
            own += 1
        elif path[:1] == ("extern_kernels",):
            others[path[1]] += 1
        elif path[:2] == ("torch", "ops") and len(path) > 3:
            others[path[3].lstrip("_")] += 1
    return own, others


def _load_or_store_facts(folder: Path, seconds: float, codes: list[str], *, cached: bool) -> dict[str, Any]:
    facts_file = folder / FACTS_FILE
    if facts_file.exists():
        return {**json.loads(facts_file.read_text()), "load_s": seconds, "cached": cached}
    own, outside = 0, Counter[str]()
    for code in codes:
        found, others = count_kernels(code)
        own, outside = own + found, outside + others
    facts = {
        "prepare_s": seconds,
        "artefact_bytes": sum(
            path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] != _TOOLS
        ),
        "pieces": len(codes),
        "operators": own + outside.total(),
        "outside": dict(outside),
    }
    facts_file.write_text(json.dumps(facts))
    return {**facts, "cached": cached}


@contextlib.contextmanager
def _compiling_into(folder: Path) -> Iterator[None]:
    """Compile into this folder only, without what other cells compiled, so that preparation times compare.

    Ends every process that inductor started.
    """
    # Read when inductor is first imported: it would start a process pool at once.
    with mock.patch.dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="1"):
        from torch._dynamo import config as dynamo
        from torch._inductor import async_compile, utils
        from torch._inductor import config as inductor

    folder.mkdir(parents=True, exist_ok=True)
    clear_caches: Any = getattr(utils, "clear_caches", None) or utils.clear_inductor_caches
    clear_caches()
    patches = (
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder)),
        dynamo.patch(error_on_recompile=True, suppress_errors=False),
        inductor.patch(compile_threads=cpu.usable_cores(), fx_graph_cache=True),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.callback(async_compile.shutdown_compile_workers)
        yield


@functools.cache
def _warm_up_compiler(device: str) -> None:
    """Pay the one-time costs of a process and machine: imports, detecting vector instructions, precompiling headers.

    Otherwise they would count for whichever network comes first.
    """
    import torch

    torch.compile(lambda value: value + 1, fullgraph=True, dynamic=False)(torch.ones(8, device=device))


@contextlib.contextmanager
def _generated_code() -> Iterator[list[str]]:
    """Collect the Python code that inductor generates for each graph."""
    from torch._inductor.graph import GraphLowering

    codes: list[str] = []
    with mock.patch.object(GraphLowering, "save_output_code", staticmethod(codes.append)):
        yield codes


def _cache_hits() -> int:
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"])


def _dotted_name(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Attribute):
        return (*_dotted_name(node.value), node.attr)
    return (node.id,) if isinstance(node, ast.Name) else ()


def _dynamo_message(error: BaseException) -> str:
    """Return what dynamo reports about the network: title and explanation, or the guard that failed."""
    text = message_of(error).strip() or type(error).__name__
    guard = re.search(r"^\s*- \d+/\d+: (.+?)(?:\s+#.*)?$", text, re.M)
    if guard:
        return f"it would compile again from call to call, since it does not hold that {guard[1]}"[:300]
    title, explanation = text.splitlines()[0], re.search(r"^\s*Explanation: (.+)$", text, re.M)
    return (f"{title}. {explanation[1].strip()}" if explanation else title)[:300]


def _compiler() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def _compiler_version() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0]
    return None
