"""What a network keeps between calls, remembered before it runs and put back afterwards.

Looked at are its parameters and buffers, the attributes of its modules, and what a user's code keeps outside of them:
globals of the files that its classes come from, attributes of those classes, and of their functions the variables that
they share, their default arguments and their attributes. Containers of Python's own and arrays of NumPy are looked
into, and of each tensor the gradient, to which every backward pass adds. What hides elsewhere (a cache of functools, an
object of another library) is not seen.
"""

from __future__ import annotations

import collections
import contextlib
import random
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

MOST_WEIGHTS_BYTES = 2**31
"""Weights of more than this are not copied: there may be no room for them twice. Buffers always are."""

MOST_CONTAINERS = 20_000
"""Containers that are looked into. A vocabulary may hold millions of words, and is no state."""

LIBRARIES = frozenset(("torch", "torchvision", "timm", "transformers", "numpy", "effbench"))
"""Packages whose globals and classes are not looked at: nothing there is a network's own state."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (dict, list, set, collections.deque)
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class _Place:
    """Where values are kept: how they are read now, what they were, and how to put back one that is another now.

    `label` names a value by its key.
    """

    label: Callable[[Any], str]
    read: Callable[[], dict[Any, Any]]
    before: dict[Any, Any]
    restore: Callable[[dict[Any, Any], set[Any]], None]


class Snapshot:
    """The state of a network and of its user's code when this was made."""

    def __init__(self, network: nn.Module, inputs: Sequence[Any] = ()) -> None:
        """Of the tensors among the `inputs` only gradients are looked at."""
        from torch.nn.modules.lazy import LazyModuleMixin

        self._places: list[_Place] = []
        self._generators: list[_Place] = []
        self._seen: dict[int, Any] = {}
        self._copies: dict[int, tuple[str, Any, Any]] = {}
        weights = list(network.named_parameters())
        if sum(_bytes(weight) for _, weight in weights) <= MOST_WEIGHTS_BYTES:
            for name, weight in weights:
                self._keep_tensor(name, weight)
        self._seen |= {id(weight): weight for _, weight in weights}
        for name, buffer in network.named_buffers():
            self._keep_tensor(name, buffer)
        for path, module in network.named_modules():
            if isinstance(module, LazyModuleMixin):
                continue  # at its first call it becomes a module of another class, which nothing can undo
            self._keep_module(f"{path}." if path else "", module)
        for kind in dict.fromkeys(kind for module in network.modules() for kind in type(module).__mro__):
            if is_users(kind.__module__):
                self._keep_class(kind)
        found = [(name, tensor) for name, tensor, _ in self._copies.values()]
        self._keep_gradients([*weights, *found, *((f"input {place}", value) for place, value in enumerate(inputs))])

    def changed(self) -> list[str]:
        """The names of what differs now, such as ``cache`` or ``h``, each once. Generators are none of them."""
        found = [name for name, tensor, copy in self._copies.values() if not same(tensor, copy)]
        for place in self._places:
            now = place.read()
            for key in [*place.before, *(now.keys() - place.before.keys())]:
                if key not in now or key not in place.before or not self._is_as_before(now[key], place.before[key]):
                    found.append(place.label(key))
        return list(dict.fromkeys(found))

    def has_drawn(self) -> bool:
        """Whether a generator of the network's own has been drawn from since."""
        return any(not same(place.read(), place.before) for place in self._generators)

    def restore_generators(self) -> None:
        """Have the network's own generators draw the same numbers again."""
        for place in self._generators:
            place.restore(place.before, set())

    def restore(self) -> None:
        """Put everything back. What is as it was is not touched."""
        import torch

        self.restore_generators()
        for place in self._places:
            now = place.read()
            other = {key for key in now.keys() | place.before.keys() if key not in now or key not in place.before}
            other |= {key for key in now.keys() & place.before.keys() if now[key] is not place.before[key]}
            if other:
                place.restore(place.before, other)
        # Inference mode takes what was made in it as well as what was not.
        with torch.inference_mode():
            for _, tensor, copy in self._copies.values():
                if not isinstance(tensor, torch.Tensor):
                    _refill(tensor, copy)
                elif tensor.shape != copy.shape or tensor.stride() != copy.stride() or tensor.dtype != copy.dtype:
                    tensor.data = copy.clone()
                elif not same(tensor, copy):
                    tensor.copy_(copy)

    def _is_as_before(self, now: Any, before: Any) -> bool:
        # A tensor that was written to is found by its copy.
        return now is before or same(now, self._copies[id(before)][2] if id(before) in self._copies else before)

    def _keep_tensor(self, name: str, tensor: Any) -> None:
        import torch

        if id(tensor) in self._copies or id(tensor) in self._seen:
            return
        # Lazy ones have no values yet, and some subclasses cannot be copied.
        with contextlib.suppress(Exception), torch.no_grad():
            self._copies[id(tensor)] = (name, tensor, tensor.detach().clone())

    def _keep_gradients(self, found: Sequence[tuple[str, Any]]) -> None:
        """What a backward pass adds to."""
        import torch

        tensors = {id(value): (name, value) for name, value in reversed(found) if isinstance(value, torch.Tensor)}

        def read() -> dict[int, Any]:
            known = {key: gradient_of(tensor) for key, (_, tensor) in reversed(tensors.items())}
            return {key: gradient for key, gradient in known.items() if gradient is not None}

        def restore(before: dict[int, Any], other: set[int]) -> None:
            for key in other:
                tensors[key][1].grad = before.get(key)

        def label(key: int) -> str:
            return f"{tensors[key][0]}.grad"

        place = _Place(label, read, read(), restore)
        if sum(map(_bytes, place.before.values())) <= MOST_WEIGHTS_BYTES:
            for key, gradient in place.before.items():
                self._keep_tensor(label(key), gradient)
        self._places.append(place)

    def _keep_array(self, name: str, array: Any) -> None:
        if id(array) not in self._copies and array.nbytes <= MOST_WEIGHTS_BYTES:
            self._copies[id(array)] = (name, array, array.copy())

    def _keep_module(self, path: str, module: nn.Module) -> None:
        attributes = vars(module)
        self._keep_names(lambda: attributes, lambda key: f"{path}{key}", attributes.__setitem__, attributes.__delitem__)
        for name in _REGISTRIES:
            if isinstance(attributes.get(name), dict):
                self._keep_registry(path, attributes[name])
        for name, value in attributes.items():
            if name not in _OF_MODULES:
                self._look_into(f"{path}{name}", value)

    def _keep_registry(self, path: str, items: dict[str, Any]) -> None:
        self._keep_names(lambda: items, lambda key: f"{path}{key}", items.__setitem__, items.__delitem__)

    def _keep_class(self, kind: type) -> None:
        """Its attributes, the variables that its functions share, and the globals of the file that it is from."""
        self._keep_names(
            lambda: _data(vars(kind)),
            lambda key: f"{kind.__name__}.{key}",
            lambda name, value: None if _is_resource(vars(kind), name) else setattr(kind, name, value),
            lambda name: delattr(kind, name),
        )
        for name, value in _data(vars(kind)).items():
            self._look_into(f"{kind.__name__}.{name}", value)
        for value in list(vars(kind).values()):
            self._look_into("", getattr(value, "__func__", value))

    def _keep_function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self._keep_cell(name, cell)
        code, defaults = function.__code__, function.__defaults__ or ()
        first = code.co_argcount - len(defaults)
        for name, value in zip(code.co_varnames[first : code.co_argcount], defaults, strict=True):
            self._look_into(name, value)
        for name, value in (function.__kwdefaults__ or {}).items():
            self._look_into(name, value)
        self._look_into(function.__name__, vars(function))  # such as what a decorator has wrapped
        names = function.__globals__
        if id(names) not in self._seen:
            self._seen[id(names)] = names
            self._keep_names(
                lambda: _data(names),
                str,
                lambda name, value: None if _is_resource(names, name) else names.__setitem__(name, value),
                names.__delitem__,
            )
            for name, value in _data(names).items():
                self._look_into(name, value)

    def _keep_cell(self, name: str, cell: Any) -> None:
        def read() -> dict[str, Any]:
            try:
                return _data({name: cell.cell_contents})
            except ValueError:  # nothing in it as yet
                return {}

        self._keep_names(read, str, lambda _, value: setattr(cell, "cell_contents", value), lambda _: None)
        for value in read().values():
            self._look_into(name, value)

    def _look_into(self, name: str, value: Any) -> None:
        import torch

        if isinstance(value, torch.Tensor):
            self._keep_tensor(name, value)
        elif _is_array(value):
            self._keep_array(name, value)
        elif isinstance(value, _PLAIN) or id(value) in self._seen or len(self._seen) > MOST_CONTAINERS:
            return
        elif isinstance(value, (*_CONTAINERS, tuple)):
            self._seen[id(value)] = value
            if not isinstance(value, tuple):
                self._keep_container(name, value)
            for item in list(value.values() if isinstance(value, dict) else value):
                self._look_into(name, item)
        elif isinstance(value, types.MethodType):
            self._look_into(name, value.__self__)
            self._look_into(name, value.__func__)
        elif isinstance(value, types.FunctionType):
            self._seen[id(value)] = value
            if is_users(value.__module__):
                self._keep_function(value)
        elif _state_of(value) is not None:
            self._seen[id(value)] = value
            self._keep_generator(name, value)
        elif is_users(type(value).__module__) and not isinstance(value, (type, torch.nn.Module)):
            self._seen[id(value)] = value
            self._look_into(name, getattr(value, "__dict__", None))

    def _keep_container(self, name: str, value: Any) -> None:
        if isinstance(value, dict):
            self._keep_names(lambda: value, lambda _: name, value.__setitem__, value.__delitem__)
            return

        def restore(before: dict[Any, Any], _: set[Any]) -> None:
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(before.values())

        def read() -> dict[Any, Any]:
            return {item: item for item in value} if isinstance(value, set) else dict(enumerate(value))

        self._places.append(_Place(lambda _: name, read, read(), restore))

    def _keep_generator(self, name: str, value: Any) -> None:
        def restore(before: dict[Any, Any], _: set[Any]) -> None:
            _set_state(value, before[""])

        def read() -> dict[Any, Any]:
            return {"": _state_of(value)}

        self._generators.append(_Place(lambda _: name, read, read(), restore))

    def _keep_names(
        self,
        read: Callable[[], dict[Any, Any]],
        label: Callable[[Any], str],
        put: Callable[[Any, Any], None],
        drop: Callable[[Any], None],
    ) -> None:
        def restore(before: dict[Any, Any], other: set[Any]) -> None:
            for key in other:
                if key in before:
                    put(key, before[key])
                else:
                    drop(key)

        self._places.append(_Place(label, lambda: dict(read()), dict(read()), restore))


_OF_MODULES = frozenset(
    (*_REGISTRIES, "_non_persistent_buffers_set", "_is_full_backward_hook", "_forward_hooks_always_called")
)
"""Attributes of every module that hold no state, or that are looked at apart."""


def gradient_of(tensor: Any) -> Any:
    """What backward passes have added up for a tensor; None for one that was computed, where torch warns of asking."""
    return tensor.grad if tensor.is_leaf else None


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: NaN is equal to itself, and objects of unknown kinds to others of their kind."""
    import torch

    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return False
        try:
            return bool(torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
        except (RuntimeError, NotImplementedError):  # a layout, a dtype or a subclass that cannot be compared
            return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return one == other or (one != one and other != other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if _is_array(one):
        return bool(one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes())
    if hasattr(one, "tobytes"):  # such as a number of numpy
        return bool(one.tobytes() == other.tobytes())
    return one == other if isinstance(one, set) else True


def is_users(module: str | None) -> bool:
    """Whether what this module holds is a user's, and neither Python's own nor of a library that is known."""
    root = (module or "builtins").partition(".")[0]
    return root not in LIBRARIES and (root == "__main__" or root not in sys.stdlib_module_names)


def _data(names: Any) -> dict[str, Any]:
    """Those of these names that hold values, and no module, class, function or resource."""
    import torch

    def is_data(value: Any) -> bool:
        if isinstance(value, (*_PLAIN, *_CONTAINERS, tuple, torch.Tensor)):
            return True
        return (
            _is_array(value)
            or _state_of(value) is not None
            or (is_users(type(value).__module__) and not isinstance(value, (type, types.FunctionType, torch.nn.Module)))
        )

    return {name: value for name, value in list(names.items()) if not name.startswith("__") and is_data(value)}


def _is_resource(names: Any, name: str) -> bool:
    """Whether a name has come to stand for what is made once and stays, such as a pool of threads."""
    return name in names and not _data({name: names[name]})


def _is_array(value: Any) -> bool:
    """Whether it is an array, or a number, of NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _refill(array: Any, copy: Any) -> None:
    """Give an array its values back, in its place. One that nobody may write to has kept them."""
    with contextlib.suppress(Exception):
        if array.shape != copy.shape:
            array.resize(copy.shape, refcheck=False)
        if not same(array, copy):
            array[...] = copy


def _state_of(value: Any) -> Any:
    """The state of a generator of random numbers; None of anything else."""
    import torch

    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return None if isinstance(value, random.SystemRandom) else value.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return value.bit_generator.state
    return value.get_state() if numpy is not None and isinstance(value, numpy.random.RandomState) else None


def _set_state(value: Any, state: Any) -> None:
    if hasattr(value, "set_state"):
        value.set_state(state)
    elif hasattr(value, "setstate"):
        value.setstate(state)
    else:
        value.bit_generator.state = state


def _bytes(tensor: Any) -> int:
    try:
        return int(tensor.nbytes)
    except (RuntimeError, ValueError, TypeError):  # lazy
        return 0
