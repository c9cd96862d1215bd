"""Layers that add to each row of a batch the low-rank update of the adapter that the row has.

An adapted layer gives base(x) + s (x A) B (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).
A layer holds A and B of all adapters, stacked, with ranks padded by zeros and s multiplied into B, beside its one base
layer. Number 0 stands for no adapter and has zeros, so that a plain row among others keeps its bits. A batch without
adapters costs nothing, one in which all rows have the same one two products; the others gather by row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
from mlx.nn.layers.base import Module


class RowNumbers:
    """Which adapter each row of the forward has that is being built; set before, read by the layers."""

    def __init__(self) -> None:
        self.only: int | None = 0  # the number of all rows; None where they differ
        self._all: tuple[int, ...] = ()
        self._by_leading: dict[int, mx.array] = {}
        self._experts: mx.array | None = None
        self._by_sorted: mx.array | None = None

    @contextmanager
    def set(self, numbers: Sequence[int]) -> Iterator[None]:
        """The rows' adapters while a forward of theirs is built; afterwards there are none."""
        self.only = numbers[0] if len(set(numbers)) == 1 else None
        if self.only is None and self._all != tuple(numbers):
            self._all, self._by_leading = tuple(numbers), {}
        try:
            yield
        finally:
            self.only = 0

    def along(self, leading: int) -> mx.array:
        """(leading,) uint32 for an array whose first axis are the rows, or the tokens of one row after the other's.

        Raises ValueError where it is neither.
        """
        if leading not in self._by_leading:
            times, rest = divmod(leading, len(self._all))
            if rest or not times:
                raise ValueError(f"an adapted layer got {leading} rows of {len(self._all)}")
            numbers = mx.array(self._all, dtype=mx.uint32)
            self._by_leading[leading] = mx.repeat(numbers, times) if times > 1 else numbers
        return self._by_leading[leading]

    @contextmanager
    def among_experts(self, indices: mx.array) -> Iterator[None]:
        """While experts, chosen by `indices` (rows, ..., chosen), compute: they may sort tokens by expert."""
        self._experts, self._by_sorted = indices, None
        try:
            yield
        finally:
            self._experts = self._by_sorted = None

    def along_sorted(self) -> mx.array:
        """(tokens * chosen,) uint32, in the order in which mlx-lm's experts sort tokens."""
        if self._by_sorted is None:
            experts = self._experts
            if experts is None:
                raise ValueError("an adapted layer got sorted tokens outside of the experts that sort them")
            order = mx.argsort(experts.flatten())
            self._by_sorted = self.along(experts.shape[0])[order // (experts.size // experts.shape[0])]
        return self._by_sorted


class AdaptedLinear(Module):
    """`a` (adapters + 1, in, rank), `b` (adapters + 1, rank, out), float32."""

    def __init__(self, base: Module, a: mx.array, b: mx.array, rows: RowNumbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base, self.a, self.b = base, a, b
        self._rows = rows

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        only = self._rows.only
        if only == 0:
            return y
        z = _by_row(x, self.a, self.b, self._rows) if only is None else (x @ self.a[only]) @ self.b[only]
        return y + z.astype(y.dtype)


class AdaptedEmbedding(Module):
    """`a` (adapters + 1, vocabulary, rank), `b` (adapters + 1, rank, width), float32."""

    def __init__(self, base: Module, a: mx.array, b: mx.array, rows: RowNumbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base, self.a, self.b = base, a, b
        self._rows = rows

    def __call__(self, ids: mx.array) -> mx.array:
        y: mx.array = self.base(ids)
        only = self._rows.only
        if only == 0:
            return y
        if only is not None:
            return y + (self.a[only][ids] @ self.b[only]).astype(y.dtype)
        numbers = self._rows.along(ids.shape[0])
        found = self.a[numbers.reshape(-1, *[1] * (ids.ndim - 1)), ids]
        return y + _gathered(found, self.b, numbers).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Logits, where the embedding is also the output layer."""
        y: mx.array = self.base.as_linear(x)
        only, a, b = self._rows.only, self.b.swapaxes(-1, -2), self.a.swapaxes(-1, -2)
        if only == 0:
            return y
        z = _by_row(x, a, b, self._rows) if only is None else (x @ a[only]) @ b[only]
        return y + z.astype(y.dtype)


class AdaptedSwitchLinear(Module):
    """One layer of experts: `a` (adapters + 1, experts, in, rank), `b` (adapters + 1, experts, rank, out), float32."""

    def __init__(self, base: Module, a: mx.array, b: mx.array, rows: RowNumbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base, self.a, self.b = base, a, b
        self._rows = rows

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        y: mx.array = self.base(x, indices, sorted_indices=sorted_indices)
        only = self._rows.only
        if only == 0:
            return y
        if only is not None:
            a, b, of, is_sorted = self.a[only], self.b[only], indices, sorted_indices
        else:
            a, b, is_sorted = self.a.flatten(0, 1), self.b.flatten(0, 1), False
            of = self._numbers(indices, sorted_indices) * self.a.shape[1] + indices
        z = mx.gather_mm(x, a, rhs_indices=of, sorted_indices=is_sorted)
        z = mx.gather_mm(z, b, rhs_indices=of, sorted_indices=is_sorted)
        return y + z.astype(y.dtype)

    def _numbers(self, indices: mx.array, sorted_indices: bool) -> mx.array:
        if sorted_indices:
            return self._rows.along_sorted()
        return self._rows.along(indices.shape[0]).reshape(-1, *[1] * (indices.ndim - 1))


class AdaptedExperts(Module):
    """Around mlx-lm's experts, which sort tokens by expert: tells their adapted layers whose tokens those are."""

    def __init__(self, base: Module, rows: RowNumbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self._rows = rows

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        with self._rows.among_experts(indices):
            y: mx.array = self.base(x, indices)
        return y


def _by_row(x: mx.array, a: mx.array, b: mx.array, rows: RowNumbers) -> mx.array:
    """x (rows, ..., in), or (rows * tokens, in): each row's product with its own pair of the stacks."""
    numbers = rows.along(x.shape[0])
    return _gathered(_gathered(x, a, numbers), b, numbers)


def _gathered(x: mx.array, stack: mx.array, numbers: mx.array) -> mx.array:
    flat = x.reshape(numbers.size, -1, x.shape[-1])
    return mx.gather_mm(flat, stack, rhs_indices=numbers).reshape(*x.shape[:-1], stack.shape[-1])
