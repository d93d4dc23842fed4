"""Synthetic expert weights: INT8 codes on an MXFP4 or MXFP8 grid (contracts/hc_gate_experts.md, 6).

The grid of the published FP4 and FP8 checkpoints survives the requantisation to INT8, per output channel, as a
small set of levels. Scales are set so that codes * scale has the wanted standard deviation over the whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goldens.numerics.elementary import exp
from specs.distributions.basic import in_parallel, normals
from specs.distributions.quantised import Pair
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import TensorSpec

QMAX = 127.0
CHANNEL_AMAX_MIN = 1e-4
GROUP_AMAX_MIN = 1e-20

FP4_GROUP = 32
FP4_MAX = 6.0
FP4_STEPS = (1.75, 3.5)
"""Up to where the grid 0, 0.5, 1, 1.5, 2, 3, 4, 6 is met in steps of 0.5 and of 1; from there on in steps of 2."""
POOL_GROUPS = 1 << 16
"""A tensor of more groups than this takes them from pools; this is the pool of common groups."""
RARE_POOL_GROUPS = 1 << 13
RARE = 3.5
"""A group with an element beyond this magnitude is rare (1.5 %); nearly every channel has its amax from one."""
RAREST = 5.0
"""A group with an element beyond this magnitude reaches the top of the grid (2e-5)."""

PART = 1 << 16
"""Groups that one thread gathers at a time, for speed alone."""

FP8_BLOCK = 128
FP8_MAX = 448.0
FP32_EXPONENT = 0x7F800000


@dataclass(frozen=True)
class MxFp4Weight:
    """Weights [..., out, in] on the MXFP4 grid, `in` a multiple of 32 (section 6.1).

    Up to POOL_GROUPS groups of 32 every group is drawn afresh. Beyond, groups come from pools of freshly drawn
    ones, with replacement, and every statistic of section 6.1 keeps its distribution; only exact copies of a group
    occur, in other channels and experts.
    """

    dequant_std: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the FP32 scale of every output channel. Raises SpecError if `in` is no multiple of 32."""
        return ctx.shared(f"{spec.name}:pair", lambda: self._draw_pair(ctx, spec))

    def _draw_pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        width = spec.shape[-1]
        if width % FP4_GROUP:
            raise SpecError(f"{ctx.op}.{spec.name}: the last axis, {width}, is no multiple of {FP4_GROUP}")
        groups = numel(spec) // FP4_GROUP
        if groups <= POOL_GROUPS:
            weight = normals(ctx, spec.name, spec.shape).numpy().reshape(-1, width)

            def round_rows(part: slice) -> None:
                rows = torch.from_numpy(weight[part])
                rows.copy_(fp4_round(rows.view(-1, FP4_GROUP)).view(rows.shape))

            parts = parts_of(len(weight), PART * FP4_GROUP // width)
            codes, scales = _requantised(weight, round_rows, parts, self.dequant_std)
            return codes.reshape(spec.shape), scales.reshape(spec.shape[:-1])
        pool, chosen = _pooled(ctx, spec.name, groups)
        return _gather(fp4_round(pool), chosen.reshape(-1, width // FP4_GROUP), spec.shape, self.dequant_std)


@dataclass(frozen=True)
class MxFp8Weight:
    """Weights [out, in] on the MXFP8 grid, both multiples of 128 (section 6.2).

    channel_spread   standard deviation of the logarithm of an output channel's magnitude
    """

    dequant_std: float
    channel_spread: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the FP32 scale of every output channel. Raises SpecError for a shape of partial blocks."""
        return ctx.shared(f"{spec.name}:pair", lambda: self._draw_pair(ctx, spec))

    def _draw_pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        if len(spec.shape) != 2 or spec.shape[0] % FP8_BLOCK or spec.shape[1] % FP8_BLOCK:
            raise SpecError(f"{ctx.op}.{spec.name}: {spec.shape} is not made of {FP8_BLOCK} x {FP8_BLOCK} blocks")
        spread = normals(ctx, f"{spec.name}_channel", (spec.shape[0], 1)).mul_(self.channel_spread)
        weight, magnitude = normals(ctx, spec.name, spec.shape).numpy(), exp(spread).numpy()

        def round_rows(part: slice) -> None:
            weight[part] *= magnitude[part]
            fp8_round(weight[part])

        return _requantised(weight, round_rows, parts_of(len(weight), FP8_BLOCK), self.dequant_std)


@dataclass(frozen=True)
class TransposedFp8Weight:
    """MxFp8Weight stored [in, out], with the FP32 scale of every column."""

    dequant_std: float
    channel_spread: float

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """INT8 codes."""
        return self.pair(ctx, spec)[0]

    def pair(self, ctx: DrawContext, spec: TensorSpec) -> Pair:
        """Codes and the scale of every output channel."""
        rows, scales = MxFp8Weight(self.dequant_std, self.channel_spread).pair(
            ctx, spec.replace(shape=spec.shape[::-1])
        )
        return ctx.shared(f"{spec.name}:transposed", rows.t().contiguous), scales


def _requantised(
    weight: NDArray[np.float32], round_rows: Callable[[slice], None], parts: list[slice], dequant_std: float
) -> Pair:
    """Steps 4 and 5: codes [out, in] and scales [out] of FP32 `weight` [out, in], which is overwritten.

    `round_rows` puts the rows of one of `parts` on their grid; parts run side by side.
    """
    rows, width = weight.shape
    codes = np.empty((rows, width), dtype=np.int8)
    unit = np.empty((rows, 1), dtype=np.float32)
    total, squares = np.empty(rows), np.empty(rows)

    def requantise(part: slice) -> None:
        round_rows(part)
        values = weight[part]
        unit[part] = channel_unit(torch.from_numpy(np.abs(values).max(axis=1, keepdims=True)))
        values /= unit[part]
        np.clip(np.rint(values, out=values), -QMAX, QMAX, out=values)
        codes[part] = values
        # 32 squared codes are below 2^24: exact in FP32 in any order. So are the sums of a whole row in FP64.
        spans = values.reshape(len(values), -1, FP4_GROUP)
        total[part] = values.sum(axis=1, dtype=np.float64)
        squares[part] = np.einsum("rsk,rsk->rs", spans, spans).sum(axis=1, dtype=np.float64)

    in_parallel(requantise, parts)
    first, second = torch.from_numpy(total), torch.from_numpy(squares)
    return torch.from_numpy(codes), scale_to(dequant_std, torch.from_numpy(unit).reshape(-1), first, second, width)


def fp4_round(weight: Tensor) -> Tensor:
    """Steps 2 and 3: FP32 [groups, 32] to the MXFP4 grid; on a decision point, to the smaller grid value."""
    scale = power_of_two_above(weight.abs().amax(dim=-1, keepdim=True) / FP4_MAX)
    size = weight.abs().div_(scale)
    step = torch.where(size > FP4_STEPS[0], torch.where(size > FP4_STEPS[1], 2.0, 1.0), 0.5)
    return size.div_(step).sub_(0.5).ceil_().mul_(step).copysign_(weight).mul_(scale)


def fp8_round(weight: NDArray[np.float32]) -> None:
    """Step 2 of 6.2: FP32 [128, in] to E4M3 values times one power of two per 128 x 128 block. In place."""
    blocks = weight.reshape(FP8_BLOCK, -1, FP8_BLOCK)
    amax = np.abs(weight).max(axis=0).reshape(-1, FP8_BLOCK).max(axis=1)
    scale = power_of_two_above(torch.from_numpy(amax) / FP8_MAX).numpy()[:, None]
    blocks /= scale  # dividing and multiplying by a power of two is exact: only e4m3_round rounds
    e4m3_round(blocks)
    blocks *= scale


def e4m3_round(x: NDArray[np.float32]) -> None:
    """Round FP32 of magnitude up to 448 to E4M3, nearest even. In place.

    The last place of E4M3 is 2^(e - 3) for a value of exponent e >= -6. It is FP32's last place near 1.5 * 2^(e + 20),
    so adding that number and taking it away again rounds.
    """
    power = (x.view(np.int32) & FP32_EXPONENT).view(np.float32)
    np.maximum(power, np.float32(2.0**-6), out=power)
    power *= np.float32(1.5 * 2.0**20)
    x += power
    x -= power


def power_of_two_above(x: Tensor) -> Tensor:
    """2^ceil(log2(max(x, 1e-20))), exactly: the logarithm is read from the exponent, not computed."""
    mantissa, exponent = torch.frexp(x.clamp(min=GROUP_AMAX_MIN))  # x = mantissa * 2^exponent, 0.5 <= mantissa < 1
    power: Tensor = torch.ldexp(torch.ones_like(mantissa), exponent - (mantissa == 0.5).int())
    return power


def channel_unit(amax: Tensor) -> Tensor:
    """Step 4: the value of code 1 in a channel, max(amax, 1e-4) / 127, one FP32 division."""
    return amax.clamp(min=CHANNEL_AMAX_MIN) / torch.full_like(amax, QMAX)


def scale_to(dequant_std: float, unit: Tensor, total: Tensor, squares: Tensor, width: int) -> Tensor:
    """Step 5: unit * (dequant_std / std), std the unbiased deviation of codes * unit over the whole tensor.

    unit, total, squares   per channel: value of code 1, sum of codes, sum of squared codes
    """
    elements = unit.numel() * width
    # fsum: the result, and so the bits of the scales, do not depend on an order of summation.
    mean = math.fsum((unit.double() * total).tolist()) / elements
    variance = (math.fsum((unit.double().square() * squares).tolist()) - elements * mean * mean) / (elements - 1)
    return unit * (dequant_std / math.sqrt(variance))


def numel(spec: TensorSpec) -> int:
    """Elements of the tensor."""
    return math.prod(spec.shape)


def _pooled(ctx: DrawContext, label: str, groups: int) -> tuple[Tensor, Tensor]:
    """Groups [n, 32], FP32, and for each of `groups` places the one that stands there (INT32).

    Rare groups decide the channels' amaxes. One pool would hold so few of them that their chance count would shift
    all statistics. So their places are a Bernoulli process of the exact probability, and they have a pool of their
    own; the rarest are drawn one for each place.
    """
    spare = normals(ctx, label, (POOL_GROUPS + POOL_GROUPS // 16, FP4_GROUP))
    common = spare[spare.abs().amax(dim=-1) <= RARE][:POOL_GROUPS]
    raw = ctx.rng(f"{label}_groups").bit_generator.random_raw(-(-groups // 4))  # 4 indices of 16 bits in each number
    chosen = raw.astype("<u8", copy=False).view("<u2")[:groups].astype("int32")

    rng = ctx.rng(f"{label}_places")
    share, top_share = _share_beyond(RARE), _share_beyond(RAREST)
    expected = groups * share
    places = rng.geometric(share, size=int(expected + 8 * math.sqrt(expected) + 8)).cumsum() - 1
    places = places[places < groups]
    chosen[places] = POOL_GROUPS + rng.integers(RARE_POOL_GROUPS, size=places.size)
    top = places[rng.random(places.size) < top_share / share]
    chosen[top] = POOL_GROUPS + RARE_POOL_GROUPS + np.arange(top.size)
    rare = _groups_beyond(ctx, f"{label}_rare", RARE_POOL_GROUPS, RARE, RAREST)
    rarest = _groups_beyond(ctx, f"{label}_rarest", top.size, RAREST, math.inf)
    return torch.cat([common, rare, rarest]), torch.from_numpy(chosen)


def _two_tails(magnitude: float) -> float:
    """P(|N(0, 1)| > magnitude)."""
    return math.erfc(magnitude / math.sqrt(2.0))


def _share_beyond(magnitude: float) -> float:
    """Probability that one of 32 normal numbers lies beyond `magnitude`."""
    return -math.expm1(FP4_GROUP * math.log1p(-_two_tails(magnitude)))


def _groups_beyond(ctx: DrawContext, label: str, count: int, low: float, high: float) -> Tensor:
    """`count` groups of 32 normal numbers, given that the largest magnitude lies in (low, high].

    One element is drawn from that part of the two tails. A group with an element beyond `high` is rejected; one with
    n elements in the range could have been made in n ways and is kept with probability 1/n.
    """
    rng = ctx.rng(label)
    drawn = count + count // 16 + 64  # below 1.5 % are rejected
    made = normals(ctx, f"{label}_rest", (drawn, FP4_GROUP))
    tail = torch.from_numpy(_two_tails(high) + rng.random(drawn) * (_two_tails(low) - _two_tails(high)))
    sign = torch.from_numpy(rng.integers(2, size=drawn)) * 2 - 1
    element = torch.from_numpy(rng.integers(FP4_GROUP, size=drawn))
    made[torch.arange(drawn), element] = (-torch.special.ndtri(tail / 2) * sign).float()
    magnitude = made.abs()
    ways = (magnitude > low).sum(dim=-1).clamp(min=1)
    kept = (torch.from_numpy(rng.random(drawn)) * ways < 1.0) & (magnitude <= high).all(dim=-1)
    return made[kept][:count]


def _gather(groups: Tensor, chosen: Tensor, shape: tuple[int, ...], dequant_std: float) -> Pair:
    """Codes and scales of channels made of `chosen` groups [channels, groups per channel].

    The codes of a group depend on its channel's amax alone, which takes few values. So the codes of every group are
    made once per amax, and a channel is a gather of 32-byte rows.
    """
    group_amax = groups.abs().amax(dim=-1).numpy()
    amaxes, group_rank = np.unique(group_amax, return_inverse=True)
    group_rank = group_rank.astype(np.uint8)
    places = chosen.numpy()
    channels, width = places.shape
    parts = parts_of(channels, PART // width)
    channel_rank = np.empty(channels, dtype=np.uint8)

    def rank(part: slice) -> None:
        channel_rank[part] = group_rank.take(places[part]).max(axis=1)

    in_parallel(rank, parts)
    present = np.unique(channel_rank)
    units = channel_unit(torch.from_numpy(amaxes[present]))
    which = np.searchsorted(present, channel_rank)

    codes = (groups / units[:, None, None]).round_().clamp_(-QMAX, QMAX)  # [amaxes, groups, 32]
    # Per group the sum of squares above bit 32 and the sum below: one gather fetches both, and both add up exactly.
    moments = (torch.linalg.vecdot(codes, codes).long() * (1 << 32) + codes.sum(dim=-1).long()).numpy().reshape(-1)
    rows = codes.to(torch.int8).numpy().view(f"V{FP4_GROUP}").reshape(-1)
    gathered = np.empty((channels, width), dtype=rows.dtype)
    both = np.empty(channels, dtype=np.int64)

    def gather(part: slice) -> None:
        place = places[part] + (which[part] * groups.shape[0])[:, None]
        rows.take(place, out=gathered[part], mode="clip")  # the default mode copies through a buffer
        moments.take(place).sum(axis=1, out=both[part])

    in_parallel(gather, parts)
    total = (both << 32) >> 32
    squares = (both - total) >> 32
    first, second = torch.from_numpy(total.astype(np.float64)), torch.from_numpy(squares.astype(np.float64))
    scales = scale_to(dequant_std, units[torch.from_numpy(which)], first, second, shape[-1])
    return torch.from_numpy(gathered.view(np.int8)).reshape(shape), scales.reshape(shape[:-1])


def parts_of(rows: int, step: int) -> list[slice]:
    """Slices that cut `rows` rows into parts of `step`, at least one row each."""
    return [slice(start, min(start + max(step, 1), rows)) for start in range(0, rows, max(step, 1))]
