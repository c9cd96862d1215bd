"""What the API tests share: a tiny model, a worker that follows a script, API nodes on real ports, stream reading."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import uvicorn
from redis.asyncio import Redis
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from api.app import create_app
from api.drain import Drain
from api.node import Node
from scheduler.events import EventType
from scheduler.frames import Chunk, FrameId
from scheduler.image_tokens import ImageRule
from scheduler.job_images import with_images
from scheduler.models import CARD_TTL_S, ModelCard, ModelCatalog, tokenizer_hash
from scheduler.queue import Claimed, JobQueue
from scheduler.requests import JobRequest
from scheduler.settings import ApiSettings
from scheduler.tokens import Emission, EmitCode, TokenLog
from scheduler.workers import WorkerBoard
from tests.waiting import until_async

MODEL = "tiny/model"
IMAGE = ImageRule(marker="<|image|>", token="<|image|>", token_id=258, cell_pixels=10, min_pixels=100, max_pixels=3000)
"""Of the tiny model, where a test lets it see."""

CONTEXT_TOKENS = 400
POLL_S = 0.01

until = until_async

TEMPLATE = """{%- for message in messages -%}
{%- if message.content == 'explode' -%}{{- raise_exception('this model does not explode') -}}{%- endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>
{% endfor -%}
{%- for tool in tools or [] -%}{{- tool | tojson -}}{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{%- endif -%}"""


SEEING_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'text' %}{{ part.text }}{% elif message.role == 'user' %}<|image|>{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def byte_tokenizer() -> str:
    """A tokenizer whose tokens are single bytes, with three special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<|im_start|>", "<|im_end|>", IMAGE.token)])
    return str(tokenizer.to_str())


TOKENIZER_JSON = byte_tokenizer()
TOKENIZER = Tokenizer.from_str(TOKENIZER_JSON)


def make_card(**changes: Any) -> ModelCard:
    """The tiny model's card."""
    card = ModelCard(
        name=MODEL,
        created_s=1_700_000_000,
        context_tokens=CONTEXT_TOKENS,
        vocab_tokens=258,
        tokenizer_sha256=tokenizer_hash(TOKENIZER_JSON),
        chat_template=TEMPLATE,
        bos_token=None,
        eos_token="<|im_end|>",
        eos_token_ids=(257,),
        think_start="<think>",
        think_end="</think>",
        has_tool_calling=True,
        tool_call_start="<tool_call>",
        tool_call_end="</tool_call>",
        engine="scripted",
        parameters=1,
        weight_bytes=4,
        obeys_grammars=True,
        scores_prompts=True,
        tool_format="json_tools",
    )
    return replace(card, **changes)


async def announce(worker: ScriptedWorker, card: ModelCard, client: httpx2.AsyncClient) -> None:
    """Another card for a node that runs, which has taken notice of it when this returns."""
    await worker.announce(card)
    assert (await client.get("/v1/models")).status_code == 200  # a listing is never an old one


def seeing_card(**changes: Any) -> ModelCard:
    """The tiny model's card where it sees."""
    return make_card(**{"vocab_tokens": 259, "chat_template": SEEING_TEMPLATE, "images": IMAGE, **changes})


def prompt_text(request: JobRequest) -> str:
    """What the worker was given, as text."""
    return str(TOKENIZER.decode(list(request.prompts[0]), skip_special_tokens=False))


@dataclass
class Script:
    """What the worker says: one list of pieces per choice (the last list repeats), then `finish_reason`.

    `hold_before` = k waits before the k-th step until `resume` is set. `fail` ends the job as failed instead.
    `vector` is the answer of a model that embeds.
    """

    choices: list[list[str]] = field(default_factory=lambda: [["Hello", ", ", "world", "!"]])
    finish_reason: str = "stop"
    stop_string: str | None = None
    hold_before: int | None = None
    fail: dict[str, str] | None = None
    cached_tokens: int = 0
    vector: bytes | None = None

    def pieces(self, choice: int) -> list[str]:
        """The text of one choice."""
        return self.choices[min(choice, len(self.choices) - 1)]


class ScriptedWorker:
    """Claims jobs of the tiny model and plays its script; every token of a piece is one byte."""

    def __init__(self, redis: Redis, queue: JobQueue) -> None:
        self.script = Script()
        self.resume = asyncio.Event()
        self.held = asyncio.Event()
        self.requests: list[JobRequest] = []
        self.cancelled: list[str] = []
        self.stopped = asyncio.Event()
        self._retired = asyncio.Event()
        self._card = make_card()
        self.name = f"scripted-{uuid.uuid4().hex[:6]}"
        self._redis = redis
        self.queue = queue
        self.claimed: list[str] = []
        self.gone = asyncio.Event()
        self._log = TokenLog(queue)
        self._tasks: set[asyncio.Task[None]] = set()

    async def announce(self, card: ModelCard | None = None) -> None:
        """Publish the card and the figures, and begin the lease."""
        self._card = card = card or make_card()
        await ModelCatalog(self._redis).publish(card, TOKENIZER_JSON)
        await self.queue.heartbeat(self.name, [], register=True)
        figures = {"model": card.name, "running": 1, "waiting": 0, "generated_tokens_total": 42, "kv_bytes": 7}
        figures |= {"drafted_tokens_total": {"ngram": 5, "model": 9}, "right_drafts_total": {"ngram": 4, "model": 8}}
        await WorkerBoard(self._redis).publish(self.name, figures, ttl_s=600)

    async def run(self) -> None:
        """Claim and play until `retire`."""
        catalog, loop = ModelCatalog(self._redis), asyncio.get_running_loop()
        renewed_s = loop.time()
        while not self._retired.is_set():
            await self.queue.heartbeat(self.name, [], register=True)
            if loop.time() - renewed_s > CARD_TTL_S / 10:
                await catalog.renew(self._card)
                renewed_s = loop.time()
            nonce = uuid.uuid4().hex[:8]
            for job in await self.queue.claim(self.name, self._card.name, rows=64, nonce=nonce, idle=True):
                self.requests.append(await with_images(self.queue, job.id, job.request))
                self.claimed.append(job.id)
                task = asyncio.create_task(self._play(job, self.script))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._retired.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.gone.set()

    def retire(self) -> None:
        """Claim no more, wait for nothing more."""
        self.resume.set()
        self._retired.set()

    async def _play(self, job: Claimed, script: Script) -> None:
        count = job.request.choices
        steps = max(len(script.pieces(choice)) for choice in range(count))
        for step in range(steps):
            if script.hold_before == step:
                self.held.set()
                await self.resume.wait()
            chunks = tuple(
                _chunk(job.request, script, choice, step) for choice in range(count) if _has(script, choice, step)
            )
            emission = Emission(job.id, job.token, FrameId(job.generation, step + 1), chunks)
            [code] = await self._log.emit([emission])
            if code is EmitCode.CANCELLED:
                self.cancelled.append(job.id)
                await self.queue.finish(job.id, job.token, EventType.CANCELLED, {"output_tokens": step + 1})
                self.stopped.set()
                return
        data: dict[str, Any] = {"output_tokens": steps, "cached_tokens": script.cached_tokens}
        if script.fail is not None:
            await self.queue.finish(job.id, job.token, EventType.FAILED, data | script.fail)
            return
        await self.queue.finish(job.id, job.token, EventType.FINISHED, data | {"finish_reason": script.finish_reason})


def _has(script: Script, choice: int, step: int) -> bool:
    return step < len(script.pieces(choice))


def _chunk(request: JobRequest, script: Script, choice: int, step: int) -> Chunk:
    pieces = script.pieces(choice)
    ids = tuple(TOKENIZER.encode(pieces[step], add_special_tokens=False).ids)
    last = step == len(pieces) - 1
    logprobs = None
    if request.logprobs is not None:
        top = tuple((i, float("-inf") if i else -0.5) for i in range(request.logprobs))
        logprobs = tuple((token_id, -0.25, top) for token_id in ids)
    scores = None
    if request.prompt_logprobs and step == 0:
        first, *others = request.choice_prompt(choice)
        scores = ((first, None, ()), *((token_id, -0.75, ((token_id, -0.75),)) for token_id in others))
    return Chunk(
        choice,
        ids,
        pieces[step],
        logprobs,
        script.finish_reason if last else None,
        script.stop_string if last else None,
        script.vector,
        prompt_logprobs=scores,
    )


class NodeServer(uvicorn.Server):
    """An API node in this event loop, on a port of its own; signals stay with pytest."""

    def __init__(self, settings: ApiSettings) -> None:
        self.drain = Drain()
        self.app = create_app(settings, self.drain)
        config = uvicorn.Config(
            self.app, port=0, lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=60
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    @property
    def node(self) -> Node:
        """What its endpoints work with."""
        node: Node = self.app.state.node
        return node

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


def chat_body(**changes: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **changes}


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    data: str

    @property
    def sequence(self) -> int | None:
        """The frame's number in its log."""
        return int(self.id.partition("-")[2]) if self.id else None


async def read_events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Server-sent events of a response's lines; comments are skipped."""
    event_id: str | None = None
    data: list[str] = []
    async for line in lines:
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            data.append(line[6:])
        elif not line and data:
            yield Event(event_id, "\n".join(data))
            event_id, data = None, []


async def all_events(http: httpx2.AsyncClient, method: str, url: str, **kwargs: Any) -> list[Event]:
    """Read a whole stream."""
    async with http.stream(method, url, **kwargs) as response:
        assert response.status_code == 200, await response.aread()
        return [event async for event in read_events(response.aiter_lines())]
