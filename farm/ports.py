"""Is a TCP port free, who has it, and which one to take instead."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from farm.errors import CommandError

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class PortOwner:
    """A process that listens."""

    pid: int
    command: str


def is_free(host: str, port: int) -> bool:
    """Can `host:port` be listened on? Raises CommandError when the address is not one of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno == errno.EACCES:
            raise CommandError(f"Port {port} needs administrator rights. Choose one above 1023 with --port.") from error
        raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror or error}. Check --host.") from error
    return True


def require_free(host: str, port: int) -> None:
    """Raise CommandError with the owner of the port and a free alternative, unless it is free (or 0)."""
    if port and not is_free(host, port):
        raise CommandError(f"{describe_taken(port)} Use another one: --port {next_free(host, port)}")


def describe_taken(port: int) -> str:
    """One sentence that names who has the port, as far as the system tells."""
    holder = owner(port)
    by = f"by pid {holder.pid} ({holder.command})" if holder else "by a process this user may not see"
    return f"Port {port} is already in use {by}."


def next_free(host: str, port: int) -> int:
    """The first free port above `port`."""
    for candidate in range(port + 1, min(port + 100, 65536)):
        if is_free(host, candidate):
            return candidate
    return 0


def owner(port: int) -> PortOwner | None:
    """Who listens on the port: from /proc, else from lsof, else None."""
    if Path("/proc/net/tcp").exists():
        found = _owner_from_proc(port)
        if found:
            return found
    return _owner_from_lsof(port)


def _owner_from_proc(port: int) -> PortOwner | None:
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not wanted:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds_any(process / "fd", wanted):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return PortOwner(int(process.name), command[:200])
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(columns[9])
    return inodes


def _holds_any(descriptors: Path, wanted: set[str]) -> bool:
    with suppress(OSError):
        for name in os.listdir(descriptors):
            with suppress(OSError):
                if os.readlink(descriptors / name) in wanted:
                    return True
    return False


def _owner_from_lsof(port: int) -> PortOwner | None:
    lsof = shutil.which("lsof") or shutil.which("lsof", path="/usr/sbin")
    if lsof is None:
        return None
    answer = subprocess.run(
        [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], capture_output=True, text=True, check=False
    )
    fields = {line[0]: line[1:] for line in answer.stdout.splitlines() if line}
    return PortOwner(int(fields["p"]), fields.get("c", "?")) if "p" in fields else None
