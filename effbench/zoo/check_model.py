"""Check what a user passes as a model: accept names and modules, and explain anything else."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effbench.core.errors import InvalidValue
from effbench.zoo import model_files

if TYPE_CHECKING:
    from torch import nn

ACCEPTED = "a torch.nn.Module, a name from `effbench list models`, or 'path/file.py:function'"


def require_model(given: Any, call: str = "effbench.profile") -> str | nn.Module:
    """Return what was passed as a model, if it can be one.

    Parameters
    ----------
    given
        A name (``"resnet18"``, ``"path/file.py:function"``) or a module.
    call
        The function that it was passed to, as the message writes it.

    Returns
    -------
    str or nn.Module
        `given`, unchanged.

    Raises
    ------
    InvalidValue
        If it is anything else. The message says in one line what it is and what to pass instead.
    """
    if isinstance(given, str):
        return given
    from torch import nn

    if isinstance(given, nn.Module):
        return given
    raise InvalidValue(_explain(given, call))


def _explain(given: Any, call: str) -> str:
    """Return what this is, and what to pass instead."""
    if given is None:
        return f"the model is None; does the function that builds it return it? Pass {ACCEPTED}"
    name = _shorten(getattr(given, "__name__", ""))
    from torch import nn

    if inspect.isclass(given):
        kind = name or "it"
        if issubclass(given, nn.Module):
            return f"{kind} is a class, not a network; make one of it: {call}({kind}())"
        return f"{kind} is a class, and none of torch.nn.Module; pass {ACCEPTED}"
    for explanation in (
        _explain_torch_object(given, call),
        _explain_library_object(given),
        _explain_python_value(given, call),
    ):
        if explanation:
            return explanation
    owner = getattr(given, "__self__", None)
    if isinstance(owner, nn.Module):
        return f"the model is a method of {type(owner).__name__} ({name}); pass the network itself"
    if callable(given):
        function = given.func if isinstance(given, functools.partial) else given
        function_name = _shorten(getattr(function, "__name__", "")).strip("<>") or type(given).__name__
        corrected_call = (
            f"{call}({function_name}())"
            if function_name.isidentifier() and function_name != "lambda"
            else f"{call}(function())"
        )
        return f"the model is a function ({function_name}), not a network; call it: {corrected_call}"
    return f"the model is of type {type(given).__name__}, not a network; pass {ACCEPTED}"


def _explain_torch_object(given: Any, call: str) -> str:
    """Explain torch objects that are not networks, recognised by the names of their types without importing
    anything.
    """
    import torch

    if isinstance(given, torch.Tensor):
        return f"the model is a tensor of shape {tuple(given.shape)}; the model comes first: {call}(model, shape)"
    kinds = {kind.__name__ for kind in type(given).__mro__ if kind.__module__.partition(".")[0] == "torch"}
    if "ExportedProgram" in kinds:
        return f"the model is an ExportedProgram; pass the network in it: {call}(program.module())"
    if "ONNXProgram" in kinds:
        return "the model is an ONNXProgram, a graph for other runtimes; pass the network that it was exported from"
    if "Graph" in kinds:
        return "the model is a torch.fx.Graph; pass the torch.fx.GraphModule that it belongs to"
    if kinds & {"ScriptFunction"}:
        return "the model is a scripted function; put it into a torch.nn.Module whose forward calls it"
    if "Optimizer" in kinds:
        return "the model is an optimiser; pass the network that it trains"
    return ""


def _explain_library_object(given: Any) -> str:
    kind = type(given)
    library, name = kind.__module__.partition(".")[0], kind.__name__
    known = {
        "onnx": "an ONNX model; pass the network that it was exported from",
        "onnxruntime": "a session of ONNX Runtime; pass the network that its file was exported from",
        "openvino": "an OpenVINO model; pass the network that it was converted from",
        "keras": "a Keras model, and effbench counts networks of torch",
        "tensorflow": "a TensorFlow model, and effbench counts networks of torch",
        "jax": "an object of JAX, and effbench counts networks of torch",
        "flax": "a Flax model, and effbench counts networks of torch",
    }
    if library in known:
        return f"the model is {known[library]}"
    if library == "transformers" and hasattr(given, "model"):
        return f"the model is a {name} of transformers; pass the network in it: its attribute model"
    return ""


def _explain_python_value(given: Any, call: str) -> str:
    """Explain containers, paths and other Python values."""
    if isinstance(given, (os.PathLike, bytes)):
        path = os.fsdecode(given)
        if not path.endswith(".py") and (explanation := model_files.description(path)):
            return explanation
        return f"the model is a path; pass text with a function of the file: {call}('{_shorten(path)}:function')"
    if isinstance(given, Mapping):
        import torch

        if given and all(isinstance(value, torch.Tensor) for value in given.values()):
            return (
                f"the model is a state dict of {len(given)} tensors; build the network, load them "
                "(network.load_state_dict) and pass the network"
            )
        return f"the model is a {type(given).__name__}; pass the network that is in it, or else {ACCEPTED}"
    if isinstance(given, (Sequence, set)):
        return f"the model is a {type(given).__name__}; pass one network at a time, or use effbench.compare for several"
    return ""


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
