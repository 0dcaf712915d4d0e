"""CUDA graphs: the kernels of one pass captured once, and replayed with a single launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import text_of
from effbench.devices import OutOfMemory
from effbench.devices._torch_cuda import TorchCuda
from effbench.devices.base import Call
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, in_turn
from effbench.runtimes.eager import Eager

if TYPE_CHECKING:
    from torch import Tensor, nn


MOST_GRAPHS = 8
"""Inputs that are rotated through at the most, a graph for each. Each graph costs a pass aside, a capture and memory of
the driver's, so that the hundreds of inputs that outgrow the L2 cache would cost seconds a cell and launch. What is
lost is small: more than eight are needed only where an input is less than a quarter of the cache, and to read that from
memory instead takes a GPU some microseconds at the very most (12 MB at 3.3 TB/s: 4 us), most often a tenth of one (an
image of 0.6 MB: 0.2 us)."""


class CudaGraph(Runtime):
    """One graph for each input, of which it takes `MOST_GRAPHS`, since a graph reads the addresses that it was captured
    with: copying each input to one place would add a kernel, and leave that place in the cache. The graphs share one
    pool of memory.

    `api` makes what stands before ``torch.cuda`` for a GPU, by its index; tests hand in a scripted one.
    """

    name = "cudagraph"
    summary = "the kernels of PyTorch captured as a CUDA graph and replayed, nothing launched from Python"
    devices = ("cuda",)
    dtypes = ("float32", "float64", "float16", "bfloat16")
    memory_formats = ("contiguous", "channels_last")
    no_graph = "it is a replay of one already"

    def __init__(self, api: Callable[[int], Any] = TorchCuda) -> None:
        self._api = api

    def facts(self) -> dict[str, Any]:
        return Eager().facts() | {"cudagraph.memory_pool": "shared by the graphs of a network"}

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        """A call replays the graph of the next input and returns what it writes: the same tensors whenever it comes
        round. `prepare_s` is for all of the graphs, `graphs` how many there are. Raises Unsupported for what cannot be
        captured (a value read back by the host, a synchronisation), and OutOfMemory.
        """
        places = (getattr(value, "device", None) for value in (*inputs[0], *network.parameters()))
        api = self._api(next((place.index for place in places if place is not None), None) or 0)
        start = time.perf_counter()
        try:
            pool = api.graph_pool()
            calls = [_captured(api, network, arguments, pool) for arguments in inputs[:MOST_GRAPHS]]
            api.synchronize()
        except Exception as error:  # capture forbids by raising, and every CUDA error does too
            api.abandon_capture()
            said = (text_of(error).strip() or type(error).__name__).splitlines()[0][:200]
            if api.is_out_of_memory(error):
                raise OutOfMemory(said) from error
            raise Unsupported(f"a CUDA graph cannot hold it: {said}") from error
        facts = {"prepare_s": time.perf_counter() - start, "pieces": 1, "graphs": len(calls)}
        return Prepared(in_turn(calls), facts)


def _captured(api: Any, network: nn.Module, arguments: tuple[Tensor, ...], pool: Any) -> Call:
    written: list[Any] = []

    def once() -> None:
        # Nothing of the pass before may be alive in the memory that this one is captured into.
        written.clear()
        written.append(network(*arguments))

    replay = api.capture(once, pool)
    (output,) = written

    def call() -> Any:
        replay()
        return output

    return call
