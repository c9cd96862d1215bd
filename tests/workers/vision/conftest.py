"""Tiny models that see, and what mlx-vlm says of them when it runs alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import load, prepare_inputs
from PIL import Image

from bench.tiny_vision import IMAGE_MARKS, MARKS, write_vision_model

FAMILIES = tuple(MARKS)


def marked(family: str, texts: Sequence[str]) -> str:
    """Texts with a place for an image between each two of them, as the family's template writes it."""
    return IMAGE_MARKS[family].join(texts)


class Alone:
    """mlx-vlm by itself, greedy."""

    def __init__(self, folder: Path) -> None:
        self.network, self.processor = load(str(folder), trust_remote_code=False)
        self.network.set_dtype(mx.float32)

    def prompt(self, text: str, images: Sequence[bytes]) -> dict[str, Any]:
        """Token ids and what else the network takes."""
        opened = [Image.open(io.BytesIO(data)) for data in images]
        prepare: Any = prepare_inputs  # not typed
        return dict(prepare(self.processor, images=opened or None, prompts=text))

    def tokens(self, text: str, images: Sequence[bytes], count: int) -> list[int]:
        """The first tokens of the answer."""
        inputs = self.prompt(text, images)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        pixels = inputs.pop("pixel_values", None)
        steps = generate_step(ids, self.network, pixels, mask, temperature=0.0, **inputs)
        return [int(token) for token, _ in islice(steps, count)]


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model that sees, by its family."""
    root, made = tmp_path_factory.mktemp("seeing"), dict[str, Path]()

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_vision_model(root / family, family)
        return made[family]

    return folder
