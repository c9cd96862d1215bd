"""Trains the byte-level BPE tokenizer on the corpus and writes tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus.mixture import conversation
from .samples import END_OF_TEXT, END_OF_TURN, MODEL_FOLDER, Renderer

_CONTROL = (END_OF_TEXT, "<|im_start|>", END_OF_TURN)
_VISIBLE = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# Newlines stay together, digits stand alone, words and marks take one space in front.
_PIECES = r"\n+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
_LONGEST_PROMPT_TOKENS = 2048


def texts(seed: int, count: int) -> Iterator[str]:
    """Yield rendered conversations without the control tokens."""
    rng, renderer = Random(f"{seed}/tokenizer"), Renderer()
    for _ in range(count):
        text = "".join(renderer.split(conversation(rng)))
        for mark in (*_CONTROL, *_VISIBLE):
            text = text.replace(mark, "\n")
        yield text


def trained(vocabulary: int, seed: int, count: int) -> Tokenizer:
    """Train a tokenizer with exactly `vocabulary` tokens, the control tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(_CONTROL) - len(_VISIBLE),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed, count), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _VISIBLE])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer and what transformers needs to know about it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _LONGEST_PROMPT_TOKENS,
        "bos_token": None,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train and save the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    options = parser.parse_args()
    save(trained(options.vocabulary, options.seed, options.conversations), options.folder)


if __name__ == "__main__":
    main()
