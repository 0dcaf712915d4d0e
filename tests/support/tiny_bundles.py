"""Bundles that no export has made, for runs on the fake device: it takes times from counts and never loads a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from effbench._version import __version__
from effbench.bundles.bundle import BUNDLE_FILE, SCHEMA
from effbench.core.study import Case, Cell, Claim, Experiment, Sampling
from effbench.runtimes.model_file import FACTS_FILE
from effbench.timing.reference_io import EXPECTED_FILE, INPUTS_FILE

FILES = (FACTS_FILE, INPUTS_FILE, EXPECTED_FILE, "model.onnx")


def tiny_bundle(folder: Path, rounds: int = 3, model_bytes: int = 100) -> Path:
    """A bundle of two cells, whose launches have so many rounds and whose models have so many bytes."""
    cases = tuple(Case("probe_groups", (8, 8, 8), {"groups": groups}, labels={"groups": groups}) for groups in (1, 2))
    study = Experiment(
        name="tiny",
        title="Tiny",
        claim="More groups run slower.",
        factor="groups",
        levels=(1, 2),
        reference=1,
        cases=cases,
        claims=(Claim("slower", "2 is slower than 1.", ((2, 1),), headline=(2, 1)),),
        sampling=Sampling(
            launches=2, min_rounds=rounds, max_rounds=rounds, warmup_s=0.0, max_warmup_s=0.05, block_s=0.001
        ),
    )
    models = [_model(folder, number, case, model_bytes) for number, case in enumerate(cases)]
    text = {
        "bundle": SCHEMA,
        "versions": {"effbench": __version__},
        "experiment": dataclasses.asdict(study),
        "cells": models,
    }
    (folder / BUNDLE_FILE).write_text(json.dumps(text))
    return folder


def _model(folder: Path, number: int, case: Case, size: int) -> dict[str, Any]:
    place = folder / str(number)
    place.mkdir(parents=True)
    digests = {}
    for name in FILES:
        data = b"{}" if name == FACTS_FILE else bytes([number]) * size
        (place / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    counts = {"weights": 64, "activations": 1024, "weight_bytes": 256, "activation_bytes": 4096}
    cost = {
        "params": 64,
        "madds": 4096 // (number + 1),
        "activations": 512,
        "elementwise": 0,
        "memory_access_levels": dict.fromkeys(("layer", "eager", "pointwise", "epilogue"), counts),
        "status": "complete",
        "uncounted": {},
        "traced_on": "meta",
    }
    cell = Cell(case, "cpu", runtime="onnxruntime", batch=1)
    return {"cell": dataclasses.asdict(cell), "cost": cost, "folder": str(number), "files": digests, "facts": {}}
