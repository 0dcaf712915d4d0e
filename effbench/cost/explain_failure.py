"""Explain in one line why a network failed on its inputs: its own error message, and advice where the cause is clear.

Pure functions of the error, of facts about the network, and of its inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effbench.core.errors import EffbenchError, message_of
from effbench.core.inputs import FLOATS, Input

if TYPE_CHECKING:
    from torch import nn

MAX_LENGTH = 300
"""Most characters of a reason, since some errors print whole tensors."""


@dataclass(frozen=True)
class NetworkFacts:
    """Facts about a network that advice is based on.

    `conv_dims` is 1, 2 or 3 for the first convolution that is not transposed (0 without one), and `channels` its input
    channels. `embeds` is whether there is an embedding. `features` are the input features of the first nn.Linear (0
    without one). `parameters` are the names of forward's parameters without a default.
    """

    name: str
    conv_dims: int = 0
    channels: int = 0
    embeds: bool = False
    features: int = 0
    parameters: tuple[str, ...] = ()


def facts_of(network: nn.Module) -> NetworkFacts:
    """Read the facts of a network from its modules, without running it."""
    import inspect

    from torch import nn

    modules = list(network.modules())
    conv = next((item for item in modules if isinstance(item, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    linear = next((item for item in modules if isinstance(item, nn.Linear)), None)
    try:
        taken = inspect.signature(network.forward).parameters.values()
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = tuple(one.name for one in taken if one.default is one.empty and one.kind not in several)
    except (TypeError, ValueError):
        parameters = ()
    return NetworkFacts(
        name=getattr(network, "original_name", type(network).__name__),  # the class of a scripted module
        conv_dims=len(conv.kernel_size) if conv is not None else 0,
        channels=conv.in_channels if conv is not None else 0,
        embeds=any(isinstance(item, (nn.Embedding, nn.EmbeddingBag)) for item in modules),
        features=linear.in_features if linear is not None else 0,
        parameters=parameters,
    )


def explain(error: BaseException, facts: NetworkFacts, inputs: Sequence[Input], batch: int = 1) -> str:
    """Explain in one line why a network did not run.

    Parameters
    ----------
    error
        The error of the first attempt.
    facts
        Facts about the network (`facts_of`).
    inputs
        The inputs, without the batch.
    batch
        Images per call.

    Returns
    -------
    str
        The network, its inputs with the batch, the error's first line, and what to do.
    """
    reason = one_line(error)
    shown = " and ".join(str(replace(item, shape=(batch, *item.shape))) for item in inputs) or "nothing"
    return f"{facts.name} does not run on input {shown}: {reason}; {advice(error, facts, inputs)}"


def one_line(error: BaseException) -> str:
    """Return an error as one line, with its type where the text alone is not clear.

    A first line that ends in a colon is joined with the next. Of a TorchScript error, the interpreter's error is taken.
    """
    text = message_of(error).strip()
    kind = type(error).__name__
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if lines and "TorchScript" in lines[0]:
        lines = [line for line in lines if re.match(r"\w*(Error|Exception)\b", line)][-1:] or lines
        lines[0] = lines[0].removeprefix("RuntimeError: ")
    elif len(lines) > 1 and lines[0].endswith(":"):
        lines = [f"{lines[0]} {lines[1]}"]
    said = (lines[0] if lines else "").rstrip(".;: ")
    if not said:
        return kind
    is_plain = isinstance(error, (RuntimeError, ValueError, EffbenchError))
    if not is_plain or isinstance(error, NotImplementedError):
        said = f"{kind}: {said}"
    return said if len(said) <= MAX_LENGTH else f"{said[:MAX_LENGTH]}…"


def advice(error: BaseException, facts: NetworkFacts, inputs: Sequence[Input]) -> str:
    """Return what to do about an error. Advice on inputs is given only where they are the likely cause."""
    text = message_of(error)
    if "maximum recursion depth" in text:
        return "its modules are nested too deeply; raise sys.setrecursionlimit"
    if re.search(r"out of memory|can't allocate memory|not enough memory", text):
        return "choose a smaller --batch or --input"
    for hint in (_forward_advice(text, facts), _index_advice(text, facts, inputs), _shape_advice(text, facts, inputs)):
        if hint:
            return hint
    if _is_about_input(error):
        return "give the inputs it was built for (--input)"
    return "its own code raises this; correct it there"


def _forward_advice(text: str, facts: NetworkFacts) -> str:
    """Advise if forward takes another number of inputs, or other names."""
    if not re.search(r"forward\(\) (missing|takes|got)", text):
        return ""
    wanted = facts.parameters
    if not wanted:
        return "its forward takes other inputs (--input)"
    if len(wanted) == 1:
        return f"its forward takes {wanted[0]} alone: give one --input"
    return f"its forward takes {', '.join(wanted)}: give an --input for each, such as --input {wanted[-1]}=SIZES"


_INDEX_ERRORS = (
    r"argument #\d+ 'indices'.*(scalar types?|Long)|expected indices to be long"
    r"|tensors used as ind(ices|exes) must be|one_hot is only applicable|long tensor for index"
    r"|[Ee]xpected (dtype|scalar type|type) (int64|int32|Long|Int)"
    r"|(bitwise|shift)\w*\" not implemented for '(Float|Double|Half|BFloat16)'"
)
"""Errors of torch, on meta and on values, for floats where integers are needed."""


def _index_advice(text: str, facts: NetworkFacts, inputs: Sequence[Input]) -> str:
    names = dict(zip((item for item in inputs if not item.name), facts.parameters, strict=False))
    floats = [item for item in inputs if item.dtype in ("", *FLOATS)]
    if not floats or not re.search(_INDEX_ERRORS, text):
        return ""
    likely = [item for item in floats if re.search(r"id|tok|ind", item.name or names.get(item, ""))] or floats
    item = min(likely, key=lambda one: len(one.shape))  # an image has more sides than a sentence
    return f"token numbers and other indices are whole numbers: --input {replace(item, dtype='int64')}"


def _shape_advice(text: str, facts: NetworkFacts, inputs: Sequence[Input]) -> str:
    """Advise on a shape that includes the batch, has channels last, lacks channels, or does not fit the first layer."""
    item = max(inputs, key=lambda one: len(one.shape), default=None)
    if item is None:
        return ""
    sides, of_dims, of_channels = item.shape, re.search(_DIMENSION_WORDS, text), "channel" in text
    if facts.embeds and not facts.conv_dims:
        has_batch = len(sides) == 2 and item.dtype in ("int64", "int32") and of_dims
        return _batch_advice(item) if has_batch else ""
    if not facts.conv_dims:
        is_linear = facts.features and re.search(r"mat1 and mat2 shapes|same reduction dim", text)
        return f"its first linear layer takes {facts.features} features, such as --input {facts.features}" * bool(
            is_linear and math.prod(sides) != facts.features
        )
    extra = len(sides) - (facts.conv_dims + 1)
    if extra == 1 and of_dims and (sides[1] == facts.channels or sides[0] <= sides[1]):
        return _batch_advice(item)
    if extra == 0 and of_channels and sides[0] != facts.channels:
        if sides[-1] == facts.channels:
            return f"channels come first: --input {replace(item, shape=(sides[-1], *sides[:-1]))}"
        wanted = replace(item, shape=(facts.channels, *sides[1:]))
        return f"its first convolution takes {facts.channels} channels: --input {wanted}"
    if extra == -1 and (of_channels or of_dims):
        return f"the channels are missing: --input {replace(item, shape=(facts.channels, *sides))}"
    return ""


def _batch_advice(item: Input) -> str:
    return f"--input is without the batch: --input {replace(item, shape=item.shape[1:])} --batch {item.shape[0]}"


_DIMENSION_WORDS = r"batched|[1-9]-?D\b|[1-9]-d|dimensions?\b|values to unpack|\bdims?\b"

_INPUT_WORDS = (
    rf"{_DIMENSION_WORDS}|mat1|reduction dim|reshape|broadcast|out of range"
    r"|\b(sizes?|shapes?|channels?|elements|inputs?|images?|height|width|lengths?|features|numel|view|expanded"
    r"|d?types?|Long|Float|Half|Double|ind(ex|ices)|kernel)\b"
)


def _is_about_input(error: BaseException) -> bool:
    """Return whether an error is about sizes or dtypes. Another input does not fix a missing attribute or file."""
    if isinstance(error, NotImplementedError):
        return False
    if isinstance(error, TypeError):
        return "invalid data type" in message_of(error)  # a tensor is indexed with a string
    kinds = (str, RuntimeError, ValueError, IndexError, AssertionError)
    return isinstance(error, kinds) and bool(re.search(_INPUT_WORDS, message_of(error)))
