"""Look up devices by name. Importing this module imports no torch; creating a `cuda` device does."""

from __future__ import annotations

import re
from typing import Any

from effbench.core.errors import DeviceUnavailable, UnknownName
from effbench.devices.base import Call, Device, Energy, Memory, OutOfMemory

__all__ = ["NAMES", "SUMMARIES", "Call", "Device", "Energy", "Memory", "OutOfMemory", "get", "kind_of", "require_cuda"]

SUMMARIES = {
    "cpu": "the CPU, with --threads",
    "cuda": "an NVIDIA GPU; cuda:1 is the second",
    "fake": "a scripted clock: for trying things out, not for results",
}
"""What each kind of device is, by name."""

NAMES = tuple(SUMMARIES)


def kind_of(name: str) -> str:
    """Return the kind of a device name, such as "cuda" for "cuda:1".

    Parameters
    ----------
    name : str
        "cpu", "cuda", "cuda:N" or "fake".

    Returns
    -------
    str
        "cpu", "cuda" or "fake".

    Raises
    ------
    UnknownName
        If `name` is none of these.
    """
    match = re.fullmatch(rf"({'|'.join(NAMES)})(?::(\d+))?", name)
    if not match or (match[2] is not None and match[1] != "cuda"):
        raise UnknownName("device", name, NAMES, hint=" A second GPU is 'cuda:1'.")
    return match[1]


def get(name: str, **options: Any) -> Device:
    """Create the device of this name. Call `setup()` on it in the process that measures.

    Parameters
    ----------
    name : str
        "cpu", "cuda", "cuda:N" or "fake".
    **options
        Arguments of its constructor: `threads`, `cluster`, `whole_process`, `torch` (cpu); `precision`, `autotune`,
        `cache` (cuda); `seed`, `noise`, `script` (fake).

    Returns
    -------
    Device
        The device, not set up yet.

    Raises
    ------
    UnknownName
        If `name` is no device.
    DeviceUnavailable
        If a GPU is asked for that cannot be used here.
    InvalidValue
        If an option has a wrong value.
    """
    kind = kind_of(name)
    if kind == "cpu":
        from effbench.devices.cpu import Cpu

        return Cpu(**options)
    if kind == "fake":
        from effbench.devices.fake import Fake

        return Fake(**options)
    from effbench.devices.cuda import Cuda

    return Cuda(require_cuda(name), **options)


def require_cuda(name: str) -> int:
    """Return the index of this CUDA device. Raises DeviceUnavailable, with the reason, if it cannot be used."""
    from effbench.devices.cuda import why_unavailable

    index = int(name.partition(":")[2] or 0)
    reason = why_unavailable(index)
    if reason:
        raise DeviceUnavailable(f"device '{name}' cannot be used: {reason}. Present here: cpu")
    return index
