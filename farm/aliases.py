"""`mlx-farm alias …`: other names for models, as routing rules: exact, without conditions, in front of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from farm import flags, output
from farm.client import Client
from farm.errors import UsageRefused

app = typer.Typer(name="alias", help="Other names for models (routing rules, made in one step).", no_args_is_help=True)

PREFIX = "alias: "

Alias = Annotated[str, typer.Argument(metavar="NAME", help="The other name.")]


@app.command()
def add(
    name: Alias,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, or adapter, that serves it.")],
    as_json: flags.Json = False,
) -> None:
    """Let a model be asked for by another name, on every node within a second; or give a name to another model."""
    if name == model:
        raise UsageRefused(f"{name!r} is that model's name already.")
    client = Client.from_environment()
    current = client.get("/admin/rules/current")
    rule = {"name": PREFIX + name, "match": "exact", "pattern": name, "targets": [{"model": model}]}
    _put(client, current, [rule, *_without(current, name)], f"alias {name} = {model}", as_json)


@app.command("ls")
def list_aliases(as_json: flags.Json = False) -> None:
    """List the names and the models that serve them."""
    rules = Client.from_environment().get("/admin/rules/current")["rules"]
    found = {rule["pattern"]: rule["targets"][0]["model"] for rule in rules if rule["name"].startswith(PREFIX)}
    if as_json:
        output.as_json(found)
    else:
        output.table(("alias", "model"), sorted(found.items()))


@app.command("rm")
def remove(name: Alias, as_json: flags.Json = False) -> None:
    """Take a name away; requests that ask for it are refused again."""
    client = Client.from_environment()
    current = client.get("/admin/rules/current")
    rest = _without(current, name)
    if len(rest) == len(current["rules"]):
        raise UsageRefused(f"There is no alias {name!r}; `mlx-farm alias ls` lists them.")
    _put(client, current, rest, f"no alias {name}", as_json)


def _without(current: Mapping[str, Any], name: str) -> list[Any]:
    return [rule for rule in current["rules"] if rule["name"] != PREFIX + name]


def _put(client: Client, current: Mapping[str, Any], rules: Sequence[Any], note: str, as_json: bool) -> None:
    """In effect at once, unless somebody else has changed the rules meanwhile."""
    made = {"rules": list(rules), "base": current["version"], "note": note}
    draft = client.post("/admin/rules/drafts", made)
    answer = client.post("/admin/rules/apply", {"draft": draft["id"]})
    if as_json:
        output.as_json(answer)
        return
    typer.echo(f"{note} (version {answer['version']} of the routing rules)")
    for warning in draft["warnings"]:
        if warning["rule"].startswith(PREFIX):
            typer.echo(f"{warning['rule']}: {warning['warning']}", err=True)
