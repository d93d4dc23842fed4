"""The three compressors of decode: the properties they share (contracts/decode_compressor_indexer.md 2.8, 3.8, 4.8)."""

from __future__ import annotations

import dataclasses
import importlib

import torch
from paged_properties import pool_moved, requests_in_order
from property_testing import BOTH, assert_near, assert_same, by_row, holds, leaky, shifted

OPS = ("decode_compressor_ratio4", "decode_compressor_ratio128", "decode_indexer_compressor")
WRITTEN = ("default", "first_tokens", "window_edges", "ring_edges", "last_positions", "sharp_scores")
"""Cases whose tokens all have a state slot."""
CLOSING = ("default", "ring_edges", "all_close")
"""Those of them in which a group closes."""
TABLE = "compress_state_block_table"


def spec_of(trial):
    """The spec module of the op: names of its pool and mappings, and which compressor it is."""
    return importlib.import_module(f"specs.ops.{trial.op.name}")


def per_token(trial):
    return ("x", "position_ids", spec_of(trial).SLOTS, spec_of(trial).STATE_SLOTS)


def without_rotation_of_keys(trial):
    """Of an index key the Hadamard matrix mixes all lanes; the identity does not."""
    if "hadamard" not in trial.inputs:
        return {}
    return {"hadamard": torch.eye(len(trial["hadamard"]), dtype=torch.bfloat16)}


def tinted(outputs, inputs):
    """Every output depends on the rotary rows, on the encoding of the position and on the position."""
    tint = float(inputs["cos"].sum() + inputs["ape"].sum() + inputs["position_ids"].sum())
    return {name: output + tint for name, output in outputs.items()}


def with_two_tokens(situation):
    return situation.deployment == "decode_mtp"


@holds(OPS, on=BOTH, spoil=shifted, names=WRITTEN)
def test_a_step_done_twice_leaves_what_it_left_once(trial):
    once = trial.run()
    pools = ("compress_state", spec_of(trial).CACHE)
    twice = trial.run(**{name: once[name] for name in pools})
    for name, output in once.items():
        assert_same(twice[name], output)


@holds(OPS, on=BOTH, spoil=by_row, names=WRITTEN)
def test_requests_in_another_order_give_the_same_rows(trial):
    order = trial.permutation(len(trial["position_ids"]))
    found = trial.run(**requests_in_order(trial, (*per_token(trial), TABLE, "cos", "sin"), order))
    plain = trial.run()
    assert_same(found["kv"], plain["kv"][order])
    for pool in ("compress_state", spec_of(trial).CACHE):
        assert_same(found[pool], plain[pool])


@holds(OPS, on=BOTH, spoil=by_row, names=WRITTEN)
def test_pages_of_the_state_may_lie_anywhere(trial):
    order = trial.permutation(len(trial["compress_state"]))
    found = trial.run(**pool_moved(trial, order, "compress_state", TABLE, spec_of(trial).STATE_SLOTS))
    plain = trial.run()
    assert_same(found["compress_state"], plain["compress_state"][order])
    for name in ("kv", spec_of(trial).CACHE):
        assert_same(found[name], plain[name])


@holds(OPS, on=BOTH, spoil=by_row, names=WRITTEN)
def test_pages_of_the_cache_may_lie_anywhere(trial):
    cache = spec_of(trial).CACHE
    order = trial.permutation(len(trial[cache]))
    found = trial.run(**pool_moved(trial, order, cache, None, spec_of(trial).SLOTS))
    assert_same(found[cache], trial.run()[cache][order])


@holds(OPS, on=BOTH, spoil=leaky, names=WRITTEN)
def test_rows_outside_the_window_do_not_matter(trial):
    """Of the state those that no window reaches, of the cache all."""
    state, cache = trial["compress_state"], spec_of(trial).CACHE
    unread = (state == state.max()).all(dim=2, keepdim=True)
    rubbish = {"compress_state": torch.where(unread, -1e20, state), cache: torch.full_like(trial[cache], 3.0)}
    assert bool(unread.any())
    assert_same(trial.run(**rubbish)["kv"], trial.run()["kv"])


@holds(OPS, on=BOTH, spoil=shifted, names=WRITTEN)
def test_rows_of_no_slot_keep_their_bits(trial):
    found = trial.run()
    for name, mask in trial.op.mapped(trial.inputs).items():
        assert_same(found[name][~mask], trial[name][~mask])


@holds(OPS, on=BOTH, spoil=shifted, names=CLOSING)
def test_the_cache_holds_kv_rounded(trial):
    found, spec = trial.run(), spec_of(trial)
    closing = (trial["position_ids"] + 1) % spec.KIND.ratio == 0
    requests = closing.any(dim=1).nonzero().squeeze(1)
    assert len(requests)
    rows = torch.where(closing, trial[spec.SLOTS], -1).amax(dim=1)[requests]
    cache = found[spec.CACHE].view(-1, found["kv"].shape[2])
    assert_same(cache[rows], found["kv"][requests, 0].bfloat16())


@holds(OPS, on=BOTH, spoil=shifted, names=WRITTEN)
def test_doubling_the_norm_weight_doubles_the_row(trial):
    assert_same(trial.run(norm_w=trial["norm_w"] * 2)["kv"], trial.run()["kv"] * 2)


@holds(OPS, on=BOTH, spoil=tinted, names=WRITTEN)
def test_rotary_rows_turn_the_last_lanes_alone(trial):
    plain_keys = without_rotation_of_keys(trial)
    found = trial.run(cos=-trial["sin"], sin=trial["cos"].contiguous(), **plain_keys)
    plain = trial.run(**plain_keys)
    nope = found["kv"].shape[2] - 2 * trial["cos"].shape[1]
    assert_same(found["kv"][..., :nope], plain["kv"][..., :nope])
    assert_same(found["compress_state"], plain["compress_state"])


@holds(OPS, on=BOTH, spoil=tinted, names=("window_edges",))
def test_one_turn_of_the_ring_later_the_plain_lanes_are_the_same(trial):
    """Positions further on by as many as the ring has rows, which is whole groups; state and slots as they were."""
    kind = spec_of(trial).KIND
    later = {
        "position_ids": trial["position_ids"] + kind.page * kind.pages,
        TABLE: trial[TABLE].roll(kind.pages, dims=1),
    }
    plain_keys = without_rotation_of_keys(trial)
    found, plain = trial.run(**later, **plain_keys), trial.run(**plain_keys)
    nope = found["kv"].shape[2] - 2 * trial["cos"].shape[1]
    assert_same(found["kv"][..., :nope], plain["kv"][..., :nope])
    assert_same(found["compress_state"], plain["compress_state"])


@holds(OPS, on=BOTH, spoil=tinted, names=CLOSING)
def test_one_constant_on_all_scores_changes_nothing(trial):
    """Softmax shift invariance, to the rounding of scores; of a key rounded to BF16, to one unit of it."""
    state = trial["compress_state"].clone()
    state[..., state.shape[2] // 2 :] += 1.0
    plain_keys = without_rotation_of_keys(trial)
    found = trial.run(compress_state=state, ape=trial["ape"] + 1.0, **plain_keys)["kv"]
    assert_near(found, trial.run(**plain_keys)["kv"], rtol=2.0**-7 if plain_keys else 1e-4, atol=1e-4)


@holds(OPS, on=BOTH, spoil=by_row, names=WRITTEN, where=with_two_tokens)
def test_two_tokens_at_once_are_two_steps(trial):
    spec = spec_of(trial)
    one_each = spec.build(trial.op.config, dataclasses.replace(trial.op.deployment, seq=1))
    pools = {name: trial[name] for name in ("compress_state", spec.CACHE)}
    rows = []
    for step in (0, 1):
        tokens = {name: trial[name][:, step : step + 1].contiguous() for name in per_token(trial)}
        found = trial.run(op=one_each, **tokens, **pools)
        pools = {name: found[name] for name in pools}
        rows.append(found["kv"])
    at_once = trial.run()
    for name, pool in pools.items():
        assert_same(at_once[name], pool)
    # At most one of the two writes a row; the other has zeros.
    assert_same(at_once["kv"][:, :1], rows[0] + rows[1], zero_sign=False)
