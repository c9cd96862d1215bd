"""`mlx-farm`: the list of commands, and how an error becomes a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from farm import (
    aliases,
    audit,
    batch,
    chat,
    farm_batches,
    gallery,
    jobs,
    keys,
    listings,
    models,
    providers,
    roles,
    routes,
    services,
    tenants,
)
from farm.errors import CommandError
from farm.output import complain

app = typer.Typer(
    name="mlx-farm",
    help="An LLM inference farm: start it, talk to it, look into it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
settings = typer.Typer(name="config", help="The settings in effect.", no_args_is_help=True)
settings.command("show")(roles.config_show)


@settings.callback()
def config() -> None:
    """The settings in effect."""


COMMANDS: tuple[Callable[..., None], ...] = (
    *(roles.serve, roles.api, roles.worker, roles.scheduler, roles.batches),
    *(chat.run, listings.ls, listings.ps),
    *(models.load, models.unload, models.pin, models.unpin),
    *(gallery.pull, gallery.pulls, gallery.rm, gallery.search, gallery.recommend),
    *(roles.doctor, roles.version),
)
for command in COMMANDS:
    app.command()(command)
for name, farm_batch in farm_batches.COMMANDS.items():
    batch.app.command(name)(farm_batch)
apps = (jobs.app, batch.app, audit.app, audit.database, tenants.app, keys.app, providers.app, routes.app)
for group in (*apps, aliases.app, services.app, settings):
    app.add_typer(group)


def main() -> None:
    """The console script. Exit codes: 0 ok, 1 failed, 2 usage, 3 not reachable."""
    try:
        app()
    except CommandError as error:
        complain(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
