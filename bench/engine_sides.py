"""The contestants: our engine, mlx-lm's `BatchGenerator`, and the bare loop over a fixed batch, all stepped alike."""

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from workers.engine import (
    Engine,
    EngineBackend,
    LoadedModel,
    PagedOptions,
    Prompt,
    SamplingParams,
    StopRule,
    StoreOptions,
    make_engine,
)
from workers.engine.guided import Grammar

GREEDY = SamplingParams(temperature=0.0)
BLOCK_TOKENS = 16
GENERATOR_PREFILL_ROWS = 8  # mlx-lm's default
PREFILL_STEP_TOKENS = 512  # of both sides: mlx-lm's default of 2,048 is slower on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of every side: a prompt and as many tokens as `output_tokens` says, whatever they are.

    `after_tokens`: the request arrives when its side has emitted this many tokens of other requests, so that the load
    is the same on any machine and for any contestant.
    """

    prompt_ids: tuple[int, ...]
    output_tokens: int
    sampling: SamplingParams = GREEDY
    grammar: Grammar | None = None
    adapter: str | None = None
    after_tokens: int = 0


class Side(Protocol):
    """A contestant at work. Requests are known by number."""

    def submit(self, number: int, request: Request) -> None: ...

    def step(self) -> list[tuple[int, int]]:
        """One round for everything submitted: (request, token) in order; [] while prompts are only being read."""
        ...

    def kv_bytes(self) -> int:
        """Bytes of keys and values that are held for the running and the waiting requests."""
        ...

    def settle(self) -> None:
        """Wait for work that was dispatched ahead, so that it is not charged to the other side."""
        ...

    def close(self) -> None: ...


MakeSide = Callable[[], Side]


def wait_for_streams() -> None:
    """Return when nothing that was dispatched by either side is being computed."""
    mx.synchronize()
    mx.synchronize(generation_stream)


class EngineSide:
    """Our engine with everything that serving needs of it: text, stop strings, counts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, number: int, request: Request) -> None:
        stop = StopRule(max_tokens=request.output_tokens, ignore_eos=request.grammar is None, strings=("\n\nUser:",))
        prompt = Prompt(
            id=str(number),
            token_ids=request.prompt_ids,
            sampling=request.sampling,
            stop=stop,
            grammar=request.grammar,
            adapter=request.adapter,
        )
        self._engine.submit(prompt)

    def step(self) -> list[tuple[int, int]]:
        return [(int(chunk.prompt_id), token) for chunk in self._engine.step() for token in chunk.token_ids]

    def kv_bytes(self) -> int:
        return self._engine.stats().kv_bytes

    def settle(self) -> None:
        wait_for_streams()

    def close(self) -> None:
        self._engine.close()


def blocks_for(requests: Sequence[Request], rows: int, *, shared_tokens: int = 0) -> int:
    """As many blocks as `rows` of these requests need on the average, the first `shared_tokens` of all prompts once."""
    own = [len(request.prompt_ids) - shared_tokens + request.output_tokens for request in requests]
    return rows * (math.ceil(statistics.fmean(own) / BLOCK_TOKENS) + 1) + shared_tokens // BLOCK_TOKENS


def engine_side(
    loaded: LoadedModel,
    rows: int,
    kv_blocks: int | None = None,
    *,
    speculates: bool = True,
    draft: LoadedModel | None = None,
    store: StoreOptions | None = None,
    kv_bits: int | None = None,
) -> EngineSide:
    """The paged engine with a cache of `kv_blocks`, or of the size that a node would give it."""
    engine = make_engine(
        loaded,
        max_sequences=rows,
        max_waiting=1 << 20,
        prefill_step_tokens=PREFILL_STEP_TOKENS,
        backend=EngineBackend.PAGED,
        paged=PagedOptions(
            block_tokens=BLOCK_TOKENS, kv_blocks=kv_blocks, kv_bits=kv_bits, speculates=speculates, store=store
        ),
        draft=draft,
    )
    return EngineSide(engine)


class GeneratorSide:
    """mlx-lm's `BatchGenerator` as it is, with mlx-lm's own samplers.

    `shared_prefix` is computed once, and a copy of its cache is given to each request whose prompt begins with it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: int,
        *,
        prefill_rows: int = GENERATOR_PREFILL_ROWS,
        shared_prefix: tuple[int, ...] = (),
    ) -> None:
        self._model = loaded.model
        self._generator: Any = BatchGenerator(
            loaded.model,
            completion_batch_size=rows,
            prefill_batch_size=min(prefill_rows, rows),
            prefill_step_size=PREFILL_STEP_TOKENS,
        )
        self._prefix = shared_prefix
        self._prefix_cache: list[Any] = []
        self._samplers: dict[SamplingParams, Callable[[mx.array], mx.array]] = {}
        self._numbers: dict[int, int] = {}  # by the generator's uid

    def submit(self, number: int, request: Request) -> None:
        sampler = None if request.sampling == GREEDY else self._sampler(request.sampling)
        ids, caches = request.prompt_ids, None
        if self._prefix and ids[: len(self._prefix)] == self._prefix:
            self._prefix_cache = self._prefix_cache or self._computed(self._prefix)
            ids, caches = ids[len(self._prefix) :], [copy.deepcopy(self._prefix_cache)]
        [uid] = self._generator.insert(
            [list(ids)], max_tokens=[request.output_tokens], caches=caches, samplers=[sampler]
        )
        self._numbers[uid] = number

    def step(self) -> list[tuple[int, int]]:
        _, responses = self._generator.next()
        return [(self._numbers[response.uid], response.token) for response in responses]

    def kv_bytes(self) -> int:
        return int(self._generator.prompt_cache_nbytes)

    def settle(self) -> None:
        wait_for_streams()

    def close(self) -> None:
        wait_for_streams()
        self._generator.close()

    def _computed(self, ids: Sequence[int]) -> list[Any]:
        cache: list[Any] = make_prompt_cache(self._model)
        for begin in range(0, len(ids), PREFILL_STEP_TOKENS):
            self._model(mx.array([ids[begin : begin + PREFILL_STEP_TOKENS]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        return cache

    def _sampler(self, params: SamplingParams) -> Callable[[mx.array], mx.array]:
        if params not in self._samplers:
            self._samplers[params] = make_sampler(
                params.temperature,
                top_p=params.top_p if params.top_p < 1 else 0.0,
                min_p=params.min_p,
                top_k=params.top_k,
            )
        return self._samplers[params]


class FixedLoop:
    """The limit: a batch of prompts of one length, keys and values allocated at the start, and nothing but argmax.

    No row joins or leaves, no text, no stops; the next step is dispatched before this one's tokens are read.
    """

    def __init__(self, model: Module, *, capacity_tokens: int) -> None:
        self._model: Any = model
        self._cache: list[Any] = make_prompt_cache(model)
        for layer in self._cache:
            if type(layer) is not KVCache:
                raise TypeError(f"the bare loop knows plain caches only, not {type(layer).__name__}")
            layer.step = capacity_tokens  # allocated at once instead of 256 tokens at a time
        self._prompts: list[tuple[int, ...]] = []
        self._tokens: mx.array | None = None  # (rows,) dispatched and not yet read

    def submit(self, number: int, request: Request) -> None:
        if number != len(self._prompts) or len(request.prompt_ids) != len((self._prompts or [request.prompt_ids])[0]):
            raise ValueError("the bare loop takes prompts of one length, numbered from 0")
        self._prompts.append(request.prompt_ids)

    def step(self) -> list[tuple[int, int]]:
        if self._tokens is None:
            self._tokens = self._forward(mx.array(self._prompts))
            mx.eval(self._tokens)
        tokens, self._tokens = self._tokens, self._forward(self._tokens[:, None])
        mx.async_eval(self._tokens)  # type: ignore[no-untyped-call]
        read: list[int] = tokens.tolist()  # type: ignore[assignment]
        return list(enumerate(read))

    def kv_bytes(self) -> int:
        return sum(int(layer.nbytes) for layer in self._cache)

    def settle(self) -> None:
        wait_for_streams()

    def close(self) -> None:
        self._cache.clear()

    def _forward(self, ids: mx.array) -> mx.array:
        return mx.argmax(self._model(ids, cache=self._cache)[:, -1, :], axis=-1)
