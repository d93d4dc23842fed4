"""lm_head: properties of contracts/dense.md, 10.8."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from property_testing import BOTH, assert_near, assert_same, by_column, holds, leaky, mixed, scaled, shifted

from specs.errors import SpecError
from specs.registry import load_op

H, W = "hidden_states", "lm_head_weight"


def by_token(outputs, inputs):
    """A row of logits depends on where it stands."""
    rows = 1 + torch.arange(outputs["logits"].shape[1], dtype=torch.float32)
    return {"logits": outputs["logits"] * rows.reshape(1, -1, 1)}


def shard(trial, rank):
    """The columns of one shard."""
    width = trial[W].shape[1]
    return slice(rank * width, (rank + 1) * width)


def a_rank(trial):
    return trial.data.draw(st.integers(0, trial[H].shape[0] - 1), label="rank")


@holds("lm_head", on=BOTH, spoil=shifted)
def test_negating_the_rows_negates_the_logits(trial):
    assert_same(trial.run(hidden_states=-trial[H])["logits"], -trial.run()["logits"], zero_sign=False)


@holds("lm_head", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_the_rows_is_one_in_the_logits(trial):
    factor = trial.power_of_two()
    assert_same(trial.run(hidden_states=trial[H] * factor)["logits"], trial.run()["logits"] * factor)


@holds("lm_head", on=BOTH, spoil=shifted)
def test_a_zero_row_has_zero_logits(trial):
    assert bool((trial.run(hidden_states=torch.zeros_like(trial[H]))["logits"] == 0).all())


@holds("lm_head", on=BOTH, spoil=scaled)
def test_a_one_hot_row_returns_a_column_of_the_weight(trial):
    ranks, tokens, width = trial[H].shape
    generator = torch.Generator().manual_seed(trial.data.draw(st.integers(0, 999), label="columns"))
    columns = torch.randint(0, width, (ranks, tokens), generator=generator)
    one_hot = torch.nn.functional.one_hot(columns, width).to(torch.bfloat16)
    expected = trial[W].reshape(-1, width).float().t()[columns]
    assert_same(trial.run(hidden_states=one_hot)["logits"], expected, zero_sign=False)


@holds("lm_head", on=BOTH, spoil=mixed)
def test_the_rows_of_a_rank_are_its_own(trial):
    rank = a_rank(trial)
    hidden = trial[H].clone()
    hidden[rank] = hidden[rank] * -3 + 1
    changed, plain = trial.run(hidden_states=hidden)["logits"], trial.run()["logits"]
    others = [r for r in range(len(hidden)) if r != rank]
    assert_same(changed[others], plain[others])
    assert not torch.equal(changed[rank], plain[rank])


def leaks_between_columns(outputs, inputs):
    logits = outputs["logits"]
    return {"logits": logits + logits.sum(dim=2, keepdim=True)}


@holds("lm_head", on=BOTH, spoil=leaks_between_columns)
def test_a_shard_has_columns_of_its_own(trial):
    rank = a_rank(trial)
    weight = trial[W].clone()
    weight[rank] = weight[rank] * -3 + 1
    changed, plain = trial.run(lm_head_weight=weight)["logits"], trial.run()["logits"]
    columns = shard(trial, rank)
    elsewhere = torch.ones(plain.shape[2], dtype=torch.bool)
    elsewhere[columns] = False
    assert_same(changed[..., elsewhere], plain[..., elsewhere])


@holds("lm_head", on=BOTH, spoil=by_column)
def test_permuting_the_vocabulary_permutes_columns(trial):
    ranks, width, _ = trial[W].shape
    order = trial.permutation(ranks * width)
    weight = trial[W].reshape(ranks * width, -1)[order].reshape(trial[W].shape).contiguous()
    assert_same(trial.run(lm_head_weight=weight)["logits"], trial.run()["logits"][..., order], zero_sign=False)


@holds("lm_head", on=BOTH, spoil=by_token)
def test_permuting_tokens_permutes_logits(trial):
    order = trial.permutation(trial[H].shape[1])
    permuted = trial.run(hidden_states=trial[H][:, order].contiguous())
    assert_same(permuted["logits"], trial.run()["logits"][:, order], zero_sign=False)


def by_rank(outputs, inputs):
    """Logits depend on how many ranks there are."""
    return {"logits": outputs["logits"] + inputs[H].shape[0]}


@holds("lm_head", on=BOTH, spoil=by_rank, keep=("tp_size",))
def test_more_shards_give_the_same_logits(trial):
    """Two ranks and their rows against four or eight, whose rows are copies of those of the two."""
    ranks, _, width = trial[H].shape
    more = trial.data.draw(st.sampled_from((4, 8)), label="ranks")
    config, deployment = trial.op.config, trial.op.deployment
    try:
        wider = load_op(
            "lm_head",
            tp_size=more,
            tokens=deployment.tokens,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )
    except SpecError:  # a vocabulary that so many ranks cannot share
        assume(False)
    found = trial.run(
        wider,
        hidden_states=trial[H].repeat(more // ranks, 1, 1),
        lm_head_weight=trial[W].reshape(more, -1, width),
    )["logits"]
    assert_same(found, trial.run()["logits"].repeat(more // ranks, 1, 1))


@holds("lm_head", on=BOTH, spoil=leaky)
def test_disjoint_parts_of_the_rows_add_up(trial):
    """Up to FP32 rounding of three sums, in any order: bounded by D units of the sum of magnitudes."""
    part = torch.arange(trial[H].shape[2]) % 3 == 0
    one, other = trial[H].clone(), trial[H].clone()
    one[..., ~part], other[..., part] = 0, 0
    added = trial.run(hidden_states=one)["logits"].double() + trial.run(hidden_states=other)["logits"].double()
    weight = trial[W].reshape(-1, trial[W].shape[2]).double()
    bound = 3 * 2.0**-24 * trial[H].shape[2] * (trial[H].double().abs() @ weight.abs().t())
    assert_near(trial.run()["logits"], added, atol=bound)
