"""`mlx-farm providers …`: cloud backends, their models and prices, and their keys, which go in and never come out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm import flags, output, roles
from farm.client import Client, segment
from farm.errors import UsageRefused
from farm.listings import rows_of

app = typer.Typer(name="providers", help="Cloud backends: add, list, change, disable.", no_args_is_help=True)

COLUMNS = ("name", "kind", "base url", "models", "serves", "key", "state")
URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com/v1"}
FIELDS = {
    "input": "input_usd",
    "output": "output_usd",
    "cached": "cached_usd",
    "cache_written": "cache_written_usd",
    "context": "context_tokens",
    "max_output": "max_output_tokens",
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the provider, in front of its models' names.")]
KeyVariable = Annotated[
    str | None,
    typer.Option("--key-env", metavar="VARIABLE", help="Where its key is; else it is read from stdin."),
]
NoKey = Annotated[bool, typer.Option("--no-key", help="It wants none: a gateway of one's own.")]
Kind = Annotated[str, typer.Option(help="openai or anthropic: the protocol it speaks.")]
BaseUrl = Annotated[str | None, typer.Option(metavar="URL", help="With the version.", show_default="the kind's own")]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME[,input=3,output=15,…]",
        help="A model; dollars per million tokens (input, output, cached, cache_written), context, max_output.",
    ),
]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Of a whole answer.", show_default="600")]
Silence = Annotated[float | None, typer.Option(metavar="SECONDS", help="For its next byte.", show_default="120")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Requests at once to one model.", show_default="16")]

LengthField = Annotated[
    str | None,
    typer.Option(help="OpenAI's protocol: the longest answer's name there.", show_default="max_completion_tokens"),
]


@app.command()
def add(
    name: Name,
    models: Models,
    kind: Kind = "openai",
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    silence: Silence = None,
    concurrency: Concurrency = None,
    length_field: LengthField = None,
    key_env: KeyVariable = None,
    no_key: NoKey = False,
    as_json: flags.Json = False,
) -> None:
    """Add a provider; a `mlx-farm worker --providers` serves its models within a second."""
    said = {"timeout_s": timeout, "silence_s": silence, "concurrency": concurrency, "length_field": length_field}
    terms = _terms(kind, base_url, models, said)
    key = "" if no_key else _key(key_env)
    _tell(Client.from_environment().post("/admin/providers", {"name": name, **terms, "key": key}), as_json)


@app.command()
def change(
    name: Name,
    models: Models,
    kind: Kind = "openai",
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    silence: Silence = None,
    concurrency: Concurrency = None,
    length_field: LengthField = None,
    as_json: flags.Json = False,
) -> None:
    """Say again what a provider is, all of it but its key."""
    said = {"timeout_s": timeout, "silence_s": silence, "concurrency": concurrency, "length_field": length_field}
    terms = _terms(kind, base_url, models, said)
    _tell(Client.from_environment().post(f"/admin/providers/{segment(name)}", terms), as_json)


@app.command("ls")
def list_providers(as_json: flags.Json = False) -> None:
    """List all providers, disabled ones too."""
    answer = Client.from_environment().get("/admin/providers")
    if as_json:
        output.as_json(answer)
        return
    output.table(COLUMNS, [_row(provider) for provider in rows_of(answer)])


@app.command()
def rotate(name: Name, key_env: KeyVariable = None, as_json: flags.Json = False) -> None:
    """Give a provider another key."""
    body = {"key": _key(key_env)}
    _tell(Client.from_environment().post(f"/admin/providers/{segment(name)}/rotate", body), as_json)


@app.command()
def disable(name: Name, as_json: flags.Json = False) -> None:
    """Begin nothing there any more; what has begun goes on."""
    _tell(Client.from_environment().post(f"/admin/providers/{segment(name)}/disable"), as_json)


@app.command()
def enable(name: Name, as_json: flags.Json = False) -> None:
    """Let a disabled provider serve again."""
    _tell(Client.from_environment().post(f"/admin/providers/{segment(name)}/enable"), as_json)


@app.command("rotate-secret")
def rotate_secret(
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep the old secret beside it, for nodes that have a copy.")
    ] = False,
    home: flags.Home = None,
    database_url: flags.DatabaseUrl = None,
) -> None:
    """Encrypt all keys of providers with a new secret (FARM_HOME/secret-key), in the database itself."""
    where = {"home": home, "database_url": database_url}
    roles.become("scheduler", "rotate-secret", *(["--keep-old"] if keep_old else []), settings=where)


def model_of(text: str) -> dict[str, Any]:
    """`NAME[,input=3][,output=15]…` as the API takes it. Raises UsageRefused."""
    name, *settings = text.split(",")
    model: dict[str, Any] = {"name": name}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in FIELDS or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UsageRefused(f"--model {text!r}: {setting!r} is none of {'=N, '.join(FIELDS)}=N.")
        whole = FIELDS[key].endswith("_tokens")
        if whole and "." in value:
            raise UsageRefused(f"--model {text!r}: {key} is a whole number of tokens.")
        model[FIELDS[key]] = int(value) if whole else float(value)
    return model


def _terms(kind: str, base_url: str | None, models: list[str], said: Mapping[str, Any]) -> dict[str, Any]:
    if kind not in URLS:
        raise UsageRefused(f"--kind {kind!r}: it is {' or '.join(URLS)}.")
    terms = {"kind": kind, "base_url": base_url or URLS[kind], "models": [model_of(model) for model in models]}
    return terms | {name: value for name, value in said.items() if value is not None}


def _key(variable: str | None) -> str:
    """From the environment or stdin: what stands on a command line, others can read."""
    if variable is not None:
        if not os.environ.get(variable):
            raise UsageRefused(f"The variable {variable} is not set.")
        return os.environ[variable]
    if sys.stdin.isatty():
        return str(typer.prompt("Key of the provider", hide_input=True))
    key = sys.stdin.readline().strip()
    if not key:
        raise UsageRefused("Give the key on stdin or with --key-env, or say --no-key.")
    return key


def _row(provider: Mapping[str, Any]) -> list[str]:
    models = ", ".join(model["name"] for model in provider["models"])
    serves = ", ".join(f"{name} ({state})" for name, state in provider["serves"].items())
    state = "enabled" if provider["enabled"] else "disabled"
    key = "yes" if provider["has_key"] else "none"
    return [provider["name"], provider["kind"], provider["base_url"], models, serves, key, state]


def _tell(provider: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(provider)
        return
    names = ", ".join(f"{provider['name']}/{model['name']}" for model in provider["models"])
    typer.echo(f"{provider['name']} is {'enabled' if provider['enabled'] else 'disabled'}: {names}")
