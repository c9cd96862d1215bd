"""Whether a model can be another one's draft model, and its pools."""

from tokenizers import Tokenizer

from workers.engine.errors import DraftRefused
from workers.engine.loading import LoadedModel, ModelInfo
from workers.engine.paged.cache import CannotPage, PagedModel
from workers.engine.paged.draft_model import DraftPages
from workers.engine.paged.probe import open_pages


def check_draft(target: LoadedModel, draft: LoadedModel, *, speculates: bool) -> None:
    """Raise `DraftRefused` unless both models' ids mean the same tokens, and guesses are wanted at all.

    The widths of their logits may differ in what pads them behind the tokenizer's ids.
    """
    if not speculates:
        raise DraftRefused(f"a draft model ({draft.info.path}) is of no use while speculation is turned off")
    ours, theirs = (_tokens(model.vocabulary.tokenizer) for model in (target, draft))
    names = f"the model {_described(target.info, ours)} and the draft model {_described(draft.info, theirs)}"
    if len(ours) != len(theirs):
        raise DraftRefused(f"{names} have vocabularies of different sizes")
    if ours != theirs:
        odd = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise DraftRefused(
            f"{names} have different tokens: {odd} is {ours.get(odd)!r} here and {theirs.get(odd)!r} there"
        )
    known = max(ours) + 1
    if min(target.info.vocab_size, draft.info.vocab_size) < min(known, target.info.vocab_size):
        raise DraftRefused(f"{names}: the draft model's logits end before the tokenizer's ids")


def draft_block_bytes(draft: LoadedModel, block_tokens: int) -> int:
    """Of one block in the draft model's pools. Raises `DraftRefused` for a model that cannot be paged or rewound."""
    try:
        sample = PagedModel(draft.model, blocks=2, block_tokens=block_tokens, state_slots=1)
    except CannotPage as error:
        raise _unpageable(draft, str(error)) from error
    if sample.has_state:
        raise _unpageable(draft, "its recurrent state cannot be rewound behind a wrong guess")
    return sample.block_bytes


def open_draft(draft: LoadedModel, *, blocks: int, block_tokens: int) -> DraftPages:
    """The model over pools of its own, which have passed the self-test. Raises `DraftRefused`."""
    try:
        pages = open_pages(draft.model, blocks=blocks, block_tokens=block_tokens)
    except CannotPage as error:
        raise _unpageable(draft, str(error)) from error
    return DraftPages(pages, draft.info.vocab_size, draft.info.context_tokens)


def _tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}


def _described(info: ModelInfo, tokens: dict[int, str]) -> str:
    return f"{info.path} ({len(tokens)} tokens)"


def _unpageable(draft: LoadedModel, why: str) -> DraftRefused:
    return DraftRefused(f"{draft.info.path} ({draft.info.model_type}) cannot be a draft model: {why}")
