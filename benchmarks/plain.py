"""The formulas of the ops as plain FP32 torch code: no rounding points, no stages, no checks.

What one writes when bits do not matter; the time of a golden is reported as a multiple of it. Arguments are those of
the goldens of the same names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, norm_w: Tensor, *, rms_eps: float) -> Tensor:
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + rms_eps) * norm_w.float()).bfloat16()


def hc_pre(x: Tensor, hc_fn: Tensor, hc_scale: Tensor, hc_base: Tensor, **constants: float) -> tuple[Tensor, ...]:
    t, hc, _ = x.shape
    x = x.float()
    flat = x.flatten(1)
    inv = torch.rsqrt(flat.square().mean(-1, keepdim=True) + constants["rms_eps"])
    eps = constants["hc_eps"]
    scale = torch.repeat_interleave(hc_scale, torch.tensor([hc, hc, hc * hc]))
    logits = (flat @ hc_fn.T) * inv * scale + hc_base
    pre = torch.sigmoid(logits[:, :hc]) + eps
    post = 2 * torch.sigmoid(logits[:, hc : 2 * hc])
    comb = torch.softmax(logits[:, 2 * hc :].view(t, hc, hc), -1) + eps
    comb = comb / (comb.sum(1, keepdim=True) + eps)
    for _ in range(int(constants["sinkhorn_iters"]) - 1):
        comb = comb / (comb.sum(2, keepdim=True) + eps)
        comb = comb / (comb.sum(1, keepdim=True) + eps)
    return (x * pre.unsqueeze(-1)).sum(1).bfloat16(), post, comb.flatten(1)


def hc_post(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    t, hc, _ = residual.shape
    mixed = torch.einsum("tio,tid->tod", comb.view(t, hc, hc), residual.float())
    return (mixed + post.unsqueeze(-1) * x.float().unsqueeze(1)).bfloat16()


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
) -> tuple[Tensor, ...]:
    x = rms_norm(x_mixed, norm_w, rms_eps=rms_eps).float()
    codes, scale = _quantised(x)
    score = F.softplus(x @ gate_w.T).sqrt()
    if layer_id < n_hash_layers:
        ids = tid2eid[input_ids].long()
    else:
        ids = (score + gate_bias).topk(tid2eid.shape[1]).indices
    chosen = score.gather(1, ids)
    return x.bfloat16(), codes, scale, ids, chosen / chosen.sum(-1, keepdim=True) * routed_scaling


def expert_shared(
    x_local_i8: Tensor,
    x_local_scale_dq: Tensor,
    shared_w1: Tensor,
    shared_w1_scale: Tensor,
    shared_w3: Tensor,
    shared_w3_scale: Tensor,
    shared_w2: Tensor,
    shared_w2_scale: Tensor,
    *,
    swiglu_limit: float,
) -> Tensor:
    x = x_local_i8.float() * x_local_scale_dq
    gated = (x @ (shared_w1.float() * shared_w1_scale.unsqueeze(1)).T).clamp(max=swiglu_limit or None)
    up = x @ (shared_w3.float() * shared_w3_scale.unsqueeze(1)).T
    if swiglu_limit:
        up = up.clamp(-swiglu_limit, swiglu_limit)
    codes, scale = _quantised(F.silu(gated) * up)
    return ((codes.float() * scale) @ (shared_w2.float() * shared_w2_scale.unsqueeze(1)).T).bfloat16()


def expert_routed(
    recv_x: Tensor,
    recv_scale_dq: Tensor,
    recv_weights: Tensor,
    recv_expert_count: Tensor,
    routed_w1: Tensor,
    routed_w1_scale: Tensor,
    routed_w3: Tensor,
    routed_w3_scale: Tensor,
    routed_w2: Tensor,
    routed_w2_scale: Tensor,
    *,
    swiglu_limit: float,
) -> Tensor:
    y = torch.zeros(recv_x.shape, dtype=torch.bfloat16)
    for e, n in enumerate(recv_expert_count.flatten().tolist()):
        if n:
            rows = expert_shared(
                recv_x[e, :n],
                recv_scale_dq[e, :n, None],
                routed_w1[e],
                routed_w1_scale[e],
                routed_w3[e],
                routed_w3_scale[e],
                routed_w2[e],
                routed_w2_scale[e],
                swiglu_limit=swiglu_limit,
            )
            y[e, :n] = rows * recv_weights[e, :n, None]
    return y


def hc_head(
    x_hc: Tensor, hc_head_fn: Tensor, hc_head_scale: Tensor, hc_head_base: Tensor, *, rms_eps: float, hc_eps: float
) -> Tensor:
    x = x_hc.float()
    flat = x.flatten(1)
    inv = torch.rsqrt(flat.square().mean(-1, keepdim=True) + rms_eps)
    pre = torch.sigmoid((flat @ hc_head_fn.T) * inv * hc_head_scale + hc_head_base) + hc_eps
    return (x * pre.unsqueeze(-1)).sum(1).bfloat16()


def mtp_projection(
    hidden_states: Tensor,
    prev_hidden_states: Tensor,
    enorm_w: Tensor,
    hnorm_w: Tensor,
    e_proj_w: Tensor,
    e_proj_w_scale: Tensor,
    e_proj_smooth: Tensor,
    h_proj_w: Tensor,
    h_proj_w_scale: Tensor,
    h_proj_smooth: Tensor,
    *,
    rms_eps: float,
) -> Tensor:
    e = _projected(hidden_states, enorm_w, e_proj_smooth, e_proj_w, e_proj_w_scale, rms_eps)
    h = _projected(prev_hidden_states, hnorm_w, h_proj_smooth, h_proj_w, h_proj_w_scale, rms_eps)
    return (e + h).bfloat16()


def qkv_proj_rope(
    x: Tensor,
    wq_a: Tensor,
    wq_b: Tensor,
    wq_b_scale: Tensor,
    wkv: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    gamma_cq: Tensor,
    gamma_ckv: Tensor,
    *,
    rms_eps: float,
) -> tuple[Tensor, ...]:
    wide, half = x.float(), rope_cos.shape[1] // 2
    cos, sin = rope_cos[:, :half].float(), rope_sin[:, :half].float()
    codes, scale = _quantised(_normed(wide @ wq_a.float(), rms_eps) * gamma_cq.float())
    heads = (codes.float() @ wq_b.float() * scale * wq_b_scale).unflatten(1, (-1, gamma_ckv.shape[0]))
    q = _rotated(_normed(heads, rms_eps), cos.unsqueeze(1), sin.unsqueeze(1))
    kv = _rotated(_normed(wide @ wkv.float(), rms_eps) * gamma_ckv.float(), cos, sin)
    return q.bfloat16(), kv.bfloat16(), codes, scale


def lm_head(hidden_states: Tensor, lm_head_weight: Tensor) -> Tensor:
    shards = [hidden_states.flatten(0, 1).float() @ weight.float().T for weight in lm_head_weight]
    return torch.cat(shards, dim=-1).unflatten(0, hidden_states.shape[:2])


def _projected(x: Tensor, norm_w: Tensor, smooth: Tensor, weight: Tensor, scale: Tensor, rms_eps: float) -> Tensor:
    codes, row_scale = _quantised(_normed(x.float(), rms_eps) * norm_w * smooth)
    return codes.float() @ weight.float().T * row_scale * scale


def _normed(x: Tensor, rms_eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + rms_eps)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    plain, lanes = x.split((x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    even, odd = lanes[..., 0::2], lanes[..., 1::2]
    return torch.cat([plain, torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)], -1)


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 127
    return (x / scale).round().to(torch.int8), scale
