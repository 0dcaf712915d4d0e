"""Run a network in ONNX Runtime: exported to an ONNX graph, optimised for this machine, with ONNX Runtime's kernels."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.core.errors import first_line
from effbench.devices.base import Call
from effbench.devices.torch_cuda import TorchCuda
from effbench.runtimes.base import Setting, Unsupported
from effbench.runtimes.capture_output import captured_output
from effbench.runtimes.copy_network import copy_for_export
from effbench.runtimes.model_file import ModelFileRuntime, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MODEL = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SETTINGS = {"session.intra_op.allow_spinning": "0", "session.set_denormal_as_zero": "1"}
"""Threads must not spin after a call, which would slow the next cell. Denormals are flushed as in eager."""
ASYNCHRONOUS = ("disable_synchronize_execution_providers", "1")
"""Run option for CUDA: return once the kernels are queued, as torch does. By default each run waits for them."""
RECORDED_OPTIONS = (
    "device_id",
    "has_user_compute_stream",
    "use_tf32",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "prefer_nhwc",
)
"""Options of the CUDA provider that decide where and which kernels run, as the session reports them."""
ONE_FILE_BYTES = 2**30
"""Largest weights that are stored within the model file; protobuf ends at 2 GiB."""
CALIBRATION_INPUTS = 8
"""Inputs that calibrate int8 ranges."""
HEAVY_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


class OnnxRuntime(ModelFileRuntime):
    """ONNX Runtime. A call is `run_with_iobinding` on inputs and outputs bound once: 2 us of Python, half of `run`'s.

    On CUDA it computes on the timed stream and returns before its kernels end. A node that stays on the CPU still makes
    the host wait inside the call. `api` creates the adapter to ``torch.cuda`` for a GPU index; tests pass a scripted
    one.
    """

    name = "onnxruntime"
    summary = "ONNX Runtime, its CPU or CUDA provider"
    modules = ("onnxruntime",)
    export_modules = ("onnx", "onnxscript")
    extra = "onnx"
    devices = ("cpu", "cuda")
    dtypes = ("float32", "float16", "int8")
    why_no_graph = "onnxruntime launches its kernels past torch, whose captures hold none of them"

    def __init__(self, api: Callable[[int], Any] = TorchCuda) -> None:
        self._api = api

    def facts(self) -> dict[str, Any]:
        onnxruntime = _import_onnxruntime()
        return {
            "onnxruntime.version": onnxruntime.__version__,
            "onnxruntime.providers": onnxruntime.get_available_providers(),
            "onnxruntime.settings": dict(SETTINGS),
            "onnx.version": _package_version("onnx"),
            "onnxscript.version": _package_version("onnxscript"),
        }

    def require(self, setting: Setting) -> None:
        super().require(setting)
        if setting.dtype == "int8" and setting.device != "cpu":
            raise Unsupported("onnxruntime computes int8 on the CPU only; use --dtype float16 on CUDA")
        if setting.device != "cpu":
            _require_provider(PROVIDERS[setting.device])  # checked before an export that takes minutes

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        import torch

        facts: dict[str, Any] = {}
        path = setting.folder / MODEL
        weights = sum(weight.nbytes for weight in (*network.parameters(), *network.buffers()))
        # Some networks cannot be exported in inference mode, which the worker is in.
        with captured_output(), torch.inference_mode(False):
            try:
                program = torch.onnx.export(*copy_for_export(network, inputs), dynamo=True, verbose=False)
            except torch.onnx.OnnxExporterError as error:
                raise Unsupported(f"torch.onnx cannot export it: {_root_cause(error)}; use another runtime") from error
        assert program is not None  # None only from the old exporter
        facts["opset"] = program.model.opset_imports[""]
        program.save(path, external_data=weights > ONE_FILE_BYTES)
        example = tuple(tensor.cpu().numpy() for tensor in inputs)
        if setting.dtype == "int8":
            _quantise(path, example)
            facts["quantisation"] = f"static QDQ, u8 by s8, per channel, minmax on {CALIBRATION_INPUTS} inputs"
        nodes = _executed_nodes(example, setting, self._api)
        if setting.dtype == "float16" and setting.device == "cpu":
            _refuse_casts(nodes)
        return facts | delegation_facts(
            [(node["op_name"], node["provider"]) for node in nodes], PROVIDERS[setting.device]
        )

    def open(self, setting: Setting) -> Session:
        session = _open_session(setting, self._api)
        if setting.device == "cpu":
            return _CpuSession(session)
        opened = _CudaSession(session, setting.index, self._api(setting.index).synchronize)
        if opened.facts["provider_options"].get("has_user_compute_stream") == "0":
            raise Unsupported("this onnxruntime computes on a stream of its own, where no clock of ours reaches it")
        return opened


class _CpuSession(Session):
    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def threads(self) -> int | None:
        return int(self._session.get_session_options().intra_op_num_threads)

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np

        session = self._session
        names = [each.name for each in session.get_inputs()]
        if len(names) != len(arrays):
            raise Unsupported(f"onnxruntime kept {len(names)} of {len(arrays)} inputs; drop those that nothing reads")
        arrays_in = tuple(np.ascontiguousarray(array) for array in arrays)
        # The first run gives the outputs' shapes and dtypes, which a graph need not declare.
        outputs = session.run(None, dict(zip(names, arrays_in, strict=True)))
        binding = session.io_binding()
        bound = [self._to_ort_value(array) for array in arrays_in]
        for name, value in zip(names, bound, strict=True):
            binding.bind_ortvalue_input(name, value)
        values = [self._to_ort_value(array) for array in outputs]
        for each, value in zip(session.get_outputs(), values, strict=True):
            binding.bind_ortvalue_output(each.name, value)
        # On the CPU the values use the arrays' memory, which must outlive the binding.
        return self._bound_call(binding, (arrays_in, outputs, bound, values), self._results(outputs, values))

    def _to_ort_value(self, array: np.ndarray[Any, Any]) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, "cpu")

    def _results(self, outputs: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        return outputs

    def _bound_call(self, binding: Any, owned: object, returned: Sequence[Any]) -> Call:
        run = self._session.run_with_iobinding

        def call(owned: object = owned) -> Sequence[Any]:
            run(binding)
            return returned

        return call


class _CudaSession(_CpuSession):
    """A session whose inputs and outputs are on GPU `index`. `wait` synchronises with that GPU."""

    def __init__(self, session: Any, index: int, wait: Callable[[], None]) -> None:
        super().__init__(session)
        self._index, self._wait = index, wait

    @property
    def facts(self) -> dict[str, Any]:
        options = self._session.get_provider_options().get(PROVIDERS["cuda"], {})
        return {"provider_options": {name: options[name] for name in RECORDED_OPTIONS if name in options}}

    def _to_ort_value(self, array: np.ndarray[Any, Any]) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(array, "cuda", self._index)

    def _results(self, outputs: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        return [_OutputOnGpu(value, self._wait) for value in values]

    def _bound_call(self, binding: Any, owned: object, returned: Sequence[Any]) -> Call:
        from onnxruntime import RunOptions

        options, run = RunOptions(), self._session.run_with_iobinding
        options.add_run_config_entry(*ASYNCHRONOUS)

        def call(owned: object = owned) -> Sequence[Any]:
            run(binding, options)
            return returned

        return call


class _OutputOnGpu:
    """An output on the GPU. Reading it as an array synchronises and copies it to the host."""

    def __init__(self, value: Any, wait: Callable[[], None]) -> None:
        self._value, self._wait = value, wait

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        # The copy to the host uses the default stream, which waits for no other stream.
        self._wait()
        found: np.ndarray[Any, Any] = self._value.numpy()
        return found if dtype is None else found.astype(dtype)


def delegation_facts(nodes: Sequence[tuple[str, str]], wanted: str) -> dict[str, Any]:
    """Return `operators`, `pieces`, `outside` and `layers` from the (type, provider) of every node in execution order.

    A piece is a run of consecutive nodes on the wanted provider, without a node of another provider or a copy between.
    """
    inside = [provider == wanted and not kind.startswith("Memcpy") for kind, provider in nodes]
    return {
        "operators": len(nodes),
        "pieces": sum(is_inside for is_inside, _ in itertools.groupby(inside)),
        "outside": dict(Counter(kind for (kind, _), is_inside in zip(nodes, inside, strict=True) if not is_inside)),
        "layers": dict(Counter(kind for kind, _ in nodes).most_common()),
    }


def _import_onnxruntime() -> Any:
    """Import the package without its telemetry, which reports to its makers and keeps an identity in the temporary
    folder.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _require_provider(wanted: str) -> None:
    """Raise Unsupported if this build of onnxruntime lacks the provider."""
    onnxruntime = _import_onnxruntime()
    if wanted not in onnxruntime.get_available_providers():
        raise Unsupported(f"the installed onnxruntime has no {wanted}; pip install onnxruntime-gpu in its place")


def cuda_options(setting: Setting, stream: int) -> dict[str, str]:
    """Return options of the CUDA provider: the GPU, the address of the stream, and the run's policies as torch follows
    them.

    By default onnxruntime uses TF32 and benchmarks every convolution algorithm; torch does neither by default.
    """
    return {
        "device_id": str(setting.index),
        "user_compute_stream": str(stream),
        "use_tf32": str(int(setting.tf32)),
        "cudnn_conv_algo_search": "EXHAUSTIVE" if setting.autotune else "HEURISTIC",
    }


def _open_session(setting: Setting, api: Callable[[int], Any] = TorchCuda, profile: Path | None = None) -> Any:
    """Open the model. Raises Unsupported if the provider for the device is not in this build or does not start."""
    onnxruntime = _import_onnxruntime()
    wanted = PROVIDERS[setting.device]
    _require_provider(wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads or 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for key, value in SETTINGS.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    chosen: list[Any] = [wanted]
    if setting.device == "cuda":
        # torch is imported first, because it loads the CUDA libraries that the provider needs.
        chosen = [(wanted, cuda_options(setting, int(api(setting.index).stream_address())))]
    session = onnxruntime.InferenceSession(str(setting.folder / MODEL), options, providers=chosen)
    if session.get_providers()[0] != wanted:
        raise Unsupported(f"onnxruntime could not start its {wanted}; install the CUDA and cuDNN that it was built for")
    return session


def _executed_nodes(
    example: tuple[np.ndarray[Any, Any], ...], setting: Setting, api: Callable[[int], Any]
) -> list[dict[str, Any]]:
    """Return every node that one run of the optimised graph executes, in order, as onnxruntime's profiler
    describes it.
    """
    session = _open_session(setting, api, profile=setting.folder / "profile")
    session.run(None, dict(zip([each.name for each in session.get_inputs()], example, strict=False)))
    written = Path(session.end_profiling())
    events = json.loads(written.read_text())
    written.unlink()
    return [dict(event["args"]) for event in events if "provider" in event.get("args", {})]


def _refuse_casts(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise Unsupported if float16 is only stored, with casts to float32 around convolutions and matrix products."""
    heavy = [node for node in nodes if node["op_name"] in HEAVY_OPERATORS]
    in_float32 = sum("float" in node["input_type_shape"][0] for node in heavy)
    if in_float32:
        raise Unsupported(
            f"onnxruntime computes {in_float32} of {len(heavy)} convolutions and products of this float16 network in "
            "float32 on this CPU; use --dtype float32 or int8"
        )


def _quantise(path: Path, example: tuple[np.ndarray[Any, Any], ...]) -> None:
    """Replace the float32 model with a statically quantised int8 version."""
    import numpy as np

    onnxruntime = _import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    generator = np.random.default_rng(0)
    names = [each.name for each in onnxruntime.InferenceSession(str(path)).get_inputs()]

    def random_like(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        floats = np.issubdtype(array.dtype, np.floating)
        return generator.standard_normal(array.shape).astype(array.dtype) if floats else array

    arrays_in = [example, *(tuple(map(random_like, example)) for _ in range(CALIBRATION_INPUTS - 1))]
    feeds = _CalibrationData([dict(zip(names, arrays, strict=True)) for arrays in arrays_in])

    plain, shaped = path.with_name("float32.onnx"), path.with_name("shaped.onnx")
    path.rename(plain)
    # The exporter has already folded constants.
    quant_pre_process(plain, shaped, skip_optimization=True, skip_symbolic_shape=True)
    # Unsigned activations: with signed ones some convolutions stay float32, because no fused kernel supports them.
    quantize_static(
        shaped,
        path,
        feeds,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    shaped.unlink()


class _CalibrationData:
    """A calibration data reader, which the quantiser calls until it returns None."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._remaining = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._remaining, None)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the root cause. The last error that torch raises is advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error).rstrip(".")[:200]


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
