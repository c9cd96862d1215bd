"""From a model's name to an engine that sees: network and processor by mlx-vlm, and how it counts an image's tokens.

Only families are taken whose counting is known, and each model is tried with a few sizes when it is loaded: where its
own processor writes an image in other tokens than the API would, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx_lm.utils import dequantize_model, load_tokenizer
from mlx_vlm.models.gemma3.processing_gemma3 import Gemma3Processor
from mlx_vlm.models.idefics3.processing_idefics3 import Idefics3Processor
from mlx_vlm.models.mistral3.processing_mistral3 import Mistral3Processor
from mlx_vlm.models.pixtral.processing_pixtral import PixtralProcessor
from mlx_vlm.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from mlx_vlm.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from mlx_vlm.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from mlx_vlm.utils import load_model as load_with_mlx_vlm
from PIL import Image

from scheduler.image_tokens import ImageRule
from workers.engine import Backend, LoadedEngine, LoadedModel, UnsupportedModel, find_model, installed_backend
from workers.engine.choosing import guides_of
from workers.engine.engine import SequenceEngine
from workers.engine.loading import check_folder, count_parameters, describe_model, fast_tokenizer, shown_marks
from workers.engine.vocabulary import Vocabulary
from workers.vision.runner import VisionRunner
from workers.vision.seeing import Seeing

STEP_TOKENS: Final = {Backend.CPU: 512, Backend.METAL: 2048, Backend.CUDA: 2048}
MAX_WAITING: Final = 1024
CPU_CACHE_LIMIT_BYTES: Final = 1 << 30
TRIED_SIZES: Final = ((8, 8), (97, 41), (640, 480), (333, 1000))
"""(width, height) in pixels of the images that a processor is tried with."""

PROCESSORS: Final[Mapping[str, Any]] = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "gemma3": Gemma3Processor,
    "pixtral": PixtralProcessor,
    "mistral3": Mistral3Processor,
    "idefics3": Idefics3Processor,
    "smolvlm": SmolVLMProcessor,
}

ALONE: Final = frozenset({"ministral3", "mistral4"})
"""Networks for text (in `text_config`) that scale a whole batch by the place of its first row: one row at a time."""


def load_seeing(model: str, *, max_sequences: int, step_tokens: int | None = None) -> LoadedEngine:
    """Load a model (a folder or a Hugging Face id) that sees, in the thread that will run it. Raises `ModelError`.

    `step_tokens`: how much of a prompt one step reads (default: 512 on a CPU, 2,048 on a GPU).
    """
    installed = installed_backend()
    if installed is Backend.CPU:
        mx.set_cache_limit(CPU_CACHE_LIMIT_BYTES)
    folder = find_model(model)
    config = check_folder(folder)
    kind = config["model_type"]
    if kind not in PROCESSORS:
        raise UnsupportedModel(f"{folder} is of the kind {kind!r}; those that see are {', '.join(sorted(PROCESSORS))}")
    try:
        network: Any = load_with_mlx_vlm(folder, lazy=True)
        parameters = count_parameters(network)
        if installed is Backend.CPU:
            network = dequantize_model(network)
            network.set_dtype(mx.float32)
        mx.eval(network.parameters())
        processor = PROCESSORS[kind].from_pretrained(str(folder), trust_remote_code=False)
        seeing = Seeing(network, processor, _rule(kind, processor))
        try_rule(seeing)
        loaded = _described(folder, config, seeing, parameters)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UnsupportedModel(f"mlx-vlm cannot load {folder} ({kind}): {error}") from error
    alone = config.get("text_config", {}).get("model_type") in ALONE
    runner = VisionRunner(
        seeing,
        vocab_size=loaded.info.vocab_size,
        capacity=1 if alone else max_sequences,
        step_tokens=step_tokens or STEP_TOKENS[installed],
    )
    engine = SequenceEngine(
        loaded, runner, max_waiting=MAX_WAITING, backend=f"vision: mlx-vlm, {kind}", guides=guides_of(loaded)
    )
    return LoadedEngine(engine, loaded.info)


def _described(folder: Path, config: dict[str, Any], seeing: Seeing, parameters: int) -> LoadedModel:
    template = seeing.processor.tokenizer.chat_template or seeing.processor.chat_template
    extra = {"trust_remote_code": False} | ({"chat_template": template} if template else {})
    load: Any = load_tokenizer  # not typed
    wrapper = load(str(folder), extra, eos_token_ids=config.get("eos_token_id"))
    vocabulary = Vocabulary(fast_tokenizer(wrapper, folder), shown_marks(wrapper))
    width = seeing.vocab_size
    info = describe_model(folder, config, wrapper, vocabulary, seeing.network, parameters, width)
    info = replace(info, image_rule=asdict(seeing.rule))
    return LoadedModel(model=seeing.network, vocabulary=vocabulary, info=info)


def _qwen_rule(processor: Any) -> ImageRule:
    sizes = processor.image_processor
    token = processor.image_token
    return ImageRule(
        marker=token,
        token=token,
        token_id=processor.image_token_id,
        cell_pixels=sizes.patch_size * sizes.merge_size,
        min_pixels=sizes.min_pixels,
        max_pixels=sizes.max_pixels,
    )


def _gemma_rule(processor: Any) -> ImageRule:
    before, after = processor.full_image_sequence.split(processor.image_token * processor.image_seq_length)
    return ImageRule(
        marker=processor.boi_token,
        token=processor.image_token,
        token_id=processor.image_token_id,
        before=before,
        after=after,
        tokens=processor.image_seq_length,
    )


def _pixtral_rule(processor: Any) -> ImageRule:
    size = processor.image_processor.size
    return ImageRule(
        marker=processor.image_token,
        token=processor.image_token,
        token_id=processor.image_token_id,
        after=processor.image_end_token,
        cell_pixels=processor.patch_size * processor.spatial_merge_size,
        max_side=size["longest_edge"],
        row_break=processor.image_break_token,
    )


def _idefics_rule(processor: Any) -> ImageRule:
    sizes = processor.image_processor
    tile = int(sizes.max_image_size["longest_edge"])
    return ImageRule(
        marker=processor.image_token,
        token=processor.image_token,
        token_id=processor.image_token_id,
        before=processor.fake_image_token,
        after=processor.fake_image_token,
        tokens=processor.image_seq_len,
        tile_pixels=tile,
        max_side=int(sizes.size["longest_edge"]) if sizes.do_image_splitting else tile,
        whole_mark="<global-img>",
    )


_RULES: Final[Mapping[str, Callable[[Any], ImageRule]]] = {
    "gemma3": _gemma_rule,
    "pixtral": _pixtral_rule,
    "mistral3": _pixtral_rule,
    "idefics3": _idefics_rule,
    "smolvlm": _idefics_rule,
}


def _rule(kind: str, processor: Any) -> ImageRule:
    return _RULES.get(kind, _qwen_rule)(processor)


def try_rule(seeing: Seeing, sizes: Sequence[tuple[int, int]] = TRIED_SIZES) -> None:
    """Raises ValueError where the processor writes an image in other tokens than the rule does."""
    for size in sizes:
        text = f"a{seeing.rule.marker}b"
        expected = seeing.rule.written(text, [size])
        ids = seeing.processor.tokenizer(expected, add_special_tokens=False).input_ids
        image = Image.new("RGB", size)
        found = seeing.processor(text=[text], images=[image], add_special_tokens=False)["input_ids"]
        if found.tolist() != [ids]:
            raise ValueError(
                f"its processor writes an image of {size[0]} x {size[1]} pixels in a way that is not known"
            )
