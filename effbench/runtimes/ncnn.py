"""Run a network in ncnn, a runtime for phones: traced, converted by pnnx, and opened by ncnn."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.devices.base import Call
from effbench.runtimes.base import Setting, TraceDiffers, Unsupported
from effbench.runtimes.capture_output import captured_output
from effbench.runtimes.model_file import ModelFileRuntime, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

PARAM_FILE, WEIGHTS_FILE = "model.param", "model.bin"
AXES_FILE = "axes.json"
"""Holds the batch axis of each input and output, which ncnn's layers do not know."""
NO_AXIS = 233
"""ncnn's and pnnx's number for "this tensor has no batch axis"."""
DTYPE_NAMES = {"torch.float32": "f32", "torch.int64": "i64", "torch.int32": "i32"}
"""pnnx's names of the dtypes that ncnn takes as inputs. Integers are passed to ncnn as int32."""
NO_OPERATORS = ("Input", "Split", "Noop")
"""Layers that compute nothing: inputs, and blobs that several layers read."""


class Ncnn(ModelFileRuntime):
    """ncnn in float32 throughout. By default ncnn computes in float16 if the processor can.

    The graph is one piece with nothing outside: ncnn cannot run what pnnx cannot convert. `layers` counts the layers of
    the graph by type.
    """

    name = "ncnn"
    summary = "ncnn by way of pnnx"
    modules = ("ncnn",)
    export_modules = ("pnnx",)
    extra = "ncnn"

    def facts(self) -> dict[str, Any]:
        return {"ncnn.version": importlib.metadata.version("ncnn")}

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        if importlib.util.find_spec("pnnx") is None:
            raise Unsupported(f"pnnx is not installed; {self.remedy}")
        unknown = {str(tensor.dtype) for tensor in inputs} - DTYPE_NAMES.keys()
        if unknown:
            raise Unsupported(f"ncnn takes no {', '.join(sorted(unknown))}; feed it float32, int64 or int32")
        with tempfile.TemporaryDirectory(dir=setting.folder) as work:
            _convert(network, inputs, Path(work))
            param, weights = Path(work, "model.ncnn.param"), Path(work, "model.ncnn.bin")
            layers = Counter(line.split()[0] for line in param.read_text().splitlines()[2:])
            foreign = [name for name in layers if not name.isalnum()]
            if foreign:
                raise Unsupported(f"ncnn has no layer for {', '.join(foreign)}; write it with other operators")
            shutil.move(param, setting.folder / PARAM_FILE)
            shutil.move(weights, setting.folder / WEIGHTS_FILE)
            axes = _batch_axes(Path(work, "model_ncnn.py").read_text())
        (setting.folder / AXES_FILE).write_text(json.dumps(axes))
        layers = Counter({name: count for name, count in layers.items() if name not in NO_OPERATORS})
        return {"pieces": 1, "operators": layers.total(), "outside": {}, "layers": dict(layers)}

    def open(self, setting: Setting) -> Session:
        return _Session(setting.folder, setting.threads)


class _Session(Session):
    def __init__(self, folder: Path, threads: int) -> None:
        with captured_output() as captured_text:
            import ncnn

            self._ncnn, self._net = ncnn, ncnn.Net()
            options = self._net.opt
            if threads:
                options.num_threads = threads
            for name in dir(options):
                if name.startswith(("use_fp16", "use_bf16")):
                    setattr(options, name, False)
            if self._net.load_param(str(folder / PARAM_FILE)) or self._net.load_model(str(folder / WEIGHTS_FILE)):
                raise Unsupported(f"ncnn cannot load {PARAM_FILE}: {_last_line(captured_text())}")
        self._axes: dict[str, list[int]] = json.loads((folder / AXES_FILE).read_text())

    @property
    def threads(self) -> int:
        return int(self._net.opt.num_threads)

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np

        net = self._net
        input_places = dict(zip(net.input_names(), net.input_indexes(), strict=True))
        bound_inputs = []
        for number, (array, axis) in enumerate(zip(arrays, self._axes["inputs"], strict=True)):
            tensor = array if array.dtype == np.float32 else array.astype(np.int32)
            if f"in{number}" in input_places:
                # A copy, because ncnn expects rows with its own alignment.
                mat = self._ncnn.Mat(np.ascontiguousarray(tensor), batch_index=axis).clone()
                bound_inputs.append((input_places[f"in{number}"], mat))
        output_places = dict(zip(net.output_names(), net.output_indexes(), strict=True))
        wanted = [(output_places[f"out{number}"], axis) for number, axis in enumerate(self._axes["outputs"])]

        def call() -> list[np.ndarray[Any, Any]]:
            extractor = net.create_extractor()
            for place, mat in bound_inputs:
                extractor.input(place, mat)
            return [_to_array(extractor.extract(place), axis) for place, axis in wanted]

        return call


def _to_array(extracted: tuple[int, Any], axis: int) -> np.ndarray[Any, Any]:
    """Return an extracted output with its batch axis. ncnn's own function for that copies value by value."""
    import numpy as np

    code, mat = extracted
    if code:
        raise RuntimeError(f"ncnn failed with code {code}")
    if axis == NO_AXIS:
        return np.asarray(mat.numpy())
    if mat.n == 1:
        return np.expand_dims(mat.numpy(), axis)
    return np.stack([mat.batch(image).numpy() for image in range(mat.n)], axis)


def _convert(network: nn.Module, inputs: tuple[Tensor, ...], work: Path) -> None:
    """Trace into the folder `work` and convert there to model.ncnn.param and model.ncnn.bin. Raises Unsupported."""
    import torch

    class TupleOutput(torch.nn.Module):
        """Return a tuple of tensors: the tracer supports only tensors and tuples of them as outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
            return tuple(_flatten(self.network(*arguments)))

    with captured_output(), torch.inference_mode(False), torch.no_grad():
        import pnnx

        jit: Any = torch.jit  # its functions have no type annotations
        # Copies: the tracer runs the network, which may write into its inputs.
        traced = jit.trace(TupleOutput(), tuple(tensor.clone() for tensor in inputs), check_trace=False)
        scaled = [tuple(_scale_floats(tensor, by) for tensor in inputs) for by in (-1, 10)]
        # If two runs of the network differ, it keeps state or draws random numbers; then comparing with its trace tells
        # nothing.
        if any(
            _differ(traced, TupleOutput(), each) and not _differ(TupleOutput(), TupleOutput(), each) for each in scaled
        ):
            raise TraceDiffers(
                "ncnn runs a trace, and this network decides by its data what it computes; let shapes alone decide"
            )
        traced.save(work / "model.pt")
    shapes = ("[{}]{}".format(",".join(map(str, tensor.shape)), DTYPE_NAMES[str(tensor.dtype)]) for tensor in inputs)
    command = [pnnx.EXEC_PATH, "model.pt", "fp16=0", f"inputshape={','.join(shapes)}"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace")
    if done.returncode or not Path(work, "model.ncnn.bin").exists():
        raise Unsupported(f"pnnx cannot convert it (exit {done.returncode}): {_last_line(done.stderr)}")


def _scale_floats(tensor: Tensor, by: float) -> Tensor:
    return tensor * by if tensor.is_floating_point() else tensor


def _differ(traced: nn.Module, network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a trace returns other values than the network. Each gets its own copy of the inputs."""
    import torch

    pairs = zip(*(each(*(tensor.clone() for tensor in inputs)) for each in (traced, network)), strict=True)
    return not all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.nan_to_num().abs().max()), equal_nan=True)
        for one, other in pairs
        if one.is_floating_point() and one.numel()
    )


def _batch_axes(script: str) -> dict[str, list[int]]:
    """Read the batch axes that pnnx found from its example script, the only place where it writes them.

    Inputs are in the order of forward, outputs in the order of its return value.
    """
    return {
        "inputs": [int(axis) for axis in re.findall(r"ex\.input\(.*batch_index=(\d+)", script)],
        "outputs": [int(axis) for axis in re.findall(r"out\d+\.numpy\(batch_index=(\d+)", script)],
    }


def _flatten(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in the output of a network, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _flatten(tuple(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _flatten(item)


def _last_line(captured_text: str) -> str:
    """Return the last line of a program's output."""
    return next((line.strip() for line in reversed(captured_text.splitlines()) if line.strip()), "it does not say why")[
        :200
    ]
