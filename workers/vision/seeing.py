"""A network that sees, one sequence at a time: images become embeddings, tokens become logits.

mlx-vlm's networks keep where a sequence's positions stand (mRoPE) in themselves: `Sight` puts that back for each
forward, so that sequences can take turns.
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
