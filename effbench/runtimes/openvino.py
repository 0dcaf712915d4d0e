"""Run a network in OpenVINO: converted from torch.export's graph to OpenVINO's IR and compiled for the CPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.devices.base import Call
from effbench.runtimes.base import Setting, Unsupported
from effbench.runtimes.capture_output import captured_output
from effbench.runtimes.copy_network import copy_for_export
from effbench.runtimes.model_file import ModelFileRuntime, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MODEL = "model.xml"
SETTINGS = {
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_HYPER_THREADING": True,
    "CPU_DENORMALS_OPTIMIZATION": True,
}
"""One inference at a time, on the requested number of threads; denormals are flushed as in eager. OpenVINO pins the
threads that it creates to cores of the process's affinity, and leaves the calling thread's affinity alone.
"""
PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
CAPABILITIES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
NO_OPERATORS = ("Const", "Input", "Output")


class OpenVino(ModelFileRuntime):
    """OpenVINO's CPU plugin. A call is `InferRequest.infer` on inputs set once: 7 us of Python.

    With one thread it computes in the calling thread. Files and inputs are float32 whatever the dtype: OpenVINO takes
    the compute precision as a hint when it compiles.
    """

    name = "openvino"
    summary = "OpenVINO, its CPU plugin"
    modules = ("openvino",)
    extra = "openvino"
    dtypes = ("float32", "float16", "bfloat16")

    def facts(self) -> dict[str, Any]:
        core = _import_openvino().Core()
        return {
            "openvino.version": _import_openvino().get_version(),
            "openvino.device": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "openvino.capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "openvino.settings": dict(SETTINGS),
        }

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        import torch

        openvino = _import_openvino()
        narrow = (torch.float16, torch.bfloat16)
        # Some networks cannot be exported in inference mode, which the worker is in.
        with captured_output(), torch.inference_mode(False):
            network, inputs = copy_for_export(network, inputs)
            example = tuple(tensor.float() if tensor.dtype in narrow else tensor for tensor in inputs)
            program = torch.export.export(network.float(), example, strict=False)
            try:
                model = openvino.convert_model(program)
            except openvino.frontend.OpConversionFailure as error:
                message = str(error).strip().splitlines()[-1].removeprefix("-- ")
                raise Unsupported(f"openvino cannot convert it: {message[:200]}; use another runtime") from error
        # Otherwise it takes every size as dynamic, and then fuses fewer operators.
        model.reshape({at: list(tensor.shape) for at, tensor in enumerate(example)})
        openvino.save_model(model, setting.folder / MODEL, compress_to_fp16=False)
        return _graph_facts(_compile(setting).get_runtime_model())

    def open(self, setting: Setting) -> Session:
        return _Session(_compile(setting))


class _Session(Session):
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    @property
    def threads(self) -> int | None:
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np

        ports = self._compiled.inputs
        if len(ports) != len(arrays):
            raise Unsupported(f"openvino kept {len(ports)} of {len(arrays)} inputs; drop those that nothing reads")
        request = self._compiled.create_infer_request()
        bound_inputs = [
            np.ascontiguousarray(array, port.get_element_type().to_dtype())
            for port, array in zip(ports, arrays, strict=True)
        ]
        for at, array in enumerate(bound_inputs):
            request.set_input_tensor(at, _import_openvino().Tensor(array, shared_memory=True))
        infer = request.infer
        infer()
        outputs = [request.get_output_tensor(at).data for at in range(len(self._compiled.outputs))]

        def call(owned: object = bound_inputs) -> Sequence[Any]:
            infer(share_outputs=True)
            return outputs

        return call


def _import_openvino() -> Any:
    """Import the package without its telemetry.

    Importing it reports to its makers over the network. With `openvino_telemetry` made unimportable it uses the
    fallback for users without telemetry.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    absent: Any = None  # None makes the import of this name fail
    telemetry = sys.modules.get("openvino_telemetry", absent)
    sys.modules["openvino_telemetry"] = absent
    try:
        import openvino
    finally:
        del sys.modules["openvino_telemetry"]
        if telemetry is not None:
            sys.modules["openvino_telemetry"] = telemetry
    return openvino


def _compile(setting: Setting) -> Any:
    """Compile the model. Raises Unsupported if this CPU would compute in another precision than requested."""
    core = _import_openvino().Core()
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if CAPABILITIES[setting.dtype] not in known:
        raise Unsupported(
            f"openvino has no {setting.dtype} on this CPU; use --dtype "
            + " or ".join(name for name, capability in CAPABILITIES.items() if capability in known)
        )
    options = SETTINGS | {
        "INFERENCE_NUM_THREADS": setting.threads,
        "INFERENCE_PRECISION_HINT": PRECISIONS[setting.dtype],
    }
    return core.compile_model(setting.folder / MODEL, "CPU", options)


def _graph_facts(graph: Any) -> dict[str, Any]:
    """Return `operators`, `pieces`, `outside` and `layers` of a compiled graph. All of it runs in the plugin's
    kernels.
    """
    kinds = [str(node.get_rt_info()["layerType"].value) for node in graph.get_ordered_ops()]
    ran = Counter(kind for kind in kinds if kind not in NO_OPERATORS)
    return {"operators": ran.total(), "pieces": 1, "outside": {}, "layers": dict(ran.most_common())}
