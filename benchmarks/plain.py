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


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 127
    return (x / scale).round().to(torch.int8), scale
