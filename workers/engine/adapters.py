"""Several LoRA adapters beside one copy of a model's weights; each row of a batch may have another one, or none.

Adapters are folders in mlx-lm's layout (`adapter_config.json`, `adapters.safetensors`) and are read by mlx-lm, one
after the other: what it puts around the model's layers is taken off again, and the layers are wrapped once, in ours.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.utils import load_adapters

from workers.engine.adapted import AdaptedEmbedding, AdaptedExperts, AdaptedLinear, AdaptedSwitchLinear, RowNumbers
from workers.engine.errors import AdapterRefused

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapters.safetensors"
# What mlx-lm and the files' content may make it raise.
LOAD_ERRORS = (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
Adapted: TypeAlias = "type[AdaptedLinear] | type[AdaptedEmbedding] | type[AdaptedSwitchLinear]"
KINDS: Final[dict[type, Adapted]] = {
    LoRALinear: AdaptedLinear,
    LoRAEmbedding: AdaptedEmbedding,
    LoRASwitchLinear: AdaptedSwitchLinear,
}


class Update(NamedTuple):
    """One adapter's part in one layer: `a` (..., in, rank), `b` (..., rank, out), float32, `b` with the scale."""

    a: mx.array
    b: mx.array


class Layer(NamedTuple):
    """A layer of the model that some adapter changes, as it was."""

    base: Module
    kind: Adapted


class Adapters:
    """A model's adapters by name, and the one way to say which rows of a forward have which.

    `digests` tell the content of one adapter from another's, on every machine. One thread makes all calls.
    """

    def __init__(self, digests: Mapping[str, bytes] | None = None, rows: RowNumbers | None = None) -> None:
        self.digests = dict(digests or {})
        self._rows = rows or RowNumbers()
        self._numbers: dict[str | None, int] = {None: 0}
        self._numbers |= {name: number for number, name in enumerate(self.digests, 1)}

    def __len__(self) -> int:
        return len(self.digests)

    @contextmanager
    def of_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """While a forward of these rows is built: the adapter of each, None for none. Raises KeyError for an unknown
        one."""
        if not any(names):
            yield
            return
        with self._rows.set([self._numbers[name] for name in names]):
            yield


def attach_adapters(network: Module, folders: Mapping[str, Path]) -> Adapters:
    """Load adapters by name and put them into the model, which says what it said before to rows without one.

    Raises `AdapterRefused`; the model is not to be used then.
    """
    if not folders:
        return Adapters()
    if "" in folders:
        raise AdapterRefused("an adapter needs a name")
    layers: dict[str, Layer] = {}
    updates: dict[str, dict[str, Update]] = {}
    digests: dict[str, bytes] = {}
    for name, folder in folders.items():
        _load(network, name, folder)
        updates[name] = _take_off(network, name, folder, layers)
        digests[name] = _digest(folder)
    rows = RowNumbers()
    wrapped: dict[str, Module] = {}
    for path, layer in layers.items():
        stacks = _stacked([parts.get(path) for parts in updates.values()])
        wrapped[path] = layer.kind(layer.base, *stacks, rows)
    _replace(network, wrapped)
    _replace(network, _experts(network, layers, rows))
    mx.eval(network.parameters())  # type: ignore[no-untyped-call]
    return Adapters(digests, rows)


def _load(network: Module, name: str, folder: Path) -> None:
    """Let mlx-lm put the adapter's layers into the model."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.get("fine_tune_type") == "full":
            raise AdapterRefused(f"adapter {name!r}: {folder} is a full fine-tune, not LoRA: serve it as a model")
        load_adapters(network, str(folder))
    except LOAD_ERRORS as error:
        raise AdapterRefused(f"adapter {name!r}: {folder} cannot be loaded: {error}") from error


def _take_off(network: Module, name: str, folder: Path, layers: dict[str, Layer]) -> dict[str, Update]:
    """What the adapter changes, by layer; its layers leave the model, and `layers` learns what stood there."""
    given = set(_arrays(folder))
    updates: dict[str, Update] = {}
    bases: dict[str, Module] = {}
    for path, module in _modules(network).items():
        if "lora_a" not in module:
            continue
        kind = KINDS.get(type(module))
        if kind is None:
            raise AdapterRefused(
                f"adapter {name!r}: layer {path} is adapted by {type(module).__name__}, which cannot be added row by "
                "row; only LoRA of linear layers, embeddings and experts can: fuse it into the model, or train LoRA"
            )
        base: Module = module.embedding if kind is AdaptedEmbedding else module.linear
        bases[path] = base
        parts = {f"{path}.lora_a", f"{path}.lora_b"} & given
        if len(parts) == 1:
            raise AdapterRefused(f"adapter {name!r}: {folder / WEIGHTS} has {parts.pop()} without its other half")
        if parts:
            updates[path] = _update(module, kind)
            layers.setdefault(path, Layer(base, kind))
    if not updates:
        raise AdapterRefused(f"adapter {name!r}: {folder} changes no layer of the model")
    _replace(network, bases)
    return updates


def _arrays(folder: Path) -> dict[str, mx.array]:
    arrays: Any = mx.load(str(folder / WEIGHTS))
    return dict(arrays)


def _update(module: Any, kind: Adapted) -> Update:
    a, b = module.lora_a.astype(mx.float32), module.scale * module.lora_b.astype(mx.float32)
    if kind is AdaptedSwitchLinear:  # (experts, rank, in) and (experts, out, rank)
        a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
    return Update(a, b)


def _stacked(updates: Sequence[Update | None]) -> Update:
    """All adapters' parts in one layer behind zeros for no adapter; ranks are padded to the greatest."""
    some = next(update for update in updates if update is not None)
    rank = max(update.a.shape[-1] for update in updates if update is not None)
    none = Update(
        mx.zeros((*some.a.shape[:-1], rank), mx.float32), mx.zeros((*some.b.shape[:-2], rank, some.b.shape[-1]))
    )
    padded = [none, *(none if update is None else _padded(update, rank) for update in updates)]
    return Update(mx.stack([update.a for update in padded]), mx.stack([update.b for update in padded]))


def _padded(update: Update, rank: int) -> Update:
    missing = rank - update.a.shape[-1]
    if not missing:
        return update
    leading = [(0, 0)] * (update.a.ndim - 2)
    return Update(
        mx.pad(update.a, [*leading, (0, 0), (0, missing)]), mx.pad(update.b, [*leading, (0, missing), (0, 0)])
    )


def _experts(network: Module, layers: Mapping[str, Layer], rows: RowNumbers) -> dict[str, Module]:
    """Those around the adapted layers of experts, wrapped. Raises `AdapterRefused` for any other parent."""
    modules = _modules(network)
    wrapped: dict[str, Module] = {}
    for path, layer in layers.items():
        if layer.kind is AdaptedSwitchLinear:
            parent = path.rpartition(".")[0]
            if type(modules[parent]) not in (SwitchGLU, SwitchMLP):
                kind = type(modules[parent]).__name__
                raise AdapterRefused(f"layer {path} is adapted, but its experts are in a {kind}, which is not known")
            wrapped[parent] = AdaptedExperts(modules[parent], rows)
    return wrapped


def _modules(network: Any) -> dict[str, Any]:
    return dict(network.named_modules())


def _replace(network: Module, modules: Mapping[str, Module]) -> None:
    network.update_modules(tree_unflatten(list(modules.items())))


def _digest(folder: Path) -> bytes:
    """Of both files' content."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.digest()
