"""Count every network of torchvision and timm, and compare with torchvision's published figures and with fvcore on
timm.

Run, in this order, from the root of the repository (minutes, minutes, up to an hour, seconds):

    OMP_NUM_THREADS=1 nice python benchmarks/coverage.py torchvision OMP_NUM_THREADS=1 nice python
    benchmarks/coverage.py timm OMP_NUM_THREADS=1 nice python benchmarks/coverage.py fvcore OMP_NUM_THREADS=1 nice
    python benchmarks/coverage.py docs

Every row is written to results/coverage/*.csv as soon as it is known. A second run continues where the first stopped.
"""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import coverage_page
from coverage_page import FOLDER, read

from effbench.core.cost import Cost

LIMIT_S = 240.0
MADDS_LIMIT = 30_000_000_000
WEIGHTS_LIMIT = 2 << 30
PRODUCTS = ("conv", "linear", "matmul", "einsum", "bmm")
Row = dict[str, Any]

# googlenet's auxiliary heads are removed after training; those of segmentation networks stay if there are any.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False},
    "lraspp_mobilenet_v3_large": {},
    "segmentation": {"aux_loss": True},
}

TORCHVISION = "network weights kind input published_gmadds madds published_params params traced_on status release error"
TIMM = "network input params madds activations norms traced_on status uncounted seconds release error"
FVCORE = "network input fvcore products others blind seconds release error"


# --- one network at a time, in a process that may be ended --------------------------------------------


def count_timm(network: str) -> Row:
    """Count with effbench, with timm's default settings (fused attention on), on the input that timm publishes."""
    from effbench.cost import count_in_subprocess
    from effbench.zoo import load_model

    shape = load_model.published_shape(f"timm:{network}")
    assert shape is not None, "timm publishes an input size for every network"
    found = count_in_subprocess.profile(f"timm:{network}", shape, batch=1, dtype="float32")
    cost = found.cost
    return {
        "input": "x".join(map(str, shape)),
        "params": cost.params,
        "madds": cost.madds,
        "activations": cost.activations,
        "norms": sum(op.elementwise for op in found.ops if op.kind == "norm"),
        "traced_on": cost.traced_on,
        "status": cost.status,
        "uncounted": " ".join(f"{name}:{times}" for name, times in cost.uncounted.items()),
    }


def count_fvcore(network: str) -> Row:
    """Count with fvcore, on real tensors. Weights are zeros, because fvcore's trace does not read their values.

    `products` are its convolutions and matrix products, `others` its norms and pooling. `blind` names operators with
    multiply-adds that it skipped. Attention is unfused (TIMM_FUSED_ATTN=0), because fvcore skips the fused operator.
    """
    import torch
    from fvcore.nn import FlopCountAnalysis

    from effbench.cost import count_in_subprocess
    from effbench.cost.other_counters import FVCORE_BLIND, cpu_twin
    from effbench.cost.sandbox import quiet_torch, replace_tensors
    from effbench.zoo import load_model

    logging.disable(logging.WARNING)
    shape = load_model.published_shape(f"timm:{network}")
    assert shape is not None
    model = count_in_subprocess.build_on_meta(f"timm:{network}", {})
    with quiet_torch(), replace_tensors(model.modules(), cpu_twin(torch.float32)):
        flops = FlopCountAnalysis(model, torch.randn(1, *shape))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = {name: int(amount) for name, amount in flops.by_operator().items()}
        skipped = flops.unsupported_ops()
    blind = sorted(name for name in skipped if name.split("::")[-1].split(".")[0] in FVCORE_BLIND)
    return {
        "input": "x".join(map(str, shape)),
        "fvcore": sum(by_operator.values()),
        "products": sum(by_operator.get(name, 0) for name in PRODUCTS),
        "others": " ".join(f"{name}:{amount}" for name, amount in sorted(by_operator.items()) if name not in PRODUCTS),
        "blind": " ".join(f"{name}:{skipped[name]}" for name in blind),
    }


TASKS: dict[str, Callable[[str], Row]] = {"timm": count_timm, "fvcore": count_fvcore}


def serve(task: str, pipe: Connection) -> None:
    """Answer the requests of `Helper` in the child process."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while network := _next(pipe):
        start = time.process_time()
        try:
            row = TASKS[task](network)
        except Exception as error:  # networks of other libraries may raise anything
            row = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"}
        pipe.send({"network": network, "seconds": round(time.process_time() - start, 2), **row})


def _next(pipe: Connection) -> str | None:
    try:
        return str(pipe.recv())
    except EOFError:  # the parent process is gone
        return None


class Helper:
    """A child process that counts networks, restarted when a network crashes it or takes too long."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.task, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, network: str) -> Row:
        self.pipe.send(network)
        try:
            if self.pipe.poll(LIMIT_S):
                return dict(self.pipe.recv())
            reason = f"not done after {LIMIT_S:g} s"
        except EOFError:
            reason = "the process was ended (out of memory?)"
        self.process.kill()
        self.process.join()
        self.start()
        return {"network": network, "error": reason}


# --- files --------------------------------------------------------------------------------------------


def extend(name: str, columns: str, rows: Iterable[Row]) -> None:
    """Append rows as they come, so that an interrupted run loses at most one."""
    path = FOLDER / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.exists()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, columns.split(), lineterminator="\n")
        if not exists:
            table.writeheader()
        for number, row in enumerate(rows):
            table.writerow(row)
            file.flush()
            if number % 50 == 0:
                print(name, number, row["network"], row.get("error") or "", flush=True)
    ordered = sorted(read(name), key=lambda row: (row["network"], row.get("weights", "")))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns.split(), lineterminator="\n")
        table.writeheader()
        table.writerows(ordered)


def release(*packages: str) -> str:
    return ", ".join(f"{package} {version(package).partition('+')[0]}" for package in ("torch", *packages))


# --- the three tables -----------------------------------------------------------------------------------


def torchvision_rows(known: set[tuple[str, str]]) -> Iterator[Row]:
    """Yield a row for every weights entry of classification, segmentation and video networks, built and fed as
    published.
    """
    from effbench.core.errors import EffbenchError
    from effbench.cost import count_in_subprocess
    from effbench.zoo import libraries, load_model

    @cache
    def cost(network: str, shape: tuple[int, ...], arguments: tuple[tuple[str, object], ...]) -> Cost:
        """Count once per network and size: several weights entries share them."""
        named = f"torchvision:{network}"
        return count_in_subprocess.profile(named, shape, batch=1, dtype="float32", arguments=dict(arguments)).cost

    models = libraries.library("torchvision")
    kinds = {"classification": models, "segmentation": models.segmentation, "video": models.video}
    for kind, module in kinds.items():
        for network in models.list_models(module=module):
            for weights in models.get_model_weights(network):
                if (network, weights.name) in known:
                    continue
                arguments = dict(AS_PUBLISHED.get(network, AS_PUBLISHED.get(kind, {})))
                shape = load_model.published_shape(f"torchvision:{network}", {"weights": weights.name})
                assert shape is not None, "each of these kinds publishes its preprocessing"
                if network.startswith("vit_"):
                    arguments["image_size"] = shape[-1]
                row: Row = {
                    "network": network,
                    "weights": weights.name,
                    "kind": kind,
                    "input": "x".join(map(str, shape)),
                    "published_gmadds": weights.meta["_ops"],
                    "published_params": weights.meta["num_params"],
                    "release": release("torchvision"),
                }
                try:
                    counted = cost(network, tuple(shape), tuple(arguments.items()))
                except EffbenchError as error:
                    yield {**row, "error": str(error)}
                else:
                    found = {"madds": counted.madds, "params": counted.params}
                    yield {**row, **found, "traced_on": counted.traced_on, "status": counted.status}


def timm_rows(known: set[str]) -> Iterator[Row]:
    from effbench.zoo import libraries

    helper = Helper("timm")
    for network in libraries.library("timm").list_models():
        if network not in known:
            yield {**helper.ask(network), "release": release("timm")}


def fvcore_rows(known: set[str]) -> Iterator[Row]:
    """Yield the smallest networks first. Networks that are too large to finish are listed with that reason."""
    os.environ["TIMM_FUSED_ATTN"] = "0"
    helper = Helper("fvcore")
    ours = [row for row in read("timm") if not row["error"]]
    for row in sorted(ours, key=lambda row: int(row["madds"])):
        network = row["network"]
        if network in known:
            continue
        if int(row["madds"]) > MADDS_LIMIT or 4 * int(row["params"]) > WEIGHTS_LIMIT:
            found = {"network": network, "input": row["input"], "error": "too large to run: above 30 G madds or 2 GiB"}
        else:
            found = helper.ask(network)
        yield {**found, "release": release("timm", "fvcore")}


def main(task: str) -> int:
    if task == "torchvision":
        extend(task, TORCHVISION, torchvision_rows({(row["network"], row["weights"]) for row in read(task)}))
    elif task == "timm":
        extend(task, TIMM, timm_rows({row["network"] for row in read(task)}))
    elif task == "fvcore":
        extend("timm_fvcore", FVCORE, fvcore_rows({row["network"] for row in read("timm_fvcore")}))
    elif task == "docs":
        text = coverage_page.page(coverage_page.PAGE.read_text(), coverage_page.coverage())
        coverage_page.PAGE.write_text(text)
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [""]))
