"""What the three decode attention layers share: the way in, the write-back, the way out.

contracts/decode_attention.md, sections 5 to 7. A layer is a chain of goldens; each of its stages may be given by a
device, and the chain goes on from there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from goldens.checks import continued, expect, expect_range, part_of
from goldens.errors import GoldenInputError
from goldens.hc_post import hc_post
from goldens.hc_pre import hc_pre
from goldens.numerics.paging import PAGE
from goldens.numerics.rope import token_rows
from goldens.qkv_proj_rope import qkv_proj_rope
from goldens.rms_norm import rms_norm

INPUT_STAGES = ("x_mixed", "post", "comb", "x_normed", "rope_cos", "rope_sin", "qr", "qr_scale", "q", "kv")
"""Stages of `attention_input`, in order."""

PROJECTION_STAGES = ("o_packed", "o_r", "o_codes", "o_scale", "attn_out")
"""Stages that a layer takes over from sparse attention, in order."""

Stages = dict[str, Tensor]


class Chain:
    """The stages of one layer: computed, or given by a device, which then stands for what was computed."""

    def __init__(self, op: str, given: Mapping[str, Tensor] | None) -> None:
        self.op = op
        self.given = given
        self.stages: Stages = {}

    def put(self, name: str, computed: Tensor) -> Tensor:
        """Keep the stage `name` and return what the layer goes on with."""
        self.stages[name] = continued(self.given, self.op, name, computed)
        return self.stages[name]

    def only(self, *names: str, **renamed: str) -> Mapping[str, Tensor]:
        """What was given of these stages, for the golden of a part; `renamed`: stage -> the name that it has there."""
        return part_of(self.given, {name: name for name in names} | renamed)


def step_positions(op: str, position_ids: Tensor, batch: int, length: int) -> Tensor:
    """position_ids [T] INT32 as [B, S]. Raises GoldenInputError unless they are consecutive within each request and lie
    in the rotary tables."""
    (t,) = expect(f"{op}: position_ids", position_ids, (None,), torch.int32)
    if not batch or t % batch:
        raise GoldenInputError(f"{op}: position_ids has {t} tokens, expected a multiple of the {batch} requests")
    expect_range(f"{op}: position_ids", position_ids, 0, length - 1)
    positions = position_ids.view(batch, -1)
    wanted = positions[:, :1] + torch.arange(positions.shape[1], dtype=torch.int32)
    if not torch.equal(positions, wanted):
        request, step = (int(i) for i in (positions != wanted).nonzero()[0])
        raise GoldenInputError(
            f"{op}: position_ids[{request * positions.shape[1] + step}] is {int(positions[request, step])}, expected "
            f"{int(wanted[request, step])}: positions of a request are consecutive"
        )
    return positions


def attention_input(
    chain: Chain,
    x_hc: Tensor,
    hc_attn: tuple[Tensor, Tensor, Tensor],
    attn_norm_w: Tensor,
    projections: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    freqs: tuple[Tensor, Tensor],
    position_ids: Tensor,
    *,
    rms_eps: float,
    hc_eps: float,
    sinkhorn_iters: int,
) -> None:
    """hc_pre, rms_norm, the tokens' rotary rows and qkv_proj_rope: INPUT_STAGES.

    hc_attn is fn, scale, base; projections are wq_a, wq_b, wq_b_scale, wkv, gamma_cq, gamma_ckv; freqs the tables
    [MAX_SEQ_LEN, ROPE_DIM].
    """
    mixed = hc_pre(x_hc, *hc_attn, rms_eps=rms_eps, hc_eps=hc_eps, sinkhorn_iters=sinkhorn_iters)
    x_mixed = chain.put("x_mixed", mixed["x_mixed"])
    chain.put("post", mixed["post"])
    chain.put("comb", mixed["comb"])
    x_normed = chain.put("x_normed", rms_norm(x_mixed, attn_norm_w, rms_eps=rms_eps)["x_normed"])
    cos, sin = token_rows(*freqs, position_ids)
    rope_cos, rope_sin = chain.put("rope_cos", cos), chain.put("rope_sin", sin)
    wq_a, wq_b, wq_b_scale, wkv, gamma_cq, gamma_ckv = projections
    projected = qkv_proj_rope(
        x_normed, wq_a, wq_b, wq_b_scale, wkv, rope_cos, rope_sin, gamma_cq, gamma_ckv,
        rms_eps=rms_eps, given=chain.only("qr", "qr_scale"),
    )  # fmt: skip
    for name in ("qr", "qr_scale", "q", "kv"):
        chain.put(name, projected[name])


def group_starts(positions: Tensor, ratio: int) -> Tensor:
    """INT32 [B]: the first position of the group of `ratio` that each request's first token lies in."""
    first = positions[:, 0]
    return first - first % ratio


def write_back(op: str, kv_cache: Tensor, ori_slot_mapping: Tensor, kv: Tensor) -> Tensor:
    """CB-5: the ring after attention has read it: row ori_slot_mapping[t] holds kv[t], where that is not negative.

    kv_cache [pages, 128, 1, HEAD_DIM] BF16, ori_slot_mapping [T] INT64, kv [T, HEAD_DIM] BF16. Raises GoldenInputError
    for a row beyond the pool.
    """
    pages, _, _, head_dim = expect(f"{op}: kv_cache", kv_cache, (None, PAGE, 1, kv.shape[1]), torch.bfloat16)
    expect(f"{op}: ori_slot_mapping", ori_slot_mapping, (kv.shape[0],), torch.int64)
    expect_range(f"{op}: ori_slot_mapping", ori_slot_mapping.clamp(min=-1), -1, pages * PAGE - 1)
    after = kv_cache.clone(memory_format=torch.contiguous_format)
    stored = ori_slot_mapping >= 0
    after.view(-1, head_dim)[ori_slot_mapping[stored]] = kv[stored]
    return after


def attention_result(chain: Chain, x_hc: Tensor, kv_cache: Tensor, ori_slot_mapping: Tensor) -> None:
    """The ring's update and hc_post: stages kv_cache and x_out, from attn_out, kv, post and comb."""
    stages = chain.stages
    chain.put("kv_cache", write_back(chain.op, kv_cache, ori_slot_mapping, stages["kv"]))
    chain.put("x_out", hc_post(stages["attn_out"], x_hc, stages["post"], stages["comb"])["y"])
