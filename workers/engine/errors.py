"""The ways in which the engine refuses a model or a prompt. Each message says what is wrong and with what."""


class EngineError(Exception):
    """Root of everything the engine raises on purpose."""


class InvalidPrompt(EngineError):
    """The prompt cannot be generated from: empty, too long for the context, id in use, or a parameter out of range."""


class EngineFull(EngineError):
    """The waiting line has reached its bound; submit again when `stats().waiting` has fallen."""


class EngineClosed(EngineError):
    """`submit` or `step` was called after `close`."""


class BatchOrderLost(EngineError):
    """The batch generator reported rows that the engine does not have; its output can no longer be attributed."""


class ModelError(EngineError):
    """Root of everything that keeps a model from being loaded."""


class ModelNotFound(ModelError):
    """Neither a folder nor a cached or downloadable Hugging Face repository has this name."""


class ConfigMissing(ModelError):
    """The model folder has no readable `config.json`."""


class WeightsMissing(ModelError):
    """The model folder has no `model*.safetensors`."""


class TokenizerMissing(ModelError):
    """The model folder has no tokenizer, or none that the `tokenizers` library can represent."""


class UnsupportedModel(ModelError):
    """mlx-lm has no implementation of the architecture, or only one that would run code from the model folder."""


class AdapterRefused(ModelError):
    """An adapter's folder is incomplete, does not fit the model, or changes it in a way that rows cannot be given."""


class DraftRefused(ModelError):
    """The draft model cannot guess for the model that it was given to."""
