"""Run a network in ExecuTorch: lowered to XNNPACK where possible, with portable kernels for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import message_of
from effbench.devices.base import Call
from effbench.runtimes.base import Setting, Unsupported
from effbench.runtimes.capture_output import captured_output
from effbench.runtimes.copy_network import copy_for_export
from effbench.runtimes.model_file import ModelFileRuntime, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MODEL_FILE = "model.pte"
CALIBRATIONS = 4
"""Random inputs that calibrate int8 ranges, besides the example input."""


class ExecuTorch(ModelFileRuntime):
    """ExecuTorch with XNNPACK. `pieces` counts the calls to XNNPACK, `outside` the operators between them.

    ExecuTorch's Python binding takes torch tensors and loads torch's libraries. Unlike the other runtimes of model
    files it therefore needs torch to run; ExecuTorch's C++ runner runs the same file without it. The thread pool
    belongs to the process, so all models in a process use the same number of threads.
    """

    name = "executorch"
    summary = "ExecuTorch with XNNPACK"
    modules = ("executorch", "torch")
    extra = "executorch"
    dtypes = ("float32", "int8")

    def facts(self) -> dict[str, Any]:
        # Imported here so that the seconds of the import do not count as preparing or loading the first network.
        _import_binding()
        return {
            "executorch.version": importlib.metadata.version("executorch"),
            "executorch.torchao": importlib.metadata.version("torchao"),
        }

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        import torch

        # Networks cannot be exported in inference mode, which the worker is in.
        with captured_output(), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            network, example = copy_for_export(network, inputs)
            facts: dict[str, Any] = {}
            if setting.dtype == "int8":
                network, facts["quantisation"] = _quantise(network, example)
            program = torch.export.export(network, example, strict=False)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            facts |= _delegation_facts(lowered.exported_program().graph_module)
            (setting.folder / MODEL_FILE).write_bytes(lowered.to_executorch().buffer)
        return facts

    def open(self, setting: Setting) -> Session:
        return _Session(setting.folder / MODEL_FILE, setting.threads)


class _Session(Session):
    pool_threads: int | None = None
    """Threads of the models loaded so far. Resetting the pool would break those models."""

    def __init__(self, model: Path, threads: int) -> None:
        self._binding = binding = _import_binding()
        with captured_output() as captured_text:
            if threads and threads != self.threads:
                if _Session.pool_threads is not None:
                    raise Unsupported(
                        f"executorch computes with {_Session.pool_threads} threads in this process already; "
                        f"measure {threads} in a run of their own"
                    )
                binding._unsafe_reset_threadpool(threads)
            try:
                verification = binding.Verification.InternalConsistency
                self._program = binding._load_program(str(model), program_verification=verification)
                self._method = self._program.load_method("forward")
            except RuntimeError as error:
                raise Unsupported(
                    f"executorch cannot load {model.name}: {_error_line(error, captured_text())}"
                ) from error
            _Session.pool_threads = self.threads

    @property
    def threads(self) -> int:
        return int(self._binding._threadpool_get_thread_count())

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np
        import torch

        # The inputs are set in each call: the memory plan lets later operators overwrite them.
        method, inputs = self._method, tuple(map(torch.from_numpy, arrays))
        # Outputs are not copied, which would cost the networks of G1 to G4 about 6 %: each has a fixed place in the
        # memory plan.
        outputs = [np.asarray(_OutputMemory(torch.as_tensor(each).numpy(), self)) for each in method(inputs, False)]

        def call() -> list[np.ndarray[Any, Any]]:
            method(inputs, False)
            return outputs

        return call


class _OutputMemory:
    """A model's output memory as numpy reads it. An array made from it keeps the model alive."""

    def __init__(self, array: np.ndarray[Any, Any], owner: _Session) -> None:
        self.__array_interface__, self.owner = array.__array_interface__, owner


def _import_binding() -> Any:
    """Import the runtime's Python binding. Raises Unsupported if that fails."""
    if importlib.util.find_spec("torch") is None:
        raise Unsupported(
            f"executorch's Python binding needs torch; pip install torch, or run {MODEL_FILE} with executor_runner"
        )
    try:
        with captured_output():
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise Unsupported(f"executorch does not work beside this torch: {_error_line(error)}") from error
    return portable_lib


def _quantise(network: nn.Module, example: tuple[Tensor, ...]) -> tuple[nn.Module, str]:
    """Return the network with int8 weights and activations, and a description of how it was quantised.

    Ranges are calibrated on the example and on N(0, 1) inputs of a fixed seed.
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
    description = f"static (PT2E), symmetric int8 per channel, ranges of {CALIBRATIONS + 1} inputs"
    return convert_pt2e(prepared), description


def _delegation_facts(graph_module: Any) -> dict[str, Any]:
    """Return `pieces`, `operators` and `outside` of a lowered graph. Tuple access and memory allocation are no
    operators.
    """
    from executorch.exir.delegate import executorch_call_delegate

    pieces, delegated, outside = 0, 0, Counter[str]()
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is executorch_call_delegate:
            pieces += 1
            inner = getattr(graph_module, node.args[0].name).original_module.graph
            # In a delegate, quantisation is part of its operators; outside of one it is a kernel like any other.
            delegated += sum(bool(name) and "quantize_per_" not in name for name in map(_operator_name, inner.nodes))
        elif name := _operator_name(node):
            outside[name] += 1
    return {"pieces": pieces, "operators": delegated + outside.total(), "outside": dict(outside)}


def _operator_name(node: Any) -> str:
    """Return the operator that a node calls, without namespace and overload, such as "mean"; "" if it calls none."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return "" if schema is None else str(schema.name).rpartition("::")[2]


def _error_line(error: Exception, captured_text: str = "") -> str:
    """Return the first line of what the runtime printed about the error, else of the error itself."""
    lines = [line for line in captured_text.splitlines() if line.strip()] or (
        message_of(error).strip() or type(error).__name__
    ).splitlines()
    return lines[0][:200]
