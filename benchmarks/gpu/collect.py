"""Copy a session's runs into results/reference, where runs that docs/results.md quotes are committed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu import files, processes
from benchmarks.gpu.page import PAGE
from benchmarks.gpu.session import SETTINGS, Refused
from benchmarks.gpu.steps import STEPS

KEPT = (".jsonl", ".md", ".csv", ".png", ".svg")
STEPS_KEPT = (
    *("first_command", "repeat", "guidelines", "guidelines_saturated", "runtimes", "runtimes_saturated"),
    *("full_models", "full_models_saturated", "breakdown", "batch_sweep", "secondary_metrics", "half_precision"),
)


def collect(session: Path, target: Path | None) -> tuple[list[Path], Mapping[str, str]]:
    """Copy every complete run. Returns the written folders, and why other runs were left out. Raises Refused.

    `target` defaults to results/reference/<the card's name>, which requires a real session on a GPU.
    """
    settings = files.read_json(session / SETTINGS)
    if not isinstance(settings, dict):
        raise Refused(f"{session} holds no session")
    if target is None:
        if settings.get("tiny") or not str(settings.get("device")).startswith("cuda"):
            raise Refused("this session proves nothing of a GPU: name a folder with --to if you want its runs")
        target = processes.ROOT / "results" / "reference" / _card(session)
    written, left_out = [], {}
    for name in STEPS_KEPT:
        for run in sorted((STEPS[name].folder(session) / "runs").glob("*/run.jsonl")):
            why = _incomplete(run)
            if why:
                left_out[run.parent.name] = why
                continue
            place = target / run.parent.name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for path in sorted(run.parent.iterdir()):
                if path.suffix in KEPT and not path.name.startswith("."):
                    shutil.copyfile(path, place / path.name)
            written.append(place)
    if written and (session / PAGE).exists():
        shutil.copyfile(session / PAGE, target / f"session_{PAGE}")
    return written, left_out


def _card(session: Path) -> str:
    found = files.read_json(STEPS["environment"].folder(session) / "result.json") or {}
    name = (found.get("numbers") or {}).get("gpu.name")
    if not name:
        raise Refused("the session does not know the card's name; name a folder with --to")
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def _incomplete(run: Path) -> str:
    """Return why a run must not be committed, or ""."""
    kinds = set()
    for line in run.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kinds.add(json.loads(line).get("kind"))
        except ValueError:
            return "its file is damaged"
    if "complete" not in kinds:
        return f"it was not finished; finish it with: effbench run --resume {run.parent}"
    return "" if (run.parent / "table.md").exists() else f"it has no tables; effbench report {run.parent} makes them"
