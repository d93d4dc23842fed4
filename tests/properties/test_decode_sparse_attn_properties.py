"""Decode sparse attention: properties of contracts/decode_attention.md 2.8, 3.8 and 4.8, on goldens and kernels."""

from __future__ import annotations

from itertools import pairwise

import torch
from decode_attention_properties import SPARSE, holds, permuted, relabelled, token_order
from property_testing import assert_same, huge, scaled, shifted

GATHERED = ("decode_sparse_attn_csa",)


def relative_error(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@holds(SPARSE)
def test_pages_may_lie_anywhere(trial):
    changed, places = relabelled(trial)
    assert places
    wanted = trial.run()["attn_out"]
    assert_same(trial.run(**changed)["attn_out"], wanted)


@holds(SPARSE)
def test_permuting_requests_permutes_the_output(trial):
    """Bit for bit, in the third form too: the overlay of all requests is one block, and what is invisible adds 0."""
    order = torch.randperm(trial.op.deployment.batch, generator=trial.generator())
    wanted = trial.run()["attn_out"][token_order(trial, order)]
    assert_same(trial.run(**permuted(trial, order))["attn_out"], wanted)


@holds(SPARSE, case="unnamed_rows")
def test_rows_that_nobody_names_do_not_matter(trial):
    wanted = trial.run()["attn_out"]
    pool = {"cmp_kv": trial.inputs["cmp_kv"].nan_to_num(3.0)}
    assert_same(trial.run(**pool)["attn_out"], wanted)


@holds(SPARSE, fault=scaled)
def test_a_power_of_two_in_a_weight_is_one_in_the_output(trial):
    """Of wo_a while every amax of a group stays above 1e-4."""
    wanted = trial.run()["attn_out"] * 4.0
    assert_same(trial.run(wo_a=trial.inputs["wo_a"] * 4.0)["attn_out"], wanted)
    assert_same(trial.run(wo_b_scale=trial.inputs["wo_b_scale"] * 4.0)["attn_out"], wanted)


@holds(SPARSE, fault=shifted)
def test_negated_weights_negate_the_output(trial):
    wanted = -trial.run()["attn_out"]
    assert_same(trial.run(wo_a=-trial.inputs["wo_a"])["attn_out"], wanted, zero_sign=False)


@holds(SPARSE, fault=shifted)
def test_a_large_sink_takes_everything(trial):
    """y is exactly 0 where exp overflows, and shrinks as the sink grows."""
    norms = []
    for sink in (-100.0, 0.0, 4.0, 8.0):
        norms.append(trial.run(attn_sink=torch.full_like(trial.inputs["attn_sink"], sink))["attn_out"].float().norm())
    assert all(larger > smaller for larger, smaller in pairwise(norms))
    none = trial.run(attn_sink=torch.full_like(trial.inputs["attn_sink"], 200.0))["attn_out"]
    assert not none.any()


@holds(GATHERED, fault=huge)
def test_the_order_inside_a_block_is_that_of_a_sum(trial):
    listed = trial.inputs["cmp_sparse_indices"]
    order = torch.cat([start + torch.randperm(128, generator=trial.generator()) for start in (0, 128)])
    found = trial.run(cmp_sparse_indices=listed[:, order].contiguous())["attn_out"]
    assert relative_error(found, trial.run()["attn_out"]) < 5e-3


@holds(GATHERED)
def test_the_mask_of_an_empty_block_does_not_matter(trial):
    mask = trial.inputs["valid_block_mask"]
    assert int((mask == 0).sum()) > 0
    wanted = trial.run()["attn_out"]
    assert_same(trial.run(valid_block_mask=torch.ones_like(mask))["attn_out"], wanted)


@holds(SPARSE, case="no_rotation", fault=scaled)
def test_channels_lie_within_those_of_the_values(trial):
    """Rows of one value v in every channel: y is v times the share that the sink leaves, so between 0 and v (2.8, 10).
    Projected by weights of one, the output of every token lies between 0 and that of the value alone."""
    same = {name: torch.full_like(trial.inputs[name], 2.0) for name in ("ori_kv", "mtp_kv_overlay")}
    if not trial.inputs["cmp_kv"].isnan().any():
        same["cmp_kv"] = torch.full_like(trial.inputs["cmp_kv"], 2.0)
    weights = {"wo_a": torch.ones_like(trial.inputs["wo_a"]), "wo_b": torch.ones_like(trial.inputs["wo_b"])}
    weights["wo_b_scale"] = torch.ones_like(trial.inputs["wo_b_scale"])
    most = 2.0 * trial.inputs["wo_a"].shape[2] * trial.inputs["wo_b"].shape[1]
    whole = trial.run(**same, **weights, attn_sink=torch.full_like(trial.inputs["attn_sink"], -200.0))["attn_out"]
    assert bool(((whole.float() - most).abs() <= most * 2.0**-7).all())
    some = trial.run(**same, **weights)["attn_out"].float()
    assert bool(((some >= 0) & (some <= most * (1 + 2.0**-7))).all())
