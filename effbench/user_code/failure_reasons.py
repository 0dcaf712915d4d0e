"""Why a cell cannot be measured, in one line: an error told to somebody who has not written effbench."""

from __future__ import annotations

import re

from effbench.core.errors import EffbenchError, Unsupported, text_of
from effbench.devices import OutOfMemory

LONGEST = 300

_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to|unable to) (allocate|mmap)|not enough memory|bad_?alloc"
    r"|DefaultCPUAllocator|MemoryError|ALLOC_FAILED|[Ee]rror code:? 12\b|errno 12\b",
    re.IGNORECASE,
)
"""What torch, C++, Python, numpy, the runtimes and CUDA say when there is no memory left."""

_NO_GRADIENTS = re.compile(
    r"[Ii]nference tensors?\b|does not require grad and does not have a grad_fn|does not have a grad_fn"
)
"""What torch says to a network that wants gradients where there are none. Its own advice is for those who chose
inference mode themselves."""

GRADIENTS = (
    "it computes gradients in its forward, and effbench measures in inference mode; begin its forward with "
    "`with torch.inference_mode(False), torch.enable_grad():` and, inside, copy each input (`x = x.clone()`)"
)


def told(error: BaseException) -> str:
    """The reason that a table shows: out of memory by that name, a wish for gradients with what to write, else the
    error's first line after its type. Errors of effbench's own are a reason already.
    """
    if isinstance(error, OutOfMemory):
        return f"out of memory: {first_line(error)}"
    if said := out_of_memory(error):
        return said
    if wants_gradients(error):
        return GRADIENTS
    if isinstance(error, (EffbenchError, Unsupported)):
        return first_line(error)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({_shown(error.code)})"
    return f"{type(error).__name__}: {first_line(error)}"


def wants_gradients(error: BaseException) -> bool:
    """Whether this is how torch refuses gradients where none are kept."""
    return isinstance(error, RuntimeError) and bool(_NO_GRADIENTS.search(text_of(error)))


def out_of_memory(error: BaseException | str) -> str:
    """The reason that begins with "out of memory" where that is what an error, or what caused it, says; else "".

    Factories and exporters that run out of memory are reported with an error of our own around that of torch.
    """
    text = error if isinstance(error, str) else first_line(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return text if text.startswith("out of memory") else f"out of memory: {text}"
    cause = None if isinstance(error, str) else error.__cause__
    return "" if cause is None else out_of_memory(cause)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (text_of(error).strip() or type(error).__name__).splitlines()[0][:LONGEST]


def _shown(value: object) -> str:
    try:
        return repr(value).splitlines()[0][:LONGEST]
    except Exception:
        return type(value).__name__
