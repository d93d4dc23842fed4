"""Rotary position embedding: frequencies, tables of cosines and sines, rows of tokens, and the rotation.

contracts/dense.md, sections 5 and 6; the step numbers are those of 5.3. A table has a row per position; its
first half holds the angles of the rotary pairs, its second half repeats them. The data are interleaved instead:
lanes 2i and 2i + 1 are pair i.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from goldens.checks import expect, expect_integer, expect_range
from goldens.errors import GoldenInputError

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in list(DTYPES.values())}
DTYPES |= {f"torch.{name}": dtype for name, dtype in list(DTYPES.items())}


class RopeConfig(Protocol):
    """The fields of a model's configuration that its tables depend on."""

    @property
    def qk_rope_head_dim(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def compress_rope_theta(self) -> float: ...
    @property
    def rope_factor(self) -> float: ...
    @property
    def beta_fast(self) -> float: ...
    @property
    def beta_slow(self) -> float: ...
    @property
    def original_max_position_embeddings(self) -> int: ...


class Profile(NamedTuple):
    """What a layer's compress ratio decides. An original length of 0 turns YaRN off."""

    base: float
    original_len: int


def rope_profile(config: RopeConfig, ratio: int) -> Profile:
    """The profile of a layer: `base` where its compress ratio is 0, `compressed` for any other (1.2)."""
    if ratio == 0:
        return Profile(float(config.rope_theta), 0)
    return Profile(float(config.compress_rope_theta), config.original_max_position_embeddings)


def inverse_frequencies(
    dim: int, original_len: int, base: float, factor: float, beta_fast: float, beta_slow: float
) -> Tensor:
    """Steps 1, 2: radians per position of every rotary pair, FP32 [dim/2].

    The power is torch's FP32 power: another library's differs in the last bit. YaRN, where `original_len` is
    not 0, keeps the fast pairs, divides the slow ones by `factor` and blends those between. Raises
    GoldenInputError for a `dim` that is not even and positive.
    """
    if dim <= 0 or dim % 2:
        raise GoldenInputError(f"rope: dim is {dim}, expected an even number above 0")
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    powers = torch.pow(base, exponents)
    inv = torch.ones_like(powers) / powers
    if original_len == 0:
        return inv
    low = max(math.floor(_pair_of(beta_fast, dim, original_len, base)), 0)
    high: float = min(math.ceil(_pair_of(beta_slow, dim, original_len, base)), dim - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(dim // 2, dtype=torch.float32)
    kept = 1.0 - ((pairs - low) / torch.full_like(pairs, high - low)).clamp(0.0, 1.0)
    return (inv / torch.full_like(inv, factor)) * (1.0 - kept) + inv * kept


def _pair_of(rotations: float, dim: int, original_len: int, base: float) -> float:
    """The pair, as a real number, that turns so many times within the original length. In FP64."""
    return dim * math.log(original_len / (rotations * 2.0 * math.pi)) / (2.0 * math.log(base))


def rope_rows_at(positions: Tensor, inv: Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Steps 3 to 5: (cos, sin) at integer positions [N] below 2^24, each [N, 2 * len(inv)], halves equal.

    The angle is rounded to FP32, which is part of the contract: one in FP64 changes up to 20 % of the BF16
    entries. Cosine and sine of that angle are correctly rounded to FP32, then to `dtype`, to nearest even.
    """
    angle = (positions.float().unsqueeze(1) * inv).double()
    cos, sin = angle.cos().float().to(dtype), angle.sin().float().to(dtype)
    return torch.cat([cos, cos], dim=1), torch.cat([sin, sin], dim=1)


def rope_table(
    dim: int,
    seqlen: int,
    original_len: int,
    base: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    dtype: torch.dtype | str = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the positions 0 to seqlen - 1, each [seqlen, dim].

    `dtype` may be a name: bf16, fp32, fp16 or torch's, with or without "torch.". Raises GoldenInputError for
    another one, for an odd `dim` and for a length that is not positive.
    """
    if seqlen <= 0:
        raise GoldenInputError(f"rope: seqlen is {seqlen}, expected a number above 0")
    inv = inverse_frequencies(dim, original_len, base, factor, beta_fast, beta_slow)
    return rope_rows_at(torch.arange(seqlen), inv, _dtype(dtype))


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if dtype in DTYPES.values():
        assert isinstance(dtype, torch.dtype)
        return dtype
    raise GoldenInputError(f"rope: dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")


def rope_frequencies(config: RopeConfig, ratio: int) -> Tensor:
    """`inverse_frequencies` of a layer with that compress ratio, FP32 [qk_rope_head_dim / 2]."""
    base, original_len = rope_profile(config, ratio)
    return inverse_frequencies(
        config.qk_rope_head_dim, original_len, base, config.rope_factor, config.beta_fast, config.beta_slow
    )


def build_rope_tables(
    config: RopeConfig, ratio: int, max_seq_len: int | None = None, dtype: torch.dtype | str = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """(freqs_cos, freqs_sin) of a layer with that compress ratio, by default for every position of the model."""
    base, original_len = rope_profile(config, ratio)
    return rope_table(
        config.qk_rope_head_dim,
        config.max_position_embeddings if max_seq_len is None else max_seq_len,
        original_len,
        base,
        config.rope_factor,
        config.beta_fast,
        config.beta_slow,
        dtype,
    )


def token_rows(cos: Tensor, sin: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the tables at integer positions of any shape: [numel, dim], bit copies.

    Raises GoldenInputError for a position outside the tables.
    """
    positions = position_ids.reshape(-1)
    expect_range("rope: position_ids", positions, 0, cos.shape[0] - 1)
    return cos[positions.long()], sin[positions.long()]


def half_rows(cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The first halves of `token_rows` as FP32, [numel, dim/2]: the values of the table, however rounded."""
    rows_cos, rows_sin = token_rows(cos, sin, positions)
    half = cos.shape[1] // 2
    return rows_cos[:, :half].float(), rows_sin[:, :half].float()


def materialize_rope_rows(
    freqs_cos: Tensor, freqs_sin: Tensor, position_ids: Tensor, num_tokens: int
) -> tuple[Tensor, Tensor]:
    """Section 6: the rows of the first num_tokens tokens, clamped to 0..T; (rope_cos_t, rope_sin_t).

    freqs_cos, freqs_sin [MAX_SEQ_LEN, ROPE_DIM] BF16, position_ids [T] INT32. The other rows are undefined on
    the device and 0 here, whatever their positions. Raises GoldenInputError for a wrong shape or dtype and for
    a position outside the tables among the first num_tokens.
    """
    length, dim = expect("materialize_rope_rows: freqs_cos", freqs_cos, (None, None), torch.bfloat16)
    expect("materialize_rope_rows: freqs_sin", freqs_sin, (length, dim), torch.bfloat16)
    (t,) = expect("materialize_rope_rows: position_ids", position_ids, (None,), torch.int32)
    active = min(max(expect_integer("materialize_rope_rows: num_tokens", num_tokens), 0), t)
    expect_range("materialize_rope_rows: position_ids", position_ids[:active], 0, length - 1)
    cos, sin = token_rows(freqs_cos, freqs_sin, position_ids[:active])
    padding = torch.zeros(t - active, dim, dtype=torch.bfloat16)
    return torch.cat([cos, padding]), torch.cat([sin, padding])


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (a, b) of lanes 2i, 2i + 1 turned to (a c - b s, a s + b c): FP32, a rounding for each operation.

    x [..., 2H], cos and sin [..., H], broadcast. Section 7.3, step 10.
    """
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
