"""Run files that mean harm: what a reader must survive, a seeded source of them, and a target for atheris.

``make fuzz`` searches for them by coverage for as long as one likes; the tests go through a fixed hundred thousand.
"""

from __future__ import annotations

import inspect
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import runs

from effbench import export
from effbench.analysis.run_diff import compare_runs
from effbench.analysis.summary import summarise
from effbench.analysis.verdicts import judge
from effbench.core.errors import CorruptRun, InvalidValue
from effbench.core.operator_times import Breakdown, OperatorTime
from effbench.gates import ab_pairs
from effbench.report import json_document, page
from effbench.report.tables.diff import diff_rows
from effbench.report.tables.table_model import render_csv, render_markdown
from effbench.results import Results
from effbench.runs import run_file

# --- one file that holds every kind of record --------------------------------------------------------


def whole_file(folder: Path) -> bytes:
    """A small complete run as bytes: two cells, two rounds, a record of every kind."""
    study = runs.study((1, 2))
    study = replace(study, claims=study.claims[:1], notes=("a note",))
    run = runs.run_of(dict.fromkeys(runs.CELLS[:2], 0.01), experiment=study, launches=1, rounds=2)
    operators = tuple(OperatorTime(name, name, kind, 0.004, 2) for name, kind in (("conv2d", "dense"), ("cat", "")))
    found = Breakdown(calls=2, watched_s=0.011, alone_s=0.01, operators=operators)
    with run_file.RunWriter(folder) as writer:
        writer.header(run, "0.0")
        for result in run.results:
            writer.cell(result)
            writer.append("calls", cell=result.cell.id, calls=4)
        writer.append("launch", launch=0, slot=0)
        for warm in run.launches[0].warmups.values():
            writer.append("warmup", launch=0, **asdict(warm))
        writer.append("probe", launch=0, cell=runs.CELLS[0], values={"bound": "host", "host_over_device": 1.5})
        writer.append("null", launch=0, ns_per_call=60.0)
        for result in run.results:
            for block in result.blocks:
                writer.block(block)
        writer.append("end", launch=0, stopped="rounds", seconds=1.0)
        writer.append("breakdown", launch=0, cell=runs.CELLS[0], **asdict(found))
        writer.append("facts", launch=0, facts={"device": "cpu"})
        writer.append("skip", cell=runs.CELLS[1], reason="ended")
        writer.append("complete")
        writer.append("verdicts", verdicts=[])
    return (folder / run_file.RUN_FILE).read_bytes()


# --- what a reader does with it ----------------------------------------------------------------------


def read(path: Path, data: bytes, depth: int) -> bool:
    """Do with a run file what effbench does. True for a run, False for a refusal of one line; anything else raises.

    Depth 0 parses it, 1 draws every conclusion and prints JSON, 2 prints tables and a page too.
    """
    try:
        run = run_file.parse(path, data)
    except CorruptRun as error:
        assert "\n" not in str(error) and len(str(error)) < 600, str(error)
        return False
    if depth >= 1:
        cells = summarise(run)
        verdicts, compared = judge(run, cells), compare_runs(run, run)
        for cell in cells:
            ab_pairs.log_ratios_by_launch(ab_pairs.rounds(ab_pairs.Pair(run, run), cell.cell.id))
        shown = [json_document.run_document(run, cells, verdicts), json_document.diff_document(compared)]
        json.dumps(shown, allow_nan=False).encode()
    if depth >= 2:
        for item in (*Results(run).tables(), diff_rows(compared)):
            render_markdown(item).encode()
            render_csv(item).encode()
        page.markdown([Results(run)], path.parent).encode()
        for name in export.FORMATS:
            with suppress(InvalidValue):
                for text in export.export(run, name).texts.values():
                    text.encode()
    return True


# --- harm --------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, -1e308, 5e-324, 1e-300),
    *(2**31, 2**62, 2**63, -(2**63), 10**18, 10**400, "", "1", "nan", "wall", "cpu", "\ud800", "\x00", "../../x"),
    *("\x1b[2J", "<script>", "x" * 5000, [], [None], [[]], [1, 2], {}, {"a": []}, {"": None}, {"calls": 0}),
)
"""Wrong types, and right types at the end of their range."""

TEXTS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"00", b"1.", b"0x1", b"9" * 5000),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\xff\xfe"',
        b"\xed\xa0\x80",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"[" * 900 + b"]" * 900,
    ),
    *(
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b"\n",
        b"\r\n",
        b"\x00",
        b"\xef\xbb\xbf",
        b"null",
        b"{}",
        b'{"kind":"header"}',
    ),
    *(b',"kind":"block"', b',"cell":"x"', b',"timing":{"calls":1}', b',"launch":-1', b"\xe2\x80\xa8", b"}", b"]", b'"'),
)
"""What JSON allows, nearly allows, or readers of it disagree on."""


def harmed(whole: bytes, draw: random.Random) -> bytes:
    """The file with one to three faults, in its bytes, in its lines or in its values."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        whole = draw.choice((_bytes, _lines, _values, _values, _values))(whole, draw)
    return whole


def _bytes(whole: bytes, draw: random.Random) -> bytes:
    at, kind = draw.randrange(len(whole) + 1), draw.randrange(5)
    to = min(len(whole), at + draw.choice((1, 2, 8, 100)))
    if kind == 0:
        return whole[:at] + draw.randbytes(to - at) + whole[to:]
    if kind == 1:
        return whole[:at] + whole[to:]
    if kind == 2:
        return whole[:at] + whole[at:to] * draw.choice((2, 3, 50)) + whole[to:]
    if kind == 3:
        return whole[:at] if draw.random() < 0.3 else whole[:at] + bytes([draw.randrange(256)]) + whole[at + 1 :]
    return whole[:at] + draw.choice(TEXTS) + whole[at + draw.choice((0, 1, 5)) :]


def _lines(whole: bytes, draw: random.Random) -> bytes:
    lines = whole.split(b"\n")
    at, to, kind = draw.randrange(len(lines)), draw.randrange(len(lines)), draw.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[to])
    elif kind == 2:
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == 3:
        lines.insert(at, draw.choice(TEXTS))
    elif kind == 4:
        draw.shuffle(lines)
    else:
        lines = lines[:at] + lines[at : to + 1] * 2 + lines[to + 1 :]
    return b"\n".join(lines)


def _values(whole: bytes, draw: random.Random) -> bytes:
    lines = whole.split(b"\n")
    at = draw.randrange(len(lines))
    try:
        record = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _bytes(whole, draw)
    found = list(places(record))
    if not found:
        return _lines(whole, draw)
    holder, key = draw.choice(found)
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, there = draw.choice(found)
        holder[key] = json.loads(json.dumps(other[there]))
    elif kind == 2 and isinstance(holder, dict):
        holder[draw.choice(("x", "", "kind", "cell", "\ud800", "__class__", "x" * 3000))] = holder.pop(key)
    elif kind == 3:
        holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}
    elif kind == 4 and isinstance(holder[key], (int, float)):
        holder[key] = draw.choice((-1, 1)) * draw.choice((0, 1, 2**53, 2**62, 10**18, 10**25, 5e-324, 1e-300, 1e300))
    else:
        holder[key] = "MARKED"
        mark = json.dumps("MARKED").encode()
        nasty = draw.choice(TEXTS) if draw.random() < 0.3 else _written(draw.choice(VALUES))
        lines[at] = json.dumps(record).encode().replace(mark, nasty)
        return b"\n".join(lines)
    lines[at] = _written(record)
    return b"\n".join(lines)


def places(value: Any, depth: int = 20) -> Sequence[tuple[Any, Any]]:
    """Every place inside a JSON value: what holds it, and the key or number that it stands under."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key], depth - 1))] if depth else []


def _written(value: Any) -> bytes:
    if isinstance(value, int) and abs(value) > 10**300:
        return b"1" + b"0" * 400
    return json.dumps(value).encode()


# --- by coverage -------------------------------------------------------------------------------------


def _functions() -> Iterator[Any]:
    """Every function and method of effbench that is loaded."""
    for name, module in list(sys.modules.items()):
        for found in list(vars(module).values()) if name.startswith("effbench.") else ():
            if getattr(found, "__module__", "") == name:
                members = vars(found).values() if inspect.isclass(found) else (found,)
                yield from filter(inspect.isfunction, members)


def main() -> None:
    """Search with atheris. Arguments are libFuzzer's: ``-max_total_time=300``, ``-runs=100000``, a corpus folder."""
    import atheris

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = whole_file(folder / "run")
        path = folder / run_file.RUN_FILE

        def mutated(data: bytes, max_size: int, seed: int) -> bytes:
            draw = random.Random(seed)
            harm = harmed(data if data.startswith(b"{") else whole, draw)
            return atheris.Mutate(harm, max_size) if draw.random() < 0.3 else harm[:max_size]

        def once(data: bytes) -> None:
            read(path, data, depth=2)

        corpus = folder / "corpus"
        corpus.mkdir()
        (corpus / "whole").write_bytes(whole)
        for function in _functions():
            atheris.instrument_func(function)
        arguments = [*sys.argv, "-max_len=20000", "-timeout=20", "-rss_limit_mb=1500"]
        arguments += [f"-artifact_prefix={tempfile.gettempdir()}/effbench-", str(corpus)]
        atheris.Setup(arguments, once, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
