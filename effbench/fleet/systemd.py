"""systemd units of the scheduler and of a worker, which ``--systemd`` prints.

What a unit leaves out is left out for a reason. Options that load a filter of system calls (``SystemCallFilter``,
``ProtectKernelTunables``, ``RestrictAddressFamilies``, ``PrivateDevices`` and others) are not used for a worker: the
filter is inherited by every measuring process, runs at each system call, and makes kernels before 5.16 switch on
mitigations that slow all code down. ``MemoryDenyWriteExecute`` stops runtimes that compile. ``ProtectProc`` hides the
processes that effbench looks for, ``PrivateTmp`` a lock that is shared with others. A quota of CPU time would be
measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from effbench.core.errors import InvalidValue

USER = "effbench"
"""The user that both processes run as, unless another is named."""

WORKER_UNIT = "effbench-worker.service"
SCHEDULER_UNIT = "effbench-scheduler.service"

_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

_UNIT = """\
# What `{what} … --systemd` prints. Its output goes to /etc/systemd/system/{name}, and then:
#     sudo systemctl daemon-reload && sudo systemctl enable --now {name}
[Unit]
Description={what}
Wants=network-online.target
After=network-online.target time-sync.target
# Tried again for ever, also after hours without a network.
StartLimitIntervalSec=0

[Service]
ExecStart={command}
User={user}
WorkingDirectory=~
# dask's processes may end with code 0 where their peer is gone. So on-failure is not enough.
Restart=always
SuccessExitStatus=143
RestartSec={restart_s}
KillMode=mixed
TimeoutStopSec=30
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=full
ProtectControlGroups=yes
{more}
[Install]
WantedBy=multi-user.target
"""

_OF_A_WORKER = """\
# A measuring process that uses up the memory is ended alone.
OOMPolicy=continue
# Measured at the priority of ordinary programs, without a quota and on all cores.
Nice=0
"""

_OF_A_SCHEDULER = """\
PrivateTmp=yes
PrivateDevices=yes
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
"""


def worker_unit(arguments: Sequence[str], *, user: str = USER) -> str:
    """Return the unit of a worker.

    Parameters
    ----------
    arguments
        The command and its arguments, without ``--systemd``. The first is an absolute path. Folders in the others must
        be absolute too, since the unit runs in the home folder of `user`.
    user
        The user to run as, who owns the key of the machine and the folder of its runs.

    Returns
    -------
    str
        The text of the unit file.

    Raises
    ------
    InvalidValue
        If the first argument is no absolute path, an argument holds a control character, or `user` is no user's name.
    """
    return _unit("effbench fleet worker", WORKER_UNIT, arguments, user, restart_s=10, more=_OF_A_WORKER)


def scheduler_unit(arguments: Sequence[str], *, user: str = USER) -> str:
    """Return the unit of a scheduler. It measures nothing, so it is shut in more than a worker.

    Parameters
    ----------
    arguments
        As for `worker_unit`.
    user
        The user to run as, who owns the key of the scheduler.

    Returns
    -------
    str
        The text of the unit file.

    Raises
    ------
    InvalidValue
        As `worker_unit`.
    """
    return _unit("effbench fleet scheduler", SCHEDULER_UNIT, arguments, user, restart_s=2, more=_OF_A_SCHEDULER)


def _unit(what: str, name: str, arguments: Sequence[str], user: str, *, restart_s: int, more: str) -> str:
    if not _USER_NAME.fullmatch(user):
        raise InvalidValue(f"{user!r} is no name of a user: expected small letters, digits, _ and -")
    command = exec_start(arguments)
    return _UNIT.format(what=what, name=name, command=command, user=user, restart_s=restart_s, more=more)


def exec_start(arguments: Sequence[str]) -> str:
    """Quote a command for ``ExecStart=`` (systemd.service(5), "Command lines").

    A ``%`` would begin a specifier, and a ``$`` a variable of the environment, but not in the path of the program.

    Raises InvalidValue for a program that is no absolute path, and for control characters.
    """
    program, *others = arguments or [""]
    if not program.startswith("/"):
        raise InvalidValue(f"a unit needs the absolute path of its program, not {program!r}")
    return " ".join((_quote(program), *(_quote(word).replace("$", "$$") for word in others)))


def _quote(word: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise InvalidValue(f"{word!r} holds a control character, which a unit cannot hold")
    escaped = word.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_./:=@,+%$-]+", word):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'
