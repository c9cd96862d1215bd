"""How many tokens an image is to a model, and how they are written into its prompt: known from the size alone.

So a prompt is complete, counted and bounded before any worker has seen the image. A worker that loads the model checks
the rule against the model's own processor (workers/vision/loading.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from scheduler.images import ImageRefused

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """What becomes of `marker`, which the chat template writes for an image: `before`, `token` times n, `after`.

    Either every image has the same number of `tokens`; or (0) one for each cell of `cell_pixels` x `cell_pixels`, after
    the image was scaled to have between `min_pixels` and `max_pixels` (Qwen's smart_resize,
    https://arxiv.org/abs/2409.12191).
    """

    marker: str
    token: str
    token_id: int
    before: str = ""
    after: str = ""
    tokens: int = 0
    cell_pixels: int = 0
    min_pixels: int = 0
    max_pixels: int = 0

    @staticmethod
    def of(raw: Mapping[str, Any]) -> ImageRule:
        """From its fields by name."""
        return ImageRule(**{field.name: raw[field.name] for field in fields(ImageRule) if field.name in raw})

    def tokens_of(self, width: int, height: int) -> int:
        """Tokens of an image of this size in pixels. Raises ImageRefused for a shape that the model does not take."""
        if self.tokens:
            return self.tokens
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ImageRefused(f"The image is {width} x {height}; one side may be {MAX_ASPECT_RATIO} times the other.")
        cell = self.cell_pixels
        columns, rows = round(width / cell), round(height / cell)
        if rows * columns * cell**2 > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns, rows = (max(1, math.floor(side / shrink / cell)) for side in (width, height))
        elif rows * columns * cell**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns, rows = (math.ceil(side * grow / cell) for side in (width, height))
        return columns * rows

    def written(self, text: str, counts: Sequence[int]) -> str | None:
        """The prompt with each image's tokens at its marker; None where the markers are not as many as the images."""
        parts = text.split(self.marker)
        if len(parts) != len(counts) + 1:
            return None
        shown = [self.before + self.token * count + self.after for count in counts]
        return "".join(piece for pair in zip(parts, [*shown, ""], strict=True) for piece in pair)
