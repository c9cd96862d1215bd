"""A network that sees: images become embeddings, tokens become logits.

mlx-vlm's networks keep where a sequence's positions stand (mRoPE) in themselves: `Sight` puts that back for each
forward, so that sequences can read their prompts in turns. Who has read it goes on in `Company`, a forward for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache
from PIL import Image

from scheduler.image_tokens import ImageRule

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
KEPT_BY_NETWORK = ("_rope_deltas", "_position_ids")


@dataclass(frozen=True, slots=True)
class Seeing:
    """A network of mlx-vlm, its processor, and how the API writes its images."""

    network: Any
    processor: Any
    rule: ImageRule

    @property
    def vocab_size(self) -> int:
        """The width of the logits, from a forward of one token."""
        sight = Sight(self, [0], {})
        return int(sight.last_logits().shape[-1])

    def check(self, token_ids: Sequence[int], images: Sequence[Image.Image]) -> None:
        """Raises ValueError where a prompt stands for other images than these: networks would not notice it."""
        expected, found = sum(self.rule.tokens_of(*image.size) for image in images), token_ids.count(self.rule.token_id)
        if expected != found:
            raise ValueError(f"{len(images)} images of {expected} tokens for {found} places")

    def inputs(self, images: Sequence[Image.Image]) -> dict[str, mx.array]:
        """What the network takes besides tokens, as mlx-vlm's processor makes it of upright RGB images."""
        if not images:
            return {}
        made = self.processor(text=[self.rule.marker * len(images)], images=list(images), add_special_tokens=False)
        return {name: value for name, value in made.items() if name not in TEXT_INPUTS}


class Sight:
    """One sequence: what it has read, and its cache. Behind the prompt stands what an earlier attempt has `said`.

    What was said is read as it was drawn, token by token: a mark of an image in it stands for no image.
    """

    def __init__(
        self, seeing: Seeing, prompt: Sequence[int], inputs: dict[str, mx.array], said: Sequence[int] = ()
    ) -> None:
        self._language = seeing.network.language_model
        self.cache = make_prompt_cache(self._language)
        self._kept: dict[str, Any] = dict.fromkeys(KEPT_BY_NETWORK)
        self._ids = token_ids = mx.array([prompt])
        self._said = [*said]
        pixels = inputs.get("pixel_values")
        more = {name: value for name, value in inputs.items() if name != "pixel_values"}
        with self._as_this_sequence():
            embedded = seeing.network.get_input_embeddings(token_ids, pixels, mask=mx.ones_like(token_ids), **more)
        found = {name: value for name, value in embedded.to_dict().items() if value is not None}
        self._embeddings = found.pop("inputs_embeds")
        self._context: dict[str, Any] = more | found

    @property
    def unread_tokens(self) -> int:
        """Tokens that `read` and `last_logits` have not computed."""
        return int(self._ids.shape[1]) + len(self._said)

    def read(self, tokens: int) -> None:
        """Compute up to so many tokens, but never the last one."""
        prompt_tokens = int(self._ids.shape[1])
        tokens = min(tokens, self.unread_tokens - 1, prompt_tokens or len(self._said))
        if tokens <= 0:
            return
        if prompt_tokens:
            self._forward(self._ids[:, :tokens], self._embeddings[:, :tokens], n_to_process=tokens)
            self._ids, self._embeddings = self._ids[:, tokens:], self._embeddings[:, tokens:]
        else:
            self._context = {}
            self._forward(mx.array([self._said[:tokens]]), None)
            self._said = self._said[tokens:]
        mx.eval([cache.state for cache in self.cache])

    def last_logits(self) -> mx.array:
        """Logits (1, vocabulary) behind all that is to be read, of which only the last token is left to be computed."""
        if self._said:
            return self.next_logits(self._said.pop())
        logits = self._forward(self._ids, self._embeddings)
        self._ids, self._context = self._ids[:, 1:], {}
        return logits

    def next_logits(self, token: int) -> mx.array:
        """Logits (1, vocabulary) behind one more token."""
        self._context = {}
        return self._forward(mx.array([[token]]), None)

    @property
    def position_shift(self) -> mx.array | None:
        """How far (1, 1) positions behind the prompt are from the number of its tokens; None: they are that number."""
        shift: mx.array | None = self._kept["_rope_deltas"]
        return shift

    def _forward(self, token_ids: mx.array, embeddings: mx.array | None, **more: Any) -> mx.array:
        with self._as_this_sequence():
            said = self._language(token_ids, inputs_embeds=embeddings, cache=self.cache, **self._context, **more)
        logits: mx.array = said.logits[:, -1, :]
        return logits.astype(mx.float32)

    @contextmanager
    def _as_this_sequence(self) -> Iterator[None]:
        language = self._language
        for name, value in self._kept.items():
            if hasattr(language, name):
                setattr(language, name, value)
        yield
        self._kept = {name: getattr(language, name, None) for name in KEPT_BY_NETWORK}


class Company:
    """Sequences that have read their prompts; `cache` is theirs together, padded on the left.

    mlx-vlm's batch caches know each row's own length, and its networks take each row's shift of positions: a row's
    logits do not depend on the others'.
    """

    def __init__(self, seeing: Seeing) -> None:
        self._language = seeing.network.language_model
        self.cache: list[Any] = []
        self._shifts: mx.array | None = None

    def join(self, sight: Sight) -> None:
        """One more row, behind the others. It is this company's from now on."""
        caches = [type(cache).merge([cache]) for cache in sight.cache]
        shift = sight.position_shift
        if self.cache:
            for mine, other in zip(self.cache, caches, strict=True):
                mine.extend(other)
            if self._shifts is not None and shift is not None:
                self._shifts = mx.concatenate([self._shifts, shift])
        else:
            self.cache, self._shifts = caches, shift

    def keep(self, places: Sequence[int]) -> None:
        """Only these rows, in order, stay."""
        if not places:
            self.cache, self._shifts = [], None
            return
        kept = mx.array([*places])
        for cache in self.cache:
            cache.filter(kept)
        self._shifts = None if self._shifts is None else self._shifts[kept]

    def next_logits(self, tokens: Sequence[int]) -> mx.array:
        """Logits (rows, vocabulary) in float32 behind one more token of each row."""
        shifts = {} if self._shifts is None else {"rope_deltas": self._shifts}
        said = self._language(mx.array([*tokens])[:, None], cache=self.cache, **shifts)
        logits: mx.array = said.logits[:, -1, :]
        return logits.astype(mx.float32)
