"""The embedded Valkey: its settings, its socket, and what an earlier `serve` may have left behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from farm import valkey
from farm.errors import CommandError
from farm.home import MAX_SOCKET_PATH_BYTES, Home, HomeLock


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        home = Home(Path(folder))
        home.create()
        yield home


@pytest.fixture
def server(home: Home, eventually: Callable[..., Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A running embedded Valkey that nobody owns."""
    process = subprocess.Popen(valkey.command(home, home.socket()), stdout=subprocess.DEVNULL)
    eventually(lambda: valkey.ping(home.socket()))
    yield process
    process.kill()
    process.wait()


@pytest.mark.usefixtures("server")
def test_it_keeps_every_write_refuses_rather_than_forgets_and_has_no_port(home: Home) -> None:
    with Redis.from_url(valkey.url(home.socket())) as redis:
        settings = redis.config_get("*")
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0", "save": ""}
    assert {name: settings[name] for name in wanted} == wanted
    assert home.socket().stat().st_mode & 0o777 == 0o700


def test_an_orphan_is_stopped_with_its_data_and_found_again(
    home: Home, server: subprocess.Popen[bytes], eventually: Callable[..., Any]
) -> None:
    with Redis.from_url(valkey.url(home.socket())) as redis:
        redis.set("kept", "yes")
    assert valkey.stop_orphan(home.socket()) == server.pid
    assert server.wait(60) == 0
    assert valkey.stop_orphan(home.socket()) is None
    with subprocess.Popen(valkey.command(home, home.socket()), stdout=subprocess.DEVNULL) as successor:
        eventually(lambda: valkey.ping(home.socket()))
        with Redis.from_url(valkey.url(home.socket())) as redis:
            assert redis.get("kept") == b"yes"
        successor.terminate()


def test_a_socket_file_that_nobody_serves_is_removed(home: Home, server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert home.socket().exists()
    assert valkey.stop_orphan(home.socket()) is None
    assert not home.socket().exists()


def test_a_home_too_deep_for_a_socket_gets_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="t") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        home = Home(tmp_path / ("deep" * 30))
        socket = home.socket()
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert home.socket() == socket
        assert Home(tmp_path / ("deeper" * 30)).socket() != socket
        socket.parent.chmod(0o755)
        with pytest.raises(CommandError, match="not a private folder"):
            home.socket()


def test_a_second_owner_of_a_home_is_told_the_pid_of_the_first(home: Home) -> None:
    first, second = HomeLock(home), HomeLock(home)
    first.acquire()
    with pytest.raises(CommandError, match=rf"pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_home_that_cannot_be_made_says_which(home: Home) -> None:
    (home.path / "file").touch()
    with pytest.raises(CommandError, match="Set FARM_HOME"):
        Home(home.path / "file" / "home").create()
