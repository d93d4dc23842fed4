"""qkv_proj_rope: properties of contracts/dense.md, 7.8."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from property_testing import BOTH, assert_near, assert_same, by_row, golden, holds, leaky, mixed, scaled, shifted

from goldens.numerics.rope import rotate_pairs

X, COS, SIN = "x", "rope_cos", "rope_sin"
REAL = ("attention_base", "attention_compressed")
"""Cases of real rotary tables, consecutive positions, and tokens far above RMS_EPS."""
ORDINARY = ("default", *REAL, "no_rotation", "quarter_turn", "half_read")
"""Cases whose projections are far above RMS_EPS and the quantiser's floor."""
FLOOR = 1e-4
TABLE = 0.0055
"""How far cos^2 + sin^2 of two BF16 numbers may be from 1 (5.4)."""


def sizes(trial):
    """(heads, lanes of a head, lanes that do not rotate)."""
    head_dim, rope_dim = trial["wkv"].shape[1], trial[COS].shape[1]
    return trial["wq_b"].shape[1] // head_dim, head_dim, head_dim - rope_dim


def cancelled(output):
    """4e-6 of a row's RMS, as in the comparators of section 3."""
    return 4e-6 * output.double().square().mean(dim=-1, keepdim=True).sqrt()


def unrotated(trial):
    """Rotary rows that turn nothing."""
    return {COS: torch.ones_like(trial[COS]), SIN: torch.zeros_like(trial[SIN])}


def angles(trial):
    """Cosines and sines [T, 1, ROPE_DIM/2] in FP64."""
    half = trial[COS].shape[1] // 2
    return tuple(trial[name][:, None, :half].double() for name in (COS, SIN))


def rotary_lanes(trial, outputs):
    """The rotary lanes of all heads and of kv, [T, H + 1, ROPE_DIM] in FP64."""
    plain = sizes(trial)[2]
    return torch.cat([outputs["q"][..., plain:], outputs["kv"][:, None, plain:]], dim=1).double()


def energies(lanes):
    """Squared lengths of the rotary pairs."""
    return lanes.unflatten(-1, (-1, 2)).square().sum(dim=-1)


def same_codes(found, plain):
    """Tokens whose codes are all equal: a code at a tie may legally flip, and moves all of q."""
    assert int((found["qr"].int() - plain["qr"].int()).abs().max()) <= 1
    return (found["qr"] == plain["qr"]).all(dim=1)


@holds("qkv_proj_rope", on=BOTH, spoil=shifted)
def test_negating_x_negates_everything_but_the_scale(trial):
    found, plain = trial.run(x=-trial[X]), trial.run()
    for name in ("q", "kv", "qr"):
        assert_same(found[name], -plain[name], zero_sign=False)
    assert_same(found["qr_scale"], plain["qr_scale"])


@holds("qkv_proj_rope", on=BOTH, spoil=by_row)
def test_permuting_tokens_permutes_every_output(trial):
    order = trial.permutation(len(trial[X]))
    found = trial.run(**{name: trial[name][order].contiguous() for name in (X, COS, SIN)})
    for name, output in trial.run().items():
        assert_same(found[name], output[order])


@holds("qkv_proj_rope", on=BOTH, spoil=mixed)
def test_a_token_does_not_depend_on_the_others(trial):
    changed = {name: trial[name].clone() for name in (X, COS, SIN)}
    for value in changed.values():
        value[1:] = torch.flip(value[1:], dims=(1,)) * 3 + 1
    found = trial.run(**changed)
    for name, output in trial.run().items():
        assert_same(found[name][0], output[0])


@holds("qkv_proj_rope", on=BOTH, spoil=mixed, without=("magnitude",))
def test_nan_stays_in_its_row(trial):
    assume(len(trial[X]) > 1)
    x = trial[X].clone()
    x[0, 3] = torch.nan
    found = trial.run(x=x)
    for name, output in trial.run().items():
        assert_same(found[name][1:], output[1:])


def by_head(outputs, inputs):
    heads = 1 + torch.arange(outputs["q"].shape[1]).reshape(1, -1, 1)
    return {**outputs, "q": outputs["q"] * heads}


@holds("qkv_proj_rope", on=BOTH, spoil=by_head)
def test_permuting_heads_permutes_q(trial):
    heads, head_dim, _ = sizes(trial)
    order = trial.permutation(heads)
    columns = torch.arange(heads * head_dim).reshape(heads, head_dim)[order].flatten()
    found = trial.run(wq_b=trial["wq_b"][:, columns].contiguous(), wq_b_scale=trial["wq_b_scale"][columns])
    assert_same(found["q"], trial.run()["q"][:, order])


@holds("qkv_proj_rope", on=BOTH, spoil=leaky)
def test_the_second_half_of_the_rotary_rows_counts_for_nothing(trial):
    half = trial[COS].shape[1] // 2
    changed = {name: trial[name].clone() for name in (COS, SIN)}
    for value in changed.values():
        value[:, half:] = 7.0
    found = trial.run(**changed)
    for name, output in trial.run().items():
        assert_same(found[name], output)


@holds("qkv_proj_rope", on=BOTH, spoil=shifted)
def test_a_power_of_two_in_the_query_gamma_goes_to_the_scale(trial):
    factor = trial.power_of_two()
    largest = trial.stages()["low_rank_norm"].abs().amax(dim=1)
    kept = largest * min(1.0, factor) > FLOOR
    assume(bool(kept.any()))
    found, plain = trial.run(gamma_cq=trial["gamma_cq"] * factor), trial.run()
    assert_same(found["qr"][kept], plain["qr"][kept])
    assert_same(found["qr_scale"][kept], (plain["qr_scale"] * factor)[kept])
    assert_same(found["kv"], plain["kv"])


def lanes_are_positive(outputs, inputs):
    return {**outputs, "q": outputs["q"].abs() + 1}


@holds("qkv_proj_rope", on=BOTH, spoil=lanes_are_positive)
def test_negating_a_plain_column_negates_its_lane(trial):
    heads, head_dim, plain_lanes = sizes(trial)
    head = trial.data.draw(st.integers(0, heads - 1), label="head")
    lane = trial.data.draw(st.integers(0, plain_lanes - 1), label="lane")
    wq_b = trial["wq_b"].clone()
    wq_b[:, head * head_dim + lane] *= -1
    expected = trial.run()["q"].clone()
    expected[:, head, lane] *= -1
    assert_same(trial.run(wq_b=wq_b)["q"], expected, zero_sign=False)


@holds("qkv_proj_rope", on=BOTH, spoil=leaky, names=ORDINARY, keep=("rms_norm_eps",))
def test_a_power_of_two_upstream_of_the_head_norm_leaves_q(trial):
    """On x, gamma_cq or the column scales. The mean squares' share of RMS_EPS moves, at most by all of it."""
    name = trial.data.draw(st.sampled_from((X, "gamma_cq", "wq_b_scale")), label="where")
    factor = max(power := trial.power_of_two(), 1 / power)
    found, plain = trial.run(**{name: trial[name] * factor}), trial.run()
    kept = same_codes(found, plain)
    assume(bool(kept.any()))
    eps = trial.op.config.rms_norm_eps
    mean_square = trial.stages()["q_heads"].double().square().mean(dim=2, keepdim=True)
    q = plain["q"].double()
    share = 0.5 * eps / mean_square * torch.maximum(q.abs(), pair_length(trial, q))
    assert_near(found["q"][kept], plain["q"][kept], ulp=1, atol=(share + cancelled(q))[kept])


def pair_length(trial, q):
    """For rotary lanes the length of their pair, 0 for the others: a lane may vanish, its pair does not."""
    plain = sizes(trial)[2]
    lengths = torch.zeros_like(q)
    lengths[..., plain:] = energies(q[..., plain:]).sqrt().repeat_interleave(2, dim=-1)
    return lengths


def lanes_differ(outputs, inputs):
    lanes = 1 + torch.arange(outputs["kv"].shape[1])
    return {**outputs, "q": outputs["q"] * lanes, "kv": outputs["kv"] * lanes}


@holds("qkv_proj_rope", on=BOTH, spoil=lanes_differ)
def test_without_a_rotation_rotary_lanes_are_like_any_other(trial):
    """With cos 1 and sin 0 the lanes of a head permute as the columns do, across the border of the rotary ones."""
    heads, head_dim, _ = sizes(trial)
    order = trial.permutation(head_dim)
    columns = (torch.arange(heads).unsqueeze(1) * head_dim + order).flatten()
    found = trial.run(
        **unrotated(trial),
        wq_b=trial["wq_b"][:, columns].contiguous(),
        wq_b_scale=trial["wq_b_scale"][columns],
        wkv=trial["wkv"][:, order].contiguous(),
        gamma_ckv=trial["gamma_ckv"][order],
    )
    plain = trial.run(**unrotated(trial))
    for name in ("q", "kv"):
        assert_near(found[name], plain[name][..., order], ulp=1)
    for name in ("qr", "qr_scale"):
        assert_same(found[name], plain[name])


@holds("qkv_proj_rope", on=BOTH, spoil=scaled, names=REAL, keep=("rms_norm_eps",))
def test_the_energy_of_a_head_is_its_width(trial):
    """1e-3 of the contract's 512 lanes, on narrower heads the error of the table and of BF16 in full."""
    outputs = trial.run()
    width = sizes(trial)[1]
    energy = outputs["q"].double().square().sum(dim=2) / width
    eps = trial.op.config.rms_norm_eps / trial.stages()["q_heads"].double().square().mean(dim=2)
    assert bool(((energy - 1).abs() <= 1e-3 * (512 / width) + 2.0**-8 + eps).all())


def pairs_are_stretched(outputs, inputs):
    grown = {name: outputs[name].clone() for name in ("q", "kv")}
    for value in grown.values():
        value[..., -2] *= 1.25
    return {**outputs, **grown} if not bool((inputs[COS] == 1).all()) else outputs


@holds("qkv_proj_rope", on=BOTH, spoil=pairs_are_stretched, names=REAL)
def test_a_rotation_keeps_the_energy_of_every_pair(trial):
    """But for the table, and twice the 2^-8 of a BF16 lane in either energy."""
    turned = energies(rotary_lanes(trial, trial.run()))
    still = energies(rotary_lanes(trial, trial.run(**unrotated(trial))))
    assert_near(turned, still, rtol=TABLE + 4.1 * 2.0**-8)


@holds("qkv_proj_rope", on=BOTH, spoil=pairs_are_stretched, names=REAL)
def test_turning_back_restores_the_pair(trial):
    """The output turned by minus its angle, in FP64, against the lanes that were never turned."""
    cos, sin = angles(trial)
    still = rotary_lanes(trial, trial.run(**unrotated(trial)))
    back = rotate_pairs(rotary_lanes(trial, trial.run()), cos, -sin)
    length = energies(still).sqrt().repeat_interleave(2, dim=-1)
    assert_near(back, still, atol=(TABLE + 2.1 * 2.0**-8) * length)


@holds("qkv_proj_rope", on=BOTH, spoil=by_row, names=REAL)
def test_scores_depend_on_the_distance_of_positions_alone(trial):
    """All tokens alike, at consecutive positions: q(m) . k(n) of one token pair is that of any other as far apart.

    A vector is off by 2^-8 of itself for its table row and as much for its own rounding; two in a score, two scores.
    """
    assume(len(trial[X]) > 2)
    outputs = trial.run(x=trial[X][:1].expand_as(trial[X]).contiguous())
    lanes = rotary_lanes(trial, outputs)
    query, key = lanes[:, :-1], lanes[:, -1]
    scores = torch.einsum("mhd,nd->hmn", query, key)
    length = query.norm(dim=2).t().unsqueeze(2) * key.norm(dim=1)
    for distance in (0, 1):
        line, size = (values.diagonal(distance, 1, 2) for values in (scores, length))
        assert_near(line, line[:, :1].expand_as(line), atol=2.0**-5 * size.amax(dim=1, keepdim=True))


@holds("qkv_proj_rope", on=BOTH, spoil=scaled)
def test_kv_of_a_representable_projection_is_its_rms_norm(trial):
    """One-hot tokens project to rows of wkv, which are BF16: their plain lanes are those of rms_norm."""
    rows = torch.arange(len(trial[X])) * 7 % trial[X].shape[1]
    one_hot = torch.nn.functional.one_hot(rows, trial[X].shape[1]).to(torch.bfloat16)
    normed = golden("rms_norm")(trial["wkv"][rows], trial["gamma_ckv"], rms_eps=trial.op.config.rms_norm_eps)
    plain = sizes(trial)[2]
    assert_near(trial.run(x=one_hot)["kv"][:, :plain], normed["x_normed"][:, :plain], ulp=1)


@holds("qkv_proj_rope", on=BOTH, spoil=shifted)
def test_a_row_of_zeros_has_zero_codes_and_the_scale_of_the_floor(trial):
    outputs = trial.run(x=torch.zeros_like(trial[X]))
    for name in ("q", "kv", "qr"):
        assert bool((outputs[name] == 0).all())
    assert_same(outputs["qr_scale"], torch.full_like(outputs["qr_scale"], 7.874015750530816e-07))
