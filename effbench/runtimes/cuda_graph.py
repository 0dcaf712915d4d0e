"""Run a network as CUDA graphs: its kernels are captured once and replayed with a single launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import first_line
from effbench.devices import OutOfMemory
from effbench.devices.base import Call
from effbench.devices.torch_cuda import TorchCuda
from effbench.runtimes.base import Prepared, Runtime, Setting, Unsupported, round_robin
from effbench.runtimes.eager import Eager

if TYPE_CHECKING:
    from torch import Tensor, nn


MAX_GRAPHS = 8
"""Most inputs to rotate through; each needs its own graph. A graph costs a warm-up pass, a capture and driver memory,
so the hundreds of inputs that would exceed the L2 cache would take seconds per cell and launch. Little is lost: more
than eight inputs are needed only if an input is smaller than a quarter of the cache. Reading such an input from memory
instead takes a GPU a few microseconds at most (12 MB at 3.3 TB/s: 4 us), and usually a tenth of one (an image of 0.6
MB: 0.2 us).
"""


class CudaGraph(Runtime):
    """Captured CUDA graphs, one for each of at most `MAX_GRAPHS` inputs.

    A graph reads the addresses that it was captured with. Copying each input to one place instead would add a kernel
    and leave that place in the cache. All graphs share one memory pool.

    `api` creates the adapter to ``torch.cuda`` for a GPU index; tests pass a scripted one.
    """

    name = "cudagraph"
    summary = "the kernels of PyTorch captured as a CUDA graph and replayed, nothing launched from Python"
    devices = ("cuda",)
    dtypes = ("float32", "float64", "float16", "bfloat16")
    memory_formats = ("contiguous", "channels_last")
    why_no_graph = "it is a replay of one already"

    def __init__(self, api: Callable[[int], Any] = TorchCuda) -> None:
        self._api = api

    def facts(self) -> dict[str, Any]:
        return Eager().facts() | {"cudagraph.memory_pool": "shared by the graphs of a network"}

    def prepare(self, network: nn.Module, inputs: Sequence[tuple[Tensor, ...]], setting: Setting) -> Prepared:
        """Capture one graph per input. A call replays the graph of the next input.

        A graph returns the same output tensors at every replay. `prepare_s` covers all graphs, `graphs` is their
        number. Raises Unsupported for what cannot be captured (a value read back by the host, a synchronisation), and
        OutOfMemory.
        """
        places = (getattr(value, "device", None) for value in (*inputs[0], *network.parameters()))
        api = self._api(next((place.index for place in places if place is not None), None) or 0)
        start = time.perf_counter()
        try:
            pool = api.graph_pool()
            calls = [_capture(api, network, arguments, pool) for arguments in inputs[:MAX_GRAPHS]]
            api.synchronize()
        except Exception as error:  # a forbidden operation raises, and so does every CUDA error
            api.abandon_capture()
            message = first_line(error, 200)
            if api.is_out_of_memory(error):
                raise OutOfMemory(message) from error
            raise Unsupported(f"a CUDA graph cannot hold it: {message}") from error
        facts = {"prepare_s": time.perf_counter() - start, "pieces": 1, "graphs": len(calls)}
        return Prepared(round_robin(calls), facts)


def _capture(api: Any, network: nn.Module, arguments: tuple[Tensor, ...], pool: Any) -> Call:
    outputs: list[Any] = []

    def run_once() -> None:
        # The output of the previous pass must not be alive in the memory that this pass is captured into.
        outputs.clear()
        outputs.append(network(*arguments))

    replay = api.capture(run_once, pool)
    (output,) = outputs

    def call() -> Any:
        replay()
        return output

    return call
