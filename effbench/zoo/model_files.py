"""Recognise files and folders that a user passes as a model, without loading them.

Unpickling runs arbitrary code of the file's author, so from a checkpoint only the names in it are read.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

FACTORY = "write a file with a function that returns the network, and name it path/file.py:function"
_BUILD = "effbench needs the network itself: name what it was exported from, as path/file.py:function or by name"
_BROKEN = f"is a broken zip archive, such as a download that was cut off; {FACTORY}"
_WEIGHTS = "costs and speed do not depend on weights: name what builds the network, as path/file.py:function or by name"


def description(name: str) -> str | None:
    """Return in one line what the file or folder is, and what to write instead.

    None if nothing is there and the suffix is none that models are stored with.
    """
    path = Path(name)
    try:
        if path.is_dir():
            return f"{name} {_folder(path)}"
        exists = path.is_file()
    except (OSError, ValueError):  # the name is too long or contains a zero byte
        return None
    describe = _DESCRIPTIONS.get(path.suffix.lower())
    if not exists:
        is_named = describe is not None and path.stem
        return f"there is no file {name}; check the path (now in {Path.cwd()})" if is_named else None
    if path.suffix == ".py":
        return None
    try:
        return f"{name} {describe(path) if describe else _other_file(path)}"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error}); check the file"


def _always(text: str) -> Callable[[Path], str]:
    return lambda path: text


def _torch_file(path: Path) -> str:
    """Describe a file of `torch.save`, `torch.jit.save` or `torch.export.save` by its content."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            head = file.read(1 << 26)
        if head.startswith(b"PK"):
            return _BROKEN
        return _pickled(path, _imported_names(head) if head[:1] == b"\x80" else None)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # All entries lie in one folder, named after the file as it was saved.
            inner = {name.partition("/")[2] or name for name in names}
            if any("aotinductor" in name for name in names):
                return f"is a network that AOTInductor compiled to machine code; {_BUILD}"
            if any("exported_program" in name or name.startswith("models/") for name in {*inner, *names}):
                call = f"torch.export.load({str(path)!r}).module()"
                return f"is a program that torch.export saved; {_load_advice(call)}"
            if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
                return f"is a TorchScript network; {_load_advice(f'torch.jit.load({str(path)!r})')}"
            pickled = next((name for name in names if name.rpartition("/")[2] == "data.pkl"), None)
            if pickled is None:
                return f"is a zip archive that torch did not write; {FACTORY}"
            return _pickled(path, _imported_names(archive.read(pickled)))
    except (zipfile.BadZipFile, RuntimeError, KeyError, EOFError, NotImplementedError):
        return _BROKEN


def _load_advice(call: str) -> str:
    return f"in a file, write `def net(): return {call}` and name it path/file.py:net"


def _imported_names(data: bytes) -> list[str] | None:
    """Return every ``module name`` that a pickle would import, outermost first; None if `data` is no pickle.

    Several pickles in a row are read too.
    """
    found: dict[str, None] = {}
    stream, size = io.BytesIO(data), len(data)
    texts: list[str] = []
    try:
        while stream.tell() < size:
            for code, argument, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    found[str(argument)] = None
                elif code.name == "STACK_GLOBAL":
                    found[" ".join(texts[-2:])] = None
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # in old checkpoints raw tensor data follows the pickles
        return list(found) or None
    return list(found)


def _pickled(path: Path, names: list[str] | None) -> str:
    if names is None:
        return f"is no file that torch wrote; {FACTORY}"
    own = [name for name in names if not _is_plain_data(name)]
    if not own:
        return f"holds weights without a network (a state dict or a checkpoint); {_WEIGHTS}"
    module, _, kind = _name_to_show(own).rpartition(" ")
    if any(name.startswith(("torch.nn.modules", "torch.fx", "torch.ao", "torch.jit")) for name in own):
        what = f"a whole pickled network ({kind} of {module})"
    else:
        what = f"a checkpoint with objects beside its weights ({kind} of {module})"
    call = f"torch.load({str(path)!r}, weights_only=False)"
    return f"is {what}, and loading it runs code of whoever wrote it; if you trust them: {_load_advice(call)}"


def _name_to_show(names: list[str]) -> str:
    """Return the name to show: the outermost class, else the first name."""
    return next((name for name in names if name.rpartition(" ")[2][:1].isupper()), names[0])


def _is_plain_data(name: str) -> bool:
    """Whether tensors, or the plain containers and numbers of a checkpoint, are stored with this name."""
    module, _, kind = name.rpartition(" ")
    known = (
        *("torch", "torch.storage", "torch.serialization", "torch._tensor", "torch.nn.parameter", "torch._utils"),
        *("collections", "_codecs", "argparse", "pathlib", "datetime", "copyreg", "__builtin__", "builtins"),
    )
    is_plain = module in known or module.startswith(("numpy", "torchao", "torch.optim"))
    return is_plain and kind not in ("getattr", "eval", "exec", "__import__")


def _safetensors(path: Path) -> str:
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
            tensors = sum(name != "__metadata__" for name in header)
        except (struct.error, ValueError, TypeError, MemoryError, OverflowError):
            return f"ends like weights in safetensors and is none; {_WEIGHTS}"
    return f"holds weights without a network ({tensors} tensors, safetensors); {_WEIGHTS}"


def _onnx(path: Path) -> str:
    return f"is an ONNX graph; {_BUILD} (--runtime onnxruntime measures it there)"


def _other_file(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80":
        return _torch_file(path)
    return f"is a file, and no network; {FACTORY}"


def _folder(path: Path) -> str:
    def has(*names: str) -> bool:
        return any(next(path.glob(name), None) is not None for name in names)

    if has("bundle.json"):
        return f"is a bundle; measure it with effbench run-bundle {path}"
    if has("run.jsonl"):
        return f"is a stored run; show it with effbench report {path}"
    if has("saved_model.pb"):
        return f"is a TensorFlow SavedModel; {_BUILD}"
    if path.suffix == ".mlpackage":
        return f"is a Core ML package; {_BUILD}"
    if has("config.json") and has("*.safetensors", "*.bin", "tokenizer*.json"):
        call = f"transformers.AutoModel.from_pretrained({str(path)!r})"
        return f"is a model folder of Hugging Face; {_load_advice(call)}"
    if has("__init__.py"):
        return f"is a package; write {'.'.join(path.parts)}:function, with a function that returns the network"
    files = sorted(str(found) for found in path.glob("*.py"))
    if files:
        return f"is a folder; name a network in one of its files, such as {files[0]}:function"
    return f"is a folder; {FACTORY}"


_DESCRIPTIONS: dict[str, Callable[[Path], str]] = {
    ".onnx": _onnx,
    **dict.fromkeys((".pt2", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar", ".ptl", ".jit"), _torch_file),
    ".safetensors": _safetensors,
    ".gguf": _always(f"holds weights without a network (GGUF); {_WEIGHTS}"),
    ".ggml": _always(f"holds weights without a network (GGML); {_WEIGHTS}"),
    **dict.fromkeys((".npz", ".npy"), _always(f"holds arrays of NumPy; {_WEIGHTS}")),
    ".tflite": _always(f"is a TensorFlow Lite model; {_BUILD}"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _always(f"is a Keras model; {_BUILD}")),
    ".pb": _always(f"is a TensorFlow graph; {_BUILD}"),
    ".pte": _always(f"is an ExecuTorch program; {_BUILD} (--runtime executorch measures it there)"),
    **dict.fromkeys((".engine", ".plan", ".trt"), _always(f"is a TensorRT engine, compiled for one GPU; {_BUILD}")),
    **dict.fromkeys((".mlmodel", ".mlpackage"), _always(f"is a Core ML model; {_BUILD}")),
    ".xml": _always(f"is an OpenVINO model; {_BUILD} (--runtime openvino measures it there)"),
    ".param": _always(f"is an ncnn model; {_BUILD} (--runtime ncnn measures it there)"),
    ".ipynb": _always(f"is a notebook; in it, call effbench.profile(network), or {FACTORY}"),
    **dict.fromkeys((".yaml", ".yml", ".json", ".toml"), _always(f"is a configuration, and no network; {FACTORY}")),
}

SUFFIXES = tuple(_DESCRIPTIONS)
"""Suffixes of files that store models but are no networks."""
