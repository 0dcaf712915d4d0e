"""ExecuTorch: the network lowered to XNNPACK as far as that takes it, the rest on ExecuTorch's portable kernels."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import text_of
from effbench.devices.base import Call
from effbench.runtimes.base import Setting, Unsupported
from effbench.runtimes.capture_output import quiet
from effbench.runtimes.copies import for_export
from effbench.runtimes.model_file import Exported, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MODEL_FILE = "model.pte"
CALIBRATIONS = 4
"""Random inputs that int8 ranges are read from, beside the example itself."""


class ExecuTorch(Exported):
    """`pieces` are calls to XNNPACK, `outside` the operators between them.

    ExecuTorch's Python binding takes torch tensors and loads torch's libraries: running needs torch, unlike the other
    runtimes of model files. Where there is none, ExecuTorch's C++ runner takes the same file. The thread pool belongs
    to the process, so all models of one process have the same number of threads.
    """

    name = "executorch"
    summary = "ExecuTorch with XNNPACK"
    modules = ("executorch", "torch")
    extra = "executorch"
    dtypes = ("float32", "int8")

    def facts(self) -> dict[str, Any]:
        # Imported here so that the seconds this takes are not counted as preparing or loading the first network.
        _binding()
        return {
            "executorch.version": importlib.metadata.version("executorch"),
            "executorch.torchao": importlib.metadata.version("torchao"),
        }

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        import torch

        # In inference mode, as the worker is, networks cannot be exported.
        with quiet(), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            network, example = for_export(network, inputs)
            facts: dict[str, Any] = {}
            if setting.dtype == "int8":
                network, facts["quantisation"] = _quantised(network, example)
            program = torch.export.export(network, example, strict=False)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            facts |= _delegation(lowered.exported_program().graph_module)
            (setting.folder / MODEL_FILE).write_bytes(lowered.to_executorch().buffer)
        return facts

    def open(self, setting: Setting) -> Session:
        return _Session(setting.folder / MODEL_FILE, setting.threads)


class _Session(Session):
    pool: int | None = None
    """Threads of the models that are loaded: resetting the pool would take it from under them."""

    def __init__(self, model: Path, threads: int) -> None:
        self._binding = binding = _binding()
        with quiet() as said:
            if threads and threads != self.threads:
                if _Session.pool is not None:
                    raise Unsupported(
                        f"executorch computes with {_Session.pool} threads in this process already; "
                        f"measure {threads} in a run of their own"
                    )
                binding._unsafe_reset_threadpool(threads)
            try:
                checked = binding.Verification.InternalConsistency
                self._program = binding._load_program(str(model), program_verification=checked)
                self._method = self._program.load_method("forward")
            except RuntimeError as error:
                raise Unsupported(f"executorch cannot load {model.name}: {_reason(error, said())}") from error
            _Session.pool = self.threads

    @property
    def threads(self) -> int:
        return int(self._binding._threadpool_get_thread_count())

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np
        import torch

        # Given anew in each call: the memory plan lets later operators write over the inputs' place.
        method, inputs = self._method, tuple(map(torch.from_numpy, arrays))
        # Not copied out, which would cost the networks of G1 to G4 some 6 %: outputs have one place in the memory plan.
        outputs = [np.asarray(_Kept(torch.as_tensor(each).numpy(), self)) for each in method(inputs, False)]

        def call() -> list[np.ndarray[Any, Any]]:
            method(inputs, False)
            return outputs

        return call


class _Kept:
    """Memory of a model as numpy is told of it: an array of it keeps the model alive."""

    def __init__(self, array: np.ndarray[Any, Any], owner: _Session) -> None:
        self.__array_interface__, self.owner = array.__array_interface__, owner


def _binding() -> Any:
    """The runtime's Python binding. Raises Unsupported where it cannot be imported."""
    if importlib.util.find_spec("torch") is None:
        raise Unsupported(
            f"executorch's Python binding needs torch; pip install torch, or run {MODEL_FILE} with executor_runner"
        )
    try:
        with quiet():
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise Unsupported(f"executorch does not work beside this torch: {_reason(error)}") from error
    return portable_lib


def _quantised(network: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module, str]:
    """The network with int8 weights and activations in between, and how that was done, in words.

    Ranges are read while the network runs on the example and on N(0, 1) inputs of a fixed seed.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(network, example, strict=False).module(), quantizer)
    generator = torch.Generator().manual_seed(0)
    prepared(*example)
    for _ in range(CALIBRATIONS):
        drawn = (
            torch.randn(given.shape, generator=generator) if given.is_floating_point() else given for given in example
        )
        prepared(*drawn)
    said = f"static (PT2E), symmetric int8 per channel, ranges of {CALIBRATIONS + 1} inputs"
    return convert_pt2e(prepared), said


def _delegation(graph_module: Any) -> dict[str, Any]:
    """`pieces`, `operators` and `outside` of a lowered graph. Tuple access and memory are no operators."""
    from executorch.exir.delegate import executorch_call_delegate

    pieces, delegated, outside = 0, 0, Counter[str]()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is executorch_call_delegate:
            pieces += 1
            inner = getattr(graph_module, node.args[0].name).original_module.graph
            # In a delegate, quantisation is a property of its operators; outside it is a kernel like any other.
            delegated += sum(bool(name) and "quantize_per_" not in name for name in map(_operator, inner.nodes))
        elif name := _operator(node):
            outside[name] += 1
    return {"pieces": pieces, "operators": delegated + outside.total(), "outside": dict(outside)}


def _operator(node: Any) -> str:
    """The operator that a node calls, without namespace and overload, such as "mean"; "" where it calls none."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return "" if schema is None else str(schema.name).rpartition("::")[2]


def _reason(error: Exception, said: str = "") -> str:
    """The first line of what the runtime wrote about the error, else of the error itself."""
    lines = [line for line in said.splitlines() if line.strip()] or (
        text_of(error).strip() or type(error).__name__
    ).splitlines()
    return lines[0][:200]
