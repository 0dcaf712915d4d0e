"""Count a network with a loop over its tokens, and time one forward pass of it. Prints JSON.

Usage: long_sequence.py LAYERS TOKENS
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from effbench.cost import profile
from effbench.cost.trace import forget_shapes

WIDTH = 64
STATE = 16


class SelectiveScan(nn.Module):
    """A layer after Mamba (arXiv 2312.00752, algorithm 2): a gated state space model whose state passes from token to
    token.

    The scan is a plain loop, as in reference code, with 8 operators per token. Input and output: (batch, tokens,
    width).
    """

    def __init__(self, width: int, state: int, kernel: int = 4) -> None:
        super().__init__()
        inner, rank = 2 * width, max(1, width // 16)
        self.sizes = (rank, state, state)
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_decay = nn.Parameter(torch.zeros(inner, state))
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        u, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        u = functional.silu(self.convolution(u.mT)[..., :tokens].mT)
        low, write, read = self.select(u).split(self.sizes, dim=-1)
        step = functional.softplus(self.step(low))
        decay = -torch.exp(self.log_decay)
        state = x.new_zeros(batch, *decay.shape)
        outputs = []
        for token in range(tokens):
            kept = torch.exp(step[:, token, :, None] * decay)
            state = kept * state + (step[:, token] * u[:, token])[..., None] * write[:, token, None]
            outputs.append((state * read[:, token, None]).sum(-1))
        y = torch.stack(outputs, dim=1) + u * self.skip
        return x + self.leave(y * functional.silu(gate))


def network(layers: int) -> nn.Module:
    """Return the layers in sequence, on the meta device: counting needs no weights."""
    with torch.device("meta"):
        return nn.Sequential(*(SelectiveScan(WIDTH, STATE) for _ in range(layers))).eval()


def cpu_s() -> float:
    """Return the CPU seconds of this process and its ended children: effbench counts in a child process."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of one call, including those of child processes, and its result."""
    start = cpu_s()
    result = call()
    return cpu_s() - start, result


def main(layers: str, tokens: str) -> None:
    torch.set_num_threads(1)
    model = network(int(layers))
    with torch.no_grad():
        # The first use of the meta device makes torch import modules for seconds.
        profile(network(1), (8, WIDTH))
        network(1)(torch.empty(1, 8, WIDTH, device="meta"))
        forget_shapes()
        forward_s, _ = seconds(lambda: model(torch.empty(1, int(tokens), WIDTH, device="meta")))
    counted_s, found = seconds(lambda: profile(model, (int(tokens), WIDTH)))
    print(
        json.dumps({"operators": len(found.ops), "madds": found.cost.madds, "cpu_s": counted_s, "forward_s": forward_s})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
