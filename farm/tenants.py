"""`mlx-farm tenants …`: what each tenant has in the queue, and its part of a lane."""

from __future__ import annotations

from typing import Annotated

import typer

from farm import flags, output
from farm.client import Client, segment
from farm.listings import rows_of

app = typer.Typer(name="tenants", help="Tenants and their parts of the farm.", no_args_is_help=True)
COLUMNS = ("name", "weight", "set_by", "jobs", "tokens")


@app.command("ls")
def list_tenants(as_json: flags.Json = False) -> None:
    """List tenants that have a weight of their own or jobs that have not ended."""
    answer = Client.from_environment().get("/admin/tenants")
    if as_json:
        output.as_json(answer)
        return
    output.table(COLUMNS, [[str(tenant.get(name)) for name in COLUMNS] for tenant in rows_of(answer)])


@app.command()
def weight(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the tenant.")],
    weight: Annotated[float | None, typer.Argument(metavar="[WEIGHT]", help="Left out: as the settings say.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Change the part of a lane that a tenant gets while others wait there too; it holds at once."""
    answer = Client.from_environment().post(f"/admin/tenants/{segment(name)}", {"weight": weight})
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{answer['name']}: weight {answer['weight']:g} ({answer['set_by']})")
