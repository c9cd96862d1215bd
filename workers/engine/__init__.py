"""A text generator with continuous batching; knows no jobs, no Redis, no HTTP.

Importing this package loads a fast BLAS where MLX needs one, because that has to happen before MLX is imported: so
`backend` comes first below. It is the package's only side effect; `BLAS` says what was found.
"""

from workers.engine.backend import BLAS, Backend, installed_backend, load_blas
from workers.engine.choosing import (
    EngineBackend,
    LoadedEngine,
    PagedOptions,
    StoreOptions,
    load_engine,
    machine_memory_bytes,
    make_engine,
)
from workers.engine.engine import Engine, EngineStats
from workers.engine.errors import (
    AdapterRefused,
    BatchOrderLost,
    ConfigMissing,
    DraftRefused,
    EngineClosed,
    EngineError,
    EngineFull,
    InvalidPrompt,
    ModelError,
    ModelNotFound,
    TokenizerMissing,
    UnsupportedModel,
    WeightsMissing,
)
from workers.engine.estimating import PROCESS_BYTES, Estimate, estimate
from workers.engine.guided import Grammar, GrammarKind
from workers.engine.loading import LoadedModel, ModelInfo, find_model, load_model
from workers.engine.sequence import (
    Chunk,
    Fault,
    FinishReason,
    Prompt,
    SamplingParams,
    StopRule,
    TokenLogprob,
)
from workers.engine.tasks import Task, can_see, task_of

__all__ = [
    "BLAS",
    "PROCESS_BYTES",
    "AdapterRefused",
    "Backend",
    "BatchOrderLost",
    "Chunk",
    "ConfigMissing",
    "DraftRefused",
    "Engine",
    "EngineBackend",
    "EngineClosed",
    "EngineError",
    "EngineFull",
    "EngineStats",
    "Estimate",
    "Fault",
    "FinishReason",
    "Grammar",
    "GrammarKind",
    "InvalidPrompt",
    "LoadedEngine",
    "LoadedModel",
    "ModelError",
    "ModelInfo",
    "ModelNotFound",
    "PagedOptions",
    "Prompt",
    "SamplingParams",
    "StopRule",
    "StoreOptions",
    "Task",
    "TokenLogprob",
    "TokenizerMissing",
    "UnsupportedModel",
    "WeightsMissing",
    "can_see",
    "estimate",
    "find_model",
    "installed_backend",
    "load_blas",
    "load_engine",
    "load_model",
    "machine_memory_bytes",
    "make_engine",
    "task_of",
]
