"""decode_compressor_ratio128: its own properties of contracts/decode_compressor_indexer.md, 3.8.

Those that all compressors share are in test_properties_decode_compressors.py.
"""

import torch
from property_testing import BOTH, assert_near, assert_same, by_column, holds, leaky, scaled

OP = "decode_compressor_ratio128"
CLOSING = ("default", "ring_edges", "all_close", "high_scores")
GROUP = 128


def ordered(outputs, inputs):
    """Every output depends on where the rows of the state lie."""
    state = inputs["compress_state"].double().clamp(-100, 100)
    places = torch.linspace(1, 2, state.numel(), dtype=torch.float64).view(state.shape)
    tint = 1.5 + torch.sin((state * places).sum())
    return {name: (output * tint).to(output.dtype) for name, output in outputs.items()}


def closing_requests(trial):
    """Requests whose group closes in this step."""
    requests = ((trial["position_ids"] + 1) % GROUP == 0).any(dim=1).nonzero().squeeze(1)
    assert len(requests)
    return requests


def window_rows(trial, requests):
    """Flat rows of the state of a request's group, in order of positions: [requests, 128]."""
    page = trial["compress_state"].shape[1]
    first = trial["position_ids"][requests, :1] // GROUP * GROUP
    positions = (first + torch.arange(GROUP)).long()
    pages = trial["compress_state_block_table"][requests].long().gather(1, positions // page)
    return pages * page + positions % page


def old_rows(trial, requests):
    """Those rows that the step itself does not write, but for the last column of positions: [requests, columns]."""
    seq = trial.op.deployment.seq
    return window_rows(trial, requests)[:, : GROUP - seq]


def plain_lanes(trial, kv):
    """The lanes that rotary rows do not turn."""
    return kv[..., : kv.shape[-1] - 2 * trial["cos"].shape[1]]


def normed(trial, pooled):
    """RMSNorm of pooled rows [n, HEAD_DIM] in FP64, the lanes before the rotary ones."""
    pooled = pooled.double()
    mean = (pooled * pooled).mean(dim=1, keepdim=True)
    row = pooled / (mean + trial.op.parameters["rms_eps"]).sqrt() * trial["norm_w"].double()
    return plain_lanes(trial, row)


@holds(OP, on=BOTH, spoil=ordered, names=CLOSING)
def test_the_window_is_a_set(trial):
    """Its rows in another order are pooled to the same row, to the rounding of sums."""
    requests = closing_requests(trial)
    rows = old_rows(trial, requests)
    order = trial.permutation(rows.shape[1])
    state = trial["compress_state"].clone()
    flat = state.view(-1, state.shape[2])
    flat[rows.flatten()] = flat[rows[:, order].flatten()]
    found, plain = trial.run(compress_state=state)["kv"], trial.run()["kv"]
    assert_near(found[requests, 0], plain[requests, 0], rtol=1e-4, atol=1e-5)


@holds(OP, on=BOTH, spoil=scaled, names=("equal_scores",))
def test_equal_scores_pool_to_the_mean(trial):
    requests = closing_requests(trial)
    found = trial.run()
    width = found["kv"].shape[2]
    window = found["compress_state"].view(-1, 2 * width)[window_rows(trial, requests)]
    mean = window[..., :width].double().mean(dim=1)
    assert_near(plain_lanes(trial, found["kv"][requests, 0]), normed(trial, mean), rtol=1e-4, atol=1e-4)


@holds(OP, on=BOTH, spoil=scaled, names=CLOSING)
def test_one_dominant_score_pools_to_its_row(trial):
    requests = closing_requests(trial)
    chosen = old_rows(trial, requests)[:, 40]
    state = trial["compress_state"].clone()
    width = state.shape[2] // 2
    state.view(-1, 2 * width)[chosen, width:] = 1e4
    found = trial.run(compress_state=state)["kv"][requests, 0]
    alone = normed(trial, state.view(-1, 2 * width)[chosen, :width])
    assert_near(plain_lanes(trial, found), alone, rtol=1e-5, atol=1e-5)


@holds(OP, on=BOTH, spoil=leaky, names=("state_hole",))
def test_a_page_that_is_a_hole_counts_as_empty(trial):
    """As kv 0 and the lowest score: the same row as with a page of just that."""
    state, table = trial["compress_state"], trial["compress_state_block_table"].clone()
    requests, page = closing_requests(trial), state.shape[1]
    columns = trial["position_ids"][requests, :1].long() // GROUP * (GROUP // page) + torch.arange(GROUP // page)
    holes = table[requests].gather(1, columns) < 0
    assert bool((holes.sum(dim=1) == 1).all())
    unused = torch.ones(len(state), dtype=torch.bool)
    unused[table[table >= 0].long()] = False
    free = unused.nonzero().squeeze(1)[: len(requests)]
    filled = state.clone()
    filled[free, :, : state.shape[2] // 2] = 0.0
    filled[free, :, state.shape[2] // 2 :] = torch.finfo(torch.float32).min
    table[requests, columns[holes]] = free.int()
    found = trial.run(compress_state=filled, compress_state_block_table=table)["kv"]
    assert_same(found[requests], trial.run()["kv"][requests])


@holds(OP, on=BOTH, spoil=by_column, names=CLOSING)
def test_lanes_are_pooled_one_by_one(trial):
    """Lanes in another order, in weights, state and norm, without rotation: the row has them in that order."""
    width = len(trial["norm_w"])
    order = trial.permutation(width)
    both = torch.cat([order, width + order])
    still = {"cos": torch.ones_like(trial["cos"]), "sin": torch.zeros_like(trial["sin"])}
    found = trial.run(
        wkv=trial["wkv"][order].contiguous(),
        wgate=trial["wgate"][order].contiguous(),
        ape=trial["ape"][:, order].contiguous(),
        norm_w=trial["norm_w"][order].contiguous(),
        compress_state=trial["compress_state"][..., both].contiguous(),
        **still,
    )
    plain = trial.run(**still)
    assert_same(found["compress_state"], plain["compress_state"][..., both])
    assert_near(found["kv"], plain["kv"][..., order], rtol=1e-5, atol=1e-6)
