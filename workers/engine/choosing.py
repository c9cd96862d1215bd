"""From a loaded model to an engine: which runner serves it, and how much memory its cache may take."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from workers.engine.backend import Backend, installed_backend
from workers.engine.batch import BatchRunner, is_batchable
from workers.engine.engine import Engine, SequenceEngine
from workers.engine.errors import DraftRefused, UnsupportedModel
from workers.engine.guided import CannotGuide, GuideCompiler
from workers.engine.loading import LoadedModel, ModelInfo, OnProgress, load_model
from workers.engine.paged.blocks import root_hash
from workers.engine.paged.cache import CannotPage, PagedModel
from workers.engine.paged.chunks import LARGEST_CHUNK_TOKENS, PlanLimits
from workers.engine.paged.draft_opening import check_draft, draft_block_bytes, open_draft
from workers.engine.paged.identity import model_identity
from workers.engine.paged.probe import open_pages
from workers.engine.paged.runner import PagedRunner
from workers.engine.paged.sizing import CacheNeeds, cache_blocks, snapshot_slots
from workers.engine.paged.store import PrefixStore
from workers.engine.runner import Runner
from workers.engine.serial import SerialRunner

PREFILL_STEP_TOKENS = {Backend.CPU: 512, Backend.METAL: 2048, Backend.CUDA: 2048}
CPU_CACHE_LIMIT_BYTES = 1 << 30
CPU_MEMORY_SHARE = 0.25  # of the machine's, that a cache may take
GPU_MEMORY_SHARE = 0.6  # of what the weights leave
NOT_ROUNDING = "it keeps keys and values as the model computes them; for 8 bits the paged engine is needed"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class EngineBackend(StrEnum):
    """What computes the sequences. AUTO: the first of PAGED, BATCH and SERIAL that serves the model correctly."""

    AUTO = "auto"
    PAGED = "paged"
    BATCH = "batch"
    SERIAL = "serial"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where blocks are kept on disk, how many bytes of them, and for how long after their last use."""

    folder: Path
    max_bytes: int
    max_age_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """How the paged cache is laid out.

    `kv_blocks` of `block_tokens` tokens, or as many as `kv_bytes` hold; None for both: see `cache_blocks`.
    `kv_bits` of their keys and values: 8, or None for what the model computes; other back ends refuse 8.
    `shares_prefixes`: what one prompt computed serves others that begin alike. `speculates`: rows guess at their next
    tokens where that has paid. `store`: what was computed is also kept on disk, for later and for other processes.
    """

    block_tokens: int = 16
    kv_blocks: int | None = None
    kv_bytes: int | None = None
    kv_bits: int | None = None
    shares_prefixes: bool = True
    speculates: bool = True
    store: StoreOptions | None = None


class LoadedEngine(NamedTuple):
    engine: Engine
    info: ModelInfo


class Choice(NamedTuple):
    runner: Runner
    why: str


def load_engine(
    model: str,
    *,
    max_sequences: int = 32,
    max_waiting: int = 1024,
    prefill_step_tokens: int | None = None,
    shown_special_tokens: tuple[str, ...] = (),
    adapters: Mapping[str, Path] | None = None,
    backend: EngineBackend = EngineBackend.AUTO,
    paged: PagedOptions = PagedOptions(),
    draft_model: str | None = None,
    on_progress: OnProgress | None = None,
) -> LoadedEngine:
    """Load a model (a folder or a Hugging Face id) and make an engine for it, in the thread that will run it.

    `prefill_step_tokens` is what one step reads of prompts (default: 512 on CPU, 2048 on GPU); see `make_engine`.
    `shown_special_tokens` appear in the text in addition to the marks of thinking and tool calls. `adapters` are LoRA
    folders in mlx-lm's layout, by the name that prompts ask for. `draft_model`, a folder or an id like `model`, guesses
    at coming tokens where that pays. `on_progress` hears of the weights that are read. Raises `ModelError`.
    """
    installed = installed_backend()
    if installed is Backend.CPU:
        mx.set_cache_limit(CPU_CACHE_LIMIT_BYTES)
    loaded = load_model(model, shown_special_tokens=shown_special_tokens, adapters=adapters, on_progress=on_progress)
    engine = make_engine(
        loaded,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        prefill_step_tokens=prefill_step_tokens or PREFILL_STEP_TOKENS[installed],
        backend=backend,
        paged=paged,
        draft=load_model(draft_model) if draft_model else None,
    )
    return LoadedEngine(engine, loaded.info)


def make_engine(
    loaded: LoadedModel,
    *,
    max_sequences: int,
    max_waiting: int,
    prefill_step_tokens: int,
    backend: EngineBackend = EngineBackend.AUTO,
    paged: PagedOptions = PagedOptions(),
    draft: LoadedModel | None = None,
) -> Engine:
    """An engine over a loaded model; its `backend` says which runner it has and why.

    `max_sequences` decode together. `prefill_step_tokens`: a paged engine's step computes so many tokens in all, of
    prompts and of decoding rows; a batched one reads so many of each prompt, and of all together twice that.
    Raises `UnsupportedModel` where a back end was asked for that cannot serve the model, or not in `paged.kv_bits`, and
    `DraftRefused` where the `draft` model cannot guess for it, or it is not paged: nothing else has use for one.
    """
    if draft is not None:
        check_draft(loaded, draft, speculates=paged.speculates)
    guides = guides_of(loaded)
    makers: dict[EngineBackend, Callable[[], Choice | str]] = {
        EngineBackend.PAGED: lambda: _paged(loaded, paged, max_sequences, prefill_step_tokens, guides, draft),
        EngineBackend.BATCH: lambda: _batch(loaded, max_sequences, prefill_step_tokens),
        EngineBackend.SERIAL: lambda: _serial(loaded, prefill_step_tokens),
    }
    reasons: list[str] = []
    for kind, make in makers.items():
        if backend in (kind, EngineBackend.AUTO):
            choice = make() if kind is EngineBackend.PAGED or paged.kv_bits is None else NOT_ROUNDING
            if draft is not None and (kind is not EngineBackend.PAGED or isinstance(choice, str)):
                why = choice if isinstance(choice, str) else f"the {kind} back end has no use for one"
                raise DraftRefused(f"{loaded.info.path} cannot have the draft model {draft.info.path}: {why}")
            if isinstance(choice, Choice):
                said = "; ".join([f"{kind}: {choice.why}", *reasons])
                return SequenceEngine(loaded, choice.runner, max_waiting=max_waiting, backend=said, guides=guides)
            reasons.append(f"not {kind}: {choice}")
    raise UnsupportedModel(f"{loaded.info.path} ({loaded.info.model_type}): {'; '.join(reasons)}")


def guides_of(loaded: LoadedModel) -> GuideCompiler | None:
    """What makes guides for a model; None where its tokens cannot be mapped to bytes."""
    info = loaded.info
    try:
        return GuideCompiler(loaded.vocabulary.tokenizer, info.vocab_size, info.eos_token_ids)
    except CannotGuide:
        return None


def _paged(
    loaded: LoadedModel,
    options: PagedOptions,
    max_sequences: int,
    step_tokens: int,
    guides: GuideCompiler | None,
    draft: LoadedModel | None,
) -> Choice | str:
    """The runner, or why there is none."""
    try:
        return _open_paged(loaded, options, max_sequences, step_tokens, guides, draft)
    except CannotPage as error:
        return str(error)


def _open_paged(
    loaded: LoadedModel,
    options: PagedOptions,
    max_sequences: int,
    step_tokens: int,
    guides: GuideCompiler | None,
    draft: LoadedModel | None,
) -> Choice:
    info, size = loaded.info, options.block_tokens
    sample = PagedModel(loaded.model, blocks=2, block_tokens=size, state_slots=1, kv_bits=options.kv_bits)
    root = root_hash(info.model_type)
    if draft is not None and sample.has_state:
        raise CannotPage("its recurrent state cannot be rewound behind a wrong guess")
    draft_bytes = 0 if draft is None else draft_block_bytes(draft, size)
    needs = CacheNeeds(
        block_tokens=size,
        block_bytes=sample.block_bytes + draft_bytes,
        weight_bytes=info.weight_bytes,
        max_sequences=max_sequences,
        context_tokens=info.context_tokens,
        spare_bytes=spare_memory_bytes(),
    )
    blocks = cache_blocks(needs, kv_blocks=options.kv_blocks, kv_bytes=options.kv_bytes)
    snapshots = 0
    if options.shares_prefixes and sample.has_state:
        snapshots = snapshot_slots(slot_bytes=sample.slot_bytes, blocks=blocks, block_bytes=sample.block_bytes)
    slots = max_sequences + snapshots if sample.has_state else 0
    pages = open_pages(
        loaded.model,
        blocks=blocks + 1,
        block_tokens=size,
        state_slots=slots,
        kv_bits=options.kv_bits,
        adapters=loaded.adapters,
    )
    limits = PlanLimits(
        rows=max_sequences,
        step_tokens=step_tokens,
        chunk_tokens=min(step_tokens, LARGEST_CHUNK_TOKENS),
        forward_rows=max_sequences if pages.batched_prefill else 1,
    )
    runner = PagedRunner(
        pages,
        vocab_size=info.vocab_size,
        limits=limits,
        root=root,
        adapter_roots={name: root_hash(root, digest) for name, digest in loaded.adapters.digests.items()},
        snapshots=snapshots,
        shares_prefixes=options.shares_prefixes,
        speculates=options.speculates,
        draft=None if draft is None else open_draft(draft, blocks=blocks + 1, block_tokens=size),
        guides=guides,
        store=_open_store(options.store, info.path, pages) if options.store else None,
        waits_for_stages=installed_backend() is not Backend.CPU,
    )
    said = _said_of(pages, blocks)
    if draft is not None:
        said += f"; draft model {draft.info.path.name}, {blocks * draft_bytes >> 20} MiB"
    return Choice(runner, said)


def _said_of(pages: PagedModel, blocks: int) -> str:
    said = f"{blocks} blocks of {pages.block_tokens} tokens, {blocks * pages.block_bytes >> 20} MiB"
    if pages.kv_bits is not None:
        kept = ", recurrent state as computed" if pages.has_state else ""
        said += f"; keys and values in {pages.kv_bits} bits{kept}"
    layers = ", ".join(f"{count} {kind}" for kind, count in pages.kinds.items() if count)
    return f"{said}; layers: {layers}"


def _open_store(options: StoreOptions, model: Path, pages: PagedModel) -> PrefixStore:
    return PrefixStore(
        options.folder,
        max_bytes=options.max_bytes,
        max_age_s=options.max_age_s,
        identity=model_identity(model, pages),
    )


def _batch(loaded: LoadedModel, max_sequences: int, step_tokens: int) -> Choice | str:
    info = loaded.info
    if loaded.adapters:
        return "BatchGenerator cannot be told which row has which adapter"
    if not is_batchable(loaded.model, info.model_type):
        return f"mlx-lm does not batch {info.model_type} correctly"
    runner = BatchRunner(
        loaded.model, vocab_size=info.vocab_size, capacity=max_sequences, prefill_step_tokens=step_tokens
    )
    return Choice(runner, f"mlx-lm's BatchGenerator, {max_sequences} rows")


def _serial(loaded: LoadedModel, step_tokens: int) -> Choice:
    runner = SerialRunner(
        loaded.model,
        vocab_size=loaded.info.vocab_size,
        prefill_step_tokens=step_tokens,
        adapters=loaded.adapters,
    )
    return Choice(runner, "mlx-lm's generate_step, one row at a time")


def spare_memory_bytes() -> int:
    """What a cache may take: a quarter of the machine's memory on a CPU, 60 % of what the weights leave of a GPU's."""
    device_bytes = _device_memory_bytes()
    if device_bytes:
        return int(GPU_MEMORY_SHARE * max(0, device_bytes - mx.get_active_memory()))
    return int(CPU_MEMORY_SHARE * machine_memory_bytes())


def machine_memory_bytes() -> int:
    """The GPU's memory, or the machine's (or the control group's, if that is less) where a CPU computes."""
    device_bytes = _device_memory_bytes()
    if device_bytes:
        return device_bytes
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return min(memory_bytes, int(limit) if limit.isdigit() else memory_bytes)


def _device_memory_bytes() -> int:
    """0 on a CPU."""
    if installed_backend() is Backend.CPU:
        return 0
    info = mx.device_info()
    keys = ("max_recommended_working_set_size", "total_memory", "memory_size")
    return next((int(info[key]) for key in keys if int(info.get(key, 0)) > 0), 0)
