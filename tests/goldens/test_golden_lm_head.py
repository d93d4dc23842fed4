"""Golden of lm_head: straight-line sums, FP64 bound, rejected forms, facts of contracts/dense.md 10."""

import pytest
import torch
from golden_testing import VOCAB, D, assert_rejected, assert_same_bits, exact_dot, lm_head_inputs, run

from goldens import lm_head
from specs.registry import load_op

OP, OUT = "lm_head", "logits"


@pytest.mark.parametrize("tp", [2, 4])
def test_equals_straight_line_code(tp):
    tensors, _ = lm_head_inputs(tp, t=2, tp=tp)
    found = run(OP, lm_head_inputs(tp, t=2, tp=tp))[OUT]
    hidden, weight = (tensors[name].float().numpy() for name in ("hidden_states", "lm_head_weight"))
    for owner in range(tp):
        for t in range(2):
            wanted = [exact_dot(hidden[owner, t], weight[r, o]) for r in range(tp) for o in range(VOCAB)]
            assert found[owner, t].tolist() == wanted


def test_error_against_fp64():
    """One rounding: half a step, 2^-24 relative, of the exact sum; FP64's own sum is off by less than 2^-40."""
    tensors, _ = lm_head_inputs(1, t=30)
    found = run(OP, lm_head_inputs(1, t=30))[OUT].double()
    hidden, weight = (tensors[name].double() for name in ("hidden_states", "lm_head_weight"))
    wanted = torch.einsum("otk,rvk->otrv", hidden, weight).flatten(2)
    bound = 2.0**-24 * wanted.abs() + 2.0**-40
    assert ((found - wanted).abs() <= bound).all()
    assert ((found - wanted).abs() > bound / 2).any()


def test_the_vocabulary_may_be_sharded_over_any_world():
    """Rows of one owner: the same logits from 2, 4 and 8 shards, whatever their width."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 3, D, generator=draw).bfloat16()
    vocabulary = torch.randn(8 * 300, D, generator=draw).bfloat16()
    whole = [
        lm_head.lm_head(rows[:tp].contiguous(), vocabulary.view(tp, -1, D))[OUT][0] for tp in (2, 4, 8)
    ]  # 2400 ids: blocks of 256 and a shorter one
    assert_same_bits(whole[1], whole[0])
    assert_same_bits(whole[2], whole[0])


def tiny():
    inputs = load_op(OP, "tiny", "prefill").inputs()
    return inputs, lm_head.lm_head(**inputs)[OUT]


def test_accepts_another_order_of_the_sum():
    """32 tiles of K, one after the other in FP32: the device's order."""
    inputs, logits = tiny()
    hidden, weight = (inputs[name].float() for name in ("hidden_states", "lm_head_weight"))
    total = torch.zeros_like(logits)
    for k in range(0, 256, 8):
        total += torch.einsum("otk,rvk->otrv", hidden[..., k : k + 8], weight[..., k : k + 8]).flatten(2)
    assert_rejected(OP, OUT, total, logits, by=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rejects_logits_that_were_rounded(dtype):
    """The reference's 1e-3 passes both (10.5)."""
    _, logits = tiny()
    rounded = logits.to(dtype).float()
    assert torch.allclose(rounded, logits, atol=1e-3, rtol=1e-3)
    assert_rejected(OP, OUT, rounded, logits, by="limit")


def test_rejects_a_lost_column_exchanged_shards_and_exchanged_owners():
    inputs, logits = tiny()
    shorter = {name: value[..., :-1].contiguous() for name, value in inputs.items()}
    assert_rejected(OP, OUT, lm_head.lm_head(**shorter)[OUT], logits, by="limit")
    assert_rejected(OP, OUT, logits.unflatten(2, (2, -1)).flip(2).flatten(2), logits, by="limit")
    assert_rejected(OP, OUT, logits.flip(0), logits, by="limit")


def test_a_one_hot_row_reads_a_column_of_the_weight():
    tensors, _ = lm_head_inputs(2)
    hidden = torch.zeros_like(tensors["hidden_states"])
    hidden[1, 3, 7] = 1.0
    found = run(OP, lm_head_inputs(2), hidden_states=hidden)[OUT]
    assert_same_bits(found[1, 3], tensors["lm_head_weight"][..., 7].float().flatten())
    found[1, 3] = 0
    assert not found.any()


def test_signs_and_powers_of_two_are_exact():
    tensors, _ = lm_head_inputs(3)
    plain = run(OP, lm_head_inputs(3))[OUT]
    assert_same_bits(run(OP, lm_head_inputs(3), hidden_states=-tensors["hidden_states"])[OUT], -plain)
    assert_same_bits(run(OP, lm_head_inputs(3), hidden_states=tensors["hidden_states"] * 64)[OUT], plain * 64)


def test_owners_shards_rows_and_ids_are_independent():
    tensors, _ = lm_head_inputs(4, t=6)
    plain = run(OP, lm_head_inputs(4, t=6))[OUT]
    hidden, weight = tensors["hidden_states"].clone(), tensors["lm_head_weight"].clone()
    hidden[1] += 1
    found = run(OP, lm_head_inputs(4, t=6), hidden_states=hidden)[OUT]
    assert_same_bits(found[0], plain[0])
    assert (found[1] != plain[1]).any(dim=1).all()
    weight[0] += 1
    found = run(OP, lm_head_inputs(4, t=6), lm_head_weight=weight)[OUT]
    assert_same_bits(found[..., VOCAB:], plain[..., VOCAB:])
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    found = run(OP, lm_head_inputs(4, t=6), lm_head_weight=tensors["lm_head_weight"][:, order])[OUT]
    assert_same_bits(found[..., :VOCAB], plain[..., :VOCAB][..., order])
    few = run(OP, lm_head_inputs(4, t=6), hidden_states=tensors["hidden_states"][:, :2])[OUT]
    assert_same_bits(few, plain[:, :2])


def test_nan_stays_in_its_row_and_its_id():
    tensors, _ = lm_head_inputs(5)
    hidden, weight = tensors["hidden_states"].clone(), tensors["lm_head_weight"].clone()
    hidden[0, 2, 4], weight[1, 6, 4] = torch.nan, torch.nan
    found = run(OP, lm_head_inputs(5), hidden_states=hidden, lm_head_weight=weight)[OUT]
    wanted = torch.zeros_like(found, dtype=torch.bool)
    wanted[0, 2] = True
    wanted[..., VOCAB + 6] = True
    assert torch.equal(found.isnan(), wanted)


def test_cancellation_leaves_what_is_exact():
    """Products of 2^15 and -2^15 around one of 2^-20: FP32 sums lose it in any order but one."""
    hidden, weight = (torch.zeros(2, 1, D, dtype=torch.bfloat16) for _ in range(2))
    hidden[0, 0, :3] = torch.tensor([2.0**15, 2.0**-20, -(2.0**15)])
    weight[0, 0, :3] = 1.0
    assert lm_head.lm_head(hidden, weight)[OUT][0, 0].tolist() == [2.0**-20, 0.0]
