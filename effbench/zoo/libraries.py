"""Load the networks of torchvision and timm by name, with the input shape that each was published with.

torchvision wheels on the package index are built against torch with CUDA. With a CPU build of torch, torchvision's own
library does not load, its operators have no schema, and importing it fails. Defining the schemas alone fixes that:
networks can be built, counted and run, except for detection, which calls the operators.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from effbench.core.errors import ModelError, UnknownName

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = {"torchvision": ("torchvision.models", "get_model"), "timm": ("timm", "create_model")}

_T = TypeVar("_T")


def library(name: str) -> Any:
    """Import torchvision's models or timm. Raises ModelError if it is not installed or does not load."""
    install_hint = f"pip install 'effbench[{name}]' brings it"
    if importlib.util.find_spec(name) is None:
        raise ModelError(f"{name} is not installed; {install_hint}")
    try:
        return with_missing_schemas(lambda: importlib.import_module(LIBRARIES[name][0]))
    except ModuleNotFoundError as error:
        raise ModelError(f"{name} needs '{error.name}', which is not installed; {install_hint}") from error
    except Exception as error:  # a library built for another torch raises many kinds of errors
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{name} does not load beside this torch: {type(error).__name__}: {reason}; install the pair that "
            "belongs together"
        ) from error


def require(spec: str) -> Any:
    """Return the library of ``torchvision:name`` or ``timm:name``. Raises ModelError without it, UnknownName for the
    name.
    """
    place, _, network = spec.partition("?")[0].rpartition(":")
    module = library(place)
    known = module.list_models()
    if place == "timm":
        # timm's old names still work. A tag after the name selects weights, which decide the input shape.
        network, _, tag = network.partition(".")
        tags = [name.partition(".")[2] for name in module.list_models(f"{network}.*", pretrained=True)]
        if tag and module.is_model(network) and tag not in tags:
            raise UnknownName(f"tag of {network}", tag, tags)
        known = [*known, network] if module.is_model(network) else known
    if network.lower() not in known:
        members = [name for name in known if re.match(rf"{re.escape(network.lower())}(_|(?<!\d)\d)", name)]
        if network and len(members) > 1:
            raise UnknownName(f"{place} network", network, members, family=True)
        raise UnknownName(f"{place} network", network, known)
    return module


def factory(spec: str) -> Callable[..., Any]:
    """Return the function that builds ``torchvision:name`` or ``timm:name``. Raises as `require` does.

    Within `without_weights` it downloads nothing, whatever its arguments ask for.
    """
    module = require(spec)
    place, _, network = spec.rpartition(":")
    build = getattr(module, LIBRARIES[place][1])
    defaults: dict[str, Any] = {}
    if place == "torchvision" and "weights_backbone" in inspect.signature(module.get_model_builder(network)).parameters:
        # Segmentation and detection would otherwise download the weights of their backbone.
        defaults = {"weights_backbone": None}
    if not _skips_weights.get():
        return lambda **arguments: build(network, **{**defaults, **arguments})
    if place == "timm":
        # timm reads what the weights decide about the network, such as its classes, from its configuration in any case.
        return lambda **arguments: build(network, **{**arguments, "pretrained": False})

    def build_without_weights(**arguments: Any) -> Any:
        with _no_weights_loaded(module.WeightsEnum):
            return build(network, **{**defaults, **arguments})

    return build_without_weights


_skips_weights: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within the block, build library networks without a download, but with the architecture that their weights need.

    ``?weights=DEFAULT`` and ``?pretrained=True`` decide the number of classes and more. Counting costs needs that, but
    not the values of the weights.
    """
    token = _skips_weights.set(True)
    try:
        yield
    finally:
        _skips_weights.reset(token)


class _NoWeights(dict[str, Any]):
    """Stands for weights that are not loaded."""


@contextmanager
def _no_weights_loaded(weights: Any) -> Iterator[None]:
    """Let torchvision's builders run as with weights but load none. The weights decide more than the number of
    classes.
    """
    from torch import nn

    fetch, load = weights.get_state_dict, nn.Module.load_state_dict

    def load_others(self: nn.Module, state: Any, *args: Any, **named: Any) -> Any:
        return None if isinstance(state, _NoWeights) else load(self, state, *args, **named)

    weights.get_state_dict = lambda self, *args, **named: _NoWeights()
    nn.Module.load_state_dict = load_others  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        weights.get_state_dict, nn.Module.load_state_dict = fetch, load  # type: ignore[method-assign]


def published_shape(spec: str, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the input shape (without the batch) that torchvision or timm publishes for this network, or None.

    An input size in `arguments` overrides it, since the network is then built for that size. A torchvision network
    without `weights` gets the shape of its smallest weights: larger ones were tuned at an image size that its builder
    needs as an argument. Videos have 16 frames, as in torchvision's own figures. Raises as `require` does.
    """
    place, _, network = spec.rpartition(":")
    module = require(spec)
    shape = _timm_shape(module, network) if place == "timm" else _torchvision_shape(module, network, arguments)
    if shape is None:
        return None
    size = arguments.get("img_size" if place == "timm" else "image_size")
    if size:
        shape = (*shape[:-2], *((size, size) if isinstance(size, int) else size))
    channels = arguments.get("in_chans") if place == "timm" else None
    return (channels or shape[0], *shape[1:])


def declared_shape(network: nn.Module) -> tuple[int, ...] | None:
    """Return the input shape (without the batch) that a network itself declares, or None.

    Read from its attribute `input_shape` or `example_input_shape`, or from the `pretrained_cfg` that timm attaches.
    """
    config = getattr(network, "pretrained_cfg", None)
    declared = (
        getattr(network, "input_shape", None),
        getattr(network, "example_input_shape", None),
        config.get("input_size") if isinstance(config, Mapping) else None,
    )
    for shape in declared:
        if isinstance(shape, (tuple, list)) and shape and all(isinstance(side, int) and side > 0 for side in shape):
            return tuple(shape)
    return None


def with_missing_schemas(load: Callable[[], _T]) -> _T:
    """Call `load`, which may import torchvision, and define the operator schemas that it lacks."""
    while True:
        try:
            return load()
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _SCHEMAS or missing[1] in _defined_schemas:
                raise
            # Modules of torchvision imported before the failure would not be imported again.
            for half_imported in [known for known in sys.modules if known.partition(".")[0] == "torchvision"]:
                del sys.modules[half_imported]
            _define_schema(missing[1])


_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_defined_schemas: dict[str, Any] = {}
"""By operator, the object that defines it, which must stay alive as long as the definition is used."""


def _define_schema(operator: str) -> None:
    import torch

    fragment: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    fragment.define(_SCHEMAS[operator])
    _defined_schemas[operator] = fragment


def _timm_shape(module: Any, network: str) -> tuple[int, ...] | None:
    config = module.get_pretrained_cfg(network)
    return None if config is None else tuple(config.input_size)


def _torchvision_shape(module: Any, network: str, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    entries = list(module.get_model_weights(network))
    chosen = [entry for entry in entries if entry.name in str(arguments.get("weights")).split(".")] or entries
    shapes = [shape for entry in chosen if (shape := _preprocessed_shape(entry.transforms)) is not None]
    return min(shapes, default=None)


def _preprocessed_shape(transforms: Any) -> tuple[int, ...] | None:
    """Return the shape that a torchvision preprocessing (a partial of its class) produces from an image or clip."""
    kind = getattr(getattr(transforms, "func", None), "__name__", "")
    sizes = getattr(transforms, "keywords", {})
    size = sizes.get("resize_size" if kind == "SemanticSegmentation" else "crop_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return (3, 16, height, width) if kind == "VideoClassification" else (3, height, width)
