"""The commands of `effbench fleet`: measure on many machines, and see what they do."""

from __future__ import annotations

import getpass
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import fleet_set_up, output
from effbench.cli import options as cli_options
from effbench.cli.fleet_set_up import Certs
from effbench.cli.options import RUN_OPTIONS, with_measure_options
from effbench.core.errors import InvalidValue
from effbench.core.measure_options import BUNDLE_OPTIONS, MeasureOptions
from effbench.host import optional_packages

if TYPE_CHECKING:
    from effbench.fleet.conductor import Progress
    from effbench.fleet.session import Place

MISSING = 3
"""Exit code where a machine is missing or failed."""
UNFIT = 4
"""Exit code where only the environment stands in the way."""

Scheduler = Annotated[str | None, typer.Option(help="The scheduler, such as tls://hub.lab:8786. Default: fleet.toml.")]
Config = Annotated[Path | None, typer.Option(help="A fleet.toml. Default: here, else in ~/.config/effbench.")]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A folder that `effbench fleet run --out` made.",
        autocompletion=cli_options.complete_fleet_run,
    ),
]


@with_measure_options(*RUN_OPTIONS)
def run(
    context: typer.Context,
    options: dict[str, Any],
    study: Annotated[
        str | None, typer.Argument(help="A study's name.", autocompletion=cli_options.complete_study)
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure this bundle, made by `effbench bundle`; for machines without torch.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Machines with this label or name, such as board=pi5; repeatable. A comma joins labels that a machine "
            "must all have. Default: every machine that is there."
        ),
    ] = None,
    scale: cli_options.Scale = None,
    select: cli_options.Select = None,
    model: cli_options.Models = None,
    depthwise: cli_options.Depthwise = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the copies, one a machine. Default: fleet/STUDY.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder.", autocompletion=cli_options.complete_fleet_run),
    ] = None,
    patience: Annotated[
        str | None, typer.Option(help="Give a machine up that is away or unfit for so long. Default: 10m.")
    ] = None,
    scheduler: Scheduler = None,
    certs: Certs = None,
    config: Config = None,
    as_json: cli_options.Json = False,
) -> None:
    """Measure a study or a bundle on many machines.

    Each machine keeps its run; DIR/MACHINE here is a copy that grows with every launch. Exit code: 0 complete
    everywhere, 2 a mistake, 3 a machine is missing or failed, 4 others use a machine or it is too hot, 130 interrupted.
    """
    require_packages()
    from effbench.fleet import session

    if resume is not None:
        taken = ("resume", "on", "patience", "scheduler", "certs", "config")
        cli_options.refuse_others(context, taken, "--resume goes on with the stored orders")
    place = session.find_place(scheduler, certs, config, resume)
    patience_s = place.config.patience_s if patience is None else cli_options.seconds(patience, "--patience")
    if resume is not None:
        _conduct(place, resume, list(on or ()), patience_s, as_json)
        return
    arguments = _study_arguments(study, bundle, scale, select, model, depthwise, options)
    folder = out or Path("fleet") / (study or (bundle or Path()).absolute().name)
    wanted = session.Wanted(study or "", bundle, arguments, options, _by(), output.typed_command.get())
    _conduct(place, folder, session.order(place, folder, on or (), wanted), patience_s, as_json)


def watch(folder: Folder, scheduler: Scheduler = None, certs: Certs = None, config: Config = None) -> None:
    """Show what the machines of a run do now. Ctrl-C stops only the showing."""
    require_packages()
    from effbench.cli.fleet_progress import show_machines
    from effbench.fleet import session

    place = session.find_place(scheduler, certs, config, folder)
    with show_machines() as shown:
        session.watch(place, folder, shown)


def pull(
    folder: Folder,
    scheduler: Scheduler = None,
    certs: Certs = None,
    config: Config = None,
    as_json: cli_options.Json = False,
) -> None:
    """Copy what machines have measured; measure nothing.

    Exit code: 0 copied, 2 a mistake, 3 a machine is missing.
    """
    require_packages()
    from effbench.fleet import session

    place = session.find_place(scheduler, certs, config, folder)
    with session.open_mirrors(folder, session.stored_orders(folder, ())) as mirrors:
        found = session.pull(place, mirrors)
    _show_end(folder, list(found.values()), as_json)
    if any(item.state in ("missing", "failed") for item in found.values()):
        raise typer.Exit(MISSING)


def status(
    scheduler: Scheduler = None, certs: Certs = None, config: Config = None, as_json: cli_options.Json = False
) -> None:
    """Show the machines: labels, what each does, warnings."""
    require_packages()
    from effbench.fleet import session
    from effbench.report.tables import fleet as fleet_tables

    found = session.machines(session.find_place(scheduler, certs, config))
    if as_json:
        output.print_json({"machines": [{"machine": name, **item} for name, item in found.items()]})
        return
    output.print_tables([fleet_tables.status_rows(found)])


COMMANDS: dict[str, Callable[..., None]] = {
    "certs": fleet_set_up.certs,
    "scheduler": fleet_set_up.scheduler,
    "worker": fleet_set_up.worker,
    "status": status,
    "run": run,
    "watch": watch,
    "pull": pull,
    "step": fleet_set_up.step,
}

fleet = typer.Typer(rich_markup_mode=None)
"""The group of commands."""


@fleet.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for _name, _command in COMMANDS.items():
    fleet.command(name=_name)(_command)


def require_packages() -> None:
    """Raise MissingPackage where the extra is not installed."""
    optional_packages.require("distributed")


def _by() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have a user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _study_arguments(
    study: str | None,
    bundle: Path | None,
    scale: str | None,
    select: Sequence[str] | None,
    model: Sequence[str] | None,
    depthwise: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of `effbench.run` for the study. Raises EffbenchError for what no machine could carry out."""
    from effbench.fleet import session

    if (study is None) == (bundle is None):
        raise InvalidValue(
            "name one study to run, or a bundle with --bundle; `effbench list studies` names the studies, and "
            "--resume DIR goes on with a run"
        )
    MeasureOptions.of(options)  # refuses wrong words here, once, and not on every machine
    if bundle is not None:
        if scale or select or model or depthwise:
            raise InvalidValue("--scale, --select, --model and --depthwise are for studies; a bundle has its models")
        for name in options:
            if name not in BUNDLE_OPTIONS:
                raise InvalidValue(f"{name.replace('_', '-')} is decided where the bundle is made; leave it out")
        return {}
    chosen = cli_options.parse_selection(select or [])
    arguments = {"scale": scale, "select": chosen, "models": list(model or ()), "depthwise": depthwise}
    session.require_possible(str(study), arguments, options)
    return arguments


def _conduct(place: Place, folder: Path, names: Sequence[str], patience_s: float, as_json: bool) -> None:
    """Conduct the runs of these machines, all of them if none is named, and print how each ended.

    Raises typer.Exit unless all are complete.
    """
    from effbench.cli.fleet_progress import show_machines
    from effbench.fleet import session
    from effbench.fleet.conductor import Timing

    # A complete copy needs neither its machine nor the scheduler any more.
    orders = session.stored_orders(folder, names)
    ended = {stored.order.machine: session.standing_of_copy(folder, stored) for stored in orders}
    orders = [stored for stored in orders if not ended[stored.order.machine].is_over]
    again = shlex.join(["effbench", "fleet", "run", "--resume", str(folder)])
    try:
        if orders:
            with session.open_mirrors(folder, orders) as mirrors, show_machines() as shown:
                ended |= session.conduct(place, mirrors, watch=shown, lost=output.note, timing=Timing(patience_s))
    except KeyboardInterrupt:
        said = f"interrupted; a launch that is under way ends and stays on its machine; go on with: {again}"
        raise typer.Exit(output.report_interrupt(said)) from None
    found = list(ended.values())
    _show_end(folder, found, as_json)
    states = {item.state for item in found}
    if states <= {"complete"}:
        return
    output.note(f"not complete; go on later with: {again}")
    raise typer.Exit(UNFIT if states <= {"complete", "unfit"} else MISSING)


def _show_end(folder: Path, machines: Sequence[Progress], as_json: bool) -> None:
    """Print how far each machine is, and what to do with the copies."""
    from effbench.report.tables import fleet as fleet_tables
    from effbench.runs.run_file import RUN_FILE

    rows = [asdict(item) for item in machines]
    for row in rows:
        path = folder / row["machine"]
        row["run_dir"] = str(path) if (path / RUN_FILE).exists() else None
    if as_json:
        output.print_json({"out": str(folder), "machines": rows})
        return
    output.print_tables([fleet_tables.progress_rows(rows)])
    if any(row["run_dir"] for row in rows):
        print(
            f"\nruns    {output.plain(str(folder))}\nnext    effbench report {output.plain(shlex.quote(str(folder)))}/*"
        )
