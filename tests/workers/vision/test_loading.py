"""Which models see, and that those that do may be served for text alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLImageProcessor

from scheduler.image_tokens import MAX_ASPECT_RATIO, ImageRule
from tests.workers.vision.conftest import FAMILIES
from workers.engine import can_see
from workers.vision.loading import PROCESSORS


def test_a_folder_with_a_processor_and_an_eye_sees(seeing_folder: Callable[[str], Path], tmp_path: Path) -> None:
    assert set(PROCESSORS) == set(FAMILIES)
    for family in FAMILIES:
        assert can_see(seeing_folder(family))
    assert not can_see(Path("workers/demo"))
    blind = shutil.copytree(seeing_folder("gemma3"), tmp_path / "blind")
    weights = mx.load(str(blind / "model.safetensors"))
    assert isinstance(weights, dict)
    kept = {name: weight for name, weight in weights.items() if "vision" not in name}
    mx.save_safetensors(str(blind / "model.safetensors"), kept, metadata={"format": "mlx"})
    assert not can_see(blind)
    bare = shutil.copytree(seeing_folder("gemma3"), tmp_path / "bare")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (bare / name).unlink()
    assert not can_see(bare)


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([14, 16]), st.integers(1, 40), st.integers(50, 2000))
def test_the_rule_counts_as_the_processor_does(width: int, height: int, patch: int, least: int, most: int) -> None:
    cell = 2 * patch
    processor = Qwen3VLImageProcessor(patch_size=patch, min_pixels=least * cell**2, max_pixels=most * cell**2)
    rule = ImageRule(
        marker="i",
        token="i",
        token_id=0,
        cell_pixels=cell,
        min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels,
    )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        with pytest.raises(ValueError, match="aspect ratio"):
            processor.num_image_tokens(height, width)
    else:
        assert rule.tokens_of(width, height) == processor.num_image_tokens(height, width)
