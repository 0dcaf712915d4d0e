"""The commands that read stored runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from schemas import validate

import effbench
from effbench.analysis import run_sittings
from effbench.cli import app


def test_diff_tells_scripts_what_its_table_notes_of_sittings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    effbench.measure("lenet5", device="fake", launches=2, out=tmp_path / "run")
    words = ["diff", str(tmp_path / "run"), str(tmp_path / "run"), "--json"]
    for note in ("", "Changes include ±3.0 % between sittings."):
        monkeypatch.setattr(run_sittings, "change_note", lambda *_, told=note: told)
        capsys.readouterr()
        assert app.main(words) == 0
        document = json.loads(capsys.readouterr().out)
        validate(document, "diff")
        assert document["note"] == note
