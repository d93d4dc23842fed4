"""The distributed MoE as its contract tells it: loops over routes, lanes full of garbage, one rank after the other.

contracts/moe_and_layers.md, 3.3, 4.3 and 5.3. The independent definition that the vectorised goldens are compared with.
Ranks run in lock step, phase by phase, which is one of the orders that the protocol allows.
"""

import torch

from goldens.expert_routed import expert_routed
from goldens.expert_shared import expert_shared
from goldens.gate import gate
from goldens.hc_post import hc_post
from goldens.hc_pre import hc_pre


def clamp(count, t):
    return max(0, min(int(count), t))


class Windows:
    """The lanes of one rank, filled with what an earlier call may have left: random bytes, NaN, wild keys."""

    def __init__(self, ep, n_local, recv_max, d, seed):
        wild = torch.Generator().manual_seed(seed)
        rows = n_local * recv_max
        self.meta = torch.randint(-(2**31), 2**31, (ep, n_local), generator=wild)
        self.x = torch.randint(-128, 128, (rows, d), generator=wild, dtype=torch.int8)
        self.aux = torch.full((rows, 8), float("nan"))
        self.route = torch.randint(-(2**31), 2**31, (rows, 8), generator=wild)


def dispatch(indices, x_norm_i8, x_norm_scale, weights, num_tokens, n_local, recv_max, seed=0):
    """Per rank a dict of lists by local expert: (codes, scale, weight, key) of each compact row; and the windows."""
    ep, t, k = indices.shape
    per_source = recv_max // ep
    windows = [Windows(ep, n_local, recv_max, x_norm_i8.shape[2], seed + rank) for rank in range(ep)]
    for rank in range(ep):  # steps 1 to 4
        cursor = [[0] * n_local for _ in range(ep)]
        for token in range(clamp(num_tokens[rank, 0], t)):
            for choice in range(k):
                e = int(indices[rank, token, choice])
                to, expert = e // n_local, e % n_local
                slot = cursor[to][expert]
                assert slot < per_source
                cursor[to][expert] += 1
                row = expert * recv_max + rank * per_source + slot
                windows[to].x[row] = x_norm_i8[rank, token]
                windows[to].aux[row, 0] = x_norm_scale[rank, token, 0]
                windows[to].aux[row, 1] = weights[rank, token, choice]
                windows[to].route[row, 0] = token * k + choice
        for to in range(ep):
            windows[to].meta[rank] = torch.tensor(cursor[to])
    received = []
    for window in windows:  # steps 5 to 7
        rows = [[] for _ in range(n_local)]
        for expert in range(n_local):
            for source in range(ep):
                for slot in range(int(window.meta[source, expert])):
                    row = expert * recv_max + source * per_source + slot
                    rows[expert].append((window.x[row], window.aux[row, 0], window.aux[row, 1], window.route[row, 0]))
        received.append(rows)
    return received, windows


def combine(rows_of, metas, keys_of, sh, num_tokens, k):
    """rows_of and keys_of [rank][expert]: weighted rows in compact order and their keys; metas [rank] [EP, N_LOCAL].

    Returns ffn_out and the windows of returned rows, NaN where nothing was written.
    """
    ep, t, d = sh.shape
    returned = torch.full((ep, t * k, d), float("nan"), dtype=torch.bfloat16)
    for rank in range(ep):  # steps 1 and 2
        taken = [0] * len(rows_of[rank])
        for source in range(ep):
            for expert in range(len(rows_of[rank])):
                for _ in range(int(metas[rank][source, expert])):
                    at = taken[expert]
                    taken[expert] += 1
                    returned[source, int(keys_of[rank][expert][at])] = rows_of[rank][expert][at]
    ffn_out = sh.clone()
    for rank in range(ep):  # steps 4 and 5
        for token in range(clamp(num_tokens[rank, 0], t)):
            total = sh[rank, token].float()
            for choice in range(k):
                total = total + returned[rank, token * k + choice].float()
            ffn_out[rank, token] = total.bfloat16()
    return ffn_out, returned


def moe(inputs, parameters, seed=0):
    """x_next of all ranks: every rank its own parts, every route its own call of an expert."""
    i, p = inputs, parameters
    ep, n_local, k = len(i["x_hc"]), i["routed_w1"].shape[1], i["tid2eid"].shape[2]
    chosen, mixes, shared = [], [], []
    for r in range(ep):
        mix = hc_pre(
            *(i[name][r] for name in ("x_hc", "hc_ffn_fn", "hc_ffn_scale", "hc_ffn_base")),
            rms_eps=p["rms_eps"],
            hc_eps=p["hc_eps"],
            sinkhorn_iters=p["sinkhorn_iters"],
        )
        one = gate(
            mix["x_mixed"],
            *(i[name][r] for name in ("norm_w", "gate_w", "gate_bias")),
            i["layer_id"],
            i["num_tokens"],
            *(i[name][r] for name in ("tid2eid", "input_ids")),
            rms_eps=p["rms_eps"],
            n_hash_layers=p["n_hash_layers"],
            routed_scaling=p["routed_scaling"],
        )
        weights = [i[f"shared_{name}"][r] for name in ("w1", "w1_scale", "w3", "w3_scale", "w2", "w2_scale")]
        shared.append(
            expert_shared(one["x_norm_i8"], one["x_norm_scale"], *weights, swiglu_limit=p["swiglu_limit"])["sh"]
        )
        chosen.append(one)
        mixes.append(mix)
    sent = [torch.stack([one[name] for one in chosen]) for name in ("indices", "x_norm_i8", "x_norm_scale", "weights")]
    counts = torch.full((ep, 1), i["num_tokens"])
    received, windows = dispatch(*sent, counts, n_local, p["recv_max"], seed)
    outputs = [[[expert_row(i, p, r, e, row) for row in rows] for e, rows in enumerate(received[r])] for r in range(ep)]
    keys = [[[row[3] for row in rows] for rows in received[r]] for r in range(ep)]
    ffn_out, _ = combine(outputs, [window.meta for window in windows], keys, torch.stack(shared), counts, k)
    streams = [hc_post(ffn_out[r], i["x_hc"][r], mixes[r]["post"], mixes[r]["comb"])["y"] for r in range(ep)]
    return torch.stack(streams)


def expert_row(inputs, parameters, rank, expert, row):
    """The weighted output of one expert for one received row. [D] BF16"""
    codes, scale, weight, _ = row
    one = slice(expert, expert + 1)
    weights = [inputs[f"routed_{name}"][rank, one] for name in ("w1", "w1_scale", "w3", "w3_scale", "w2", "w2_scale")]
    return expert_routed(
        codes.view(1, 1, -1),
        scale.view(1, 1),
        weight.view(1, 1),
        torch.ones(1, 1, dtype=torch.int32),
        *weights,
        swiglu_limit=parameters["swiglu_limit"],
    )["recv_y"][0, 0]
