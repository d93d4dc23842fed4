"""What the golden tests of the decode attention layers share: an FP64 layer over the history, and steps cut in two."""

import importlib

import numpy as np
import torch
from attention_testing import BLOCK, WIN, relative_error

PER_TOKEN = (
    "x_hc", "ori_slot_mapping", "cmp_slot_mapping", "idx_slot_mapping", "state_slot_mapping",
    "inner_state_slot_mapping", "position_ids",
)  # fmt: skip


def golden(op, inputs, **changes):
    """The golden at any number of requests and tokens per request."""
    function = getattr(importlib.import_module(f"goldens.{op.name}"), op.name)
    return function(**inputs, **(dict(op.parameters) | changes))


def one_at_a_time(op, inputs, taps=None, **changes):
    """A step of two tokens per request as two steps of one; pools go from one to the other.

    `taps`: two dicts for the stages of the steps. Returns the pools after both, and x_out in the order of tokens.
    """
    pools = {spec.name: inputs[spec.name] for spec in op.outputs if spec.name != "x_out"}
    x_out = torch.empty_like(inputs["x_hc"])
    for step in (0, 1):
        part = {name: value[step::2].contiguous() if name in PER_TOKEN else value for name, value in inputs.items()}
        if "kv_seq_lens" in inputs:
            part["kv_seq_lens"] = part["position_ids"] + 1
        found = golden(op, part | pools, taps=None if taps is None else taps[step], **changes)
        pools = {name: found[name] for name in pools}
        x_out[step::2] = found["x_out"]
    return pools | {"x_out": x_out}


def fp64_layer(op, inputs, token, compressed=()):
    """attn_out [D] and x_out [HC, D] of one token in FP64, without quantisation, over its history of uncompressed rows.

    The history is what the ring holds, by position; `compressed` are rows [HEAD_DIM] attended besides.
    """
    t = {n: v.double().numpy() for n, v in inputs.items() if v.is_floating_point() and not v.dim() > 3}
    heads, width = inputs["attn_sink"].numel(), inputs["gamma_ckv"].numel()
    batch = len(inputs["block_table"] if "block_table" in inputs else inputs["ori_block_table"])
    seq = len(inputs["x_hc"]) // batch
    request, step = divmod(token, seq)

    def position(s):
        return int(inputs["position_ids"][request * seq + s])

    def project(s):
        """Mixed streams, gates, normed input, kv row of step s of the request."""
        streams = t["x_hc"][request * seq + s]
        flat = streams.reshape(-1)
        mix = (t["hc_attn_fn"] @ flat) / np.sqrt(np.mean(flat**2) + 1e-6)
        gains = t["hc_attn_scale"]
        base = t["hc_attn_base"]
        pre = 1 / (1 + np.exp(-(mix[:4] * gains[0] + base[:4]))) + op.config.hc_eps
        post = 2 / (1 + np.exp(-(mix[4:8] * gains[1] + base[4:8])))
        comb = np.exp((mix[8:] * gains[2] + base[8:]).reshape(4, 4))
        comb = comb / comb.sum(axis=1, keepdims=True) + op.config.hc_eps
        for iteration in range(op.config.hc_sinkhorn_iters):
            if iteration:
                comb = comb / (comb.sum(axis=1, keepdims=True) + op.config.hc_eps)
            comb = comb / (comb.sum(axis=0, keepdims=True) + op.config.hc_eps)
        normed = rms(pre @ streams) * t["attn_norm_w"]
        kv = turned(rms(normed @ t["wkv"]) * t["gamma_ckv"], position(s), 1)
        return normed, post, comb, kv

    def turned(rows, at, sign):
        half = op.config.rope_half
        angle = t["freqs_cos"][at, :half] + sign * 1j * t["freqs_sin"][at, :half]
        pairs = (rows[..., -2 * half :: 2] + 1j * rows[..., -2 * half + 1 :: 2]) * angle
        out = rows.copy()
        out[..., -2 * half :: 2], out[..., -2 * half + 1 :: 2] = pairs.real, pairs.imag
        return out

    normed, post, comb, _ = project(step)
    low_rank = rms(normed @ t["wq_a"]) * t["gamma_cq"]
    wq_b = inputs["wq_b"].double().numpy() * t["wq_b_scale"]
    q = turned(rms((low_rank @ wq_b).reshape(heads, width)), position(step), 1)

    table = inputs["block_table"] if "block_table" in inputs else inputs["ori_block_table"]
    ring = inputs["kv_cache"][table[request, 0], :, 0].double().numpy()
    first = position(0)
    history = [ring[p % WIN] for p in range(max(0, position(step) - WIN + 1), first)]
    keys = np.stack([*history, *(project(s)[3] for s in range(step + 1)), *compressed])

    logits = np.concatenate([q @ keys.T * op.config.softmax_scale, t["attn_sink"][:, None]], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    y = (weights / weights.sum(axis=1, keepdims=True))[:, :-1] @ keys
    groups = op.config.o_groups
    back = turned(y, position(step), -1).reshape(groups, -1)
    wo_a = inputs["wo_a"].double().numpy()
    reduced = np.einsum("grk,gk->gr", wo_a, back).reshape(-1)
    attn_out = (inputs["wo_b"].double().numpy() @ reduced) * t["wo_b_scale"]
    return attn_out, post[:, None] * attn_out + comb.T @ t["x_hc"][token]


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def slot_row(inputs, pool, token, slot):
    """A compressed row of a token's request, through the block table."""
    batch = len(inputs["ori_block_table"])
    request = token // (len(inputs["x_hc"]) // batch)
    page = int(inputs["cmp_block_table"][request, slot // BLOCK])
    assert page >= 0
    return pool[page, slot % BLOCK, 0].double().numpy()


def assert_near_fp64(found, taps, token, wanted, *, attn=0.04, out=0.02):
    """INT8 queries and codes are off by 1 % each, BF16 rows and probabilities by less (contract C.1)."""
    attn_out, x_out = wanted
    assert relative_error(taps["attn_out"][token], attn_out) < attn
    assert relative_error(found["x_out"][token].flatten(), x_out.flatten()) < out
