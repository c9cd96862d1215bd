"""`python -m farm.serve`, the process behind `mlx-farm serve`: a whole farm on one machine from one command.

Owns the composition and the words on the screen; supervisor.py runs the processes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import typer

from farm import config, ports, valkey
from farm.children import Child, Output, Role
from farm.errors import CommandError
from farm.home import Home, HomeLock
from farm.output import complain
from farm.supervisor import Ready, Supervisor
from farm.terminal import foreground
from scheduler.settings import ApiSettings, ServeSettings, WorkerSettings

_VALKEY_GRACE_S = 30.0
_SCHEDULER_GRACE_S = 10.0
_BATCHES_GRACE_S = 10.0
_NOTHING_OF_THE_OTHER = {
    **{"FARM_MODEL_NAME": "", "FARM_ADAPTERS": "", "FARM_DRAFT_MODEL": "", "FARM_KV_BITS": "0"},
    **{"FARM_MODELS": "", "FARM_PRELOAD": "", "FARM_PINNED": ""},
}
"""What was said of the models that generate does not hold for those beside them."""


def run() -> None:
    """Serve until a signal asks to stop. Raises CommandError when it cannot start."""
    api, worker, beside = config.load(ApiSettings), config.load(WorkerSettings), config.load(ServeSettings)
    home = Home(api.home_path)
    home.create()
    lock = HomeLock(home)
    lock.acquire()
    try:
        ports.require_free(api.host, api.port)
        socket = None if api.redis_url else home.socket()
        if socket and (orphan := valkey.stop_orphan(socket)):
            typer.echo(f"Stopped the Valkey (pid {orphan}) that an earlier serve had left behind.", err=True)
        first: list[Role] = []
        if socket:
            first = [_valkey_role(home, valkey.command(home, socket), lambda: valkey.ping(socket))]
        others = _roles(api, worker, beside, valkey.url(socket) if socket else api.redis_url)
        asyncio.run(_supervise(first, others, Output(home.logs), lambda ready: _announce(ready, api, worker, home)))
    finally:
        lock.release()


async def _supervise(first: list[Role], others: list[Role], output: Output, announce: Callable[[Ready], None]) -> None:
    def on_ready(ready: Ready, children: dict[str, Child]) -> None:
        if url := ready["api"].get("url"):  # a restarted API keeps its address, also one that --port 0 picked
            children["api"].environment["FARM_PORT"] = str(url).rpartition(":")[2].strip("/")
        announce(ready)

    await Supervisor(first=first, others=others, output=output, on_ready=on_ready).run()


def _valkey_role(home: Home, argv: list[str], probe: Callable[[], bool]) -> Role:
    return Role(name="valkey", argv=argv, grace_s=_VALKEY_GRACE_S, probe=probe, echo=False, watches_stdin=False)


def _roles(api: ApiSettings, worker: WorkerSettings, beside: ServeSettings, redis_url: str) -> list[Role]:
    """In the order in which they stop: the API ends its streams while a worker still feeds them."""
    environment = {"FARM_SUPERVISED": "1", "FARM_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    if api.log_format == "auto" and sys.stderr.isatty():
        environment["FARM_LOG_FORMAT"] = "console"
    worker_grace_s = worker.drain_s + 20
    roles = [
        _role("api", "api", api.drain_s + 5, environment),
        _role("batches", "api.batches", _BATCHES_GRACE_S, environment),
        _role("worker", "workers", worker_grace_s, environment),
    ]
    for task, model in {"embed": beside.embedding_model, "rerank": beside.rerank_model}.items():
        if model:
            changes = {**_NOTHING_OF_THE_OTHER, "FARM_TASK": task, "FARM_MODEL": model}
            roles.append(_role(f"{task}-worker", "workers", worker_grace_s, environment | changes))
    if beside.providers:
        roles.append(_role("provider-worker", "workers.providers", worker_grace_s, environment))
    return [*roles, _role("scheduler", "scheduler", _SCHEDULER_GRACE_S, environment)]


def _role(name: str, module: str, grace_s: float, environment: Mapping[str, str]) -> Role:
    return Role(name=name, argv=[sys.executable, "-P", "-m", module], grace_s=grace_s, environment=environment)


def _announce(ready: Ready, api: ApiSettings, worker: WorkerSettings, home: Home) -> None:
    """Say that the farm is up and what to do next."""
    url = str(ready["api"].get("url") or f"http://{api.host}:{api.port}").rstrip("/")
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")  # "all addresses" is none to call
    about = ready["worker"]
    model = str(about.get("model") or worker.model)
    header = "" if ready["api"].get("open") else ' -H "Authorization: Bearer $FARM_API_KEY"'
    more = [str(about["model"]) for name, about in ready.items() if name.endswith("-worker") and about["model"]]
    facts = {
        "API": f"{url}/v1   docs {url}/docs   metrics {url}/metrics",
        "Auth": _auth(ready["api"]),
        "Model": f"{model} ({about.get('engine', 'engine unknown')}; BLAS: {about.get('blas', 'unknown')})",
        **({"Beside": ", ".join(more)} if more else {}),
        "Queue": "embedded Valkey" if not api.redis_url else config.masked(api.redis_url),
        "Record": config.masked(api.database),
        "Data": str(home.path),
    }
    lines = ["", "mlx-farm is ready. Ctrl-C stops it.", ""]
    lines += [f"  {name:<7} {value}" for name, value in facts.items()]
    lines += ["", f"export OPENAI_BASE_URL={url}/v1", f"export ANTHROPIC_BASE_URL={url}", ""]
    question = '"messages": [{"role": "user", "content": "What are you?"}]'
    body = f'{{"model": "{model}", "stream": true, "temperature": 0, {question}}}'
    lines += [f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\", f"  -d '{body}'", ""]
    with suppress(BrokenPipeError):
        typer.echo("\n".join(lines))
        sys.stdout.flush()


def _auth(api: Mapping[str, Any]) -> str:
    if api.get("open"):
        return "none: whoever reaches this address may use it (mlx-farm keys create)"
    if api.get("first_key"):
        return f"a key is required; the first one is in {api['first_key']}: keep it elsewhere, delete the file"
    return "a key is required (export FARM_API_KEY=…)"


def main() -> None:
    """Exit 0 after a clean stop, 1 when a part did not start, 2 for a wrong setting."""
    try:
        with foreground():
            run()
    except CommandError as error:
        complain(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
