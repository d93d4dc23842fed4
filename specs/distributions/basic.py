"""Distributions that need nothing but their own stream: constants, tables, uniform, normal, patterns of rows.

Floats are drawn in FP32 and cast to the declared dtype, to nearest even. Integer tensors take integer
distributions only: nothing is rounded or truncated on the quiet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import Distribution, Number, TensorSpec

PIECE = 1 << 20
"""Elements per stream of a long tensor."""

Item = TypeVar("Item")
Fill = Callable[[np.random.Generator, np.ndarray], Any]


@dataclass(frozen=True)
class Normal:
    """mean + std * N(0, 1)."""

    std: float = 1.0
    mean: float = 0.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Two FP32 roundings, then the cast."""
        require_float(self, spec)
        values = normals(ctx, spec.name, spec.shape).mul_(self.std).add_(self.mean)
        return values.to(spec.dtype)


@dataclass(frozen=True)
class Uniform:
    """Uniform in [low, high)."""

    low: float = 0.0
    high: float = 1.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """low + (high - low) * U, two FP32 roundings, then the cast (which may round up to `high`)."""
        require_float(self, spec)
        return uniforms(ctx, spec.name, spec.shape).mul_(self.high - self.low).add_(self.low).to(spec.dtype)


@dataclass(frozen=True)
class Integers:
    """Uniform integers, both ends included."""

    low: int
    high: int

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError if the dtype cannot hold the range."""
        if spec.dtype.is_floating_point or spec.dtype is torch.bool:
            raise SpecError(f"{ctx.op}.{spec.name}: Integers cannot fill {spec.dtype}")
        limits = torch.iinfo(spec.dtype)
        if not limits.min <= self.low <= self.high <= limits.max:
            raise SpecError(f"{ctx.op}.{spec.name}: {self.low}..{self.high} is not a range of {spec.dtype}")
        dtype = str(spec.dtype).removeprefix("torch.")
        drawn = ctx.rng(spec.name).integers(self.low, self.high, size=spec.shape, endpoint=True, dtype=dtype)
        return torch.from_numpy(drawn)


@dataclass(frozen=True)
class Constant:
    """One value everywhere. NaN and infinity are allowed: they mark stale memory."""

    value: Number

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError for a value that an integer dtype cannot hold."""
        if not spec.dtype.is_floating_point:
            require_integer(ctx.op, spec, self.value)
        return torch.full(spec.shape, self.value, dtype=spec.dtype)


@dataclass(frozen=True)
class Values:
    """Explicit contents, flat, in row-major order."""

    values: tuple[Number, ...]

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError if there are not exactly as many values as elements."""
        if len(self.values) != math.prod(spec.shape):
            raise SpecError(f"{ctx.op}.{spec.name}: {len(self.values)} values given for the shape {spec.shape}")
        if not spec.dtype.is_floating_point:
            for value in self.values:
                require_integer(ctx.op, spec, value)
        return torch.tensor(self.values, dtype=spec.dtype).reshape(spec.shape)


@dataclass(frozen=True)
class Rows:
    """Row r of the first axis comes from `pattern[r % len(pattern)]`; None stands for `base`.

    Every entry has a stream of its own: changing one kind of row leaves the others as they were.
    """

    base: Distribution
    pattern: tuple[Distribution | None, ...]

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Raises SpecError if there are fewer rows than pattern entries: one would not occur."""
        period = len(self.pattern)
        if spec.shape[0] < period:
            raise SpecError(f"{ctx.op}.{spec.name}: a pattern of {period} rows needs as many, shape is {spec.shape}")
        out = self.base.draw(ctx, spec)
        for start, kind in enumerate(self.pattern):
            if kind is not None:
                rows = out[start::period]
                rows.copy_(kind.draw(ctx, spec.replace(name=f"{spec.name}_row{start}", shape=tuple(rows.shape))))
        return out


def normals(ctx: DrawContext, label: str, shape: tuple[int, ...]) -> Tensor:
    """FP32 standard normal numbers of the stream `label`."""
    return _filled(ctx, label, shape, lambda rng, out: rng.standard_normal(out=out, dtype=np.float32))


def uniforms(ctx: DrawContext, label: str, shape: tuple[int, ...]) -> Tensor:
    """FP32 uniform numbers in [0, 1) of the stream `label`."""
    return _filled(ctx, label, shape, lambda rng, out: rng.random(out=out, dtype=np.float32))


def unit_rows(ctx: DrawContext, label: str, rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """[rows, width] of N(0, 1), each row divided by its own RMS, times `scale`: FP32, then one rounding to `dtype`.

    Drawn piece by piece of whole rows, each piece from its own stream.
    """
    out = torch.empty(rows, width, dtype=dtype)
    step = max(1, PIECE // 4 // width)

    def fill(start: int) -> None:
        part = out[start : start + step]
        fresh = ctx.rng(f"{label}#{start // step}").standard_normal(size=tuple(part.shape), dtype=np.float32)
        rms = np.sqrt(np.einsum("rk,rk->r", fresh, fresh, dtype=np.float32) / np.float32(width))
        fresh *= (np.float32(scale) / rms)[:, None]
        part.copy_(torch.from_numpy(fresh))

    in_parallel(fill, range(0, rows, step))
    return out


def _filled(ctx: DrawContext, label: str, shape: tuple[int, ...], fill: Fill) -> Tensor:
    """An FP32 tensor filled piece by piece, each piece from its own stream: threads do not change the bits."""
    flat = np.empty(math.prod(shape), dtype=np.float32)
    pieces = range(0, flat.size, PIECE)

    def fill_piece(start: int) -> None:
        fill(ctx.rng(f"{label}#{start // PIECE}"), flat[start : start + PIECE])

    in_parallel(fill_piece, pieces)
    return torch.from_numpy(flat).reshape(shape)


def in_parallel(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Call `work` on every item, on as many threads as there are processors. NumPy lets go of the interpreter."""
    if len(items) == 1:
        work(items[0])
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(work, items))


def require_float(distribution: Distribution, spec: TensorSpec) -> None:
    """Raise SpecError unless the tensor holds floats."""
    if not spec.dtype.is_floating_point:
        raise SpecError(f"{spec.name}: {type(distribution).__name__} cannot fill {spec.dtype}")


def require_integer(op: str, spec: TensorSpec, value: Number) -> None:
    """Raise SpecError unless `value` is an integer (or a bool for bool) that `spec.dtype` can hold."""
    if spec.dtype is torch.bool:
        if not isinstance(value, bool):
            raise SpecError(f"{op}.{spec.name}: {value!r} is not a bool")
        return
    limits = torch.iinfo(spec.dtype)
    if isinstance(value, bool) or not isinstance(value, int) or not limits.min <= value <= limits.max:
        raise SpecError(f"{op}.{spec.name}: {value!r} is not an integer of {spec.dtype}")
