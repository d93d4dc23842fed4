"""Decode attention layers: properties of contracts/decode_attention.md 5.8, 6.8 and 7.8, on goldens and kernels."""

from __future__ import annotations

import torch
from decode_attention_properties import LAYERS, holds, permuted, relabelled, token_order
from property_testing import assert_near, assert_same, scaled, shifted

WIN = 128
UNCOMPRESSED = ("decode_attention_swa",)


@holds(LAYERS)
def test_pages_may_lie_anywhere(trial):
    changed, places = relabelled(trial)
    wanted = trial.run()
    found = trial.run(**changed)
    assert_same(found["x_out"], wanted["x_out"])
    for pool in wanted:
        if pool in places:
            assert_same(found[pool][places[pool]], wanted[pool])


@holds(LAYERS)
def test_permuting_requests_permutes_the_output_and_keeps_the_pools(trial):
    order = torch.randperm(trial.op.deployment.batch, generator=trial.generator())
    wanted = trial.run()
    found = trial.run(**permuted(trial, order))
    assert_same(found["x_out"], wanted["x_out"][token_order(trial, order)])
    for pool in wanted:
        if pool != "x_out":
            assert_same(found[pool], wanted[pool])


@holds(LAYERS)
def test_a_token_sees_neither_later_tokens_nor_other_requests(trial):
    """The last token of the step is another one: of its request the earlier one, and all others, do not notice."""
    x_hc = trial.inputs["x_hc"].clone()
    x_hc[-1] *= -0.5
    wanted = trial.run()["x_out"]
    found = trial.run(x_hc=x_hc)["x_out"]
    assert_same(found[:-1], wanted[:-1])
    assert not torch.equal(found[-1], wanted[-1])


@holds(LAYERS, fault=shifted)
def test_only_rows_of_the_slot_mappings_change(trial):
    trial.run()
    found = trial.run()
    for pool, mapped in trial.op.mapped(trial.inputs).items():
        assert_same(found[pool][~mapped], trial.inputs[pool][~mapped])


@holds(LAYERS)
def test_ring_rows_depend_on_their_token_alone(trial):
    """Stored rows are the same whatever the history: kv is a function of the token (5.8, 3)."""
    wanted = trial.run()["kv_cache"]
    other = trial.inputs["kv_cache"] * -2
    found = trial.run(kv_cache=other)["kv_cache"]
    mapped = trial.op.mapped(trial.inputs)["kv_cache"]
    assert bool(mapped.any())
    # Columns 0 to 15 pass through kv + 0 * attn_out on a device (CB-5).
    assert_same(found[mapped], wanted[mapped], zero_sign=False)


@holds(LAYERS, fault=scaled)
def test_with_closed_gates_attention_does_not_reach_the_streams(trial):
    """post is 2 sigmoid of a base of -200: 0 exactly, so x_out is the mix of the old streams alone (5.8, 7)."""
    base = trial.inputs["hc_attn_base"].clone()
    base[4:8] = -200.0
    scale = trial.inputs["hc_attn_scale"].clone()
    scale[1] = 0.0
    closed = {"hc_attn_base": base, "hc_attn_scale": scale}
    wanted = trial.run(**closed)["x_out"]
    found = trial.run(**closed, wo_b=-trial.inputs["wo_b"], attn_sink=trial.inputs["attn_sink"] + 3.0)["x_out"]
    assert_same(found, wanted, zero_sign=False)
    assert not torch.equal(trial.run(wo_b=-trial.inputs["wo_b"])["x_out"], trial.run()["x_out"])


@holds(LAYERS, fault=shifted)
def test_the_pools_do_not_depend_on_the_output_projection(trial):
    wanted = trial.run()
    found = trial.run(wo_a=trial.inputs["wo_a"] * 0.5, attn_sink=trial.inputs["attn_sink"] + 1.0)
    for pool in wanted:
        if pool != "x_out":
            assert_same(found[pool], wanted[pool], zero_sign=False)


@holds(UNCOMPRESSED, case="ring_edges")
def test_whole_windows_later_is_the_same_without_rotation(trial):
    """Positions WIN further on, the ring as it is, rotary rows of no rotation (5.8, 6)."""
    flat = {
        "freqs_cos": torch.ones_like(trial.inputs["freqs_cos"]),
        "freqs_sin": torch.zeros_like(trial.inputs["freqs_sin"]),
    }
    positions = trial.inputs["position_ids"]
    assert int(positions.min()) >= WIN
    wanted = trial.run(**flat)
    found = trial.run(**flat, position_ids=positions + WIN)
    assert_same(found["x_out"], wanted["x_out"])
    assert_same(found["kv_cache"], wanted["kv_cache"])


@holds(LAYERS, fault=scaled)
def test_a_power_of_two_in_the_streams_leaves_attention_as_it_is(trial):
    """hc_pre normalises the streams for its gates; x_normed is normalised again. Epsilons move the last bits."""
    wanted = trial.run()
    found = trial.run(x_hc=trial.inputs["x_hc"] * 2.0)
    assert_near(found["kv_cache"], wanted["kv_cache"], ulp=2, atol=0.02)
