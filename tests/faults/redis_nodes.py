"""Redis servers in company: a primary with a replica and three sentinels, or a cluster of three, as real processes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tests import waiting
from tests.conftest import REDIS_SERVER

SLOTS = 16384


def free_port() -> int:
    """A TCP port that nobody has now, with room for a cluster's bus above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 50_000:
            return port


def until(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Ask until the answer is true, and return it; no answer is none."""

    def answer() -> Any:
        with suppress(RedisError, OSError):
            return condition()
        return None

    return waiting.until(answer, timeout_s)


class Node:
    """One server on a TCP port."""

    def __init__(self, folder: Path, port: int, *arguments: str, sentinel: str = "") -> None:
        self.folder, self.port = folder, port
        self.folder.mkdir()
        if sentinel:
            configuration = folder / "sentinel.conf"
            configuration.write_text(sentinel)
            self._command = [REDIS_SERVER, str(configuration), "--sentinel", *arguments]
        else:
            options = ("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")
            self._command = [REDIS_SERVER, *options, *arguments]
        self._command += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--loglevel", "warning"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        until(lambda: self.ask("PING"))
        return self.process

    def start(self, *arguments: str) -> None:
        """Start again, with the data there is."""
        self._command += arguments
        self._start()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def ask(self, *command: Any) -> Any:
        """One command, over a connection of its own."""
        with closing(Redis(port=self.port, socket_timeout=5)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]


class SentinelFarm:
    """A primary, its replica, and three sentinels of which two must agree."""

    def __init__(self, folder: Path) -> None:
        self.primary = Node(folder / "primary", free_port())
        self.replica = Node(folder / "replica", free_port(), "--replicaof", f"127.0.0.1 {self.primary.port}")
        until(lambda: b"master_link_status:up" in self._info(self.replica))
        self.sentinels = [
            Node(
                folder / f"sentinel{number}",
                free_port(),
                sentinel=f"sentinel monitor farm 127.0.0.1 {self.primary.port} 2\n"
                "sentinel down-after-milliseconds farm 1000\nsentinel failover-timeout farm 5000\n",
            )
            for number in range(3)
        ]
        until(lambda: all(self._is_complete(sentinel) for sentinel in self.sentinels))
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/farm"

    def failed_over(self) -> bool:
        """Has the replica become the primary?"""
        return b"role:master" in self._info(self.replica)

    def come_back(self) -> None:
        """The primary that was killed starts again, as a replica of the one that took its place."""
        self.primary.start("--replicaof", f"127.0.0.1 {self.replica.port}")
        until(lambda: b"master_link_status:up" in self._info(self.primary))

    def switch_back(self) -> None:
        """The sentinels make it the primary again; who is connected to the other one may only read there."""
        until(lambda: self.sentinels[0].ask("SENTINEL", "FAILOVER", "farm") == b"OK")
        until(lambda: b"role:slave" in self._info(self.replica))

    def kill(self) -> None:
        """End all processes."""
        for node in (*self.sentinels, self.primary, self.replica):
            node.kill()

    @staticmethod
    def _info(node: Node) -> bytes:
        with closing(Redis(port=node.port, socket_timeout=5)) as client:
            client.set_response_callback("INFO", lambda answer: answer)
            return bytes(client.info("replication"))  # type: ignore[arg-type]

    @staticmethod
    def _is_complete(sentinel: Node) -> bool:
        with closing(Redis(port=sentinel.port, socket_timeout=5)) as client:
            state: dict[str, Any] = client.sentinel_master("farm")  # type: ignore[no-untyped-call]
            return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1 and state["is_master"])


class Cluster:
    """Three primaries, each with a third of the slots."""

    def __init__(self, folder: Path) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [Node(folder / f"node{number}", free_port(), *arguments) for number in range(3)]
        first, last = 0, 0
        for number, node in enumerate(self.nodes):
            last = SLOTS * (number + 1) // 3
            node.ask("CLUSTER", "ADDSLOTS", *range(first, last))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first = last
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        until(self.is_whole)
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def is_whole(self) -> bool:
        """Does every node serve, and know the others?"""
        return all(self._knows_all(node) for node in self.nodes)

    @property
    def moves_slots_at_once(self) -> bool:
        """Can a slot change its node in one step? Valkey can since version 9."""
        return int(str(self.nodes[0].ask("INFO", "server").get("valkey_version", "0")).partition(".")[0]) >= 9

    def move(self, slot: int) -> None:
        """A slot, with the keys that are in it, goes to another node."""
        owner = next(node for node in self.nodes if node.ask("CLUSTER COUNTKEYSINSLOT", slot))
        other = next(node for node in self.nodes if node is not owner)
        owner.ask("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", other.ask("CLUSTER MYID"))
        until(lambda: self._has_moved(owner))
        assert other.ask("CLUSTER COUNTKEYSINSLOT", slot)

    @staticmethod
    def _has_moved(owner: Node) -> bool:
        newest = owner.ask("CLUSTER GETSLOTMIGRATIONS")[0]
        facts = dict(zip(newest[::2], newest[1::2], strict=True))
        assert facts[b"state"] not in (b"failed", b"cancelled"), facts
        return bool(facts[b"state"] == b"success")

    def empty(self) -> None:
        """Forget all keys and scripts."""
        for node in self.nodes:
            node.ask("FLUSHALL")
            node.ask("SCRIPT", "FLUSH")

    def kill(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.kill()

    @staticmethod
    def _knows_all(node: Node) -> bool:
        with closing(Redis(port=node.port, socket_timeout=5)) as client:
            facts: dict[str, str] = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
            return facts["cluster_state"] == "ok" and facts["cluster_known_nodes"] == "3"
