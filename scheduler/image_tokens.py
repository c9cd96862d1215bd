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
MAX_TILED_SIDE = 4096
"""In pixels; no image is scaled up beyond it before it is cut into tiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRule:
    """What becomes of `marker`, which the chat template writes for an image: `before`, `token` times n, `after`.

    One of four forms, by what is set:

    - `cell_pixels` and `max_pixels`: a token for each cell of that width and height, after the image was scaled to have
      between `min_pixels` and `max_pixels` (Qwen's smart_resize, https://arxiv.org/abs/2409.12191).
    - `cell_pixels` and `max_side`: a token for each cell that has begun, after the image was scaled down to have no
      side longer than `max_side`; `row_break` between the rows (Pixtral, https://arxiv.org/abs/2410.07073).
    - `tile_pixels` and `max_side`: the image is scaled to have `max_side` as its longer side and cut into tiles, which
      are written with their places; the whole follows, behind `whole_mark`. Each is `tokens` times `token`, `before`
      stands in front of each (Idefics3, https://arxiv.org/abs/2408.12637).
    - else every image is `tokens` times `token`.
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
    max_side: int = 0
    row_break: str = ""
    tile_pixels: int = 0
    whole_mark: str = ""

    @staticmethod
    def of(raw: Mapping[str, Any]) -> ImageRule:
        """From its fields by name."""
        return ImageRule(**{field.name: raw[field.name] for field in fields(ImageRule) if field.name in raw})

    def tokens_of(self, width: int, height: int) -> int:
        """Tokens of an image of this size in pixels. Raises ImageRefused for a shape that the model does not take."""
        columns, rows = self._grid(width, height)
        if self.cell_pixels:
            return columns * rows
        return self.tokens * (columns * rows + 1)

    def shown(self, width: int, height: int) -> str:
        """What stands for an image of this size in a prompt. Raises ImageRefused."""
        columns, rows = self._grid(width, height)
        if self.cell_pixels:
            return self.before + self.row_break.join([self.token * columns] * rows) + self.after
        one = self.token * self.tokens
        tiles = [
            "".join(f"{self.before}<row_{row}_col_{column}>{one}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join([*tiles, "\n" if tiles else "", self.before, self.whole_mark, one, self.after])

    def written(self, text: str, sizes: Sequence[tuple[int, int]]) -> str | None:
        """The prompt with images of these sizes at its markers, None if they are not as many. Raises ImageRefused."""
        parts = text.split(self.marker)
        if len(parts) != len(sizes) + 1:
            return None
        images = [self.shown(*size) for size in sizes]
        return "".join(piece for pair in zip(parts, [*images, ""], strict=True) for piece in pair)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of cells, or of tiles beside the whole (0 and 0: no tiles)."""
        if self.tile_pixels:
            return _tiles(width, height, self.max_side, self.tile_pixels)
        if not self.cell_pixels:
            return 0, 0
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ImageRefused(f"The image is {width} x {height}; one side may be {MAX_ASPECT_RATIO} times the other.")
        if self.max_side:
            return self._cells_by_side(width, height)
        return self._cells_by_area(width, height)

    def _cells_by_area(self, width: int, height: int) -> tuple[int, int]:
        cell = self.cell_pixels
        columns, rows = round(width / cell), round(height / cell)
        if rows * columns * cell**2 > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns, rows = (max(1, math.floor(side / shrink / cell)) for side in (width, height))
        elif rows * columns * cell**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns, rows = (math.ceil(side * grow / cell) for side in (width, height))
        return columns, rows

    def _cells_by_side(self, width: int, height: int) -> tuple[int, int]:
        shrink = max(height / self.max_side, width / self.max_side)
        if shrink > 1:
            width, height = math.floor(width / shrink), math.floor(height / shrink)
        if not (width and height):
            raise ImageRefused("The image is so narrow that nothing of it is left when it is scaled down.")
        return (width - 1) // self.cell_pixels + 1, (height - 1) // self.cell_pixels + 1


def _tiles(width: int, height: int, longest: int, tile: int) -> tuple[int, int]:
    """As transformers' Idefics3 processor cuts an image: columns and rows, (0, 0) for none."""
    longest, aspect = min(longest, MAX_TILED_SIDE), width / height
    if width >= height:
        width, height = longest, _even(int(longest / aspect))
    else:
        width, height = _even(int(longest * aspect)), longest
    aspect = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        rows = math.ceil(int(columns * tile / aspect) / tile)
    else:
        rows = math.ceil(height / tile)
        columns = math.ceil(int(rows * tile * aspect) / tile)
    return (0, 0) if columns == rows == 1 else (columns, rows)


def _even(side: int) -> int:
    return max(1, side + side % 2)
