"""Commands that become another process: the farm's own (serve, api, worker, scheduler), and those that need settings.

The command line itself stays light; what needs SQL, MLX or the settings classes runs in the process that replaces it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer

from farm import flags
from farm.errors import UsageRefused

MODEL_FLAGS = ("model", "model_name", "task", "adapters", "draft_model", "max_sequences", "kv_bits")
"""Of `worker`: what a model is served with."""


def become(module: str, *arguments: str, settings: Mapping[str, Any] | None = None) -> NoReturn:
    """Replace this process by `python -m module arguments…`; settings given as flags win over the environment.

    -P keeps a folder named `api` or `workers` in the current directory from being taken for ours.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **flags.environment(settings or {})})


def serve(
    ctx: typer.Context,
    model: flags.Model = None,
    host: flags.Host = None,
    port: flags.Port = None,
    api_key: flags.ApiKey = None,
    model_name: flags.ModelName = None,
    adapters: flags.Adapters = None,
    draft_model: flags.DraftModel = None,
    embedding_model: flags.EmbeddingModel = None,
    rerank_model: flags.RerankModel = None,
    providers: flags.Providers = None,
    max_sequences: flags.MaxSequences = None,
    kv_bits: flags.KvBits = None,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    insecure: flags.Insecure = None,
    log_level: flags.LogLevel = None,
    log_format: flags.LogFormat = None,
) -> None:
    """Start a whole farm on this machine: Valkey, SQLite, scheduler, API, batches and a worker per model."""
    become("farm.serve", settings=ctx.params)


def api(
    ctx: typer.Context,
    host: flags.Host = None,
    port: flags.Port = None,
    api_key: flags.ApiKey = None,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    insecure: flags.Insecure = None,
    log_level: flags.LogLevel = None,
    log_format: flags.LogFormat = None,
) -> None:
    """Start one API node."""
    become("api", settings=ctx.params)


def worker(
    ctx: typer.Context,
    model: flags.Model = None,
    model_name: flags.ModelName = None,
    task: flags.Task = None,
    adapters: flags.Adapters = None,
    draft_model: flags.DraftModel = None,
    max_sequences: flags.MaxSequences = None,
    kv_bits: flags.KvBits = None,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    log_level: flags.LogLevel = None,
    log_format: flags.LogFormat = None,
    providers: Annotated[
        bool, typer.Option("--providers", help="Serve the models of providers instead, with no model of its own.")
    ] = False,
) -> None:
    """Start one worker: a node agent with a process for its model, or one that asks providers."""
    settings = {name: value for name, value in ctx.params.items() if name != "providers"}
    if not providers:
        become("workers", settings=settings)
    if said := [name for name in MODEL_FLAGS if settings.get(name) not in (None, [], ())]:
        flag = said[0].replace("_", "-").replace("adapters", "adapter")
        raise UsageRefused(f"--{flag} says what a model is served with, and --providers serves none of this machine.")
    become("workers.providers", settings=settings)


def scheduler(
    ctx: typer.Context,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    log_level: flags.LogLevel = None,
    log_format: flags.LogFormat = None,
) -> None:
    """Start the scheduler: projector, reaper and background tasks."""
    become("scheduler", settings=ctx.params)


def batches(
    ctx: typer.Context,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    log_level: flags.LogLevel = None,
    log_format: flags.LogFormat = None,
) -> None:
    """Start the batches process: it runs uploaded batches and sends webhooks."""
    become("api.batches", settings=ctx.params)


def doctor(
    as_json: flags.Json = False,
    home: flags.Home = None,
    redis_url: flags.RedisUrl = None,
    database_url: flags.DatabaseUrl = None,
    host: flags.Host = None,
    port: flags.Port = None,
) -> None:
    """Check this machine and this farm; every problem comes with its fix."""
    settings = {"home": home, "redis_url": redis_url, "database_url": database_url, "host": host, "port": port}
    become("farm.doctor", *_json_flag(as_json), settings=settings)


def config_show(as_json: flags.Json = False, home: flags.Home = None) -> None:
    """Show every setting in effect and where it comes from; secrets are masked."""
    become("farm.config", *_json_flag(as_json), settings={"home": home})


def version(as_json: flags.Json = False) -> None:
    """Print the versions of the farm and of what it runs on."""
    become("farm.version", *_json_flag(as_json))


def audit_rebuild(home: flags.Home = None, database_url: flags.DatabaseUrl = None) -> None:
    """Compute the tables again from the recorded events."""
    become("scheduler", "rebuild", settings={"home": home, "database_url": database_url})


def db_upgrade(home: flags.Home = None, database_url: flags.DatabaseUrl = None) -> None:
    """Bring the database to the newest schema."""
    become("scheduler", "upgrade", settings={"home": home, "database_url": database_url})


def db_current(as_json: flags.Json = False, home: flags.Home = None, database_url: flags.DatabaseUrl = None) -> None:
    """Show the database's schema version and the newest one."""
    become("scheduler", "current", *_json_flag(as_json), settings={"home": home, "database_url": database_url})


def _json_flag(as_json: bool) -> list[str]:
    return ["--json"] if as_json else []
