"""Networks from outside the zoo: ``package.module:factory``, ``path/file.py:factory``, ``torchvision:name``,
``timm:name``.

A factory is anything that returns an ``nn.Module`` when called, a class included, or a module that is ready.
``pickle:PATH`` is how a network that exists only in memory reaches our own worker processes; unpickling runs code, so
never point it at a stranger's file.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from effbench.errors import ModelError, UnknownName

if TYPE_CHECKING:
    from torch import nn

NETWORK_FAILURES = (Exception, SystemExit)
"""A user's code may raise anything, and a script without a main guard calls `sys.exit` on import."""

DEFAULT_SHAPE = (3, 224, 224)
"""What a network is fed of which nothing else is known."""

LIBRARIES = {"torchvision": ("torchvision.models", "get_model"), "timm": ("timm", "create_model")}


def split_arguments(spec: str) -> tuple[str, dict[str, Any]]:
    """``name?width=0.5&norm=batch`` as the name and its arguments.

    Values are Python literals where they parse, else text.
    """
    name, _, query = spec.partition("?")
    return name, {key: _literal(text) for key, text in parse_qsl(query, keep_blank_values=True)}


def load(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The network that `spec` leads to, made with `arguments`. Raises ModelError with the step that failed."""
    name, written = split_arguments(spec)
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"'{name}' is no network; write package.module:factory or path/file.py:factory")
    arguments = {**written, **(arguments or {})}
    if place == "pickle":
        return _checked(_unpickle(Path(attribute)), name)
    if place in LIBRARIES:
        factory = _library_factory(require(name), place, attribute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initial values that nobody will use
            return _checked(_call(factory, arguments, name), name)
    module = _import_file(Path(place), name) if place.endswith(".py") else _import(place, name)
    factory = _attribute(module, attribute, place)
    if _is_network(factory):
        if arguments:
            raise ModelError(f"{name} is a finished network and takes no arguments; name a function that builds it")
        return _checked(factory, name)
    return _checked(_call(factory, arguments, name), name)


def library(name: str, asked_for: str = "") -> Any:
    """torchvision's models, or timm. Raises ModelError where it is not installed."""
    return _import_library(LIBRARIES[name][0], name, asked_for or f"{name}:NAME")


def published_shape(spec: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, ...] | None:
    """The input, without the batch, that torchvision or timm publishes for this network; None where neither does.

    An input size among the arguments wins, since the network is then built for it. A torchvision network without
    `weights` is as its smallest weights are: the larger ones were tuned at an image size that its builder has to be
    told. Videos have 16 frames, as in torchvision's own figures. Raises as `require` does.
    """
    name, written = split_arguments(spec)
    place, _, network = name.rpartition(":")
    if place not in LIBRARIES:
        return None
    arguments = {**written, **(arguments or {})}
    module = require(name)
    shape = _timm_shape(module, network) if place == "timm" else _torchvision_shape(module, network, arguments)
    size = arguments.get("img_size" if place == "timm" else "image_size")
    if shape and size:
        shape = (*shape[:-2], *((size, size) if isinstance(size, int) else size))
    channels = arguments.get("in_chans") if place == "timm" else None
    return shape and (channels or shape[0], *shape[1:])


def own_shape(network: nn.Module) -> tuple[int, ...] | None:
    """The input, without the batch, that a network itself says it takes; None where it says nothing.

    Read from its attribute `input_shape` or `example_input_shape`, or from the `pretrained_cfg` that timm attaches.
    """
    config = getattr(network, "pretrained_cfg", None)
    said = (
        getattr(network, "input_shape", None),
        getattr(network, "example_input_shape", None),
        config.get("input_size") if isinstance(config, Mapping) else None,
    )
    for shape in said:
        if isinstance(shape, (tuple, list)) and shape and all(isinstance(side, int) and side > 0 for side in shape):
            return tuple(shape)
    return None


def require(spec: str) -> Any:
    """The library of ``torchvision:name`` or ``timm:name``. Raises ModelError without it, UnknownName for the name."""
    name, _ = split_arguments(spec)
    place, _, network = name.rpartition(":")
    module = library(place, name)
    if place == "timm":
        known = module.list_models() if not module.is_model(network) else ()
    else:
        known = module.list_models() if network.lower() not in module.list_models() else ()
    if known:
        raise UnknownName(f"{place} network", network, known)
    return module


def _library_factory(module: Any, place: str, network: str) -> Callable[..., Any]:
    factory = getattr(module, LIBRARIES[place][1])
    if place == "torchvision" and "weights_backbone" in inspect.signature(module.get_model_builder(network)).parameters:
        # Segmentation and detection would otherwise download the weights of their backbone.
        return lambda **given: factory(network, **{"weights_backbone": None, **given})
    return lambda **given: factory(network, **given)


def _timm_shape(module: Any, network: str) -> tuple[int, ...] | None:
    config = module.get_pretrained_cfg(network)
    return None if config is None else tuple(config.input_size)


def _torchvision_shape(module: Any, network: str, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    entries = list(module.get_model_weights(network))
    chosen = [entry for entry in entries if entry.name in str(arguments.get("weights")).split(".")] or entries
    shapes = [shape for entry in chosen if (shape := _preprocessed(entry.transforms)) is not None]
    return min(shapes, default=None)


def _preprocessed(transforms: Any) -> tuple[int, ...] | None:
    """What a torchvision preprocessing, a partial of its class, makes of an image or a clip."""
    kind = getattr(getattr(transforms, "func", None), "__name__", "")
    sizes = getattr(transforms, "keywords", {})
    size = sizes.get("resize_size" if kind == "SemanticSegmentation" else "crop_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return (3, 16, height, width) if kind == "VideoClassification" else (3, height, width)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _import(module: str, name: str) -> Any:
    # A user's package usually lies in the current folder, which a console script does not search.
    sys.path.insert(0, "")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(f"{name}: there is no module '{error.name}'; install it or run where it lies") from error
    except NETWORK_FAILURES as error:  # a user's module may raise anything
        raise ModelError(f"{name}: importing {module} fails: {_reason(error)}; correct {module} first") from error
    finally:
        sys.path.remove("")


def _import_library(module: str, library: str, name: str) -> Any:
    """torchvision, or timm, which imports it. Its wheels need the CUDA build of torch; beside a CPU build only the
    schemas of two detection operators are missing, without which the import fails.
    """
    if importlib.util.find_spec(library) is None:
        raise ModelError(f"{name}: {library} is not installed; pip install 'effbench[{library}]' brings it")
    if importlib.util.find_spec("torchvision") is not None and "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for half_imported in [known for known in sys.modules if known.partition(".")[0] == "torchvision"]:
                del sys.modules[half_imported]
            _define_missing_schemas()
    return _import(module, name)


def _define_missing_schemas() -> None:
    """nms and qnms stay without a kernel: networks build and count, detection heads do not run."""
    import torch

    # The library object must live as long as its definitions.
    global _schemas
    _schemas = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        _schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_schemas: Any = None


def _import_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise ModelError(f"{name}: there is no file {path}; check the path (now in {Path.cwd()})")
    path = path.resolve()
    title = f"effbench_user_{path.stem}_{abs(hash(str(path))):x}"
    specification = importlib.util.spec_from_file_location(title, path)
    assert specification is not None and specification.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(specification)
    # As for a script: its neighbours can be imported, and dataclasses find their module.
    sys.modules[title] = module
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except NETWORK_FAILURES as error:  # a user's file may raise anything
        del sys.modules[title]
        raise ModelError(f"{name}: loading the file fails: {_reason(error)}; correct it first") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _attribute(module: Any, attribute: str, place: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_") and callable(getattr(module, known))]
        near = difflib.get_close_matches(attribute, public, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(public) or 'nothing to call'}"
        raise ModelError(f"{place} has no '{attribute}'; {advice}") from None


def _call(factory: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Any:
    if not callable(factory):
        raise ModelError(f"{name} is a {type(factory).__name__}; name a function or class that makes a network")
    try:
        return factory(**arguments)
    except NETWORK_FAILURES as error:  # a user's factory may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise ModelError(f"{name} raises {_reason(error)}; called with {given}") from error


def _unpickle(path: Path) -> Any:
    import cloudpickle

    try:
        with path.open("rb") as file:
            return cloudpickle.load(file)
    except NETWORK_FAILURES as error:  # a pickle may raise anything
        raise ModelError(f"pickle:{path} cannot be read: {_reason(error)}; write it again with cloudpickle") from error


def _is_network(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _checked(value: Any, name: str) -> nn.Module:
    if not _is_network(value):
        raise ModelError(
            f"{name} gives a {type(value).__name__}, not a torch.nn.Module; name a function that returns one"
        )
    network: nn.Module = value
    return network


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
