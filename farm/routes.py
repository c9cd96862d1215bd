"""`mlx-farm route …`: routing rules as they are, as they would be, and as they are to be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from farm import flags, output
from farm.client import Client, segment
from farm.errors import UsageRefused
from farm.listings import moment
from farm.rule_words import rule_of_flags, rule_row

app = typer.Typer(name="route", help="Routing rules: which model serves whom.", no_args_is_help=True)

RULE_COLUMNS = ("name", "match", "pattern", "when", "targets", "fallback", "lane", "overrides")
VERSION_COLUMNS = ("version", "applied", "by", "rules", "restores", "note")
DRAFT_COLUMNS = ("draft", "made", "by", "rules", "from version", "note")

Draft = Annotated[str, typer.Argument(metavar="DRAFT", help="Id of the draft.")]
Base = Annotated[
    str | None, typer.Option("--draft", metavar="DRAFT", help="Go on from a draft.", show_default="the rules in effect")
]
Note = Annotated[str, typer.Option(help="Why; kept with the version.", show_default="none")]


@app.command("ls")
def list_rules(
    versions: Annotated[bool, typer.Option("--versions", help="Versions and drafts instead.")] = False,
    as_json: flags.Json = False,
) -> None:
    """List the rules in effect in their order: the first that matches decides."""
    client = Client.from_environment()
    answer = client.get("/admin/rules" if versions else "/admin/rules/current")
    if as_json:
        output.as_json(answer)
    elif versions:
        output.table(VERSION_COLUMNS, [_version_row(version) for version in answer["data"]])
        output.table(DRAFT_COLUMNS, [_draft_row(draft) for draft in answer["drafts"]])
    else:
        output.table(RULE_COLUMNS, [rule_row(rule) for rule in answer["rules"]])
        _warn(answer)


@app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="[VERSION|DRAFT]", help="A number, or a draft's id.")] = "current",
) -> None:
    """Show the rules of a version or a draft as JSON, which `add --file` takes."""
    output.as_json(_content(Client.from_environment(), which))


@app.command()
def add(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the new rule.")] = None,
    exact: Annotated[str | None, typer.Option(metavar="MODEL", help="The model asked for is this one.")] = None,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="It begins so ('': any model).")] = None,
    regex: Annotated[str | None, typer.Option(metavar="RE2", help="All of it matches this expression.")] = None,
    to: Annotated[list[str] | None, typer.Option(metavar="MODEL[=WEIGHT]", help="Who serves; may be repeated.")] = None,
    fallback: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Who does otherwise; in order.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Of each target.")] = None,
    when: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION=VALUE", help="tenants=a,b  tools=true  hours=22-6 …")
    ] = None,
    lane: Annotated[str | None, typer.Option(help="high, normal or low, whatever was asked for.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="temperature=0.2 …")
    ] = None,
    sticky: Annotated[str | None, typer.Option(help="session, tenant or request.", show_default="session")] = None,
    at: Annotated[int | None, typer.Option(min=1, help="Place in the order.", show_default="the last")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of all rules instead ('-': stdin).")] = None,
    draft: Base = None,
    note: Note = "",
    as_json: flags.Json = False,
) -> None:
    """Make a draft with one rule more, or with the rules of a file; nothing follows it before `apply`."""
    if (name is None) == (file is None):
        raise UsageRefused("Name the new rule, or give the rules in a --file.")
    client = Client.from_environment()
    base = _content(client, draft or "current")
    if file is not None:
        rules = _read(file)
    else:
        said = {"exact": exact, "prefix": prefix, "regex": regex}
        choices = {"lane": lane, "sticky": sticky}
        rule = rule_of_flags(name or "", said, to or [], fallback or [], timeout, when or [], parameters or [], choices)
        rules = list(base["rules"])
        rules.insert(len(rules) if at is None else at - 1, rule)
    _save(client, base, rules, note, as_json)


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the rule.")],
    draft: Base = None,
    note: Note = "",
    as_json: flags.Json = False,
) -> None:
    """Make a draft without a rule; nothing follows it before `apply`."""
    client = Client.from_environment()
    base = _content(client, draft or "current")
    rules = [rule for rule in base["rules"] if rule["name"] != name]
    if len(rules) == len(base["rules"]):
        raise UsageRefused(f"There is no rule {name!r}; `mlx-farm route ls` lists them.")
    _save(client, base, rules, note, as_json)


@app.command("test")
def dry_run(
    draft: Annotated[
        str | None, typer.Argument(metavar="[DRAFT]", help="Id of the draft.", show_default="the rules in effect")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, max=10_000, help="On so many recorded requests.")] = None,
    model: Annotated[str | None, typer.Option(help="On a short chat with this model.")] = None,
    request: Annotated[Path | None, typer.Option(metavar="FILE", help="On a body ('-': stdin).")] = None,
    kind: Annotated[str, typer.Option(help="Of the body, as in POST /v1/jobs.")] = "chat.completions",
    tenant: Annotated[str | None, typer.Option(help="As if this tenant asked.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="As if this key asked.")] = None,
    lane: Annotated[str | None, typer.Option(help="As if this lane was asked for.")] = None,
    session: Annotated[str | None, typer.Option(help="As if it was of this session.")] = None,
    hour: Annotated[int | None, typer.Option(min=0, max=23, help="As if it was so late (UTC).")] = None,
    as_json: flags.Json = False,
) -> None:
    """Say what rules would do: on one request step by step, or on recorded ones what would change."""
    if sum(given is not None for given in (last, model, request)) != 1:
        raise UsageRefused("Say on what: --last N, --model MODEL or --request FILE.")
    trial: dict[str, Any] = {"draft": draft} if draft else {}
    if last is not None:
        trial["last"] = last
    else:
        body = _short_chat(model) if model is not None else _read_json(request or Path("-"))
        asks = {"tenant": tenant, "key": key, "lane": lane, "session": session, "hour": hour}
        trial["request"] = {"kind": kind, "body": body} | {k: v for k, v in asks.items() if v is not None}
    answer = Client.from_environment().post("/admin/rules/dry-run", trial)
    if as_json:
        output.as_json(answer)
    elif last is not None:
        _tell_changes(answer)
    else:
        _tell_steps(answer)


@app.command()
def apply(draft: Draft, as_json: flags.Json = False) -> None:
    """Put a draft in effect, as a new version; every node follows within a second."""
    _tell_version(Client.from_environment().post("/admin/rules/apply", {"draft": draft}), as_json)


@app.command()
def rollback(
    version: Annotated[int, typer.Argument(metavar="VERSION", min=0, help="Whose rules; 0 had none.")],
    note: Note = "",
    as_json: flags.Json = False,
) -> None:
    """Put the rules of an older version in effect again, as a new version."""
    _tell_version(Client.from_environment().post("/admin/rules/rollback", {"version": version, "note": note}), as_json)


def _content(client: Client, which: str) -> dict[str, Any]:
    place = which if which == "current" or which.isdigit() else f"drafts/{segment(which)}"
    answer: dict[str, Any] = client.get(f"/admin/rules/{place}")
    return answer


def _save(client: Client, base: Mapping[str, Any], rules: Sequence[Any], note: str, as_json: bool) -> None:
    made_from = base["base"] if "base" in base else base["version"]
    draft = client.post("/admin/rules/drafts", {"rules": list(rules), "base": made_from, "note": note})
    if as_json:
        output.as_json(draft)
        return
    typer.echo(draft["id"])
    _warn(draft)


def _read(file: Path) -> list[Any]:
    """What `show` prints, or a list of rules."""
    content = _read_json(file)
    rules = content.get("rules") if isinstance(content, dict) else content
    if not isinstance(rules, list):
        raise UsageRefused(f"{file}: expected a JSON list of rules, or an object with 'rules'.")
    return rules


def _read_json(file: Path) -> Any:
    try:
        return json.loads(sys.stdin.read() if str(file) == "-" else file.read_text())
    except OSError as error:
        raise UsageRefused(f"Cannot read {file}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageRefused(f"{file} is not JSON: {error}.") from error


def _short_chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}]}


def _version_row(version: Mapping[str, Any]) -> list[Any]:
    applied = moment(version["applied_ms"] / 1000)
    return [version["version"], applied, version["actor"], version["rules"], version["restores"], version["note"]]


def _draft_row(draft: Mapping[str, Any]) -> list[Any]:
    made = moment(draft["created_ms"] / 1000)
    return [draft["id"], made, draft["actor"], draft["rules"], draft["base"], draft["note"]]


def _warn(content: Mapping[str, Any]) -> None:
    for warning in content["warnings"]:
        typer.echo(f"{warning['rule']}: {warning['warning']}", err=True)


def _tell_version(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(answer)
        return
    typer.echo(f"version {answer['version']} is in effect ({len(answer['rules'])} rules)")
    _warn(answer)


def _tell_steps(answer: Mapping[str, Any]) -> None:
    output.table(("rule", "outcome"), [(step["rule"], step["outcome"]) for step in answer["steps"]])
    typer.echo(f"now:  {_route(answer['current'])}")
    typer.echo(f"then: {_route(answer['route'])}")


def _tell_changes(answer: Mapping[str, Any]) -> None:
    told = f"{answer['changed_target']} of {answer['requests']} requests would change target"
    typer.echo(f"{told}, {answer['changed']} anything")
    if answer["not_recorded"]:
        typer.echo(f"{answer['not_recorded']} older ones were recorded without what rules look at", err=True)
    output.table(("from", "to", "requests"), [(m["from"], m["to"], m["requests"]) for m in answer["moves"]])
    rows = [(c["job"], c["model_asked"], _route(c["from"]), _route(c["to"])) for c in answer["changes"]]
    output.table(("job", "model asked", "now", "then"), rows)


def _route(route: Mapping[str, Any]) -> str:
    rule = f"rule {route['rule']}" if route["rule"] else "no rule"
    return f"{route['model']} ({rule}, lane {route['lane']})"
