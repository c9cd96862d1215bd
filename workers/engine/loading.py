"""From a name to a model in memory: finds the folder, checks it, loads it with mlx-lm, and says what was loaded.

Model files are data: code in a model folder is never run. On the CPU back end weights are float32, because only
float32 products are fast there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import mlx.core as mx
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, get_total_parameters
from mlx_lm.utils import load as load_with_mlx_lm
from tokenizers import Tokenizer

from workers.engine.adapters import Adapters, attach_adapters
from workers.engine.backend import Backend, installed_backend
from workers.engine.errors import ModelNotFound, TokenizerMissing, UnsupportedModel, WeightsMissing
from workers.engine.tasks import Task, read_config
from workers.engine.vocabulary import Vocabulary

MODEL_FILES: Final = [
    "*.json",
    "*.jsonl",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jinja",
]
CONTEXT_KEYS: Final = (
    "max_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_positions",
    "n_ctx",
    "model_max_length",
)
PROGRESS_BYTES: Final = 64 << 20
"""Weights that are read between two reports."""

OnProgress: TypeAlias = Callable[[int, int], None]
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model that do not depend on the name it is served under.

    `tokenizer_json` and `chat_template` (a Jinja source, with `special_tokens` by name as its variables) suffice to
    turn messages into token ids without MLX. `weight_bytes` is what the weights occupy as loaded. `context_tokens`
    is None where the configuration names no bound. A model that embeds has `dimensions`; it was trained so that its
    vectors may be cut to `short_dimensions` (() for any number; None: not at all). For a model that sees, `image_rule`
    says how an image is written into a prompt (by the names of scheduler/image_tokens.py).
    """

    path: Path
    model_type: str
    context_tokens: int | None
    vocab_size: int
    parameters: int
    weight_bytes: int
    eos_token_ids: tuple[int, ...]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]
    think_start: str | None
    think_end: str | None
    has_tool_calling: bool
    tool_format: str | None
    tool_call_start: str | None
    tool_call_end: str | None
    task: Task = Task.GENERATE
    dimensions: int | None = None
    short_dimensions: tuple[int, ...] | None = None
    image_rule: Mapping[str, Any] | None = None


CALL_MARKS: Mapping[str, tuple[str, ...]] = {
    "gemma4": ('<|"|>',),
    "function_gemma": ("<escape>",),
    "glm47": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "laguna": ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "longcat": ("<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>"),
    "kimi_k3": ("<|open|>", "<|close|>", "<|sep|>"),
    "minicpm5": ("<function", "</function>", "<param", "</param>"),
}
"""Tokens inside calls that a reader of them needs, where their names do not tell (`SHOWN_MARK`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """`adapters` are in the model already, and change only the rows that ask for one."""

    model: Module
    vocabulary: Vocabulary
    info: ModelInfo
    adapters: Adapters = field(default_factory=Adapters)


def find_model(model: str) -> Path:
    """The folder of a model: a folder as given, else the Hugging Face cache, else a download into it.

    `OWNER/NAME@REVISION` is one branch, tag or commit of a repository. Raises `ModelNotFound`, naming where it looked.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    looked = f"folder {folder.absolute()}, Hugging Face cache {constants.HF_HUB_CACHE}"
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"no model {model!r}: there is no folder {folder.absolute()}")
    repository, _, at = model.partition("@")
    revision = at or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=MODEL_FILES, local_files_only=True))
    except HFValidationError as error:
        raise ModelNotFound(f"no model {model!r} (looked in: {looked}): {error}") from error
    except LocalEntryNotFoundError:
        pass  # not cached: ask the hub
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=MODEL_FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelNotFound(f"no model {model!r} (looked in: {looked}), and the hub is not reachable") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"no model {model!r} (looked in: {looked}; hub: {error})") from error


def check_folder(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that has all that a model needs. Raises the `ModelError` that says what lacks."""
    config = read_config(folder)
    if not any(folder.glob("model*.safetensors")):
        raise WeightsMissing(f"{folder} has no model*.safetensors (other weight formats have to be converted)")
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise TokenizerMissing(f"{folder} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)})")
    if "model_file" in config:
        raise UnsupportedModel(f"{folder} wants to run {config['model_file']!r} from its folder, which is never done")
    return config


def load_model(
    model: str,
    *,
    shown_special_tokens: tuple[str, ...] = (),
    adapters: Mapping[str, Path] | None = None,
    on_progress: OnProgress | None = None,
) -> LoadedModel:
    """Load weights, tokenizer and adapters (folders by name).

    `on_progress` hears now and then how many bytes of the weights are in memory, and how many there will be. Raises the
    `ModelError` that names what is missing or not supported.
    """
    return _open(model, shown_special_tokens, adapters or {}, lambda network: _read_weights(network, on_progress))


def sketch_model(model: str) -> LoadedModel:
    """The model with its weights still on disk: to describe it, not to run it. Raises `ModelError`."""
    return _open(model, (), {}, lambda network: None)


def _read_weights(network: Module, on_progress: OnProgress | None) -> None:
    """Bring the weights into memory, piece by piece for who wants to see it."""
    arrays = _arrays(network)
    total_bytes = sum(int(array.nbytes) for array in arrays)
    done_bytes, piece_bytes, piece = 0, 0, []
    for array in arrays:
        piece.append(array)
        piece_bytes += int(array.nbytes)
        if piece_bytes >= PROGRESS_BYTES:
            mx.eval(piece)
            done_bytes, piece_bytes, piece = done_bytes + piece_bytes, 0, []
            if on_progress is not None:
                on_progress(done_bytes, total_bytes)
    mx.eval(piece)


def _open(
    model: str,
    shown_special_tokens: tuple[str, ...],
    adapters: Mapping[str, Path],
    read_weights: Callable[[Module], None],
) -> LoadedModel:
    folder = find_model(model)
    config = check_folder(folder)
    try:
        loaded: tuple[Any, ...] = load_with_mlx_lm(str(folder), lazy=True, return_config=True)
        network, wrapper, config = loaded
        parameters = count_parameters(network)
        if installed_backend() is Backend.CPU:
            network = dequantize_model(network)
            network.set_dtype(mx.float32)
        read_weights(network)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"mlx-lm cannot load {folder} ({config['model_type']}): {error}") from error
    attached = attach_adapters(network, adapters)
    vocabulary = Vocabulary(fast_tokenizer(wrapper, folder), (*shown_marks(wrapper), *shown_special_tokens))
    info = describe_model(folder, config, wrapper, vocabulary, network, parameters, _vocab_size(network))
    return LoadedModel(model=network, vocabulary=vocabulary, info=info, adapters=attached)


def fast_tokenizer(wrapper: Any, folder: Path) -> Tokenizer:
    """The `tokenizers` tokenizer inside a transformers one. Raises `TokenizerMissing` where there is none."""
    tokenizer = getattr(wrapper, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise TokenizerMissing(f"the tokenizer in {folder} cannot be represented by the tokenizers library")
    return tokenizer


def shown_marks(wrapper: TokenizerWrapper) -> tuple[str, ...]:
    """Special tokens that readers of the text need: of thoughts and calls."""
    marks = (wrapper.think_start, wrapper.think_end, wrapper.tool_call_start, wrapper.tool_call_end)
    return (*(mark for mark in marks if mark), *CALL_MARKS.get(_tool_format(wrapper) or "", ()))


def _tool_format(wrapper: TokenizerWrapper) -> str | None:
    """The name of mlx-lm's parser for the model's calls."""
    return wrapper.tool_parser.__module__.rpartition(".")[2] if wrapper.tool_parser else None


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first positive number under one of the keys, at the top or in the text model's part."""
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key in keys:
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def context_tokens(config: dict[str, Any], tokenizer_max: float) -> int | None:
    """The most tokens a sequence may have; tokenizers without an opinion have a huge `model_max_length`."""
    found = _first_int(config, CONTEXT_KEYS)
    if found is not None:
        return found
    return int(tokenizer_max) if 0 < tokenizer_max < 1 << 31 else None


def count_parameters(network: Any) -> int:
    """Parameters as published: a quantized weight counts as many as it stands for."""
    count: Callable[[Any], int] = get_total_parameters
    return count(network)


def weight_bytes(network: Any) -> int:
    """What a network's weights occupy."""
    return sum(int(array.nbytes) for array in _arrays(network))


def _arrays(network: Any) -> list[mx.array]:
    weights: Any = tree_flatten(network.parameters())
    return [array for _, array in weights]


def _vocab_size(network: Module) -> int:
    """Width of the logits, from a forward of one token: configurations may understate padding."""
    logits = network(mx.array([[0]]))
    return int(logits.shape[-1])


def _chat_template(wrapper: TokenizerWrapper) -> str | None:
    """Tokenizers may have several named templates; "default" is the one for conversation."""
    template = wrapper.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(wrapper: TokenizerWrapper) -> dict[str, str]:
    return {name: token for name, token in wrapper.special_tokens_map.items() if isinstance(token, str)}


def describe_model(
    folder: Path,
    config: dict[str, Any],
    wrapper: TokenizerWrapper,
    vocabulary: Vocabulary,
    network: Module,
    parameters: int,
    vocab_size: int,
) -> ModelInfo:
    """What is known of a model that generates; `vocab_size` is the width of its logits."""
    return ModelInfo(
        path=folder,
        model_type=config["model_type"],
        context_tokens=context_tokens(config, getattr(wrapper, "model_max_length", math.inf)),
        vocab_size=vocab_size,
        parameters=parameters,
        weight_bytes=weight_bytes(network),
        eos_token_ids=tuple(sorted(token for token in wrapper.eos_token_ids if isinstance(token, int))),
        tokenizer_json=vocabulary.json,
        chat_template=_chat_template(wrapper),
        special_tokens=_special_tokens(wrapper),
        think_start=wrapper.think_start,
        think_end=wrapper.think_end,
        has_tool_calling=wrapper.has_tool_calling,
        tool_format=_tool_format(wrapper),
        tool_call_start=wrapper.tool_call_start,
        tool_call_end=wrapper.tool_call_end,
    )
