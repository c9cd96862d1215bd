"""A client of a Redis Cluster: every command goes to the node that has its key; keys of one shard are on one node.

redis-py 5's own RedisCluster for asyncio does not outlive outages: it forgets the nodes that it could not reach until
none is left, and closes connections that other tasks are using. Slots and redirections:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline, PubSub
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

T = TypeVar("T")
Place = tuple[str, int]

MAP_S = 2.0
"""How long a node may take to say who has which slots."""

KEYLESS = ("INFO", "PING", "SCRIPT LOAD", "TIME")
REDIRECTED = ("MOVED", "ASK", "CLUSTERDOWN")


class ClusterClient(Redis):
    """As a single server's client, but for pipelines, which are no transactions, and INFO, which speaks for all.

    `connect` makes the client of one node; `places` are some of the nodes. Raises what redis-py raises of one server;
    ConnectionError where a slot has no node, or no node says who has it.
    """

    def __init__(self, places: Sequence[Place], connect: Callable[[str, int], Redis]) -> None:
        self._connect = connect
        self._known = list(dict.fromkeys(places))
        self._nodes: dict[Place, Redis] = {}
        self._slots: list[tuple[int, int, Place]] = []
        self._looking = asyncio.Lock()
        self._turn = itertools.count()
        super().__init__(connection_pool=self._node(self._known[0]).connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command, at the node of its key; again after a look at the map, where the node has gone or moved."""
        return await self._insist(lambda: self._execute(args, options))

    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> Pipeline:
        """Commands for any keys, sent together to each node that has some of them; never a transaction."""
        return _ClusterPipeline(self)

    async def execute_all(self, commands: Sequence[tuple[Any, Any]]) -> list[Any]:
        """The answers to (arguments, options) of many commands, in their order. Raises the first error."""
        return await self._insist(lambda: self._execute_all(commands))

    def pubsub(self, **kwargs: Any) -> PubSub:
        """Listen at one node, which hears what is published at any; the next call takes the next node."""
        return self._node(self._known[next(self._turn) % len(self._known)]).pubsub(**kwargs)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        for node in self._nodes.values():
            await node.aclose()

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except (ConnectionError, ResponseError) as error:
            if isinstance(error, ResponseError) and not any(word in str(error) for word in REDIRECTED):
                raise
            self._slots = []
            return await call()
        except TimeoutError:
            self._slots = []
            raise

    async def _execute(self, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if args[0] not in KEYLESS:
            return await _ask(await self._node_of(args), *args, **options)
        primaries = [self._node(place) for place in sorted({place for _, _, place in await self._map()})]
        if args[0] in ("PING", "TIME"):
            return await _ask(primaries[0], *args, **options)
        answers = [await _ask(node, *args, **options) for node in primaries]
        return _joined(answers) if args[0] == "INFO" else answers[0]

    async def _execute_all(self, commands: Sequence[tuple[Any, Any]]) -> list[Any]:
        parts: dict[Redis, list[int]] = defaultdict(list)
        for index, (args, _) in enumerate(commands):
            parts[await self._node_of(args)].append(index)
        answers: dict[int, Any] = {}
        for node, indices in parts.items():
            async with node.pipeline(transaction=False) as pipe:
                for index in indices:
                    pipe.execute_command(*commands[index][0], **commands[index][1])
                answers |= zip(indices, await pipe.execute(), strict=True)
        return [answers[index] for index in range(len(commands))]

    async def _node_of(self, args: Sequence[Any]) -> Redis:
        slot = key_slot(self.get_encoder().encode(_key(args)))  # type: ignore[no-untyped-call]
        for first, last, place in await self._map():
            if first <= slot <= last:
                return self._node(place)
        self._slots = []
        raise ConnectionError(f"no node of the cluster has slot {slot}")

    async def _map(self) -> list[tuple[int, int, Place]]:
        """Who has which slots, as the first node says that can be asked."""
        async with self._looking:
            if not self._slots:
                self._slots = await self._look()
                places = [place for _, _, place in self._slots]
                self._known = list(dict.fromkeys([*places, *self._known]))
            return self._slots

    async def _look(self) -> list[tuple[int, int, Place]]:
        last: Exception | None = None
        for place in self._known:
            try:
                async with asyncio.timeout(MAP_S):
                    ranges = await _ask(self._node(place), "CLUSTER SLOTS")
                return [(start, end, (host.decode() or place[0], port)) for start, end, (host, port, *_), *_ in ranges]
            except (RedisError, OSError) as error:
                last = error
        raise ConnectionError(f"no node of the cluster can be asked: {last}")

    def _node(self, place: Place) -> Redis:
        if place not in self._nodes:
            self._nodes[place] = self._connect(*place)
        return self._nodes[place]


class _ClusterPipeline(Pipeline):
    def __init__(self, client: ClusterClient) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, False, None)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = self.command_stack, []
        return await self._client.execute_all(commands)


async def _ask(node: Redis, *args: Any, **options: Any) -> Any:
    return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]


def _key(args: Sequence[Any]) -> Any:
    """The first key of a command; all keys of our commands are in one slot."""
    if args[0] in ("EVAL", "EVALSHA"):
        return args[3]
    if args[0] == "XREAD":
        return args[[str(arg) for arg in args[1:]].index("b'STREAMS'") + 2]
    return args[1]


def _joined(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """INFO of the server that was started last, with the run ids of all."""
    youngest = min(answers, key=lambda info: int(info["uptime_in_seconds"]))
    return youngest | {"run_id": " ".join(info["run_id"] for info in answers)}
