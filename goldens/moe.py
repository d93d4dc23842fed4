"""Golden of moe: the FFN half of a layer on all ranks, hyper-connection mix to hyper-connection mix.

contracts/moe_and_layers.md, sections 5 and 6; the step numbers are those of 5.3. Composed of the goldens of its parts.
EP ranks, T tokens on each; every expert matmul is exact, so the result for a token depends on nothing but the token.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from goldens.checks import Given, continued, expect, expect_integer
from goldens.errors import GoldenInputError
from goldens.expert_routed import expert_routed
from goldens.expert_shared import expert_shared
from goldens.gate import gate
from goldens.hc_post import hc_post
from goldens.hc_pre import hc_pre
from goldens.moe_combine import moe_combine
from goldens.moe_dispatch import moe_dispatch

STAGES = (
    "x_mixed", "post", "comb", "normed", "x_norm", "x_norm_i8", "x_norm_scale", "biased", "indices", "weights",
    "shared_h_i8", "sh", "overflow", "recv_meta", "recv_count_out", "recv_x_out", "recv_scale_out", "recv_w_out",
    "recv_r_route_out", "routed_h_i8", "recv_y", "routed_y_buf", "ffn_out", "x_next",
)  # fmt: skip

_OF_GATE = ("normed", "x_norm", "x_norm_i8", "x_norm_scale", "biased", "indices", "weights")


def _same_on_all_ranks(name: str, tensor: Tensor) -> Tensor:
    """The one value of a tensor [EP, ...] that all ranks must agree on, bit for bit."""
    first = tensor[0].contiguous().view(torch.uint8)
    for rank in range(1, len(tensor)):
        differing = tensor[rank].contiguous().view(torch.uint8) != first
        if bool(differing.any()):
            element = int(differing.flatten().nonzero()[0]) // tensor.element_size()
            place = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(element), tensor.shape[1:]))
            raise GoldenInputError(
                f"moe: {name}{[rank, *place]} is {tensor[rank][place].item()} and on rank 0 {tensor[0][place].item()}, "
                f"expected the same on all ranks"
            )
    return tensor[0]


def _stacked(ranks: list[dict[str, Tensor]], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: torch.stack([stages[name] for stages in ranks]) for name in names}


def _by_rank(flat: Mapping[str, Tensor], names: Iterable[str], ep: int) -> dict[str, Tensor]:
    """Stages [EP*T, ...] of tokens of all ranks with their rank axis, [EP, T, ...]."""
    return {name: flat[name].view(ep, -1, *flat[name].shape[1:]) for name in names}


def _expert_outputs(
    received: dict[str, Tensor], routed_weights: tuple[Tensor, ...], swiglu_limit: float, traced: bool
) -> dict[str, Tensor]:
    """Step 5 on every rank: its own experts on the rows that it received. recv_y [EP, N_LOCAL, RECV_MAX, D]"""
    names = ("recv_x_out", "recv_scale_out", "recv_w_out", "recv_count_out")
    ranks = []
    for tensors in zip(*(received[name] for name in names), *routed_weights, strict=True):
        stages: dict[str, Tensor] | None = {} if traced else None
        stage = expert_routed(*tensors, swiglu_limit=swiglu_limit, taps=stages)
        ranks.append({"recv_y": stage["recv_y"], **({"routed_h_i8": stages["h_i8"]} if stages else {})})
    return _stacked(ranks, ranks[0])


def moe(
    x_hc: Tensor,
    hc_ffn_fn: Tensor,
    hc_ffn_scale: Tensor,
    hc_ffn_base: Tensor,
    norm_w: Tensor,
    gate_w: Tensor,
    gate_bias: Tensor,
    tid2eid: Tensor,
    input_ids: Tensor,
    routed_w1: Tensor,
    routed_w1_scale: Tensor,
    routed_w3: Tensor,
    routed_w3_scale: Tensor,
    routed_w2: Tensor,
    routed_w2_scale: Tensor,
    shared_w1: Tensor,
    shared_w1_scale: Tensor,
    shared_w3: Tensor,
    shared_w3_scale: Tensor,
    shared_w2: Tensor,
    shared_w2_scale: Tensor,
    layer_id: int,
    num_tokens: int,
    *,
    recv_max: int,
    rms_eps: float,
    hc_eps: float,
    sinkhorn_iters: int,
    n_hash_layers: int,
    routed_scaling: float,
    swiglu_limit: float,
    taps: dict[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mix the streams, route each token to K experts anywhere, add the shared one, and mix the result back in.

    x_hc [EP, T, HC, D] BF16; hc_ffn_fn [EP, MIX, HC*D], hc_ffn_scale [EP, 3], hc_ffn_base [EP, MIX], gate_w [EP, N, D],
    gate_bias [EP, N] FP32, norm_w [EP, D] BF16, tid2eid [EP, VOCAB, K] INT32, the same on all ranks; input_ids [EP, T]
    INT64; routed weights [EP, N/EP, ...], the shard of each rank, as in expert_routed; shared weights [EP, ...], the
    same on all ranks, as in expert_shared. Layers below n_hash_layers route by table. The first num_tokens tokens of
    every rank are active, clamped to 0..T. recv_max is RECV_MAX, rows per expert, RECV_MAX / EP per source. EP may be
    1: the reference for every other spread of the same experts.

    Returns x_next [EP, T, HC, D] BF16 (RNE) and overflow [EP, 4] INT32, zeros. For an inactive token the FFN output is
    that of the shared expert at scale 0, +0.

    `given` may hold stages of a device, with their rank axis: x_mixed, post, comb, x_norm, x_norm_i8, x_norm_scale,
    indices, weights, sh, recv_y, ffn_out. What follows them is then computed from those.

    Raises GoldenInputError for a wrong shape or dtype, replicated tensors that differ between ranks, and whatever the
    golden of a part refuses; CapacityError if a source has more rows for an expert than its lane holds.

    Long, because it checks the 22 tensors of the contract by name before it strings the parts together.
    """
    ep, t, hc, d = expect("moe: x_hc", x_hc, (None, None, None, None), torch.bfloat16)
    _, n_local, inner, _ = expect("moe: routed_w1", routed_w1, (ep, None, None, d), torch.int8)
    _, _, k = expect("moe: tid2eid", tid2eid, (ep, None, None), torch.int32)
    expect("moe: input_ids", input_ids, (ep, t), torch.int64)
    mix_hc, fp32, int8 = (2 + hc) * hc, torch.float32, torch.int8

    def local(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        expect(f"moe: {name}", tensor, (ep, *shape), dtype)
        return tensor

    def shared(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return _same_on_all_ranks(name, local(name, tensor, shape, dtype))

    hc_parameters = (
        shared("hc_ffn_fn", hc_ffn_fn, (mix_hc, hc * d), fp32),
        shared("hc_ffn_scale", hc_ffn_scale, (3,), fp32),
        shared("hc_ffn_base", hc_ffn_base, (mix_hc,), fp32),
    )
    gamma = shared("norm_w", norm_w, (d,), torch.bfloat16)
    router = shared("gate_w", gate_w, (ep * n_local, d), fp32)
    bias = shared("gate_bias", gate_bias, (ep * n_local,), fp32)
    table = _same_on_all_ranks("tid2eid", tid2eid)
    routed_weights = (
        routed_w1,
        local("routed_w1_scale", routed_w1_scale, (n_local, inner), fp32),
        local("routed_w3", routed_w3, (n_local, inner, d), int8),
        local("routed_w3_scale", routed_w3_scale, (n_local, inner), fp32),
        local("routed_w2", routed_w2, (n_local, d, inner), int8),
        local("routed_w2_scale", routed_w2_scale, (n_local, d), fp32),
    )
    shared_weights = (
        shared("shared_w1", shared_w1, (inner, d), int8),
        shared("shared_w1_scale", shared_w1_scale, (inner,), fp32),
        shared("shared_w3", shared_w3, (inner, d), int8),
        shared("shared_w3_scale", shared_w3_scale, (inner,), fp32),
        shared("shared_w2", shared_w2, (d, inner), int8),
        shared("shared_w2_scale", shared_w2_scale, (d,), fp32),
    )
    counts = torch.full((ep, 1), expect_integer("moe: num_tokens", num_tokens), dtype=torch.int32)
    device = {} if given is None else given
    of_ranks = [Given({name: device[name][r] for name in ("x_norm", "indices") if name in device}) for r in range(ep)]
    stages: dict[str, Tensor] = {}

    def keep(computed: Mapping[str, Tensor]) -> None:
        stages.update({name: continued(device, "moe", name, stage) for name, stage in computed.items()})

    # Step 1. Tokens do not meet before dispatch: those of all ranks go through a part together where it allows that.
    tokens = x_hc.flatten(0, 1)
    mix = hc_pre(tokens, *hc_parameters, hc_eps=hc_eps, rms_eps=rms_eps, sinkhorn_iters=sinkhorn_iters)
    keep(_by_rank(mix, mix, ep))
    chosen: list[dict[str, Tensor]] = [{} for _ in range(ep)]
    for rank in range(ep):  # step 2, by rank: num_tokens counts the rows of a rank
        gate(
            stages["x_mixed"][rank],
            gamma,
            router,
            bias,
            layer_id,
            num_tokens,
            table,
            input_ids[rank],
            rms_eps=rms_eps,
            n_hash_layers=n_hash_layers,
            routed_scaling=routed_scaling,
            taps=chosen[rank],
            given=of_ranks[rank],
        )
    if isinstance(given, Given):
        for name in ("x_norm", "indices"):
            given.record(name, torch.stack([of_rank.computed[name] for of_rank in of_ranks]))
    keep(_stacked(chosen, _OF_GATE))
    every: dict[str, Tensor] = {}
    codes, scales = stages["x_norm_i8"], stages["x_norm_scale"]
    expert_shared(codes.flatten(0, 1), scales.flatten(0, 1), *shared_weights, swiglu_limit=swiglu_limit, taps=every)
    keep(_by_rank({"shared_h_i8": every["h_i8"], "sh": every["sh"]}, ("shared_h_i8", "sh"), ep))  # step 3
    received = moe_dispatch(  # step 4
        stages["indices"], codes, scales, stages["weights"], counts, n_local=n_local, recv_max=recv_max
    )
    keep(_expert_outputs(received, routed_weights, swiglu_limit, traced=taps is not None))
    combined = moe_combine(  # step 6
        stages["recv_y"],
        received["recv_r_route_out"],
        stages["sh"],
        received["recv_meta"],
        counts,
        topk=k,
    )
    keep(combined)
    post, comb = stages["post"].flatten(0, 1), stages["comb"].flatten(0, 1)
    next_streams = hc_post(stages["ffn_out"].flatten(0, 1), tokens, post, comb)  # step 7
    x_next = next_streams["y"].view(x_hc.shape)

    if taps is not None:
        stages.update(received, x_next=x_next)
        taps.update({name: stages[name] for name in STAGES})
    return {"x_next": x_next, "overflow": received["overflow"]}
