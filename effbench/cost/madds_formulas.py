"""Multiply-adds of convolutions, matrix products, attention and recurrent layers, from shapes. No torch."""

from __future__ import annotations

from math import prod

from effbench.cost.formula_types import Call, Shape, Sparse

_LEFT = ("mat1", "batch1", "mat", "qx", "X", "qa", "inp", "sparse", "input", "self")
_RIGHT = ("mat2", "batch2", "vec", "qb", "tensor", "dense", "other")
_INPUT = ("input", "qx", "X", "self")
_WEIGHT = ("weight", "packed_weight", "W_prepack", "qw", "W")


# --- convolutions -----------------------------------------------------------------------------------


def convolution(call: Call) -> int | None:
    """Multiply-adds of an N-d convolution, weight (c2, c1/g, *kernel), transposed (c1, c2/g, *kernel)."""
    weight = call.operand(1, *_WEIGHT)
    if len(weight) < 3:  # packed in a private layout
        return None
    transposed = bool(call.argument(6, "transposed", False)) or "transpose" in call.op
    return (call.operand(0, *_INPUT).numel if transposed else call.out) * prod(weight[1:])


def convolution_backward(call: Call) -> int:
    """Multiply-adds of a convolution's gradients: those of the convolution for each requested gradient."""
    grad, x, weight = call.operand(0, "grad_output"), call.operand(1, "input", "self"), call.operand(2, "weight")
    once = (x if call.argument(7, "transposed", False) else grad).numel * prod(weight[1:])
    return int(once * sum(call.argument(10, "output_mask", (True, True))[:2]))


def convolution_of_time(call: Call) -> int:
    """Multiply-adds of conv_tbc, x (t, b, c1), weight (k, c1, c2)."""
    return call.out * prod(call.operand(1, "weight")[:2])


# --- matrix products --------------------------------------------------------------------------------


def product(call: Call) -> int | None:
    """Multiply-adds of ``(…, n, k) @ (k, m)`` in any of its forms: k for every output element.

    A sparse operand counts each stored element once per row or column of the other; the other must be dense.
    """
    left = call.operand(-2, *_LEFT)
    sparse = [(name, call.named[name]) for name in _LEFT + _RIGHT if isinstance(call.named.get(name), Sparse)]
    sparse = [(name, shape) for name, shape in sparse if not (name == "self" and shape is not left)]
    if not sparse:
        return call.out * left[-1]
    name, shape = sparse[0]
    if len(sparse) > 1 or shape.stored is None or len(shape) not in (2, 3) or not call.outputs:
        return None
    out = call.outputs[0]
    return int(shape.stored) * ((out[-1] if len(out) > 1 else 1) if name in _LEFT else out[-2])


def sampled_product(call: Call) -> int | None:
    """Multiply-adds of ``mat1 @ mat2`` at the stored elements of self, a sparse matrix: k for each of them."""
    sampled = call.operand(0, "self")
    stored = sampled.stored if isinstance(sampled, Sparse) else None
    return None if stored is None else stored * call.operand(1, "mat1")[-1]


def batch_reduced_product(call: Call) -> int:
    """Multiply-adds of addbmm: the sum over b of (n, k) @ (k, m)."""
    batch, rows, inner = call.operand(1, "batch1")
    return batch * rows * inner * call.operand(2, "batch2")[-1]


def grouped_product(call: Call) -> int:
    """Multiply-adds of a grouped product, self (m, k) or (g, m, k), mat2 (k, n) or (g, k, n).

    Rows or columns are divided among the groups: k for each output. Of two matrices, k is divided instead, and every
    group has its own output (m, n).
    """
    left, right = call.operand(0, "self"), call.operand(1, "mat2")
    return prod(left) * right[-1] if len(left) == len(right) == 2 else call.out * left[-1]


def trilinear(call: Call) -> int:
    """Multiply-adds of a bilinear layer, x (n, i), weight (o, i, j), y (n, j): i·j for every output.

    In general it is the product of the three operands' broadcast sizes, each with the dimensions of its `expand`
    inserted.
    """
    if "expand1" not in call.named:
        return call.out * prod(call.inputs[1][1:])
    expanded = []
    for number in "123":
        sides = list(call.operand(int(number) - 1, f"i{number}"))
        for place in sorted(call.named[f"expand{number}"]):
            sides.insert(place, 1)
        expanded.append(sides)
    return prod(0 if 0 in sides else max(sides) for sides in zip(*expanded, strict=True))


def packed_linear(call: Call) -> int | None:
    """Multiply-adds of a linear layer whose packed weight has the shape (out, in)."""
    weight = call.operand(-1, *_WEIGHT)
    return call.out * weight[-1] if len(weight) == 2 else None


def affine_grid(call: Call) -> int:
    """Multiply-adds of a grid of points (…, d) mapped by theta (n, d, d + 1): homogeneous points times a matrix."""
    return call.out * call.operand(0, "theta")[-1]


def euclidean(call: Call) -> int:
    """Multiply-adds of Euclidean distances by ``x1 @ x2^T``, x1 (…, p, m), x2 (…, r, m)."""
    return call.out * call.operand(0, "x1")[-1]


# --- attention --------------------------------------------------------------------------------------


def scores(call: Call) -> int:
    """Elements of the score matrix: one per query of the output and key."""
    return prod(call.outputs[0][:-1]) * call.operand(1, "key")[-2]


def attention(call: Call) -> int:
    """Multiply-adds of ``softmax(q @ k^T) @ v``: query (…, n, e), key (…, m, e), value (…, m, f), out (…, n, f).

    Counted from the output, since queries, keys and values may be broadcast, and several query heads share key heads.
    """
    return scores(call) * (call.operand(0, "query")[-1] + call.operand(2, "value")[-1])


def attention_backward(call: Call) -> int:
    """Multiply-adds of attention's gradients: the scores again, and two products each for scores and values."""
    query, key, value = call.operand(1, "query"), call.operand(2, "key"), call.operand(3, "value")
    return prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _rows_of_kernel(call: Call) -> tuple[int, int, int, int] | None:
    """Return queries times heads, keys, and both widths, for kernels with layout (batch, tokens, heads, width)."""
    if any(call.has(name) for name in ("cum_seq_q", "cum_seq_k", "cu_seqlens_q", "cu_seqlens_k", "block_table")):
        return None  # packed sequences of different lengths: the lengths are values, not shapes
    query, key, value = call.operand(0, "query"), call.operand(1, "key"), call.operand(2, "value")
    return prod(query[:-1]), key[-3], query[-1], value[-1]


def kernel_attention(call: Call) -> int | None:
    """Multiply-adds of the raw flash and memory-efficient kernels, tensors (batch, tokens, heads, width)."""
    found = _rows_of_kernel(call)
    return None if found is None else found[0] * found[1] * (found[2] + found[3])


def kernel_attention_backward(call: Call) -> int | None:
    """Multiply-adds of the gradients of the raw flash and memory-efficient kernels."""
    found = _rows_of_kernel(call)
    return None if found is None else found[0] * found[1] * (3 * found[2] + 2 * found[3])


def kernel_scores(call: Call) -> int:
    """Attention scores of a fused kernel: queries times keys."""
    found = _rows_of_kernel(call)
    return 0 if found is None else found[0] * found[1]


def _tokens(call: Call) -> tuple[int, int, int]:
    """Return rows of the query, rows of the key, and keys per query, for whole-layer kernels (batch, tokens, width)."""
    query = call.operand(0, "query", "src")
    key = call.operand(1, "key") if call.has("key") else query
    return prod(query[:-1]), prod(key[:-1]), key[-2]


def attention_layer(call: Call) -> int:
    """Multiply-adds of a whole nn.MultiheadAttention: four d x d projections and two products with the keys."""
    queries, keys, length = _tokens(call)
    width = call.argument(3, "embed_dim")
    return int((2 * queries + 2 * keys) * width**2 + 2 * queries * length * width)


def attention_layer_scores(call: Call) -> int:
    """Attention scores of a whole attention layer: queries times keys times heads."""
    queries, _, length = _tokens(call)
    return int(queries * length * call.argument(4, "num_head", call.argument(2, "num_heads")))


def attention_layer_outputs(call: Call) -> int:
    """Output elements of the products of an attention layer: three projections in, the attended values, one out."""
    queries, keys, _ = _tokens(call)
    return int((3 * queries + 2 * keys) * call.argument(3, "embed_dim"))


def encoder_layer(call: Call) -> int:
    """Multiply-adds of a whole nn.TransformerEncoderLayer: the attention layer and two linear layers."""
    rows, _, _ = _tokens(call)
    return attention_layer(call) + rows * (
        call.operand(-4, "ffn_weight_1").numel + call.operand(-2, "ffn_weight_2").numel
    )


def encoder_layer_elementwise(call: Call) -> int:
    """Softmax 5, two norms 5, two sums 1 and an activation 1 per element."""
    rows, _, _ = _tokens(call)
    hidden = call.operand(-4, "ffn_weight_1")[0]
    return 5 * attention_layer_scores(call) + int(12 * rows * call.argument(1, "embed_dim")) + rows * hidden


def encoder_layer_outputs(call: Call) -> int:
    """Output elements of the products of a transformer encoder layer: those of its attention and two linear layers."""
    rows, _, _ = _tokens(call)
    hidden, width = call.operand(-4, "ffn_weight_1")
    return attention_layer_outputs(call) + rows * (hidden + width)


# --- recurrent layers -------------------------------------------------------------------------------

_GATES = {"lstm": 9, "gru": 8}
_MODES = {2: 9, 3: 8}  # as cuDNN numbers them


def recurrent(call: Call, weights: int) -> int:
    """Multiply-adds of a recurrent layer, inputs (x, *weights, *states): every weight matrix once per row.

    A row is one time step of one sequence. `weights` is the number of inputs that are weights and biases.
    """
    rows = prod(call.inputs[0][:-1])
    return rows * sum(shape.numel for shape in call.inputs[1 : 1 + weights] if len(shape) == 2)


def _matrices(call: Call) -> list[Shape]:
    """Return the weight matrices, which come singly, in lists, or (quantised cells) packed in pairs."""
    names = ("params", "weight", "weight0", "weight1", "w_ih", "w_hh")
    listed = [call.named.get(name) for name in names]
    found: list[Shape] = []
    while listed:
        item = listed.pop(0)
        if isinstance(item, Shape):
            found += [item] if len(item) == 2 else []
        elif isinstance(item, (tuple, list)):
            listed[:0] = item
    return found


def recurrent_rows(call: Call) -> int:
    """Time steps of all sequences: x (…, width), packed or padded; for a cell the rows of its input."""
    return prod(call.operand(0, "input", "data")[:-1])


def recurrent_layers(call: Call) -> int:
    """Multiply-adds of the layers that torch runs as one operator: every weight matrix once per row."""
    return recurrent_rows(call) * sum(shape.numel for shape in _matrices(call))


def recurrent_gates(call: Call) -> int:
    """Elementwise operations per row and hidden unit: 9 LSTM, 8 GRU, 1 plain."""
    kind = next((gate for gate in _GATES if gate in call.op), "rnn")
    each = _MODES.get(call.named.get("mode", -1)) or _GATES.get(kind, 1)
    gates = {9: 4, 8: 3}.get(each, 1)
    # The recurrent weight is (gates * hidden, width of the state); with a projection only the first two are gates.
    rows_of_weights = [shape[0] for shape in _matrices(call)]
    per_direction = 3 if _projected(call) else 2
    hidden = sum(rows_of_weights[::per_direction]) // gates
    return each * recurrent_rows(call) * hidden


def _projected(call: Call) -> bool:
    directions = recurrent_directions(call)
    layers = call.argument(4, "num_layers", 1)
    return len(_matrices(call)) == int(3 * directions * layers)


def recurrent_directions(call: Call) -> int:
    """2 of a bidirectional recurrent layer, else 1."""
    return 2 if call.argument(7, "bidirectional", False) and not call.has("weight0") else 1


def recurrent_between(call: Call) -> int:
    """Elements passed between the layers inside one operator."""
    return int(call.argument(4, "num_layers", 1) - 1) * recurrent_rows(call) * call.outputs[0][-1]


def recurrent_outputs(call: Call) -> int:
    """Output elements of all layers."""
    return int(call.argument(4, "num_layers", 1)) * recurrent_rows(call) * call.outputs[0][-1]
