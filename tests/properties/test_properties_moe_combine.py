"""moe_combine: properties of contracts/moe_and_layers.md, 4.8. They hold bit for bit unless a test says otherwise."""

import torch
from hypothesis import strategies as st
from moe_situations import active, rank_order, situations
from property_testing import (
    BOTH,
    GOLDEN,
    assert_near,
    assert_same,
    by_column,
    by_row,
    golden,
    holds,
    leaky,
    scaled,
    shifted,
)

OP, OUT, BUFFER, KEYS = "moe_combine", "ffn_out", "routed_y_buf", "recv_r_route_out"
ANY = situations(OP)
PLAIN = situations(OP, without=("stale", "magnitude"))
FULL = situations(OP, tags=("default", "skew"))


def used(trial):
    """Bool [EP, N_LOCAL, RECV_MAX]: rows below the counts."""
    return torch.arange(trial[KEYS].shape[2]) < trial["recv_meta"].sum(1).unsqueeze(2)


def mask(trial):
    return active(trial["num_tokens"], trial["sh"].shape[1])


def turned_shares(trial, values):
    """Compact rows [EP, N_LOCAL, RECV_MAX, ...] with the rows of every source in the opposite order."""
    ends = trial["recv_meta"].cumsum(1)
    turned = values.clone()
    for rank, source, expert in (trial["recv_meta"] > 1).nonzero().tolist():
        end = int(ends[rank, source, expert])
        share = slice(end - int(trial["recv_meta"][rank, source, expert]), end)
        turned[rank, expert, share] = values[rank, expert, share].flip(0)
    return turned


@holds(OP, on=BOTH, spoil=leaky, among=ANY)
def test_packing_order_within_a_share_changes_nothing(trial):
    plain = trial.run()
    found = trial.run(recv_y=turned_shares(trial, trial["recv_y"]), **{KEYS: turned_shares(trial, trial[KEYS])})
    assert_same(found[BUFFER], plain[BUFFER])
    assert_same(found[OUT], plain[OUT])


@holds(OP, on=BOTH, spoil=by_column, among=ANY)
def test_every_row_comes_back_once(trial):
    """Rows that are numbered stand in the buffer, each number once."""
    rows = used(trial)
    numbers = torch.zeros(rows.shape)
    numbers[rows] = 1 + torch.arange(int(rows.sum())) % 256.0
    numbered = numbers.bfloat16().unsqueeze(3).expand(trial["recv_y"].shape).contiguous()
    found = trial.run(recv_y=numbered)[BUFFER]
    width = found.shape[1] // trial["sh"].shape[1]
    returned = found[mask(trial).repeat_interleave(width, dim=1)]
    assert returned.shape[0] == int(rows.sum())
    assert torch.equal(returned, returned[:, :1].expand_as(returned))
    assert returned[:, 0].float().sort().values.tolist() == numbers[rows].sort().values.tolist()


@holds(OP, on=BOTH, spoil=by_column, among=FULL)
def test_a_key_is_where_the_row_goes(trial):
    """Rows that hold their key hold the row's number in the buffer."""
    keys = trial[KEYS].clamp(min=0)
    high = (keys // 64).bfloat16().unsqueeze(3).expand(trial["recv_y"].shape).clone()
    high[..., 0] = (keys % 64).bfloat16()
    found = trial.run(recv_y=high)[BUFFER].float()
    number = torch.arange(found.shape[1])
    assert torch.equal(found[:, :, 0] + 64 * found[:, :, 1], number.float().expand(found.shape[:2]))


@holds(OP, on=BOTH, spoil=shifted, among=FULL)
def test_halving_all_rows_halves_what_is_added(trial):
    plain, half = trial.run(), trial.run(recv_y=trial["recv_y"] / 2)
    assert_same(half[BUFFER], plain[BUFFER] / 2)
    zero = torch.zeros_like(trial["sh"])
    assert_same(trial.run(recv_y=trial["recv_y"] / 2, sh=zero)[OUT], trial.run(sh=zero)[OUT] / 2)


@holds(OP, on=BOTH, spoil=scaled, among=ANY)
def test_zero_rows_leave_the_shared_output(trial):
    """-0 plus +0 is +0 in active rows."""
    found = trial.run(recv_y=torch.zeros_like(trial["recv_y"]))[OUT]
    assert_same(found, trial["sh"], zero_sign=False)
    assert not bool((found[mask(trial)].signbit() & (found[mask(trial)] == 0)).any())


@holds(OP, on=BOTH, spoil=by_row, among=FULL)
def test_inactive_rows_keep_the_bits_of_the_shared_output(trial):
    some = torch.full_like(trial["num_tokens"], 3)
    few = {"num_tokens": some, **dispatched(trial, some)}
    assert_same(trial.run(**few)[OUT][:, 3:], trial["sh"][:, 3:])


def dispatched(trial, num_tokens):
    """Keys and counts for other active tokens: routes beyond them leave, the others move up."""
    width = trial.op.config.num_experts_per_tok
    meta, keys = torch.zeros_like(trial["recv_meta"]), torch.full_like(trial[KEYS], -1)
    ends = trial["recv_meta"].cumsum(1)
    for rank, source, expert in trial["recv_meta"].nonzero().tolist():
        end = int(ends[rank, source, expert])
        old = trial[KEYS][rank, expert, end - int(trial["recv_meta"][rank, source, expert]) : end]
        kept = old[old < width * int(num_tokens[source])]
        start = int(meta[rank, :, expert].sum())
        keys[rank, expert, start : start + len(kept)] = kept
        meta[rank, source, expert] = len(kept)
    return {KEYS: keys, "recv_meta": meta}


@holds(OP, on=BOTH, spoil=leaky, among=ANY)
def test_what_lies_beyond_the_counts_does_not_matter(trial):
    beyond = ~used(trial)
    rows, keys = trial["recv_y"].clone(), trial[KEYS].clone()
    rows[beyond], keys[beyond] = torch.nan, 2**31 - 1
    plain, found = trial.run(), trial.run(recv_y=rows, **{KEYS: keys})
    for name in plain:
        assert_same(found[name], plain[name])


@holds(OP, on=BOTH, spoil=leaky, among=FULL)
def test_a_token_depends_on_its_own_rows_alone(trial):
    rank = trial.data.draw(st.integers(0, trial.op.world - 1), label="rank")
    token = trial.data.draw(st.integers(0, trial["sh"].shape[1] - 1), label="token")
    other = trial["sh"].clone()
    other[rank, token] += 1
    plain, found = trial.run(), trial.run(sh=other)
    rest = torch.ones(other.shape[:2], dtype=torch.bool)
    rest[rank, token] = False
    assert_same(found[OUT][rest], plain[OUT][rest])
    assert bool((found[OUT][rank, token] != plain[OUT][rank, token]).any())


@holds(OP, on=BOTH, spoil=leaky, among=FULL)
def test_token_counts_are_clamped(trial):
    plain = trial.run()
    found = trial.run(num_tokens=torch.full_like(trial["num_tokens"], 2**31 - 1))
    for name in plain:
        assert_same(found[name], plain[name])


def flooded(outputs, inputs):
    """NaN spreads to everything."""
    return {name: torch.full_like(output, torch.nan) for name, output in outputs.items()}


@holds(OP, on=GOLDEN, spoil=flooded, among=FULL)
def test_a_nan_poisons_one_token(trial):
    rows = trial["recv_y"].clone()
    rank, expert, row = used(trial).nonzero()[0].tolist()
    rows[rank, expert, row, 5] = torch.nan
    found = trial.run(recv_y=rows)[OUT]
    assert int(found.isnan().sum()) == 1
    assert bool(found[..., 5].isnan().any())


@holds(OP, on=GOLDEN, spoil=scaled, among=PLAIN)
def test_the_sum_is_that_of_fp64_up_to_its_roundings(trial):
    """K additions of FP32 and one rounding to BF16, relative to the sum of magnitudes."""
    outputs = trial.run()
    rows = outputs[BUFFER].double().unflatten(1, (trial["sh"].shape[1], -1))
    wanted = trial["sh"].double() + torch.where(mask(trial)[..., None], rows.sum(2), 0.0)
    magnitude = trial["sh"].double().abs() + rows.abs().sum(2)
    assert_near(outputs[OUT], wanted, rtol=2.0**-8, atol=rows.shape[2] * 2.0**-24 * magnitude)


@holds(OP, on=GOLDEN, spoil=by_row, among=FULL)
def test_returns_what_dispatch_sent_with_any_expert_between(trial):
    """4.8.1: a function of a row's own payload comes back to its token and choice, on every rank."""
    ranks, tokens, hidden = trial["sh"].shape
    local, rows = trial[KEYS].shape[1:]
    order, _ = rank_order(trial)
    generator = torch.Generator().manual_seed(int(order[0]))
    width = trial.op.config.num_experts_per_tok
    ids = torch.stack([torch.randperm(ranks * local, generator=generator)[:width] for _ in range(ranks * tokens)])
    codes = torch.randint(-127, 128, (ranks, tokens, hidden), generator=generator, dtype=torch.int8)
    weights = torch.rand(ranks, tokens, width, generator=generator)
    received = golden("moe_dispatch")(
        ids.view(ranks, tokens, width).int(),
        codes,
        torch.ones(ranks, tokens, 1),
        weights,
        trial["num_tokens"],
        n_local=local,
        recv_max=rows,
    )
    expert = torch.arange(1.0, 1 + ranks * local).view(ranks, local, 1, 1)
    payload = (received["recv_x_out"].float() * received["recv_w_out"].unsqueeze(3) * expert).bfloat16()
    found = trial.run(recv_y=payload, recv_meta=received["recv_meta"], **{KEYS: received[KEYS]})[BUFFER]
    chosen = 1.0 + ids.view(ranks, tokens, width, 1)
    wanted = (codes.float().unsqueeze(2) * weights.unsqueeze(3) * chosen).bfloat16().flatten(1, 2)
    assert_same(found, wanted)
