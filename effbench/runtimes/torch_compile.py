"""torch.compile with TorchInductor: one graph per network, fused and generated for its shapes."""

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

from effbench.core.errors import text_of
from effbench.devices import cpu
from effbench.devices.base import Call
from effbench.runtimes import training_step
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, in_turn
from effbench.runtimes.eager import Eager

if TYPE_CHECKING:
    from torch import Tensor, nn

FACTS_FILE = "compiled.json"
"""What the first launch found out: a launch that loads what it left behind cannot see the code any more."""

MOST_TRIED = 8
"""Inputs that are tried before anything is timed. All have the same shape, dtype and layout, which is what a compiled
graph asks of them; on a GPU hundreds may rotate."""

_LEFT = "torch.compile left it to eager; unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE"

_TOOLS = "tools"
"""Of a cell's folder: what belongs to the compiler and to no network."""

_GENERATED = ("cpp_", "triton_")
"""How the names of inductor's own kernels begin."""


class Compiled(Runtime):
    """As ``torch.compile(network, fullgraph=True, dynamic=False)``: a break in the graph is an error, never a piece
    that runs eagerly unseen.

    Freezing (folding weights into constants) is off unless ``TORCHINDUCTOR_FREEZING=1``, as it is for anyone who calls
    torch.compile; what it is set to is a fact of the run. Frozen graphs are not cached: each launch compiles again.
    """

    name = "compile"
    summary = "torch.compile with TorchInductor, each network one graph"
    devices = ("cpu", "cuda")
    dtypes = ("float32", "float64", "float16", "bfloat16")
    memory_formats = ("contiguous", "channels_last")
    modes = ("infer", "train")

    def missing(self) -> str | None:
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
        """Compiled when this returns. `prepare_s` and `artefact_bytes` are of the run's first launch; a later one says
        in `load_s` what it spent, and `cached` whether it loaded the graph.

        `operators` counts the kernels launched per call, `outside` those of them that inductor did not generate. To
        train, forward and backward are compiled, two `pieces`; loss and optimiser stay eager. Raises Unsupported.
        """
        import torch
        from torch._dynamo.exc import TorchDynamoException

        entry = own_entry(network)
        compiled = torch.compile(entry, backend="inductor", fullgraph=True, dynamic=False)
        try:
            with _into(setting.folder / _TOOLS):
                _wake(setting.device)
            with _into(setting.folder), _watched() as codes:
                hits = _cache_hits()
                start = time.perf_counter()
                if setting.mode == "train":
                    call = training_step.step(_Trained(network, compiled), inputs)
                else:
                    call = in_turn([_bound(compiled, arguments) for arguments in inputs])
                call()
                seconds = time.perf_counter() - start
                # What compiles again, for another input or the second time, would do so inside of a timed block.
                for _ in range(2 * min(len(inputs), MOST_TRIED) - 1):
                    call()
        except TorchDynamoException as error:
            raise Unsupported(f"torch.compile cannot take it: {_said(error)}") from error
        except RuntimeError as error:
            if "no compiled frames" not in text_of(error):
                raise
            raise Unsupported(_LEFT) from error
        if entries(entry) == 0:
            raise Unsupported(_LEFT)
        facts = _remembered(setting.folder, seconds, codes, cached=_cache_hits() > hits)
        return Prepared(call, facts | {"threads": torch.get_num_threads()})


@dataclass(frozen=True)
class _Trained:
    """The parameters of a network, and what was compiled of its forward pass: its backward pass comes with it."""

    network: nn.Module
    compiled: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    def parameters(self) -> Iterator[Tensor]:
        return self.network.parameters()


def own_entry(network: nn.Module) -> Callable[..., Any]:
    """A function that runs the network, with a code object of its own.

    Dynamo files what it compiled under the code object that was called and tries the entries one after the other: with
    a shared one each further network of a class is found more slowly, until a limit is reached.
    """

    def forward(*arguments: Any) -> Any:
        return network(*arguments)

    forward.__code__ = forward.__code__.replace()
    return forward


def entries(entry: Callable[..., Any]) -> int | None:
    """How many compiled versions dynamo keeps for this function; None where this torch does not say."""
    from torch._dynamo import eval_frame

    listed: Any = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    return len(listed(entry.__code__)) if listed else None


def kernels(code: str) -> tuple[int, Counter[str]]:
    """What one call of a graph launches, read from the Python that inductor wrote for it: how many kernels of its own,
    and the others by name.
    """
    own, others = 0, Counter[str]()
    bodies = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef) and node.name == "call"]
    for node in (inner for body in bodies for inner in ast.walk(body)):
        path = _dotted(node.func) if isinstance(node, ast.Call) else ()
        if path[:1] and path[0].startswith(_GENERATED):
            own += 1
        elif path[:1] == ("extern_kernels",):
            others[path[1]] += 1
        elif path[:2] == ("torch", "ops") and len(path) > 3:
            others[path[3].lstrip("_")] += 1
    return own, others


def _bound(compiled: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Call:
    if len(arguments) == 1:
        (single,) = arguments
        return lambda: compiled(single)
    return lambda: compiled(*arguments)


def _remembered(folder: Path, seconds: float, codes: list[str], *, cached: bool) -> dict[str, Any]:
    known = folder / FACTS_FILE
    if known.exists():
        return {**json.loads(known.read_text()), "load_s": seconds, "cached": cached}
    own, outside = 0, Counter[str]()
    for code in codes:
        found, others = kernels(code)
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
    known.write_text(json.dumps(facts))
    return {**facts, "cached": cached}


@contextlib.contextmanager
def _into(folder: Path) -> Iterator[None]:
    """Inductor compiles into this folder, and alone: what other cells compiled does not help, so that times of
    preparation compare. Nothing that it started is left running."""
    # Read when inductor is first imported: a pool of processes would be started for all that is to come.
    with mock.patch.dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="1"):
        from torch._dynamo import config as dynamo
        from torch._inductor import async_compile, utils
        from torch._inductor import config as inductor

    folder.mkdir(parents=True, exist_ok=True)
    forget: Any = getattr(utils, "clear_caches", None) or utils.clear_inductor_caches
    forget()
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
def _wake(device: str) -> None:
    """What a process and a machine pay once: imports, a look at the vector instructions, precompiled headers. Whichever
    network came first would be said to take so long."""
    import torch

    torch.compile(lambda value: value + 1, fullgraph=True, dynamic=False)(torch.ones(8, device=device))


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """The Python that inductor writes for each graph, as it writes it."""
    from torch._inductor.graph import GraphLowering

    codes: list[str] = []
    with mock.patch.object(GraphLowering, "save_output_code", staticmethod(codes.append)):
        yield codes


def _cache_hits() -> int:
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"])


def _dotted(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Attribute):
        return (*_dotted(node.value), node.attr)
    return (node.id,) if isinstance(node, ast.Name) else ()


def _said(error: BaseException) -> str:
    """What dynamo says of the network in its many lines: the title and the explanation, or the guard that failed."""
    text = text_of(error).strip() or type(error).__name__
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
