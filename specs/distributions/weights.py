"""Synthetic expert weights: INT8 codes on an MXFP4 or MXFP8 grid (contracts/hc_gate_experts.md, 6).

The grid of the published FP4 and FP8 checkpoints survives the requantisation to INT8, per output channel, as a
small set of levels. Scales are set so that codes * scale has the wanted standard deviation over the whole tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specs.distributions.basic import normals
from specs.distributions.quantised import Pair
from specs.errors import SpecError
from specs.streams import DrawContext
from specs.tensors import TensorSpec

QMAX = 127.0
CHANNEL_AMAX_MIN = 1e-4
GROUP_AMAX_MIN = 1e-20

FP4_GROUP = 32
FP4_MAX = 6.0
FP4_GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_DECISIONS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
POOL_GROUPS = 1 << 16
"""A tensor of more groups than this takes its common groups from a pool of this size."""
RARE = 3.5
"""A group with an element beyond this magnitude is rare (1.5 %): it has a grid value that few groups reach."""

FP8_BLOCK = 128
FP8_MAX = 448.0


@dataclass(frozen=True)
class MxFp4Weight:
    """Weights [..., out, in] on the MXFP4 grid, `in` a multiple of 32 (section 6.1).

    Up to POOL_GROUPS groups of 32 every group is drawn afresh. Beyond, groups that are likely to set their channel's
    amax are still drawn afresh, each at its own random place, and the others come from a pool with replacement: all
    of section 6.1 keeps its distribution, only exact copies of a group occur, in other channels and experts.
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
            pool = normals(ctx, spec.name, (groups, FP4_GROUP))
            chosen = torch.arange(groups, dtype=torch.int32)
        else:
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
        spread = normals(ctx, f"{spec.name}_channel", (spec.shape[0], 1)).mul_(self.channel_spread).exp_()
        weight = fp8_round(normals(ctx, spec.name, spec.shape).mul_(spread))
        unit = channel_unit(weight.abs().amax(dim=-1, keepdim=True))
        codes = weight.div_(unit).round_().clamp_(-QMAX, QMAX)
        total, squares = codes.sum(dim=-1, dtype=torch.float64), _row_squares(codes)
        return codes.to(torch.int8), scale_to(self.dequant_std, unit.reshape(-1), total, squares, spec.shape[1])


def fp4_round(weight: Tensor) -> Tensor:
    """Steps 2 and 3: FP32 [groups, 32] to the MXFP4 grid; on a decision point, to the smaller grid value."""
    scale = power_of_two_above(weight.abs().amax(dim=-1, keepdim=True) / FP4_MAX)
    level = torch.bucketize(weight.abs() / scale, torch.tensor(FP4_DECISIONS))
    return torch.tensor(FP4_GRID)[level].copysign_(weight).mul_(scale)


def fp8_round(weight: Tensor) -> Tensor:
    """Step 2 of 6.2: FP32 [out, in] to E4M3 values times one power of two per 128 x 128 block. In place."""
    rows, columns = (extent // FP8_BLOCK for extent in weight.shape)
    blocks = weight.view(rows, FP8_BLOCK, columns, FP8_BLOCK)
    scale = power_of_two_above(blocks.abs().amax(dim=(1, 3), keepdim=True) / FP8_MAX)
    # Dividing and multiplying by a power of two is exact: only the cast rounds.
    return blocks.div_(scale).to(torch.float8_e4m3fn).float().mul_(scale).view(weight.shape)


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
    mean = float((unit.double() * total).sum()) / elements
    variance = (float((unit.double().square() * squares).sum()) - elements * mean * mean) / (elements - 1)
    return unit * (dequant_std / math.sqrt(variance))


def numel(spec: TensorSpec) -> int:
    """Elements of the tensor."""
    return math.prod(spec.shape)


def _pooled(ctx: DrawContext, label: str, groups: int) -> tuple[Tensor, Tensor]:
    """Groups [n, 32], FP32, and for each of `groups` places the one that stands there (INT32).

    Rare groups decide nearly every channel's amax. A pool would hold so few that its chance count would shift all
    statistics, so it has none: the places of rare groups are a Bernoulli process and each gets a group of its own.
    """
    spare = normals(ctx, label, (POOL_GROUPS + POOL_GROUPS // 16, FP4_GROUP))
    common = spare[spare.abs().amax(dim=-1) <= RARE][:POOL_GROUPS]
    raw = ctx.rng(f"{label}_groups").bit_generator.random_raw(-(-groups // 4))  # 4 indices of 16 bits in each number
    chosen = torch.from_numpy(raw.astype("<u8", copy=False).view("<u2")[:groups].astype("int32"))

    tail = math.erfc(RARE / math.sqrt(2.0))  # P(|N(0, 1)| > RARE)
    share = -math.expm1(FP4_GROUP * math.log1p(-tail))
    expected = groups * share
    gaps = ctx.rng(f"{label}_places").geometric(share, size=int(expected + 8 * math.sqrt(expected) + 8))
    places = torch.from_numpy(gaps.cumsum() - 1)
    places = places[places < groups]
    rare = _rare_groups(ctx, f"{label}_rare", places.numel(), tail)
    chosen[places] = torch.arange(POOL_GROUPS, POOL_GROUPS + places.numel(), dtype=torch.int32)
    return torch.cat([common, rare]), chosen


def _rare_groups(ctx: DrawContext, label: str, count: int, tail: float) -> Tensor:
    """`count` groups of 32 normal numbers, given that at least one lies beyond RARE.

    One element is drawn from the two tails. A group with n elements beyond RARE could have been made in n ways and is
    kept with probability 1/n.
    """
    rng = ctx.rng(label)
    drawn = count + count // 32 + 64  # 0.7 % are not kept
    made = normals(ctx, f"{label}_rest", (drawn, FP4_GROUP))
    beyond = -torch.special.ndtri(torch.from_numpy(rng.random(drawn)) * (tail / 2))
    sign = torch.from_numpy(rng.integers(2, size=drawn)) * 2 - 1
    made[torch.arange(drawn), torch.from_numpy(rng.integers(FP4_GROUP, size=drawn))] = (beyond * sign).float()
    ways = (made.abs() > RARE).sum(dim=-1).clamp(min=1)
    return made[torch.from_numpy(rng.random(drawn)) * ways < 1.0][:count]


def _gather(groups: Tensor, chosen: Tensor, shape: tuple[int, ...], dequant_std: float) -> Pair:
    """Codes and scales of channels made of `chosen` groups [channels, groups per channel].

    The codes of a group depend on its channel's amax alone, which takes few values. So the codes of every group are
    made once per amax, and a channel is a gather of 32-byte rows.
    """
    group_amax = groups.abs().amax(dim=-1)
    ranks = [float(value) for value in np.unique(group_amax.numpy())]
    group_rank = torch.searchsorted(torch.tensor(ranks), group_amax).to(torch.uint8)
    channel_rank = group_rank[chosen].amax(dim=-1)
    present = torch.from_numpy(np.unique(channel_rank.numpy())).long()
    units = channel_unit(torch.tensor(ranks)[present])
    which = torch.searchsorted(present, channel_rank.long())

    codes = (groups / units[:, None, None]).round_().clamp_(-QMAX, QMAX)  # [amaxes, groups, 32]
    # Per group the sum of squares above bit 32 and the sum below: one gather fetches both, and both add up exactly.
    moments = codes.square().sum(dim=-1).long() * (1 << 32) + codes.sum(dim=-1).long()
    rows = codes.to(torch.int8).view(torch.int64).reshape(-1, FP4_GROUP // 8)
    place = chosen + (which * groups.shape[0]).int()[:, None]
    gathered = rows.index_select(0, place.reshape(-1)).view(torch.int8).reshape(shape)
    both = moments.reshape(-1)[place].sum(dim=-1)
    total = (both << 32) >> 32
    squares = (both - total) >> 32
    scales = scale_to(dequant_std, units[which], total.double(), squares.double(), shape[-1])
    return gathered, scales.reshape(shape[:-1])


def _row_squares(codes: Tensor) -> Tensor:
    """Sum of squares of every row of integral FP32 codes, FP64."""
    squares: Tensor = torch.linalg.vecdot(codes, codes)
    return squares.double()
