"""The scheduler as a process: it starts, says so, stops in order; its commands answer with exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.waiting import PATIENCE_S

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path, redis_server: RedisServer, database_url: str) -> dict[str, str]:
    """What a scheduler process needs to know."""
    farm = {"FARM_HOME": str(tmp_path), "FARM_REDIS_URL": redis_server.url, "FARM_DATABASE_URL": database_url}
    return os.environ | farm


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run one command of the scheduler to its end."""

    def command(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scheduler", *arguments],
            env=environment | changes,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    return command


@pytest.fixture
def scheduler(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A scheduler process under a supervisor."""
    with subprocess.Popen(
        [sys.executable, "-m", "scheduler"],
        env=environment | {"FARM_SUPERVISED": "1", "FARM_SHARDS": "2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "parent"])
def test_a_scheduler_says_that_it_is_ready_and_stops_in_order(scheduler: subprocess.Popen[str], how: str) -> None:
    assert scheduler.stdout is not None
    assert scheduler.stdin is not None
    assert scheduler.stderr is not None
    assert scheduler.stdout.readline() == 'READY {"role":"scheduler"}\n'
    if how == "parent":
        scheduler.stdin.close()
    else:
        scheduler.send_signal(signal.Signals[how])
    assert scheduler.wait(PATIENCE_S) == 0
    assert "Traceback" not in scheduler.stderr.read()


def test_commands_on_the_record_answer(run: Run) -> None:
    current = run("current", "--json")
    assert (current.returncode, json.loads(current.stdout)["up_to_date"]) == (0, True)
    assert run("rebuild").stdout == "rebuilt from 0 events\n"
    rows = run("sql", "SELECT 1 AS one", "--json")
    assert (rows.returncode, json.loads(rows.stdout)) == (0, [{"one": 1}])
    assert "one" in run("sql", "SELECT 1 AS one").stdout


def test_an_empty_database_is_not_up_to_date_until_upgraded(run: Run, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    assert run("current", "--json", FARM_DATABASE_URL=url).returncode == 1
    assert run("upgrade", "--json", FARM_DATABASE_URL=url).returncode == 0
    assert run("current", "--json", FARM_DATABASE_URL=url).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"), [(("sql", "DELETE FROM jobs"), 1), (("sql", "SELEKT"), 1), (("what",), 2)]
)
def test_a_mistake_is_one_line_and_an_exit_code(run: Run, arguments: tuple[str, ...], code: int) -> None:
    answer = run(*arguments)
    assert answer.returncode == code
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize("command", ["current", "upgrade", "rebuild"])
def test_a_database_that_is_down_is_exit_code_three(run: Run, command: str) -> None:
    answer = run(command, FARM_DATABASE_URL="postgresql+asyncpg://nobody:secret@127.0.0.1:1/none")
    assert answer.returncode == 3
    assert "The record (SQL) is not reachable" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "secret" not in answer.stderr
