"""Write docs/benchmarks.md from the rows under results/benchmarks: targets, results, and the peers' results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers import (
    alarm,
    gate_time,
    harness_cost,
    honest_decisions,
    honest_precision,
    long_sequence,
    power,
    sitting_coverage,
    sittings,
    spread,
    start_up,
    static_profile,
    time_to_answer,
)
from benchmarks.peers.session import RESULTS, ROOT, Ledger, Section, Target
from benchmarks.peers.tables import table

PAGE = ROOT / "docs" / "benchmarks.md"
PARTS = (
    harness_cost.PART,
    spread.PART,
    sitting_coverage.PART,
    honest_precision.PART,
    honest_decisions.PART,
    alarm.PART,
    power.PART,
    time_to_answer.PART,
    gate_time.PART,
    start_up.PART,
    static_profile.PART,
    long_sequence.PART,
    sittings.PART,
)
NOTES = "notes.json"
"""By target: why it was missed, what to try next, or how else it was measured. Written by hand, printed beside it."""

HEAD = """# effbench compared with other tools

This page is written by `python -m benchmarks.peers page` from the rows in `results/benchmarks/`, and
`tests/benchmarks/test_peers.py` checks that it matches them. `make bench` repeats all measurements on your machine
in about an hour, and three more for the sittings, which come last. It continues where it was stopped.

Every part alternates effbench with its peers in one session, in seeded random order and in fresh processes. Peers run
as their users run them, with their defaults, and again with as much time as effbench gets. The file of each part under
`benchmarks/peers/` describes how it is measured.
"""


def page(results: Path = RESULTS) -> str:
    """Return the whole page as Markdown."""
    machines = [folder for folder in sorted(results.glob("*")) if (folder / "sessions.jsonl").exists()]
    texts = [HEAD, *(_machine(folder) for folder in machines)]
    return "\n".join(texts) if machines else HEAD + "\nNothing has been recorded yet.\n"


def _machine(folder: Path) -> str:
    sessions = [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]
    path = folder / NOTES
    notes: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    sections: list[tuple[str, Section, str]] = []
    for part in PARTS:
        ledger = Ledger(folder / f"{part.name}.jsonl")
        if entries := ledger.entries():
            minutes = sum(entry["seconds"] for entry in entries) / 60
            raw = f"[{part.name}.jsonl](../results/benchmarks/{folder.name}/{part.name}.jsonl)"
            about = f"Raw rows: {raw}, {minutes:.0f} min, {_days(entry['at'] for entry in entries)}; again with "
            sections.append(
                (part.title, part.section(ledger.rows()), f"{about}`python -m benchmarks.peers {part.name}`.")
            )
    targets = [target for _, section, _ in sections for target in section.targets]
    blocks = [f"## {folder.name}", _about(sessions), _targets(targets, notes)]
    for title, section, raw in sections:
        blocks += [f"### {title}", *section.blocks, raw]
    return "\n\n".join(blocks) + "\n"


def _targets(targets: list[Target], notes: dict[str, str]) -> str:
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = [(item.what, item.wanted, item.found, item.peers, words[item.is_met]) for item in targets]
    text = table(("target", "wanted", "effbench", "peers", ""), lines).replace("---:", ":---")
    said = [f"- {item.what}: {notes[item.what]}" for item in targets if item.what in notes]
    return "\n\n".join([text, "\n".join(said)]) if said else text


def _about(sessions: list[dict[str, Any]]) -> str:
    """Describe the machine, the versions and the commands of all sessions, each once."""
    machine = sessions[-1]["machine"]
    place = ", ".join(str(machine[name]) for name in ("cpu", "system") if machine[name])
    inside = [word for word, name in (("virtual", "hypervisor"), ("in a container", "container")) if machine[name]]
    loads = [session["machine"]["load_1m"] for session in sessions if session["machine"]["load_1m"] is not None]
    load = f"; load at the start {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    versions = list(dict.fromkeys(_versions(session["versions"]) for session in sessions))
    commands = list(dict.fromkeys(session["command"] for session in sessions))
    return "\n\n".join(
        [
            f"{place}, {machine['cores']} cores{''.join(f', {word}' for word in inside)}, {machine['memory_gib']:.0f} "
            f"GiB; {_days(session['at'] for session in sessions)}{load}. One thread. Commands: "
            f"{', '.join(f'`{command}`' for command in commands)}.",
            *(f"Versions: {text}." for text in versions),
        ]
    )


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _days(moments: Any) -> str:
    days = sorted({moment[:10] for moment in moments})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def write() -> None:
    PAGE.write_text(page(), encoding="utf-8")
