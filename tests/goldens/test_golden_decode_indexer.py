"""Golden of decode_indexer, contracts/decode_compressor_indexer.md, 5: against a plain evaluation per token, head and
row, in steps of any size, and beside the faults of the reference that it offers as variants.
"""

import numpy as np
import pytest
import torch
from decode_testing import EPS, NEG, Stream
from golden_testing import Draw, assert_same_bits, q8

from goldens.decode_indexer import decode_indexer
from goldens.errors import GoldenInputError
from goldens.numerics import paging
from harness.compare import topk_bad
from specs.registry import load_op

HEADS, LORA, WIDTH, LENGTH, TOPK, SCORE_LEN, OFFSET = 3, 24, 16, 60, 6, 20, 11
SCALE = 0.25


class Indexed(Stream):
    """A stream whose keys are scored: queries and head weights of every position."""

    def __init__(self, **changes):
        super().__init__("decode_indexer_compressor", length=LENGTH, width=WIDTH, **changes)
        draw = Draw(self.seed + 1)
        codes, scale = draw.tokens_i8(self.batch, LENGTH, LORA)
        self.qr, self.qr_scale = codes, scale
        self.wq_b = draw.integers(-127, 128, LORA, HEADS * WIDTH, dtype=torch.int8)
        self.wq_b_scale = draw.uniform(HEADS * WIDTH, low=5e-4, high=4e-3)
        self.weights_proj = draw.normal(self.x.shape[2], HEADS, dtype=torch.bfloat16)

    def scored(self, first, seq, taps=None, given=None, commit=None, **changes):
        """The outputs of a step; the state and the keys move on."""
        inner = self.arguments(first, seq)
        names = ("compress_state", "compress_state_block_table", "wkv", "wgate", "ape", "norm_w", "cos", "sin")
        arguments = {f"inner_{name}" if name in names else name: value for name, value in inner.items()}
        cos, sin = self.rope(inner["position_ids"].flatten())
        part = slice(first, first + seq)
        arguments |= {
            "qr": self.qr[:, part].reshape(-1, LORA),
            "qr_scale": self.qr_scale[:, part].reshape(-1, 1),
            "wq_b": self.wq_b,
            "wq_b_scale": self.wq_b_scale,
            "weights_proj": self.weights_proj,
            "cos": cos,
            "sin": sin,
            "idx_block_table": self.cache_table,
            "kv_seq_lens": torch.full((self.batch,), first + (seq if commit is None else commit), dtype=torch.int32),
            "offset": OFFSET,
        }
        parameters = {"rms_eps": EPS, "index_topk": TOPK, "weights_scale": SCALE, "score_len": SCORE_LEN}
        found = decode_indexer(**(arguments | parameters | changes), taps=taps, given=given)
        self.state, self.cache = found["inner_compress_state"], found["idx_kv_cache"]
        return found

    def all_scored(self, seq, **changes):
        """(score, topk_idxs) of every position, [B, LENGTH, SCORE_LEN] each."""
        steps = [self.scored(first, seq, **changes) for first in range(0, LENGTH, seq)]
        return tuple(torch.cat([step[name] for step in steps], dim=1) for name in ("score", "topk_idxs"))


def plain_scores(stream, taps, found, first, seq):
    """Steps 9 to 12 by scalar loops, in FP64 from the codes on: {(request, token, row): score}."""
    scores = {}
    cache = found["idx_kv_cache"].view(-1, WIDTH).float()
    codes = taps["q_codes"].view(stream.batch, seq, HEADS, WIDTH).long()
    scale, weight = (taps[n].view(stream.batch, seq, HEADS).double() for n in ("q_scale", "weights"))
    for b in range(stream.batch):
        for s in range(seq):
            for row in range((first + s + 1) // 4):
                page = int(stream.cache_table[b, row // 128])
                key, key_scale = q8(cache[page * 128 + row % 128].numpy())
                dots = [sum(int(k) * int(c) for k, c in zip(key, codes[b, s, h], strict=True)) for h in range(HEADS)]
                heads = [max(d * float(scale[b, s, h]), 0.0) * float(weight[b, s, h]) for h, d in enumerate(dots)]
                scores[b, s, row] = sum(heads) * float(key_scale)
    return scores


@pytest.mark.parametrize("seq", [1, 2, 4])
def test_scores_are_those_of_a_plain_evaluation(seq):
    stream = Indexed()
    for first in range(0, 40, seq):
        taps = {}
        found = stream.scored(first, seq, taps=taps)
    wanted = plain_scores(stream, taps, found, first, seq)
    assert len(wanted) == 2 * sum((first + s + 1) // 4 for s in range(seq))
    for place, score in wanted.items():
        assert abs(float(found["score"][place]) - score) <= 1e-6 * float(taps["envelope"][place])
    hidden = torch.ones_like(found["score"], dtype=torch.bool)
    for place in wanted:
        hidden[place] = False
    assert (found["score"][hidden] == NEG).all()


def test_queries_are_rotated_heads_times_the_matrix():
    """Steps 1 to 6 in FP64, but for the BF16 rounding of the rotated head."""
    stream, taps = Indexed(), {}
    stream.scored(0, 2)
    stream.scored(2, 2, taps=taps)
    qr = stream.qr[:, 2:4].reshape(-1, LORA).double() * stream.qr_scale[:, 2:4].reshape(-1, 1).double()
    heads = ((qr @ stream.wq_b.double()) * stream.wq_b_scale.double()).view(-1, HEADS, WIDTH)
    cos, sin = (t.double().unsqueeze(1) for t in stream.rope(torch.tensor([2, 3, 2, 3])))
    pairs = torch.view_as_complex(heads[..., -8:].reshape(4, HEADS, 4, 2)) * torch.complex(cos, sin)
    heads[..., -8:] = torch.view_as_real(pairs).flatten(2)
    np.testing.assert_allclose(taps["q_bf16"].double(), heads, rtol=2**-8, atol=1e-6)
    rotated = taps["q_bf16"].double() @ stream.hadamard.double()
    np.testing.assert_allclose(taps["q_rotated"], rotated, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(taps["q_codes"] * taps["q_scale"], rotated, atol=0.51 * float(taps["q_scale"].max()))
    weights = stream.x[:, 2:4].reshape(4, -1).double() @ stream.weights_proj.double() * SCALE
    np.testing.assert_allclose(taps["weights"], weights, rtol=1e-6, atol=1e-6)


def test_steps_of_any_size_give_the_same_scores_and_selection():
    """The model's rule: each token sees its own past, however many tokens come at once."""
    score, topk = Indexed().all_scored(1)
    for seq in (2, 4):
        found = Indexed().all_scored(seq)
        assert_same_bits(found[0], score)
        assert_same_bits(found[1], topk)


@pytest.mark.parametrize("variant", [{"visible_by": "request"}, {"query_rope": "request"}, {"inner_rope": "query"}])
def test_each_fault_of_the_reference_breaks_that(variant):
    right = Indexed().all_scored(1)
    wrong = Indexed().all_scored(2, **variant)
    assert not torch.equal(wrong[0], right[0])
    assert not torch.equal(wrong[1], right[1])


def test_visible_by_request_shows_a_token_the_future():
    """Fault 3: at positions 6, 7 the first token sees the group that only the second closes."""
    right, wrong = Indexed().decode(1, until=6), Indexed().decode(1, until=6)
    seen = right.scored(6, 2)["score"][:, 0] > NEG
    leaked = wrong.scored(6, 2, visible_by="request")["score"][:, 0] > NEG
    assert seen.sum(dim=1).tolist() == [1, 1]
    assert leaked.sum(dim=1).tolist() == [2, 2]


def test_the_fault_of_the_inner_rope_shows_with_single_tokens_too():
    """Fault 1: a key that closes at p = 3 mod 4 is rotated three positions too far."""
    right, wrong = Indexed(), Indexed()
    for first in range(8):
        kept, turned = right.scored(first, 1), wrong.scored(first, 1, inner_rope="query")
    difference = (turned["inner_kv"] - kept["inner_kv"])[:, 0].norm(dim=1) / kept["inner_kv"][:, 0].norm(dim=1)
    assert (difference > 0.05).all()


def test_with_single_tokens_the_other_two_variants_change_nothing():
    right = Indexed().all_scored(1)
    for variant in ({"visible_by": "request"}, {"query_rope": "request"}):
        found = Indexed().all_scored(1, **variant)
        assert_same_bits(found[0], right[0])


def test_committed_length_bounds_what_is_seen():
    """A speculative token sees no group that the committed length does not hold."""
    stream = Indexed().decode(1, until=6)
    found = stream.scored(6, 2, commit=1)
    assert (found["score"] > NEG).sum(dim=2).tolist() == [[1, 1], [1, 1]]


def test_the_selection_is_a_stable_descending_sort():
    stream = Indexed()
    for first in range(0, LENGTH, 2):
        found = stream.scored(first, 2)
    score, topk = found["score"].numpy(), found["topk_idxs"].numpy()
    for b, s in np.ndindex(2, 2):
        n = (LENGTH - 1 + s) // 4
        order = sorted(range(n), key=lambda row: (-score[b, s, row], row))
        assert n > TOPK
        assert topk[b, s].tolist() == [row + OFFSET for row in order[:TOPK]] + [-1] * (SCORE_LEN - TOPK)


def test_of_equal_scores_the_lower_index_comes_first():
    """All keys alike: one score everywhere but the newest."""
    stream = Indexed()
    stream.cache[:] = 0.5
    arguments = {"position_ids": torch.full((2, 1), 40, dtype=torch.int32)}
    slots = torch.full((2, 1), -1)
    found = stream.scored(40, 1, **arguments, idx_slot_mapping=slots, inner_state_slot_mapping=slots)
    assert found["topk_idxs"][0, 0, :TOPK].tolist() == list(range(OFFSET, OFFSET + TOPK))


def test_nothing_is_visible_at_first_and_the_step_still_writes():
    stream = Indexed()
    found = stream.scored(0, 2)
    assert (found["score"] == NEG).all()
    assert (found["topk_idxs"] == -1).all()
    assert (found["inner_compress_state"][..., -1] != NEG).sum() == 4


def test_the_key_of_this_step_competes():
    stream = Indexed().decode(1, until=3)
    found = stream.scored(3, 1)
    assert (found["score"][:, 0, 0] > NEG).all()
    assert found["topk_idxs"][:, 0, :2].tolist() == [[OFFSET, -1]] * 2


def test_rows_that_nobody_may_see_do_not_matter():
    stream, poisoned = Indexed().decode(1, until=30), Indexed().decode(1, until=30)
    keep = paging.flat_rows(torch.arange(7).expand(2, -1), stream.cache_table, 128).flatten()
    nan = torch.full_like(poisoned.cache.view(-1, WIDTH), torch.nan)
    nan[keep] = poisoned.cache.view(-1, WIDTH)[keep]
    poisoned.cache = nan.view(poisoned.cache.shape)
    wanted, found = stream.scored(30, 1), poisoned.scored(30, 1)
    assert_same_bits(found["score"], wanted["score"])
    assert_same_bits(found["topk_idxs"], wanted["topk_idxs"])


def test_rejects_a_hole_below_the_visible_length():
    stream = Indexed().decode(1, until=7)
    table = stream.cache_table.clone()
    table[1, 0] = -1
    with pytest.raises(GoldenInputError, match=r"^decode_indexer: idx_block_table\[1, 0\] names no page"):
        stream.scored(7, 1, idx_block_table=table)


def test_rejects_a_negative_offset():
    with pytest.raises(GoldenInputError, match=r"^decode_indexer: offset is -2, expected 0 or more"):
        Indexed().scored(0, 1, offset=-2)


def test_goes_on_from_given_stages():
    stream = Indexed().decode(1, until=39)
    state, cache = stream.state, stream.cache

    def again(**given):
        stream.state, stream.cache = state, cache
        taps = {}
        return stream.scored(39, 1, taps=taps, given=given), taps

    plain, taps = again()
    halved, _ = again(q_scale=taps["q_scale"] / 2)
    assert_same_bits(halved["score"][..., :10].contiguous(), plain["score"][..., :10] / 2)
    mirrored, _ = again(score=torch.where(plain["score"] == NEG, plain["score"], -plain["score"]))
    assert mirrored["topk_idxs"][0, 0, 0] == OFFSET + plain["score"][0, 0, :10].argmin()
    moved, _ = again(idx_kv_cache=plain["idx_kv_cache"] * 2)
    assert_same_bits(moved["score"][..., :10].contiguous(), plain["score"][..., :10] * 2)
    codes, _ = again(q_codes=torch.zeros_like(taps["q_codes"]))
    assert not codes["score"][..., :10].any()


def test_the_selection_stage_decides_what_may_be_chosen():
    """Any order among equals is right; a worse row, a row twice, one unseen and one in the padding are wrong."""
    stream = Indexed().decode(1, until=39)
    taps = {}
    topk = stream.scored(39, 1, taps=taps)["topk_idxs"]
    keys = taps["selection"]
    assert keys.shape[2] == OFFSET + SCORE_LEN

    def bad(ids):
        return topk_bad(ids.view(2, -1).long(), topk.view(2, -1).long(), keys.view(2, -1), 0.0).any()

    assert not bad(topk)
    changes = {"twice": (1, topk[0, 0, 0]), "unseen": (0, OFFSET + 10), "window": (0, 3), "padding": (TOPK, OFFSET)}
    for column, value in changes.values():
        wrong = topk.clone()
        wrong[0, 0, column] = value
        assert bad(wrong)
    bottom = topk.clone()
    bottom[..., :TOPK] = OFFSET + keys[..., OFFSET : OFFSET + 10].argsort(dim=2)[..., :TOPK]
    assert bad(bottom)
    keys[0, 0, topk[0, 0, 1].long()] = keys[0, 0, topk[0, 0, 0].long()]
    swapped = topk.clone()
    swapped[0, 0, :2] = topk[0, 0, :2].flip(0)
    assert not bad(swapped)


def test_what_the_reference_comparator_passes_is_no_selection_here():
    """5.5: at TINY the default case sees more rows than it selects, and fewer, in one batch."""
    op = load_op("decode_indexer")
    inputs, taps = op.inputs(), {}
    op.golden(inputs, taps=taps)
    visible = taps["visible"].flatten()
    assert (visible > op.config.index_topk).any()
    assert ((visible > 0) & (visible < op.config.index_topk)).any()
    assert (visible == 0).any()
