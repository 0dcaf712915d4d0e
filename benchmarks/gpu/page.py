"""Write the summary page of a session: what passed and what failed, with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import files
from benchmarks.gpu.outcome import Outcome
from benchmarks.gpu.steps import STEPS

PAGE, DOCUMENT = "summary.md", "summary.json"
MARKS = {"pass": "pass", "fail": "**FAIL**", "skip": "skipped", "incomplete": "**incomplete**", "note": "–"}
_FACTS = ("gpu.name", "gpu.driver", "gpu.cuda", "gpu.cudnn", "torch", "triton", "onnxruntime", "python")


def write(folder: Path, settings: Mapping[str, Any], outcomes: Mapping[str, Outcome | None]) -> str:
    """Write the page, also as JSON, and return it."""
    text = render(settings, outcomes)
    files.write_text(folder / PAGE, text)
    steps = {
        name: None
        if found is None
        else {"verdict": found.verdict, "why": found.why(), **{k: v for k, v in vars(found).items() if k != "folder"}}
        for name, found in outcomes.items()
    }
    files.write_json(folder / DOCUMENT, {"settings": dict(settings), "counts": counts(outcomes), "steps": steps})
    return text


def counts(outcomes: Mapping[str, Outcome | None]) -> dict[str, int]:
    """Count the steps by verdict; steps that have not run are "missing"."""
    verdicts = ["missing" if found is None else found.verdict for found in outcomes.values()]
    return {word: verdicts.count(word) for word in ("pass", "fail", "incomplete", "skip", "missing")}


def render(settings: Mapping[str, Any], outcomes: Mapping[str, Outcome | None]) -> str:
    device = str(settings.get("device", ""))
    environment = outcomes.get("environment")
    facts = {} if environment is None else environment.numbers
    about = ", ".join(f"{name} {facts[name]}" for name in _FACTS if facts.get(name))
    found = counts(outcomes)
    lines = [
        f"# GPU session: {device}{' (tiny: proves nothing)' if settings.get('tiny') else ''}",
        "",
        *([f"{about}.", ""] if about else []),
        ", ".join(f"{number} {word}" for word, number in found.items() if number) + f" of {len(outcomes)} steps.",
        "",
        "| step | verdict | seconds | what failed, or why |",
        "| :--- | :--- | ---: | :--- |",
    ]
    for name, outcome in outcomes.items():
        if outcome is None:
            lines.append(f"| {name} | missing | – | not begun |")
        else:
            lines.append(
                f"| {name} | {MARKS[outcome.verdict]} | {outcome.seconds:.0f} | {_cell(outcome.why()) or '–'} |"
            )
    for name, outcome in outcomes.items():
        if outcome is not None and outcome.checks:
            lines += ["", f"## {STEPS[name].title}", ""]
            lines += ["| check | verdict | found | wanted |", "| :--- | :--- | :--- | :--- |"]
            lines += [_row(check) for check in outcome.checks]
    return "\n".join(lines) + "\n"


def _row(check: Mapping[str, str]) -> str:
    found_text = " – ".join(part for part in (check["found"], check["reason"]) if part)
    return f"| {_cell(check['what'])} | {MARKS[check['verdict']]} | {_cell(found_text)} | {_cell(check['wanted'])} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
