"""What `doctor` looks at: each check answers with OK, WARN or FAIL, what was found, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from farm import ports
from farm.errors import CommandError
from farm.version import back_end, installed
from scheduler.errors import QueueUnavailable, UnsupportedServer
from scheduler.servers import look, risks
from scheduler.settings import ApiSettings, SchedulerSettings

LOW_DISK_BYTES = 5 * 2**30
LOW_MEMORY_BYTES = 4 * 2**30
PROBE_LIMIT_S = 60.0
_BLAS_PROBE = "from workers.engine.backend import load_blas; print(load_blas())"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `fix` is empty when there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def python() -> Finding:
    """A Python that the packages support, and on a Mac a native one."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return Finding(
            "python",
            Verdict.FAIL,
            f"{found} (an Intel Python; under Rosetta on Apple Silicon)",
            "MLX needs a native arm64 Python: brew install python@3.12, then make clean serve",
        )
    return Finding("python", Verdict.OK, found)


def memory() -> Finding:
    """Enough memory for a small model."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < LOW_MEMORY_BYTES:
        return Finding("memory", Verdict.WARN, _size(total), "Only models of less than half of that will fit.")
    return Finding("memory", Verdict.OK, _size(total))


def mlx() -> Finding:
    """MLX, mlx-lm, and a back end for this machine."""
    version, kind = installed("mlx"), back_end()
    extra = "" if sys.platform == "darwin" else "[cpu]"
    if version is None or kind is None:
        found = f"mlx {version or 'not installed'}, no back end"
        return Finding("mlx", Verdict.FAIL, found, f"pip install -c constraints.txt -e '.{extra}' (NVIDIA: .[cuda])")
    return Finding("mlx", Verdict.OK, f"mlx {version} on {kind}, mlx-lm {installed('mlx-lm') or 'not installed'}")


def blas() -> Finding:
    """A fast matrix product on the CPU back end."""
    answer = _probe([sys.executable, "-P", "-c", _BLAS_PROBE])
    if answer.returncode:
        return Finding("blas", Verdict.FAIL, _last_line(answer.stderr), "Repair the installation: make clean serve")
    found = answer.stdout.strip()
    if "slow" in found:
        fix = "apt-get install libopenblas0-pthread (about 25 times faster)"
        return Finding("blas", Verdict.WARN, found.partition(";")[0], fix)
    return Finding("blas", Verdict.OK, found)


def queue(settings: ApiSettings) -> Finding:
    """A Redis that is new enough, keeps what it is told and refuses rather than forgets."""
    if not settings.redis_url and not (settings.home_path / "run" / "valkey.sock").exists():
        return Finding("queue", Verdict.OK, "the embedded Valkey; it is not running now (mlx-farm serve starts it)")
    try:
        info = asyncio.run(look(settings.redis))
    except UnsupportedServer as error:
        return Finding("queue", Verdict.FAIL, str(error), "Use Redis 6.2 or newer, or Valkey, and its kind of URL.")
    except QueueUnavailable as error:
        fix = "Start the server, or correct FARM_REDIS_URL (unset: embedded Valkey)."
        return Finding("queue", Verdict.FAIL, f"not reachable: {error}", fix)
    version = str(info.get("valkey_version") or info["redis_version"])
    aof = "on" if info["aof_enabled"] else "off"
    found = f"{info.get('server_name', 'redis')} {version}, {info['maxmemory_policy']}, append-only file {aof}"
    why = risks(info)
    if why:
        verdict = Verdict.WARN if info["maxmemory_policy"] == "noeviction" else Verdict.FAIL
        return Finding("queue", verdict, found, f"{'; '.join(why)} (and in its configuration)")
    return Finding("queue", Verdict.OK, found)


def record(settings: SchedulerSettings) -> Finding:
    """A database that answers and has the newest schema."""
    path = settings.home_path / "farm.db"
    if not settings.database_url and not path.exists():
        return Finding("record", Verdict.OK, f"{path} (created at the first start)")
    answer = _probe([sys.executable, "-P", "-m", "scheduler", "current", "--json"])
    try:
        facts = json.loads(answer.stdout)
    except ValueError:
        return Finding(
            "record", Verdict.FAIL, _last_line(answer.stderr), "Start the database or correct FARM_DATABASE_URL."
        )
    found = f"{facts['database']}, schema {facts['current'] or 'none'}"
    if not facts["up_to_date"]:
        return Finding("record", Verdict.WARN, found, f"mlx-farm db upgrade (to {facts['newest']})")
    return Finding("record", Verdict.OK, found)


def port(settings: ApiSettings) -> Finding:
    """The API's port is free, or the farm itself has it."""
    try:
        if not settings.port or ports.is_free(settings.host, settings.port):
            return Finding("port", Verdict.OK, f"{settings.host}:{settings.port} is free")
    except CommandError as error:
        return Finding("port", Verdict.FAIL, str(error), "Choose another --host or --port.")
    holder = ports.owner(settings.port)
    if holder and "-m api" in holder.command:
        return Finding("port", Verdict.OK, f"{settings.port} is this farm's API (pid {holder.pid})")
    fix = f"mlx-farm serve --port {ports.next_free(settings.host, settings.port)}"
    return Finding("port", Verdict.WARN, ports.describe_taken(settings.port), fix)


def disk(settings: ApiSettings) -> Finding:
    """Space where the data goes, and the right to write there."""
    folder = next(path for path in (settings.home_path, *settings.home_path.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        return Finding("disk", Verdict.FAIL, f"{folder} is not writable", "Set FARM_HOME to a folder that is.")
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free for {settings.home_path}"
    if free < LOW_DISK_BYTES:
        return Finding("disk", Verdict.WARN, found, "Make room, or set FARM_HOME to a larger disk.")
    return Finding("disk", Verdict.OK, found)


def models() -> Finding:
    """Where downloaded models are, and whether more may be downloaded."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    count = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = f"{count} downloaded in {folder}, downloads {'off (HF_HUB_OFFLINE)' if offline else 'on'}; demo is bundled"
    return Finding("models", Verdict.OK, found)


def key(settings: ApiSettings) -> Finding:
    """A key, where others can reach the API."""
    if settings.own_key is not None:
        return Finding("key", Verdict.OK, "FARM_API_KEY is set: every request must bring it, or a key of mlx-farm keys")
    if not settings.is_public:
        return Finding("key", Verdict.OK, f"no FARM_API_KEY; only this machine can reach {settings.host}")
    if settings.insecure:
        found = f"{settings.host} is public, and FARM_INSECURE serves everybody until there are keys"
        return Finding("key", Verdict.WARN, found, "mlx-farm keys create --role admin first")
    return Finding("key", Verdict.OK, f"{settings.host} is public; the first start makes a key, if there is none")


def _probe(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {PROBE_LIMIT_S:g} s")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no answer"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
