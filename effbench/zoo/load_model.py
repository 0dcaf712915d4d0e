"""Load networks from outside the zoo: ``package.module:factory``, ``path/file.py:factory``, ``torchvision:name``,
``timm:name``.

A factory is any callable that returns an ``nn.Module``, such as a function or a class, or a finished module.
``pickle:PATH`` passes a network that exists only in memory to effbench's own worker processes. Unpickling runs code, so
never use it with a file from someone else.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from effbench.core.errors import ModelError, ModelNeedsPackage, ModelNotFound, first_line
from effbench.zoo import inspect_source, libraries, sys_path
from effbench.zoo.libraries import LIBRARIES

if TYPE_CHECKING:
    from torch import nn

NETWORK_FAILURES = (Exception, SystemExit)
"""Errors of user code: it may raise anything, and a script without a main guard calls `sys.exit` on import."""

DEFAULT_SHAPE = (3, 224, 224)
"""Input shape of networks whose input is unknown."""


def split_arguments(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``name?width=0.5&norm=batch`` into the name and its arguments.

    Values are parsed as Python literals, or else kept as text.
    """
    name, _, query = spec.partition("?")
    return name, {key: _parse_literal(text) for key, text in parse_qsl(query, keep_blank_values=True)}


def load(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network that `spec` names, with `arguments`. Raises ModelError, naming the step that failed."""
    name, literals = split_arguments(spec)
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"'{name}' is no network; write package.module:factory or path/file.py:factory")
    arguments = {**literals, **(arguments or {})}
    if place == "pickle":
        return _require_network(_unpickle(Path(attribute)), name)
    if is_of_library(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about initial weights, which are not used
            return _require_network(_call(libraries.factory(name), arguments, name), name)
    module = module_of(place, name)
    factory = _attribute(module, attribute, place)
    if _is_network(factory):
        if arguments:
            raise ModelError(f"{name} is a finished network and takes no arguments; name a function that builds it")
        return _require_network(factory, name)
    return _require_network(_call(factory, arguments, name), name)


def import_module_of(spec: str) -> None:
    """Import the module that `spec` names. What it sets at import outlives the network.

    Zoo names and files that hold a network import nothing. Raises ModelError, UnknownName.
    """
    name, _ = split_arguments(spec)
    place, _, attribute = name.rpartition(":")
    if is_of_library(name):
        libraries.require(name)
    elif place and attribute and place != "pickle":
        module_of(place, name)


def module_of(place: str, name: str = "") -> Any:
    """Import the user's module ``path/file.py`` or ``package.module``. Raises ModelError, which mentions `name`."""
    return _import_file(Path(place), name or place) if place.endswith(".py") else _import(place, name or place)


def published_shape(spec: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, ...] | None:
    """Return the input shape (without the batch) that a library publishes for its network; None for other networks."""
    name, literals = split_arguments(spec)
    if not is_of_library(name):
        return None
    return libraries.published_shape(name, {**literals, **(arguments or {})})


def is_of_library(name: str) -> bool:
    """Whether this is ``torchvision:name`` or ``timm:name``."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def _parse_literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _import(module: str, name: str) -> Any:
    if (file := sys_path.namesake(module)) is not None:
        return _import_file(file, name)
    try:
        # A user's package usually lies in the current folder, which console scripts do not search.
        with sys_path.search_folder("", before_python=sys_path.is_stdlib_name(module)):
            return libraries.with_missing_schemas(lambda: importlib.import_module(module))
    except ModuleNotFoundError as error:
        missing = error.name or module
        if not f"{module}.".startswith(f"{missing}."):
            raise _missing_package(name, missing) from error
        absent = ModelNotFound(f"{name}: there is no module '{missing}'; install it or run where it lies")
        absent.module = module
        raise absent from error
    except NETWORK_FAILURES as error:  # a user's module may raise anything
        raise _as_model_error(
            f"{name}: importing {module} fails: {_reason(error)}; correct {module} first", error
        ) from error


def _import_file(path: Path, name: str) -> Any:
    if not path.is_file():
        absent = ModelNotFound(f"{name}: there is no file {path}; check the path (now in {Path.cwd()})")
        absent.module = str(path)
        raise absent
    literals, path = path, path.resolve()
    title = f"effbench_user_{path.stem}_{abs(hash(str(path))):x}"

    def load() -> Any:
        specification = importlib.util.spec_from_file_location(title, path)
        assert specification is not None and specification.loader is not None, "a .py file always has a loader"
        module = importlib.util.module_from_spec(specification)
        # As for a script: modules beside it can be imported, and dataclasses find their module.
        sys.modules[title] = module
        specification.loader.exec_module(module)
        return module

    try:
        with sys_path.search_folder(str(path.parent)):
            return libraries.with_missing_schemas(load)
    except ModuleNotFoundError as error:
        sys.modules.pop(title, None)
        raise _advise_module_name(literals, name, error) or _missing_package(name, error.name or "a module") from error
    except NETWORK_FAILURES as error:  # a user's file may raise anything
        sys.modules.pop(title, None)
        better = _advise_module_name(literals, name, error)
        raise better or _as_model_error(
            f"{name}: loading the file fails: {_reason(error)}; correct it first", error
        ) from error


def _advise_module_name(path: Path, name: str, error: BaseException) -> ModelError | None:
    """Return an error that advises naming a file as a module of its package, if that is why loading failed."""
    if not isinstance(error, ImportError):
        return None
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if error.name and not missing:
        return None  # the module exists but lacks a name, so this is no relative import without a package
    better = inspect_source.advise_module_name(path, name, missing)
    return ModelError(better) if better else None


def _as_model_error(message: str, error: BaseException) -> ModelError:
    """Return the error for failed user code, with the file that it did not find, if that is the cause."""
    made, seen = ModelError(message), 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
            made.missing_file = os.path.abspath(os.fsdecode(error.filename))
            break
        error, seen = error.__cause__ or error.__context__, seen + 1  # type: ignore[assignment]
    return made


def _missing_package(name: str, module: str) -> ModelError:
    """Return the error for user code that imports a package which is not installed."""
    root = module.partition(".")[0]
    package = f"'effbench[{root}]'" if root in LIBRARIES else root
    missing_package = ModelNeedsPackage(f"{name} imports '{module}', which is not installed; pip install {package}")
    missing_package.module = module
    return missing_package


def _attribute(module: Any, attribute: str, place: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_") and callable(getattr(module, known))]
        near = difflib.get_close_matches(attribute, public, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(public) or 'nothing to call'}"
        text = f"{place} has no '{attribute}'; {advice}"
        if inspect_source.may_define(module, attribute):
            raise ModelError(text) from None
        absent = ModelNotFound(text)
        absent.module, absent.attribute = place, attribute
        raise absent from None


def _call(factory: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Any:
    if not callable(factory):
        raise ModelError(f"{name} is a {type(factory).__name__}; name a function or class that makes a network")
    try:
        return factory(**arguments)
    except NETWORK_FAILURES as error:  # a user's factory may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        place = name.rpartition(":")[0]
        if place.endswith(".py") and (better := _advise_module_name(Path(place), name, error)):
            raise better from error
        raise _as_model_error(f"{name} raises {_reason(error)}; called with {given}", error) from error


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


def _require_network(value: Any, name: str) -> nn.Module:
    if not _is_network(value):
        raise ModelError(
            f"{name} gives a {type(value).__name__}, not a torch.nn.Module; name a function that returns one"
        )
    network: nn.Module = value
    return network


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"
