"""The commands of `effbench fleet` that set machines up: certs, scheduler, worker, step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.core.errors import InvalidValue

Certs = Annotated[
    Path | None,
    typer.Option(help="Folder of a certificate, made by `effbench fleet certs`. Needed but on loopback."),
]
Systemd = Annotated[bool, typer.Option("--systemd", help="Print a systemd unit that runs this command, and exit.")]


def certs(
    folder: Annotated[Path, typer.Argument(help="Folder of the certificates. The first call makes its CA.")],
    names: Annotated[list[str], typer.Argument(help="Names of machines and people, such as hub pi5-a alice.")],
    days: Annotated[int, typer.Option(help="Days until the certificates expire.")] = 90,
    renew: Annotated[bool, typer.Option("--renew", help="Replace certificates that exist.")] = False,
    as_json: cli_options.Json = False,
) -> None:
    """Make a certificate for each machine and person.

    Whoever holds one may run code on every machine: keys are readable by their owner only.
    """
    from effbench.fleet import authority

    made = authority.create(folder, names, days=days, renew=renew)
    if as_json:
        issued = [
            {"name": item.name, "folder": str(item.folder), "expires": item.expires.isoformat()} for item in made.issued
        ]
        output.print_json({"ca": str(made.ca), "ca_expires": made.ca_expires.isoformat(), "certificates": issued})
        return
    for item in made.issued:
        print(f"{output.plain(str(item.folder))}  expires {item.expires:%Y-%m-%d}")
    print(
        f"\nca      {output.plain(str(made.ca))}  expires {made.ca_expires:%Y-%m-%d}; its key stays here, for more\n"
        "next    copy each folder to its machine, for instance with scp -r, and delete it here"
    )


def scheduler(
    host: Annotated[str, typer.Option(help="Address to listen at: a name or number of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8786,
    certs: Certs = None,
    systemd: Systemd = False,
) -> None:
    """Run the scheduler, which machines and people connect to."""
    from effbench.fleet import addresses

    scheme = "tcp" if certs is None else "tls"
    address = addresses.check(addresses.Address(scheme, host, _require_port(port)), certs)
    if systemd:
        from effbench.fleet import systemd as units

        print(units.scheduler_unit(_arguments("scheduler", host=host, port=port, certs=certs)), end="")
        return
    from effbench.fleet import certificates, event_loop, serve

    own = None if certs is None else certificates.load(certs)
    event_loop.run(serve.serve_scheduler(address, own, output.note))


def worker(
    address: Annotated[str, typer.Argument(help="The scheduler, such as tls://hub.lab:8786.")],
    name: Annotated[str, typer.Option(help="Name of this machine.")],
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that --on can choose by, such as board=pi5; repeatable.")
    ] = None,
    certs: Certs = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at. Default: the one that leads to the scheduler.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen at. Default: any that is free.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of runs and bundles. Default: ~/.local/share/effbench/fleet.")
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(help="File that is locked while something is measured. Default: effbench.lock in /tmp."),
    ] = None,
    systemd: Systemd = False,
) -> None:
    """Make this machine part of a fleet.

    It measures what others order, one launch at a time. Waits for the scheduler, and connects again whenever that comes
    back.
    """
    from effbench.fleet import addresses, labels, machine_folder, machine_lock

    found = addresses.parse(address, certs)
    _require_port(port)
    if host is not None:
        addresses.check(addresses.Address(found.scheme, host, port), certs)
    own_labels = [labels.Label.of_machine(text) for text in label or ()]
    labels.check_name(name, "--name")
    if systemd:
        from effbench.fleet import systemd as units

        given = {
            "name": name,
            "label": label,
            "certs": certs,
            "host": host,
            "port": port or None,
            "folder": folder,
            "lock": lock,
        }
        print(units.worker_unit(_arguments("worker", str(found), **given)), end="")
        return
    from effbench.fleet import certificates, event_loop, serve

    place = serve.WorkerPlace(
        name, own_labels, folder or machine_folder.default_folder(), lock or machine_lock.default_path(), host, port
    )
    own = None if certs is None else certificates.load(certs)
    event_loop.run(serve.serve_worker(place, found, own, output.note))


def step() -> None:
    """Carry out one launch of an order; for other engines.

    Reads one line of JSON from standard input and writes lines of JSON. Ends when its input ends. Exit code: 0
    complete, 2 a mistake, 4 not fit now, 5 launches are left.
    """
    from effbench.fleet import step as fleet_step

    raise typer.Exit(fleet_step.carry_out())


def _require_port(port: int) -> int:
    if not 0 <= port < 2**16:
        raise InvalidValue(f"--port {port}: expected 1 to 65535, or 0 for any that is free")
    return port


def _arguments(*words: str, **given: object) -> list[str]:
    """The command line again, with paths that do not depend on the folder it is typed in."""
    typed = [sys.executable, "-m", "effbench", "fleet", *words]
    for name, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                typed += [f"--{name}", str(item.absolute() if isinstance(item, Path) else item)]
    return typed
