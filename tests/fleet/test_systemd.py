"""Units of systemd: their command survives systemd's quoting, and nothing in them changes what is measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effbench.core.errors import InvalidValue
from effbench.fleet import systemd

WORKER = systemd.worker_unit(["/opt/env/bin/effbench", "fleet", "worker", "tls://hub.lab:8786", "--name", "pi5-a"])
SCHEDULER = systemd.scheduler_unit(["/opt/env/bin/effbench", "fleet", "scheduler"], user="hub")


def settings(unit: str) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in unit.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return dict(found)


def words_of(line: str) -> list[str]:
    """What systemd makes of a command line: quotes, backslashes, `%%` and `$$` (systemd.service(5))."""
    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"(?= |$)|([^ "]+)', line):
        word = re.sub(r"\\(.)", r"\1", quoted) if quoted or not bare else bare
        assert bare != ";", "a second command"
        assert not re.search(r"(?<!%)%(?:%%)*(?!%)", word), "a specifier"
        words.append(word.replace("%%", "%"))
    return [words[0], *(word.replace("$$", "$") for word in words[1:])]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)


@given(st.lists(TEXT, max_size=4), TEXT)
def test_every_argument_arrives_as_it_is(arguments: list[str], folder: str) -> None:
    command = [f"/opt/{folder}/effbench", *arguments]
    line = systemd.exec_start(command)
    assert words_of(line) == command


@pytest.mark.parametrize(
    ("arguments", "user", "said"),
    [
        (["effbench", "fleet"], "effbench", "a unit needs the absolute path of its program, not 'effbench'"),
        ([], "effbench", "absolute path"),
        (["/bin/effbench", "a\nExecStartPre=/bin/harm"], "effbench", "holds a control character"),
        (["/bin/effbench"], "root\nGroup=x", "is no name of a user"),
    ],
)
def test_what_a_unit_cannot_hold_is_refused(arguments: list[str], user: str, said: str) -> None:
    for make in (systemd.worker_unit, systemd.scheduler_unit):
        with pytest.raises(InvalidValue, match=re.escape(said)):
            make(arguments, user=user)


def test_a_unit_starts_again_whatever_the_exit_code_was() -> None:
    for unit, user in ((WORKER, "effbench"), (SCHEDULER, "hub")):
        found = settings(unit)
        assert found["Restart"] == ["always"] and found["StartLimitIntervalSec"] == ["0"] and found["User"] == [user]
        assert float(found["RestartSec"][0]) > 0 and float(found["TimeoutStopSec"][0]) > 0
        assert found["NoNewPrivileges"] == ["yes"] and found["CapabilityBoundingSet"] == [""]
        assert all(len(values) == 1 for values in found.values())


def test_a_worker_is_measured_as_any_program() -> None:
    """No quota, no other priority, no filter of system calls, nothing hidden of the processes that disturb."""
    found = settings(WORKER)
    assert found["Nice"] == ["0"] and found["OOMPolicy"] == ["continue"] and found["ProtectSystem"] == ["full"]
    filters = {"SystemCallFilter", "SystemCallArchitectures", "RestrictAddressFamilies", "RestrictNamespaces"}
    filters |= {"RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices"}
    filters |= {f"ProtectKernel{name}" for name in ("Tunables", "Modules", "Logs")} | {"ProtectClock"}
    hidden = {"ProtectProc", "ProcSubset", "PrivateTmp", "PrivateUsers", "DynamicUser"}
    limits = {"CPUQuota", "CPUWeight", "CPUAffinity", "AllowedCPUs", "MemoryMax", "MemoryHigh", "CPUSchedulingPolicy"}
    assert not found.keys() & (filters | hidden | limits)


@pytest.mark.parametrize("name", [systemd.WORKER_UNIT, systemd.SCHEDULER_UNIT])
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    make = systemd.worker_unit if name == systemd.WORKER_UNIT else systemd.scheduler_unit
    unit = make([sys.executable, "50% $HOME", '"q"\\', "a'b", ";"], user="root")
    assert f"systemctl enable --now {name}" in unit
    (tmp_path / name).write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(tmp_path / name)], capture_output=True, text=True
    )
    assert done.returncode == 0 and name not in done.stderr, done.stderr
