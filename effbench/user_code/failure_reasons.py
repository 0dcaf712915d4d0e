"""State in one line why a cell cannot be measured, for people who did not write effbench."""

from __future__ import annotations

import re

from effbench.core.errors import EffbenchError, Unsupported, first_line, message_of
from effbench.devices import OutOfMemory

MAX_LENGTH = 300

_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to|unable to) (allocate|mmap)|not enough memory|bad_?alloc"
    r"|DefaultCPUAllocator|MemoryError|ALLOC_FAILED|[Ee]rror code:? 12\b|errno 12\b",
    re.IGNORECASE,
)
"""How torch, C++, Python, numpy, the runtimes and CUDA report that memory ran out."""

_NO_GRADIENTS = re.compile(
    r"[Ii]nference tensors?\b|does not require grad and does not have a grad_fn|does not have a grad_fn"
)
"""torch's errors when gradients are requested in inference mode. torch's own advice in them does not apply here."""

GRADIENTS_ADVICE = (
    "it computes gradients in its forward, and effbench measures in inference mode; begin its forward with "
    "`with torch.inference_mode(False), torch.enable_grad():` and, inside, copy each input (`x = x.clone()`)"
)


def reason_for(error: BaseException) -> str:
    """Return the reason that tables show.

    It is "out of memory", advice for networks that compute gradients, or the type and first line of the error. Errors
    of effbench already state a reason.
    """
    if isinstance(error, OutOfMemory):
        return f"out of memory: {first_line(error, MAX_LENGTH)}"
    if memory_reason := out_of_memory_reason(error):
        return memory_reason
    if wants_gradients(error):
        return GRADIENTS_ADVICE
    if isinstance(error, (EffbenchError, Unsupported)):
        return first_line(error, MAX_LENGTH)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({_value_text(error.code)})"
    return f"{type(error).__name__}: {first_line(error, MAX_LENGTH)}"


def wants_gradients(error: BaseException) -> bool:
    """Whether this is torch's error for gradients requested where none are kept."""
    return isinstance(error, RuntimeError) and bool(_NO_GRADIENTS.search(message_of(error)))


def out_of_memory_reason(error: BaseException | str) -> str:
    """Return a reason that starts with "out of memory" if the error or its cause says so; else "".

    Factories and exporters that run out of memory raise an error of effbench whose cause is torch's.
    """
    text = error if isinstance(error, str) else first_line(error, MAX_LENGTH)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return text if text.startswith("out of memory") else f"out of memory: {text}"
    cause = None if isinstance(error, str) else error.__cause__
    return "" if cause is None else out_of_memory_reason(cause)


def _value_text(value: object) -> str:
    try:
        return repr(value).splitlines()[0][:MAX_LENGTH]
    except Exception:
        return type(value).__name__
