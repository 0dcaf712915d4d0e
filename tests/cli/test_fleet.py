"""The commands of a fleet, as far as they need no fleet: wrong words, certificates, units of systemd."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import schemas
from shell import effbench

pytest.importorskip("distributed")
pytest.importorskip("cryptography")

ADDRESS = "tcp://127.0.0.1:1"

WRONG = {
    "fleet foo": ["no fleet command named 'foo'", "scheduler", "worker"],
    "fleet run": ["name one study to run, or a bundle with --bundle", "--resume"],
    "fleet run g2_groups --bundle b": ["name one study to run, or a bundle"],
    "fleet run g2_group": ["no study named 'g2_group'", "Did you mean 'g2_groups'"],
    "fleet run net.py": ["net.py is a file of this machine", "--bundle DIR"],
    "fleet run full_models --model path/net.py:build": ["path/net.py:build is a file of this machine"],
    "fleet run g2_groups --device gpu": ["gpu", "cuda"],
    "fleet run g2_groups --runtime onnx": ["no runtime named 'onnx'", "Did you mean 'onnxruntime'"],
    "fleet run g2_groups --scale x3": ["x3", "x1", "x4"],
    "fleet run metric_predicts_speed": ["measures nothing", "effbench run metric_predicts_speed"],
    "fleet run g2_groups --frob": ["--frob", "see effbench fleet run --help"],
    "fleet run g2_groups --patience soon": ["--patience soon", "60s, 5m or 2h"],
    f"fleet run g2_groups --scheduler {ADDRESS}": [f"nothing listens at {ADDRESS}", "effbench fleet scheduler"],
    "fleet run g2_groups --scheduler tls://127.0.0.1:1": ["needs certificates", "effbench fleet certs"],
    "fleet run --resume nowhere": ["nowhere holds no run of a fleet", "effbench fleet run … --out nowhere"],
    "fleet run --resume nowhere --quick": ["leave out quick"],
    "fleet run --bundle nowhere": ["no bundle at nowhere"],
    "fleet run --bundle nowhere --scale x1": ["are for studies"],
    "fleet run --bundle nowhere --dtype float16": ["dtype", "where the bundle is made"],
    "fleet watch nowhere": ["nowhere holds no run of a fleet"],
    "fleet status --config nowhere.toml": ["nowhere.toml"],
    f"fleet worker {ADDRESS} --name Pi5": ["--name", "'Pi5' cannot be a name"],
    f"fleet worker {ADDRESS} --name pi5 --label board": ["--label board", "KEY=VALUE"],
    f"fleet worker {ADDRESS} --name pi5 --port 70000": ["--port 70000", "65535"],
    "fleet worker tls://127.0.0.1:1 --name pi5 --certs nowhere": ["nowhere"],
    "fleet scheduler --host 0.0.0.0": ["0.0.0.0", "effbench fleet certs"],
    "fleet scheduler --port -1": ["--port -1"],
    "fleet certs c": ["names", "see effbench fleet certs --help"],
    "fleet certs c hub --days 0": ["0"],
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_one_line_that_says_what_to_do(words: str, tmp_path: Path) -> None:
    done = effbench(*words.split(), cwd=tmp_path)
    assert done.code == 2 and not done.out
    (line,) = done.err.splitlines()
    for part in WRONG[words]:
        assert part in line
    assert not list(tmp_path.iterdir()), "a refusal leaves nothing behind"


def test_certificates_are_made_for_machines_and_people(tmp_path: Path) -> None:
    done = effbench("fleet", "certs", "certs", "hub", "alice", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    schemas.validate(json.loads(done.out), "fleet_certs")
    key = tmp_path / "certs" / "alice" / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = effbench("fleet", "certs", "certs", "pi5-a", cwd=tmp_path)
    assert again.code == 0 and again.out.startswith("certs/pi5-a  expires 20")
    twice = effbench("fleet", "certs", "certs", "alice", cwd=tmp_path)
    assert twice.code == 2 and "--renew" in twice.err


def test_a_unit_of_systemd_does_not_depend_on_the_folder_it_is_printed_in(tmp_path: Path) -> None:
    effbench("fleet", "certs", "certs", "hub", "pi5-a", cwd=tmp_path)
    words = ("fleet", "worker", "tls://hub.lab", "--name", "pi5-a", "--label", "board=pi5", "--certs", "certs/pi5-a")
    done = effbench(*words, "--systemd", cwd=tmp_path)
    assert done.code == 0, done.err
    (command,) = (line for line in done.out.splitlines() if line.startswith("ExecStart="))
    assert command.startswith("ExecStart=/")
    assert f"fleet worker tls://hub.lab:8786 --name pi5-a --label board=pi5 --certs {tmp_path}/certs/pi5-a" in command
    assert "Restart=always" in done.out
    done = effbench("fleet", "scheduler", "--certs", "certs/hub", "--systemd", cwd=tmp_path)
    assert f"fleet scheduler --host 127.0.0.1 --port 8786 --certs {tmp_path}/certs/hub" in done.out


def test_a_group_without_a_command_says_which_there_are(tmp_path: Path) -> None:
    done = effbench("fleet", cwd=tmp_path)
    assert done.code == 0
    for name in ("certs", "scheduler", "worker", "status", "run", "watch", "pull", "step"):
        assert f"\n  {name} " in done.out


def test_folders_of_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from effbench.cli.options import complete_fleet_run

    for place in ("fleet/g2/.fleet", "other/.fleet", "fleet/plain"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert complete_fleet_run("") == ["fleet/g2", "other"]
    assert complete_fleet_run("fl") == ["fleet/g2"]
