"""Golden of gate, the front end of the MoE: norm, INT8 tokens, router scores, expert selection, weights.

contracts/hc_gate_experts.md, section 3; the step numbers are those of 3.3. N experts, K of them per token.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect, expect_integer, expect_range
from goldens.errors import GoldenInputError
from goldens.numerics.elementary import exp, inverse_sqrt, log1p, sqrt
from goldens.numerics.matmul import fp32_matmul
from goldens.numerics.quant import quantize_rows
from goldens.numerics.reduce import row_sum

STAGES = (
    "sum_squares", "inv_rms", "normed", "x_norm", "x_norm_i8", "x_norm_scale", "logits", "score", "biased", "indices",
    "selected", "weights",
)  # fmt: skip

_ROW_TILE = 16  # rows that the device norms at a time


def _normed_rows(active: int, t: int) -> int:
    """Rows whose norm is defined: whole tiles of 16 up to the last active token."""
    return min(t, -(-active // _ROW_TILE) * _ROW_TILE)


def _inverse_rms(sum_squares: Tensor, d: int, rms_eps: float) -> Tensor:
    """Step 2: 1 / sqrt(ss * (1/D) + eps), four roundings, 1/D rounded to FP32 first. [T, 1]"""
    return inverse_sqrt(sum_squares * (1.0 / d) + rms_eps)


def _norm(x: Tensor, inv_rms: Tensor, norm_w: Tensor) -> Tensor:
    """Step 3 before its last rounding: (x * inv) * w, two FP32 roundings. [T, D]"""
    return (x * inv_rms).mul_(norm_w)


def _score(logits: Tensor) -> Tensor:
    """Step 6: sqrt(softplus), softplus(l) = max(l, 0) + log1p(exp(-|l|)), accurate for every l. [T, N]

    The device has no log1p; its form is up to 41 % off near l = -16 (contract 3.3). A golden keeps the truth.
    """
    return sqrt(logits.clamp(min=0.0) + log1p(exp(-logits.abs())))


def _table_ids(tid2eid: Tensor, input_ids: Tensor, active: int, n: int) -> Tensor:
    """Step 8 in a hash layer: the row of each token's table entry, in table order. [T, K] INT32"""
    expect_range("gate: input_ids", input_ids, 0, tid2eid.shape[0] - 1)
    ids = tid2eid[input_ids]
    _expect_experts(ids, input_ids, n)
    _expect_distinct(ids[:active], input_ids)
    return ids


def _expect_experts(ids: Tensor, input_ids: Tensor, n: int) -> None:
    """Inactive tokens count as well: the device reads their rows too."""
    outside = ((ids < 0) | (ids >= n)).any(dim=1).nonzero()
    if outside.numel():
        token = int(outside[0])
        expect_range("gate: tid2eid", ids[token], 0, n - 1, at=(int(input_ids[token]),))


def _expect_distinct(ids: Tensor, input_ids: Tensor) -> None:
    """Dispatch has room for one route per active token and expert."""
    ordered = ids.sort(dim=1).values
    repeats = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
    if repeats.numel():
        token, place = repeats[0].tolist()
        raise GoldenInputError(
            f"gate: tid2eid[{int(input_ids[token])}] names expert {int(ordered[token, place])} twice "
            f"(active token {token}), expected distinct ids"
        )


def _top_ids(biased: Tensor, k: int) -> Tensor:
    """Step 8 in a score layer: the k largest, best first, of equals the lower id first. [T, K] INT32"""
    n = biased.shape[1]
    best = biased.topk(min(k + 1, n), dim=1)
    if not bool((best.values[:, 1:] < best.values[:, :-1]).all()):  # topk does not say which of equals comes first
        return biased.sort(dim=1, descending=True, stable=True).indices[:, :k].to(torch.int32)
    return best.indices[:, :k].to(torch.int32)


def _weights(selected: Tensor, routed_scaling: float) -> Tensor:
    """Step 9: the share of each selected score (true division, no epsilon), times the factor. [T, K]"""
    return selected / row_sum(selected, "sequential") * routed_scaling


def gate(
    x_mixed: Tensor,
    norm_w: Tensor,
    gate_w: Tensor,
    gate_bias: Tensor,
    layer_id: int,
    num_tokens: int,
    tid2eid: Tensor,
    input_ids: Tensor,
    *,
    rms_eps: float,
    n_hash_layers: int,
    routed_scaling: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Normalise and quantise the tokens, and choose K experts with weights for each active one.

    x_mixed [T, D] BF16, norm_w [D] BF16, gate_w [N, D] FP32, gate_bias [N] FP32, tid2eid [VOCAB, K] INT32,
    input_ids [T] INT64. Layers below n_hash_layers take their ids from tid2eid, the others the K best by
    score + bias. The first num_tokens tokens are active, clamped to 0..T.

    Returns x_norm [T, D] BF16, x_norm_i8 [T, D] INT8, x_norm_scale [T, 1] FP32, indices [T, K] INT32 and
    weights [T, K] FP32. Inactive tokens have scale, ids and weights 0. From the first whole tile of 16 rows
    without an active token on, x_norm and x_norm_i8 are undefined on the device and 0 here.

    `given` may hold x_norm and indices of a device: what follows them is then computed from those.

    Raises GoldenInputError for a wrong shape or dtype, more ids than experts and, in a hash layer, for a
    token id outside the table (active or not), an expert id outside 0..N-1, or one that an active token's row
    has twice.
    """
    t, d = expect("gate: x_mixed", x_mixed, (None, None), torch.bfloat16)
    expect("gate: norm_w", norm_w, (d,), torch.bfloat16)
    n, _ = expect("gate: gate_w", gate_w, (None, d), torch.float32)
    expect("gate: gate_bias", gate_bias, (n,), torch.float32)
    _, k = expect("gate: tid2eid", tid2eid, (None, None), torch.int32)
    expect("gate: input_ids", input_ids, (t,), torch.int64)
    if k > n:
        raise GoldenInputError(f"gate: tid2eid has {k} ids per row, expected at most the {n} experts of gate_w")
    hash_layer = expect_integer("gate: layer_id", layer_id) < n_hash_layers
    active = min(max(expect_integer("gate: num_tokens", num_tokens), 0), t)
    row = torch.arange(t).unsqueeze(1)

    # Step 1. Rows that the device does not norm count as zero rows: their norm and codes are then 0.
    x = x_mixed.float()
    x[_normed_rows(active, t) :] = 0.0
    sum_squares = row_sum(x * x)
    inv_rms = _inverse_rms(sum_squares, d, rms_eps)
    normed = _norm(x, inv_rms, norm_w.float())
    x_norm = continued(given, "gate", "x_norm", normed.to(torch.bfloat16))  # RNE; what follows uses the BF16 values
    x_norm_i8, scale = quantize_rows(x_norm.float())  # step 4
    logits = fp32_matmul(x_norm, gate_w)  # step 5
    score = _score(logits)
    biased = score + gate_bias  # step 7: the bias selects, it never weighs
    chosen = _table_ids(tid2eid, input_ids, active, n) if hash_layer else _top_ids(biased, k)
    indices = continued(given, "gate", "indices", chosen.masked_fill(row >= active, 0))  # step 10, for the ids
    selected = score.gather(1, indices.long())
    shares = _weights(selected, routed_scaling)

    # Step 10. Inactive tokens, for the rest.
    x_norm_scale = scale.masked_fill(row >= active, 0.0)
    weights = shares.masked_fill(row >= active, 0.0)

    if taps is not None:
        taps.update(
            sum_squares=sum_squares, inv_rms=inv_rms, normed=normed, x_norm=x_norm, x_norm_i8=x_norm_i8,
            x_norm_scale=x_norm_scale, logits=logits, score=score, biased=biased, indices=indices,
            selected=selected, weights=weights,
        )  # fmt: skip
    return {
        "x_norm": x_norm,
        "x_norm_i8": x_norm_i8,
        "x_norm_scale": x_norm_scale,
        "indices": indices,
        "weights": weights,
    }
