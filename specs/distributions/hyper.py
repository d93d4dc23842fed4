"""Hyper-connections: real parameters, and gates as `hc_post` receives them (contracts/hc_gate_experts.md, 1.2, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from goldens.hc_pre import hc_pre
from goldens.numerics.elementary import sigmoid
from goldens.numerics.reduce import row_sum
from specs.distributions.basic import Normal, Values, normals, uniforms
from specs.streams import DrawContext
from specs.tensors import TensorSpec


@dataclass(frozen=True)
class HcSet:
    """Hyper-connection parameters of one layer of the real model: scale and base are real, fn is synthetic.

    fn_std   standard deviation of hc_fn at FLASH
    base     rows pre (4), post (4), comb (4 rows `in` of 4 columns `out`)
    """

    fn_std: float
    scale: tuple[float, float, float]
    base: tuple[float, ...]

    def fn(self, hc_dim: int) -> Normal:
        """hc_fn for streams of `hc_dim` columns in all: the normalised mixes keep the spread they have at FLASH."""
        return Normal(std=self.fn_std * (FLASH_HC_DIM / hc_dim) ** 0.5)

    def base_values(self) -> Values:
        """hc_base."""
        return Values(self.base)

    def scale_values(self) -> Values:
        """hc_scale."""
        return Values(self.scale)


FLASH_HC_DIM = 16384

CSA_LAYER8 = HcSet(
    0.0519,
    (0.076099, 0.032597, 0.226994),
    (
        *(5.9166, -3.6223, -2.9324, -3.3124),
        *(-3.9100, -0.9384, -3.3256, -2.5240),
        *(2.0706, -2.5728, 0.1424, -3.9453),
        *(-3.8859, 3.4634, -3.3799, -2.6077),
        *(-2.7191, -2.4846, 2.0395, -0.5010),
        *(-3.5992, -2.7520, -3.3493, 3.1587),
    ),
)
HCA_LAYER9 = HcSet(
    0.0495,
    (0.079046, 0.04213, 0.121901),
    (
        *(-3.3004, 2.5553, -2.2787, -3.4925),
        *(-3.8197, -3.4161, -2.7144, -2.9181),
        *(2.362, -2.4746, -2.1352, -3.2216),
        *(-4.474, 2.2488, -2.1053, -3.1675),
        *(-2.8362, -1.9042, 2.0432, -3.062),
        *(-2.7902, -3.0908, -3.002, 3.1161),
    ),
)
SWA_LAYER0 = HcSet(
    0.039,
    (2.076026, 0.018729, 0.245936),
    (
        *(3.9083, -2.0399, -2.2033, -2.017),
        *(-2.4443, -10.3158, -8.9943, -6.3581),
        *(9.8577, -9.5177, -24.8724, -22.8929),
        *(-21.545, 0.7791, -3.386, 1.1948),
        *(-20.9605, -0.7702, 1.4218, -4.8994),
        *(1.5177, -29.7663, -30.1413, -1.2413),
    ),
)
FFN_LAYER0 = HcSet(
    0.0635,
    (0.11334, 0.035901, 0.058183),
    (
        *(2.4153, -2.0252, -2.0019, -2.1947),
        *(-1.5430, -3.0228, -6.8248, 0.5894),
        *(2.1916, -7.2132, -3.0938, -2.1119),
        *(-3.0161, 3.3293, -3.2224, -4.0226),
        *(-2.0428, -3.3478, 3.0893, -3.4166),
        *(-1.8144, -3.8147, -3.1307, 1.7862),
    ),
)


@dataclass(frozen=True)
class SigmoidGate:
    """gain * sigmoid(N(0, 1)), FP32."""

    gain: float = 2.0

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Values in (0, gain)."""
        return sigmoid(normals(ctx, spec.name, spec.shape)) * self.gain


@dataclass(frozen=True)
class RowStochasticComb:
    """comb [T, HC*HC] whose entries for one old stream sum to 1 over the new streams.

    U(0, 1) + 0.1, divided by its sum over `out`. Asymmetric, so that a transposed comb is seen.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        raw = uniforms(ctx, spec.name, spec.shape).add_(0.1)
        old_by_new = raw.reshape(-1, ctx.config.hc_mult, ctx.config.hc_mult)
        return (old_by_new / row_sum(old_by_new, "sequential")).reshape(spec.shape)


@dataclass(frozen=True)
class OneSidedComb:
    """comb far from symmetric: the weight from old stream i to new stream o is 2^(i-o) * (1 + U(0, 1)) / 4.

    Away from the diagonal an entry and its transpose differ by a factor of 2 to 128.
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        streams = torch.arange(ctx.config.hc_mult, dtype=torch.float32)
        ratio = torch.exp2(streams[:, None] - streams[None, :]).reshape(-1)
        return uniforms(ctx, spec.name, spec.shape).add_(1.0).mul_(0.25).mul_(ratio)


@dataclass(frozen=True)
class IdentityComb:
    """comb that keeps every stream: 1 from a stream to itself, else 0."""

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """Row-major [in, out] per token."""
        return torch.eye(ctx.config.hc_mult).reshape(1, -1).expand(spec.shape).contiguous()


@dataclass(frozen=True)
class FromHcPre:
    """The gates that `hc_pre` makes from the residual of this case with the layer-8 parameters: a joint draw."""

    output: Literal["post", "comb"]

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """FP32, from the golden of hc_pre; comb columns sum to 1, not its rows."""
        return ctx.shared("hc_pre", lambda: _gates(ctx))[self.output]


@dataclass(frozen=True)
class TieStreams:
    """Streams x [T, HC, D] whose mix with saturated pre gates lies exactly between two BF16 values.

    With sigmoid 1, every pre gate is g = FP32(1 + HC_EPS) = 1 + d. For a value s of BF16, stream 0 is s, stream 1 is
    -s*d, which takes the excess s*d off again, stream 2 is half a BF16 step of s and stream 3 takes off its excess. The
    device's sums round back to s + step/2, in any order of the streams, if d is a power of two (2^-20 for 1e-6).
    """

    def draw(self, ctx: DrawContext, spec: TensorSpec) -> Tensor:
        """BF16; significands 1 to 255/128 uniform, so that even and odd neighbours occur; exponents -4 to 4."""
        tokens, _, hidden = spec.shape
        rng = ctx.rng(spec.name)
        excess = float(np.float32(1.0 + ctx.config.hc_eps) - np.float32(1.0))
        sign = rng.integers(2, size=(tokens, hidden)) * 2.0 - 1.0
        step = sign * np.exp2(rng.integers(-4, 5, size=(tokens, hidden)) - 8.0)  # half a BF16 step
        significand = rng.integers(128, 256, size=(tokens, hidden))
        significand += significand % 32 == 8  # s*g would itself be a tie, and taking s*d off would fall below s
        value = step * 2.0 * significand
        streams = np.stack([value, -value * excess, step, -step * excess], axis=1)
        return torch.from_numpy(streams).to(spec.dtype)


def _gates(ctx: DrawContext) -> dict[str, Tensor]:
    config = ctx.config
    fn = CSA_LAYER8.fn(config.hc_dim)
    return hc_pre(
        ctx.tensor("residual"),
        normals(ctx, "hc_fn", (config.mix_hc, config.hc_dim)).mul_(fn.std),
        torch.tensor(CSA_LAYER8.scale),
        torch.tensor(CSA_LAYER8.base),
        hc_eps=config.hc_eps,
        rms_eps=config.rms_norm_eps,
        sinkhorn_iters=config.hc_sinkhorn_iters,
    )
