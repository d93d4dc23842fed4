"""Goldens of the three decode compressors, contracts/decode_compressor_indexer.md, 2 to 4: against a plain FP64
evaluation of the whole history, in steps of any size, over shuffled pages.
"""

import numpy as np
import pytest
import torch
from decode_testing import (
    BOTH_HALVES,
    CACHE,
    COMPRESSORS,
    EPS,
    NEG,
    SLOTS,
    STATE_SLOTS,
    Stream,
    compressed_rows,
    history,
)
from golden_testing import assert_same_bits, golden

from goldens.decode_indexer_compressor import decode_indexer_compressor
from goldens.errors import GoldenInputError
from goldens.numerics import paging
from specs.registry import load_op

BF16_ULP = 2.0**-8


def length_of(op):
    return 288 if op.endswith("128") else 34


def oracle(stream, request):
    rows = compressed_rows(stream, request)
    if stream.op == "decode_indexer_compressor":
        rounded = torch.from_numpy(rows).float().bfloat16().double().numpy()
        rows = rounded @ stream.hadamard.double().numpy()
    return rows


@pytest.mark.parametrize("op", COMPRESSORS)
@pytest.mark.parametrize("seq", [1, 2, 3, 4])
def test_rows_are_those_of_the_whole_history(op, seq):
    stream = Stream(op, length=length_of(op)).decode(seq)
    for request in range(stream.batch):
        wanted = oracle(stream, request)
        assert len(wanted) == stream.length // stream.ratio >= 2
        # One BF16 rounding of the row; for an index key also one element that was rounded the other way before.
        slack = BF16_ULP * np.abs(wanted) + (0.02 if op == "decode_indexer_compressor" else 1e-5)
        assert (np.abs(stream.rows(request).numpy() - wanted) <= slack).all()


@pytest.mark.parametrize("op", COMPRESSORS)
@pytest.mark.parametrize("seq", [1, 4])
def test_emitted_rows_are_fp32(op, seq):
    """kv[b, 0] is the row before its rounding: good to 1e-5, where BF16 has 4e-3."""
    stream = Stream(op, length=length_of(op))
    emitted = []
    for first in range(0, stream.length - seq + 1, seq):
        found = stream.step(first, seq)
        assert not found["kv"][:, 1:].any()
        if (first + seq) // stream.ratio > first // stream.ratio:
            emitted.append(found["kv"][:, 0])
            cache = paging.flat_rows(torch.full((2, 1), first // stream.ratio), stream.cache_table, 128).squeeze(1)
            assert_same_bits(found[CACHE[op]].view(-1, stream.width)[cache], found["kv"][:, 0].bfloat16())
        else:
            assert not found["kv"].any()
    wanted = np.stack([oracle(stream, request) for request in range(2)], axis=1)
    assert np.abs(torch.stack(emitted).numpy() - wanted).max() <= (2e-2 if "indexer" in op else 1e-5)


@pytest.mark.parametrize("op", COMPRESSORS)
def test_the_state_holds_projections_and_biased_scores(op):
    stream = Stream(op, length=9).decode(2)
    for request in range(2):
        rows = paging.state_slots(torch.arange(9).unsqueeze(0), stream.state_table[request : request + 1], stream.page)
        kv, score = history(stream, request)
        found = stream.state.view(-1, stream.state.shape[2])[rows[0]].double().numpy()
        np.testing.assert_allclose(found, np.concatenate([kv, score], axis=1), rtol=1e-6, atol=1e-6)
    untouched = stream.state.view(-1, stream.state.shape[2])[:, -1] == NEG
    assert int(untouched.sum()) == stream.batch * stream.pages * stream.page - 2 * 9


@pytest.mark.parametrize("op", COMPRESSORS)
def test_steps_of_any_size_give_the_same_bits(op):
    one = Stream(op, length=length_of(op)).decode(1)
    for seq in (2, 4):
        other = Stream(op, length=length_of(op)).decode(seq)
        assert_same_bits(other.state, one.state)
        assert_same_bits(other.cache, one.cache)


@pytest.mark.parametrize("op", BOTH_HALVES)
def test_the_first_group_has_no_group_before(op):
    """Whatever lies in rows that would be read for positions below 0 does not matter, NaN neither."""
    clean, poisoned = Stream(op), Stream(op)
    written = paging.state_slots(torch.arange(4).expand(2, -1), clean.state_table, 4).flatten()
    poison = torch.full_like(poisoned.state.view(-1, poisoned.state.shape[2]), torch.nan)
    poison[written] = poisoned.state.view(-1, poisoned.state.shape[2])[written]
    poisoned.state = poison.view(poisoned.state.shape)
    for first in range(4):
        wanted, found = clean.step(first, 1), poisoned.step(first, 1)
    assert wanted["kv"].any()
    assert_same_bits(found["kv"], wanted["kv"])


@pytest.mark.parametrize("op", COMPRESSORS)
def test_a_row_rotates_at_the_first_position_of_its_group(op):
    """At the closing position it would be another row."""
    stream = Stream(op, length=length_of(op))
    if op == "decode_indexer_compressor":
        stream.hadamard = torch.eye(stream.width).bfloat16()
    stream.decode(1)
    right, wrong = compressed_rows(stream, 0), compressed_rows(stream, 0, rope_at=stream.ratio - 1)
    found = stream.rows(0).numpy()
    assert np.abs(found - right).max() < 0.02 < 0.2 < np.abs(found - wrong).max()


@pytest.mark.parametrize("op", COMPRESSORS)
def test_an_uncommitted_group_writes_its_state_and_no_row(op):
    stream = Stream(op, length=length_of(op))
    last = stream.ratio - 1
    stream.decode(1, until=last)
    cache = stream.cache.clone()
    slots = torch.full((2, 1), -1)
    found = stream.step(last, 1, **{SLOTS[op]: slots})
    assert not found["kv"].any()
    assert_same_bits(stream.cache, cache)
    again = stream.step(last, 1)
    assert again["kv"].any()
    assert_same_bits(again["compress_state"], found["compress_state"])


@pytest.mark.parametrize("op", COMPRESSORS)
def test_only_the_slot_of_the_closing_token_is_looked_at(op):
    stream = Stream(op, length=length_of(op))
    stream.decode(1, until=stream.ratio - 2)
    arguments = stream.arguments(stream.ratio - 2, 2)
    wanted = golden(op)(**arguments, rms_eps=EPS)
    slots = arguments[SLOTS[op]].clone()
    slots[:, 0] = 5
    found = golden(op)(**{**arguments, SLOTS[op]: slots}, rms_eps=EPS)
    assert wanted["kv"].any()
    assert_same_bits(found[CACHE[op]], wanted[CACHE[op]])


@pytest.mark.parametrize("op", COMPRESSORS)
def test_a_token_without_a_state_slot_is_dropped(op):
    stream = Stream(op)
    before = stream.state.clone()
    found = stream.step(0, 1, **{STATE_SLOTS[op]: torch.full((2, 1), -1)})
    assert_same_bits(found["compress_state"], before)


def test_ratio128_takes_a_hole_for_rows_never_written():
    """A negative page of the window: kv 0 and the least score for its 8 rows, not a page read from the end."""
    stream = Stream("decode_compressor_ratio128", length=128).decode(4, until=124)
    arguments = stream.arguments(124, 4)
    hole = arguments["compress_state_block_table"].clone()
    hole[:, 3] = -1
    found = golden(stream.op)(**{**arguments, "compress_state_block_table": hole}, rms_eps=EPS)["kv"]
    state = arguments["compress_state"].clone()
    rows = paging.state_slots(torch.arange(24, 32).expand(2, -1), stream.state_table, 8).flatten()
    state.view(-1, state.shape[2])[rows, : stream.width] = 0.0
    state.view(-1, state.shape[2])[rows, stream.width :] = NEG
    wanted = golden(stream.op)(**{**arguments, "compress_state": state}, rms_eps=EPS)["kv"]
    assert_same_bits(found, wanted)
    assert not torch.equal(found, golden(stream.op)(**arguments, rms_eps=EPS)["kv"])


@pytest.mark.parametrize("op", BOTH_HALVES)
def test_rejects_a_hole_in_the_window_of_an_overlapping_group(op):
    stream = Stream(op).decode(1, until=7)
    table = stream.state_table.clone()
    table[1, 0] = -1
    with pytest.raises(
        GoldenInputError, match=rf"^{op}: compress_state_block_table\[1, 0\] is negative, .*position 0$"
    ):
        stream.step(7, 1, compress_state_block_table=table)


@pytest.mark.parametrize("op", COMPRESSORS)
def test_a_lone_row_is_pooled_as_itself(op):
    """With an empty history the closing token's own kv is the pooled row: what the reference fixture tests."""
    stream = Stream(op, length=256)
    last, taps = stream.ratio - 1, {}
    golden(op)(**stream.arguments(last, 1), rms_eps=EPS, taps=taps)
    assert_same_bits(taps["pooled"], taps["kv_proj"][:, 0, -stream.width :].contiguous())


@pytest.mark.parametrize("op", COMPRESSORS)
def test_equal_scores_pool_the_mean(op):
    stream = Stream(op, length=length_of(op))
    stream.wgate, stream.ape = torch.zeros_like(stream.wgate), torch.full_like(stream.ape, 3.0)
    last = 2 * stream.ratio - 1
    stream.decode(1, until=last)
    taps = {}
    golden(op)(**stream.arguments(last, 1), rms_eps=EPS, taps=taps)
    kv, width = history(stream, 0)[0], stream.width
    own = kv[stream.ratio : last + 1]
    window = own if stream.ratio == 128 else np.concatenate([kv[:4, :width], own[:, width:]])
    np.testing.assert_allclose(taps["pooled"][0].numpy(), window.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", COMPRESSORS)
def test_a_dominant_score_pools_its_own_row(op):
    stream = Stream(op, length=length_of(op))
    stream.wgate = torch.zeros_like(stream.wgate)
    stream.ape = torch.zeros_like(stream.ape)
    stream.ape[1] = 400.0
    last = stream.ratio - 1
    stream.decode(1, until=last)
    taps = {}
    golden(op)(**stream.arguments(last, 1), rms_eps=EPS, taps=taps)
    wanted = history(stream, 0)[0][1, -stream.width :]
    np.testing.assert_allclose(taps["pooled"][0].numpy(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", COMPRESSORS)
def test_goes_on_from_a_given_state_and_from_given_kv(op):
    stream = Stream(op, length=length_of(op))
    stream.decode(1, until=stream.ratio - 1)
    arguments = stream.arguments(stream.ratio - 1, 1)
    plain = golden(op)(**arguments, rms_eps=EPS)
    other = plain["compress_state"] * 1.25
    found = golden(op)(**arguments, rms_eps=EPS, given={"compress_state": other})
    assert_same_bits(found["compress_state"], other)
    assert not torch.equal(found["kv"], plain["kv"])
    kv = plain["kv"] + 1.0
    found = golden(op)(**arguments, rms_eps=EPS, given={"kv": kv})
    row = arguments[SLOTS[op]][:, 0]
    assert_same_bits(found[CACHE[op]].view(-1, stream.width)[row], kv[:, 0].bfloat16())


def test_the_index_key_is_the_rounded_row_times_the_matrix():
    stream = Stream("decode_indexer_compressor").decode(1, until=7)
    taps = {}
    found = decode_indexer_compressor(**stream.arguments(7, 1), rms_eps=EPS, taps=taps)
    row = taps["row"].bfloat16()
    assert_same_bits(taps["row_bf16"], row)
    wanted = row.double() @ stream.hadamard.double()
    assert_same_bits(found["kv"][:, 0].contiguous(), wanted.float())
    assert not torch.allclose(wanted, row.double() @ stream.hadamard.double().T, atol=1e-2)  # from the other side


def test_identity_rotation_leaves_the_rounded_row_of_ratio4():
    plain, keyed = Stream("decode_compressor_ratio4"), Stream("decode_indexer_compressor")
    keyed.hadamard = torch.eye(keyed.width).bfloat16()
    assert_same_bits(keyed.decode(1).cache, plain.decode(1).cache)


CHANGES = {
    "five tokens": (lambda s: s.arguments(0, 5), "x has 5 tokens per request, expected at most 4"),
    "a jump": (
        lambda s: s.arguments(0, 2, position_ids=torch.tensor([[0, 1], [4, 6]], dtype=torch.int32)),
        r"position_ids\[1, 1\] is 6, expected 5",
    ),
    "a negative position": (
        lambda s: s.arguments(0, 1, position_ids=torch.tensor([[0], [-1]], dtype=torch.int32)),
        r"position_ids\[1, 0\] is -1",
    ),
    "beyond the table": (
        lambda s: s.arguments(0, 1, position_ids=torch.tensor([[0], [40]], dtype=torch.int32)),
        r"position_ids\[1, 0\] is 40, expected 0..39",
    ),
    "one state row twice": (
        lambda s: s.arguments(0, 1, state_slot_mapping=torch.tensor([[3], [3]])),
        "state_slot_mapping has the row 3 twice",
    ),
    "a state row beyond the pool": (
        lambda s: s.arguments(0, 1, state_slot_mapping=torch.tensor([[520], [3]])),
        r"state_slot_mapping\[0, 0\] is 520",
    ),
    "one cache row twice": (
        lambda s: s.arguments(3, 1, cmp_slot_mapping=torch.tensor([[9], [9]])),
        "cmp_slot_mapping has the row 9 twice",
    ),
    "a cache row beyond the pool": (
        lambda s: s.arguments(3, 1, cmp_slot_mapping=torch.tensor([[512], [3]])),
        r"cmp_slot_mapping\[0\] is 512",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_rejects(what):
    change, message = CHANGES[what]
    stream = Stream("decode_compressor_ratio4")
    with pytest.raises(GoldenInputError, match=f"^decode_compressor_ratio4: {message}"):
        golden(stream.op)(**change(stream), rms_eps=EPS)


# Rows 13 and 14 of 2.2, 3.2 and 4.2: the fixtures' default slots, B = 8, S = 1.
SLOT_VECTORS = {
    "decode_compressor_ratio4": (
        [-1, -1, 8192, 12289, 16415, -1, 24639, 28799],
        [132, 260, 523, 787, 1167, 1428, 1815, 2071],
    ),
    "decode_compressor_ratio128": (
        [-1, 4480, -1, 12673, -1, -1, -1, 29056],
        [24, 871, 1432, 1767, 2079, 2642, 3096, 3943],
    ),
    "decode_indexer_compressor": (
        [-1, -1, 16384, 24577, 32799, -1, 49215, 57471],
        [132, 260, 523, 787, 1167, 1428, 1815, 2071],
    ),
}


@pytest.mark.parametrize("op", COMPRESSORS)
def test_slots_of_the_reference_fixture(op):
    loaded = load_op(op, "flash")
    compressed, state = SLOT_VECTORS[op]
    assert loaded.input(SLOTS[op], "reference_fixture").flatten().tolist() == compressed
    assert loaded.input(STATE_SLOTS[op], "reference_fixture").flatten().tolist() == state
