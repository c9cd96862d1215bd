"""`python -m api`: one API node. SIGTERM, SIGINT or the end of its supervisor drain it; a second signal ends it now.

Exit codes: 0 stopped in order, 1 could not start, 2 refused its settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Iterator

import structlog
import uvicorn
import uvloop
from pydantic import ValidationError

from api.app import create_app
from api.connections import SEND_BUFFER_BYTES, ConnectionLimits, connection_class, watch_over
from api.drain import Drain
from api.first_key import first_key_file, make_first_key
from scheduler.errors import UnsupportedServer
from scheduler.process import announce_ready, configure_logs, watch_parent
from scheduler.servers import require_server
from scheduler.settings import ApiSettings

log = structlog.get_logger()

BACKLOG = 2048
"""Connections that may wait to be accepted."""

OWN_FILES = 256
"""Beside the connections: Redis, SQL, libraries. Where the system allows few files, half of them."""

LAST_WORDS_S = 5.0
"""After the drain: for the final events of streams to reach their clients."""


class Server(uvicorn.Server):
    """uvicorn, but a stop signal first drains: listening goes on, and says 503, while open answers finish."""

    def __init__(self, settings: ApiSettings, connections: int) -> None:
        self._settings = settings
        self._drain = Drain()
        self._stopping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._app = create_app(settings, self._drain)
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                http=connection_class(_limits(settings, connections)),
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(LAST_WORDS_S),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Our own handlers instead: uvicorn's stop at once and end the process by the signal."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        watch_parent(lambda: loop.call_soon_threadsafe(self.stop))
        yield

    def stop(self) -> None:
        """Drain and exit; the second time exit now."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        else:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen and say so."""
        await super().startup(sockets)
        self._watching = asyncio.create_task(watch_over(self.server_state.connections), name="connections")
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        file = first_key_file(self._settings)
        first_key = str(file) if file.exists() else ""
        announce_ready(role="api", url=url, open=self._app.state.node.admission.is_open, first_key=first_key)

    async def _stop(self) -> None:
        self._drain.begin()
        log.info("draining", open_answers=self._drain.open_answers, limit_s=self._settings.drain_s)
        if not await self._drain.idle(self._settings.drain_s):
            self._drain.end_answers()
            await self._drain.idle(LAST_WORDS_S)
        self.should_exit = True


async def serve(settings: ApiSettings, listener: socket.socket, connections: int) -> None:
    """Serve until stopped, so many clients at once. Raises UnsupportedServer."""
    await require_server(settings.redis)
    if settings.is_public and not settings.insecure and settings.own_key is None:
        await make_first_key(settings)
    await Server(settings, connections).serve([listener])


def _limits(settings: ApiSettings, connections: int) -> ConnectionLimits:
    return ConnectionLimits(
        connections=connections,
        head_s=settings.header_timeout_s,
        body_s=settings.body_timeout_s,
        stalled_s=settings.stalled_reader_s,
    )


def allowed_files(wanted: int) -> int:
    """Raise this process's own bound of open files, as far as the system lets it; how many of `wanted` there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    return enough


def connections_within(files: int, wanted: int) -> int:
    """How many clients' connections fit: the next one is told so, instead of waiting for an answer that never comes."""
    return max(1, min(wanted, files - min(OWN_FILES, files // 2)))


def refusal(settings: ApiSettings) -> str | None:
    """Why these settings must not be served, or None."""
    if settings.api_key is not None and not settings.api_key.get_secret_value().strip():
        return "FARM_API_KEY is empty; set a key or unset the variable."
    return None


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one. Raises OSError when the address is taken or not ours."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit it
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def main() -> int:
    """Check the settings and serve."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logs(settings.log_level, settings.log_format)
    why_not = refusal(settings)
    if why_not is not None:
        sys.stderr.write(f"{why_not}\n")
        return 2
    try:
        listener = listening_socket(settings.host, settings.port)
    except OSError as error:
        sys.stderr.write(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}.\n")
        return 1
    connections = connections_within(allowed_files(settings.max_connections + OWN_FILES), settings.max_connections)
    if connections < settings.max_connections:
        log.warning("the system allows few open files (ulimit -n): fewer connections", connections=connections)
    try:
        uvloop.run(serve(settings, listener, connections))
    except UnsupportedServer as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
