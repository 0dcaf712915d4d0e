"""Save the state that a network keeps between calls, and restore it.

Saved are its parameters and buffers, the attributes of its modules, and state in user code outside of them: globals of
the files that define its classes, attributes of those classes, and closures, default arguments and attributes of their
functions. Python's containers and NumPy arrays are followed, and so is the gradient of each tensor, which every
backward pass adds to. State elsewhere (a functools cache, an object of another library) is not found.
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

MAX_WEIGHTS_BYTES = 2**31
"""Weights above this size are not copied, since they may not fit into memory twice. Buffers always are."""

MAX_CONTAINERS = 20_000
"""Most containers that are followed. A vocabulary may hold millions of words and is no state."""

LIBRARIES = frozenset(("torch", "torchvision", "timm", "transformers", "numpy", "effbench"))
"""Packages whose globals and classes are skipped: they hold no state of a user's network."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (dict, list, set, collections.deque)
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class _Place:
    """A place that holds values by key: how to read them, their values before, and how to restore them.

    `label` turns a key into the name of the value for messages. `restore` gets the values before and the keys to
    restore.
    """

    label: Callable[[Any], str]
    read: Callable[[], dict[Any, Any]]
    before: dict[Any, Any]
    restore: Callable[[dict[Any, Any], set[Any]], None]


class Snapshot:
    """The state of a network and its user code at the time of creation."""

    def __init__(self, network: nn.Module, inputs: Sequence[Any] = ()) -> None:
        """Save the state. Of tensors in `inputs` only the gradients are saved."""
        from torch.nn.modules.lazy import LazyModuleMixin

        self._places: list[_Place] = []
        self._generators: list[_Place] = []
        self._seen: dict[int, Any] = {}
        self._copies: dict[int, tuple[str, Any, Any]] = {}
        weights = list(network.named_parameters())
        if sum(_nbytes(weight) for _, weight in weights) <= MAX_WEIGHTS_BYTES:
            for name, weight in weights:
                self._save_tensor(name, weight)
        self._seen |= {id(weight): weight for _, weight in weights}
        for name, buffer in network.named_buffers():
            self._save_tensor(name, buffer)
        for path, module in network.named_modules():
            if isinstance(module, LazyModuleMixin):
                continue  # its first call changes its class, which cannot be undone
            self._save_module(f"{path}." if path else "", module)
        for kind in dict.fromkeys(kind for module in network.modules() for kind in type(module).__mro__):
            if is_user_module(kind.__module__):
                self._save_class(kind)
        found = [(name, tensor) for name, tensor, _ in self._copies.values()]
        self._save_gradients([*weights, *found, *((f"input {place}", value) for place, value in enumerate(inputs))])

    def changed(self) -> list[str]:
        """Return the names of what differs now, such as ``cache`` or ``h``, each once. Random generators are not
        included.
        """
        found = [name for name, tensor, copy in self._copies.values() if not same(tensor, copy)]
        for place in self._places:
            now = place.read()
            for key in [*place.before, *(now.keys() - place.before.keys())]:
                if key not in now or key not in place.before or not self._is_as_before(now[key], place.before[key]):
                    found.append(place.label(key))
        return list(dict.fromkeys(found))

    def has_drawn(self) -> bool:
        """Whether one of the network's own random generators has been used since."""
        return any(not same(place.read(), place.before) for place in self._generators)

    def restore_generators(self) -> None:
        """Restore the network's own random generators, so that they draw the same numbers again."""
        for place in self._generators:
            place.restore(place.before, set())

    def restore(self) -> None:
        """Restore everything that changed; leave the rest untouched."""
        import torch

        self.restore_generators()
        for place in self._places:
            now = place.read()
            other = {key for key in now.keys() | place.before.keys() if key not in now or key not in place.before}
            other |= {key for key in now.keys() & place.before.keys() if now[key] is not place.before[key]}
            if other:
                place.restore(place.before, other)
        # Inference mode allows writing to tensors created inside and outside of it.
        with torch.inference_mode():
            for _, tensor, copy in self._copies.values():
                if not isinstance(tensor, torch.Tensor):
                    _restore_array(tensor, copy)
                elif tensor.shape != copy.shape or tensor.stride() != copy.stride() or tensor.dtype != copy.dtype:
                    tensor.data = copy.clone()
                elif not same(tensor, copy):
                    tensor.copy_(copy)

    def _is_as_before(self, now: Any, before: Any) -> bool:
        # A tensor that was written to is compared with its copy.
        return now is before or same(now, self._copies[id(before)][2] if id(before) in self._copies else before)

    def _save_tensor(self, name: str, tensor: Any) -> None:
        import torch

        if id(tensor) in self._copies or id(tensor) in self._seen:
            return
        # Lazy tensors have no values yet, and some subclasses cannot be copied.
        with contextlib.suppress(Exception), torch.no_grad():
            self._copies[id(tensor)] = (name, tensor, tensor.detach().clone())

    def _save_gradients(self, found: Sequence[tuple[str, Any]]) -> None:
        """Save gradients, which a backward pass adds to."""
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
        if sum(map(_nbytes, place.before.values())) <= MAX_WEIGHTS_BYTES:
            for key, gradient in place.before.items():
                self._save_tensor(label(key), gradient)
        self._places.append(place)

    def _save_array(self, name: str, array: Any) -> None:
        if id(array) not in self._copies and array.nbytes <= MAX_WEIGHTS_BYTES:
            self._copies[id(array)] = (name, array, array.copy())

    def _save_module(self, path: str, module: nn.Module) -> None:
        attributes = vars(module)
        self._save_names(lambda: attributes, lambda key: f"{path}{key}", attributes.__setitem__, attributes.__delitem__)
        for name in _REGISTRIES:
            if isinstance(attributes.get(name), dict):
                self._save_registry(path, attributes[name])
        for name, value in attributes.items():
            if name not in _SKIPPED_ATTRIBUTES:
                self._save_reachable(f"{path}{name}", value)

    def _save_registry(self, path: str, items: dict[str, Any]) -> None:
        self._save_names(lambda: items, lambda key: f"{path}{key}", items.__setitem__, items.__delitem__)

    def _save_class(self, kind: type) -> None:
        """Save a class's attributes, the closures of its functions, and the globals of its file."""
        self._save_names(
            lambda: _values_in(vars(kind)),
            lambda key: f"{kind.__name__}.{key}",
            lambda name, value: None if _is_resource(vars(kind), name) else setattr(kind, name, value),
            lambda name: delattr(kind, name),
        )
        for name, value in _values_in(vars(kind)).items():
            self._save_reachable(f"{kind.__name__}.{name}", value)
        for value in list(vars(kind).values()):
            self._save_reachable("", getattr(value, "__func__", value))

    def _save_function(self, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self._save_cell(name, cell)
        code, defaults = function.__code__, function.__defaults__ or ()
        first = code.co_argcount - len(defaults)
        for name, value in zip(code.co_varnames[first : code.co_argcount], defaults, strict=True):
            self._save_reachable(name, value)
        for name, value in (function.__kwdefaults__ or {}).items():
            self._save_reachable(name, value)
        self._save_reachable(function.__name__, vars(function))  # such as the function that a decorator has wrapped
        names = function.__globals__
        if id(names) not in self._seen:
            self._seen[id(names)] = names
            self._save_names(
                lambda: _values_in(names),
                str,
                lambda name, value: None if _is_resource(names, name) else names.__setitem__(name, value),
                names.__delitem__,
            )
            for name, value in _values_in(names).items():
                self._save_reachable(name, value)

    def _save_cell(self, name: str, cell: Any) -> None:
        def read() -> dict[str, Any]:
            try:
                return _values_in({name: cell.cell_contents})
            except ValueError:  # the cell is still empty
                return {}

        self._save_names(read, str, lambda _, value: setattr(cell, "cell_contents", value), lambda _: None)
        for value in read().values():
            self._save_reachable(name, value)

    def _save_reachable(self, name: str, value: Any) -> None:
        import torch

        if isinstance(value, torch.Tensor):
            self._save_tensor(name, value)
        elif _is_array(value):
            self._save_array(name, value)
        elif isinstance(value, _PLAIN) or id(value) in self._seen or len(self._seen) > MAX_CONTAINERS:
            return
        elif isinstance(value, (*_CONTAINERS, tuple)):
            self._seen[id(value)] = value
            if not isinstance(value, tuple):
                self._save_container(name, value)
            for item in list(value.values() if isinstance(value, dict) else value):
                self._save_reachable(name, item)
        elif isinstance(value, types.MethodType):
            self._save_reachable(name, value.__self__)
            self._save_reachable(name, value.__func__)
        elif isinstance(value, types.FunctionType):
            self._seen[id(value)] = value
            if is_user_module(value.__module__):
                self._save_function(value)
        elif _generator_state(value) is not None:
            self._seen[id(value)] = value
            self._save_generator(name, value)
        elif is_user_module(type(value).__module__) and not isinstance(value, (type, torch.nn.Module)):
            self._seen[id(value)] = value
            self._save_reachable(name, getattr(value, "__dict__", None))

    def _save_container(self, name: str, value: Any) -> None:
        if isinstance(value, dict):
            self._save_names(lambda: value, lambda _: name, value.__setitem__, value.__delitem__)
            return

        def restore(before: dict[Any, Any], _: set[Any]) -> None:
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(before.values())

        def read() -> dict[Any, Any]:
            return {item: item for item in value} if isinstance(value, set) else dict(enumerate(value))

        self._places.append(_Place(lambda _: name, read, read(), restore))

    def _save_generator(self, name: str, value: Any) -> None:
        def restore(before: dict[Any, Any], _: set[Any]) -> None:
            _set_generator_state(value, before[""])

        def read() -> dict[Any, Any]:
            return {"": _generator_state(value)}

        self._generators.append(_Place(lambda _: name, read, read(), restore))

    def _save_names(
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


_SKIPPED_ATTRIBUTES = frozenset(
    (*_REGISTRIES, "_non_persistent_buffers_set", "_is_full_backward_hook", "_forward_hooks_always_called")
)
"""Attributes of every module that hold no state or are saved separately."""


def gradient_of(tensor: Any) -> Any:
    """Return a leaf tensor's gradient; None for a computed tensor, for which torch warns."""
    return tensor.grad if tensor.is_leaf else None


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal. NaN equals NaN; objects of unknown types equal any object of their type."""
    import torch

    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return False
        try:
            return bool(torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
        except (RuntimeError, NotImplementedError):  # this layout, dtype or subclass cannot be compared
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
    if hasattr(one, "tobytes"):  # such as a numpy scalar
        return bool(one.tobytes() == other.tobytes())
    return one == other if isinstance(one, set) else True


def is_user_module(module: str | None) -> bool:
    """Whether this module is the user's: not of Python, nor of a known library."""
    root = (module or "builtins").partition(".")[0]
    return root not in LIBRARIES and (root == "__main__" or root not in sys.stdlib_module_names)


def _values_in(names: Any) -> dict[str, Any]:
    """Return the names that hold values, without modules, classes, functions and resources."""
    import torch

    def is_data(value: Any) -> bool:
        if isinstance(value, (*_PLAIN, *_CONTAINERS, tuple, torch.Tensor)):
            return True
        return (
            _is_array(value)
            or _generator_state(value) is not None
            or (
                is_user_module(type(value).__module__)
                and not isinstance(value, (type, types.FunctionType, torch.nn.Module))
            )
        )

    return {name: value for name, value in list(names.items()) if not name.startswith("__") and is_data(value)}


def _is_resource(names: Any, name: str) -> bool:
    """Whether a name holds by now something that is no value, such as a thread pool, which is created once and kept."""
    return name in names and not _values_in({name: names[name]})


def _is_array(value: Any) -> bool:
    """Whether it is a NumPy array or scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _restore_array(array: Any, copy: Any) -> None:
    """Restore an array's values in place. A read-only array raises, and cannot have changed."""
    with contextlib.suppress(Exception):
        if array.shape != copy.shape:
            array.resize(copy.shape, refcheck=False)
        if not same(array, copy):
            array[...] = copy


def _generator_state(value: Any) -> Any:
    """Return the state of a random generator; None for anything else."""
    import torch

    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return None if isinstance(value, random.SystemRandom) else value.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return value.bit_generator.state
    return value.get_state() if numpy is not None and isinstance(value, numpy.random.RandomState) else None


def _set_generator_state(value: Any, state: Any) -> None:
    if hasattr(value, "set_state"):
        value.set_state(state)
    elif hasattr(value, "setstate"):
        value.setstate(state)
    else:
        value.bit_generator.state = state


def _nbytes(tensor: Any) -> int:
    try:
        return int(tensor.nbytes)
    except (RuntimeError, ValueError, TypeError):  # lazy
        return 0
