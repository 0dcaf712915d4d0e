"""ncnn: the network traced, converted by pnnx, and run by a library made for phones."""

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
from effbench.runtimes.capture_output import quiet
from effbench.runtimes.model_file import Exported, Session

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

PARAM_FILE, WEIGHTS_FILE = "model.param", "model.bin"
AXES_FILE = "axes.json"
"""Which axis of each input and output is the batch, where there is one: ncnn's layers do not know of it."""
NO_AXIS = 233
"""How ncnn and pnnx say that a tensor has no batch axis."""
KINDS = {"torch.float32": "f32", "torch.int64": "i64", "torch.int32": "i32"}
"""What pnnx calls the dtypes that ncnn's layers take as inputs. Whole numbers arrive there as int32."""
NO_OPERATORS = ("Input", "Split", "Noop")
"""Layers that compute nothing: where a blob enters, and where several layers read one."""


class Ncnn(Exported):
    """float32 throughout: left to itself, ncnn computes in float16 where the processor can.

    Its graph is one piece with nothing outside: what pnnx cannot translate, ncnn cannot run. `layers` are those of the
    graph by type.
    """

    name = "ncnn"
    summary = "ncnn by way of pnnx"
    modules = ("ncnn",)
    exporting = ("pnnx",)
    extra = "ncnn"

    def facts(self) -> dict[str, Any]:
        return {"ncnn.version": importlib.metadata.version("ncnn")}

    def export(self, network: nn.Module, inputs: tuple[Tensor, ...], setting: Setting) -> Mapping[str, Any]:
        if importlib.util.find_spec("pnnx") is None:
            raise Unsupported(f"pnnx is not installed; pip install 'effbench[{self.extra}]'")
        unknown = {str(given.dtype) for given in inputs} - KINDS.keys()
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
            axes = _axes(Path(work, "model_ncnn.py").read_text())
        (setting.folder / AXES_FILE).write_text(json.dumps(axes))
        layers = Counter({name: count for name, count in layers.items() if name not in NO_OPERATORS})
        return {"pieces": 1, "operators": layers.total(), "outside": {}, "layers": dict(layers)}

    def open(self, setting: Setting) -> Session:
        return _Session(setting.folder, setting.threads)


class _Session(Session):
    def __init__(self, folder: Path, threads: int) -> None:
        with quiet() as said:
            import ncnn

            self._ncnn, self._net = ncnn, ncnn.Net()
            options = self._net.opt
            if threads:
                options.num_threads = threads
            for name in dir(options):
                if name.startswith(("use_fp16", "use_bf16")):
                    setattr(options, name, False)
            if self._net.load_param(str(folder / PARAM_FILE)) or self._net.load_model(str(folder / WEIGHTS_FILE)):
                raise Unsupported(f"ncnn cannot load {PARAM_FILE}: {_last(said())}")
        self._axes: dict[str, list[int]] = json.loads((folder / AXES_FILE).read_text())

    @property
    def threads(self) -> int:
        return int(self._net.opt.num_threads)

    def bind(self, arrays: tuple[np.ndarray[Any, Any], ...]) -> Call:
        import numpy as np

        net = self._net
        places = dict(zip(net.input_names(), net.input_indexes(), strict=True))
        fed = []
        for number, (array, axis) in enumerate(zip(arrays, self._axes["inputs"], strict=True)):
            given = array if array.dtype == np.float32 else array.astype(np.int32)
            if f"in{number}" in places:
                # A copy of its own: ncnn reads rows that are aligned as it likes them.
                mat = self._ncnn.Mat(np.ascontiguousarray(given), batch_index=axis).clone()
                fed.append((places[f"in{number}"], mat))
        ends = dict(zip(net.output_names(), net.output_indexes(), strict=True))
        wanted = [(ends[f"out{number}"], axis) for number, axis in enumerate(self._axes["outputs"])]

        def call() -> list[np.ndarray[Any, Any]]:
            extractor = net.create_extractor()
            for place, mat in fed:
                extractor.input(place, mat)
            return [_array(extractor.extract(place), axis) for place, axis in wanted]

        return call


def _array(extracted: tuple[int, Any], axis: int) -> np.ndarray[Any, Any]:
    """What was extracted, with its batch axis. ncnn's own way to put that back copies number by number."""
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
    """Trace into the folder `work` and convert there: model.ncnn.param, model.ncnn.bin. Raises Unsupported."""
    import torch

    class Flat(torch.nn.Module):
        """The tracer knows no outputs but tensors and tuples of them."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
            return tuple(_flat(self.network(*arguments)))

    with quiet(), torch.inference_mode(False), torch.no_grad():
        import pnnx

        jit: Any = torch.jit  # its functions carry no types
        # Copies: the tracer runs the network, which may write into what it is given.
        traced = jit.trace(Flat(), tuple(given.clone() for given in inputs), check_trace=False)
        scaled = [tuple(_scaled(given, by) for given in inputs) for by in (-1, 10)]
        # One that differs from itself keeps state or draws random numbers: its trace can tell nothing about it.
        if any(_differ(traced, Flat(), each) and not _differ(Flat(), Flat(), each) for each in scaled):
            raise TraceDiffers(
                "ncnn runs a trace, and this network decides by its data what it computes; let shapes alone decide"
            )
        traced.save(work / "model.pt")
    shapes = ("[{}]{}".format(",".join(map(str, given.shape)), KINDS[str(given.dtype)]) for given in inputs)
    command = [pnnx.EXEC_PATH, "model.pt", "fp16=0", f"inputshape={','.join(shapes)}"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace")
    if done.returncode or not Path(work, "model.ncnn.bin").exists():
        raise Unsupported(f"pnnx cannot convert it (exit {done.returncode}): {_last(done.stderr)}")


def _scaled(given: Tensor, by: float) -> Tensor:
    return given * by if given.is_floating_point() else given


def _differ(traced: nn.Module, network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a trace returns something else than the network that it was taken of. Each gets inputs of its own."""
    import torch

    pairs = zip(*(each(*(given.clone() for given in inputs)) for each in (traced, network)), strict=True)
    return not all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.nan_to_num().abs().max()), equal_nan=True)
        for one, other in pairs
        if one.is_floating_point() and one.numel()
    )


def _axes(script: str) -> dict[str, list[int]]:
    """The batch axes that pnnx found, from the example script that it writes beside the model: it says them only there.

    Inputs in the order of forward, outputs in the order of what it returns.
    """
    return {
        "inputs": [int(axis) for axis in re.findall(r"ex\.input\(.*batch_index=(\d+)", script)],
        "outputs": [int(axis) for axis in re.findall(r"out\d+\.numpy\(batch_index=(\d+)", script)],
    }


def _flat(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a network returns, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _flat(tuple(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _flat(item)


def _last(said: str) -> str:
    """The last line of what a program wrote."""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it does not say why")[:200]
