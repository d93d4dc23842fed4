"""decode_indexer: properties of contracts/decode_compressor_indexer.md, 5.8."""

import torch
from paged_properties import pool_moved, requests_in_order
from property_testing import BOTH, GOLDEN, assert_near, assert_same, by_column, by_row, holds

OP = "decode_indexer"
POSITIONS = ("default", "first_tokens", "window_edges", "ring_edges", "last_positions")
WITH_HISTORY = ("default", "window_edges", "ring_edges", "last_positions")
"""Those of them in which keys are there before the step."""
UNSEEN = torch.finfo(torch.float32).min
PER_REQUEST = (
    "x", "qr", "qr_scale", "cos", "sin", "inner_cos", "inner_sin", "inner_compress_state_block_table",
    "idx_block_table", "position_ids", "idx_slot_mapping", "inner_state_slot_mapping", "kv_seq_lens",
)  # fmt: skip


def one_head(outputs, inputs):
    """Every output depends on the weight of the first head alone."""
    tint = 1.0 + float(inputs["weights_proj"][:, 0].float().abs().sum())
    return {name: (output * tint).to(output.dtype) for name, output in outputs.items()}


def tinted(outputs, inputs):
    """Every output depends on the magnitude of queries, weights and keys, and no product of powers of two shows it."""
    sizes = inputs["qr_scale"].sum() + inputs["weights_proj"].float().abs().sum() + inputs["wq_b"].float().sum()
    tint = 1.0 + float(sizes) % 1.7
    return {name: (output * tint + tint).to(output.dtype) for name, output in outputs.items()}


def sensitive(outputs, inputs):
    """Every output depends on every key and on every token."""
    total = sum(float(inputs[name].double().nan_to_num().sum()) for name in ("idx_kv_cache", "x", "qr"))
    return {name: (output * (2.0 + total % 1.7)).to(output.dtype) for name, output in outputs.items()}


def visible(trial):
    """How many keys each token sees, [B, S]."""
    closed = (trial["position_ids"] + 1) // 4
    return torch.minimum(closed, (trial["kv_seq_lens"] // 4).unsqueeze(1))


def seen(trial, limit=None):
    """Mask [B, S, SCORE_LEN] of visible keys; with `limit` [B] of those before it."""
    columns = trial.op.parameters["score_len"]
    until = visible(trial) if limit is None else torch.minimum(visible(trial), limit.unsqueeze(1))
    return torch.arange(columns) < until.unsqueeze(2)


def history(trial):
    """Mask of keys that were there before this step."""
    return seen(trial, trial["position_ids"][:, 0] // 4)


def assert_scaled(found, plain, mask, factor):
    """Scores under the mask times the factor, exactly; all others as they were."""
    assert bool(mask.any())
    assert_same(found, torch.where(mask, plain * factor, plain), zero_sign=False)


@holds(OP, on=BOTH, spoil=tinted, names=POSITIONS)
def test_a_power_of_two_in_the_query_scale_is_one_in_every_score(trial):
    power = trial.power_of_two()
    found, plain = trial.run(qr_scale=trial["qr_scale"] * power), trial.run()
    assert_scaled(found["score"], plain["score"], seen(trial), power)
    assert_same(found["topk_idxs"], plain["topk_idxs"])


@holds(OP, on=BOTH, spoil=tinted, names=POSITIONS)
def test_a_power_of_two_in_the_head_weights_is_one_in_every_score(trial):
    power = trial.power_of_two()
    found, plain = trial.run(weights_proj=trial["weights_proj"] * power), trial.run()
    assert_scaled(found["score"], plain["score"], seen(trial), power)
    assert_same(found["topk_idxs"], plain["topk_idxs"])


@holds(OP, on=BOTH, spoil=tinted, names=WITH_HISTORY)
def test_a_power_of_two_in_the_keys_is_one_in_their_scores(trial):
    """Not in that of the key that this step appends."""
    power, old = trial.power_of_two(), history(trial)
    found = trial.run(idx_kv_cache=trial["idx_kv_cache"] * power)["score"]
    plain = trial.run()["score"]
    assert_scaled(torch.where(old, found, 0.0), torch.where(old, plain, 0.0), old, power)


@holds(OP, on=BOTH, spoil=tinted, names=WITH_HISTORY)
def test_queries_and_keys_of_the_other_sign_have_the_same_scores(trial):
    old = history(trial)
    turned = {"wq_b": -trial["wq_b"], "idx_kv_cache": -trial["idx_kv_cache"]}
    found, plain = trial.run(**turned)["score"], trial.run()["score"]
    assert bool(old.any())
    assert_same(found[old], plain[old], zero_sign=False)


@holds(OP, on=BOTH, spoil=one_head, names=POSITIONS)
def test_heads_are_summed_in_any_order(trial):
    """Heads in another order, of queries and of weights: scores to the rounding of the sum."""
    heads, width = trial["weights_proj"].shape[1], len(trial["hadamard"])
    order = trial.permutation(heads)
    columns = (order.unsqueeze(1) * width + torch.arange(width)).flatten()
    found = trial.run(
        wq_b=trial["wq_b"][:, columns].contiguous(),
        wq_b_scale=trial["wq_b_scale"][columns].contiguous(),
        weights_proj=trial["weights_proj"][:, order].contiguous(),
    )["score"]
    mask, envelope = seen(trial), trial.stages()["envelope"]
    plain = trial.run()["score"]
    assert_near(found[mask], plain[mask], atol=2e-6 * envelope[mask].double())


@holds(OP, on=BOTH, spoil=sensitive, names=POSITIONS)
def test_keys_that_no_token_sees_do_not_matter(trial):
    """Rows beyond the visible ones, and pages of nobody: NaN there changes nothing."""
    cache = trial["idx_kv_cache"]
    most = visible(trial).amax(dim=1, keepdim=True)
    slots = torch.arange(int(most.max()) + 1).expand(len(most), -1)
    rows = trial["idx_block_table"].long().gather(1, slots // 128) * 128 + slots % 128
    read = torch.zeros(cache.shape[0] * 128, dtype=torch.bool)
    read[rows[slots < most]] = True
    rubbish = torch.where(read.view(-1, 128, 1, 1), cache, torch.nan)
    found, plain = trial.run(idx_kv_cache=rubbish), trial.run()
    for name in ("score", "topk_idxs"):
        assert_same(found[name], plain[name])


@holds(OP, on=GOLDEN, spoil=by_column, names=(*POSITIONS, "ties"))
def test_fewer_selected_are_the_first_of_more(trial):
    fewer = trial.op.parameters["index_topk"] // 2
    kept = torch.arange(trial.op.parameters["score_len"]) < fewer
    found, plain = trial.run(index_topk=fewer)["topk_idxs"], trial.run()["topk_idxs"]
    assert_same(found, torch.where(kept, plain, -1).int())


@holds(OP, on=BOTH, spoil=by_row, names=POSITIONS)
def test_requests_in_another_order_give_the_same_rows(trial):
    order = trial.permutation(len(trial["position_ids"]))
    found, plain = trial.run(**requests_in_order(trial, PER_REQUEST, order)), trial.run()
    for name in ("score", "topk_idxs", "inner_kv"):
        assert_same(found[name], plain[name][order])
    for pool in ("inner_compress_state", "idx_kv_cache"):
        assert_same(found[pool], plain[pool])


@holds(OP, on=BOTH, spoil=by_row, names=POSITIONS)
def test_pages_of_the_keys_may_lie_anywhere(trial):
    order = trial.permutation(len(trial["idx_kv_cache"]))
    found = trial.run(**pool_moved(trial, order, "idx_kv_cache", "idx_block_table", "idx_slot_mapping"))
    plain = trial.run()
    assert_same(found["idx_kv_cache"], plain["idx_kv_cache"][order])
    for name in ("score", "topk_idxs"):
        assert_same(found[name], plain[name])


@holds(OP, on=BOTH, spoil=by_row, names=POSITIONS)
def test_pages_of_the_inner_state_may_lie_anywhere(trial):
    order = trial.permutation(len(trial["inner_compress_state"]))
    names = ("inner_compress_state", "inner_compress_state_block_table", "inner_state_slot_mapping")
    found, plain = trial.run(**pool_moved(trial, order, *names)), trial.run()
    assert_same(found["inner_compress_state"], plain["inner_compress_state"][order])
    for name in ("score", "topk_idxs", "idx_kv_cache"):
        assert_same(found[name], plain[name])


@holds(OP, on=BOTH, spoil=tinted, names=POSITIONS)
def test_the_offset_is_added_to_every_index_and_to_nothing_else(trial):
    found, plain = trial.run(offset=trial["offset"] + 37), trial.run()
    listed = plain["topk_idxs"] >= 0
    assert_same(found["topk_idxs"], torch.where(listed, plain["topk_idxs"] + 37, -1).int())
    assert_same(found["score"], plain["score"])


@holds(OP, on=BOTH, spoil=sensitive, names=POSITIONS, where=lambda situation: situation.deployment == "decode_mtp")
def test_a_token_does_not_see_later_ones(trial):
    x, qr = trial["x"].clone(), trial["qr"].clone()
    x[:, -1] = -x[:, -1]
    qr[trial.op.deployment.seq - 1 :: trial.op.deployment.seq] = 3
    found, plain = trial.run(x=x, qr=qr), trial.run()
    for name in ("score", "topk_idxs"):
        assert_same(found[name][:, :-1], plain[name][:, :-1])


@holds(OP, on=BOTH, spoil=by_column, names=(*POSITIONS, "ties", "zero_keys", "negative_weights"))
def test_the_selection_follows_from_the_scores_alone(trial):
    """The best of the visible, of equals the lower index, then -1."""
    found, mask = trial.run(), seen(trial)
    score, selected = found["score"], found["topk_idxs"]
    assert bool((score[~mask] == UNSEEN).all())
    order = torch.argsort(score.masked_fill(~mask, -torch.inf), dim=2, descending=True, stable=True)
    column = torch.arange(score.shape[2])
    listed = column < visible(trial).clamp(max=trial.op.parameters["index_topk"]).unsqueeze(2)
    assert_same(selected, torch.where(listed, order + trial["offset"], -1).int())


@holds(OP, on=BOTH, spoil=sensitive, names=("default", "window_edges", "last_positions"))
def test_a_higher_score_never_ranks_lower(trial):
    """The first key of every request twice as long: where its score is above zero, it doubles."""
    cache = trial["idx_kv_cache"].clone()
    cache[trial["idx_block_table"][:, 0].clamp(min=0).long(), 0] *= 2
    plain, found = trial.run(), trial.run(idx_kv_cache=cache)
    raised = (plain["score"][..., 0] > 0) & history(trial)[..., 0]
    assert bool(raised.any())

    def rank(outputs):
        """Of the first key; as many as there are columns where it is not listed."""
        at = outputs["topk_idxs"] == trial["offset"]
        return torch.where(at.any(dim=2), at.int().argmax(dim=2), at.shape[2])

    assert bool((rank(found) <= rank(plain))[raised].all())
    assert_same(found["score"][..., 1:], plain["score"][..., 1:])
    assert_same(found["score"][..., 0][raised], 2 * plain["score"][..., 0][raised])
