"""Golden of gate: straight-line tokens, FP64 bounds, selection, and the facts of contracts/hc_gate_experts.md
3.
"""

import numpy as np
import pytest
import torch
from golden_testing import (
    F32,
    RMS_EPS,
    VOCAB,
    D,
    K,
    N,
    assert_same_bits,
    bf16,
    exact_dot,
    exact_sum,
    exp,
    gate_inputs,
    q8,
    run,
)  # fmt: skip

from goldens import gate
from goldens.errors import GoldenInputError

SCALING = 1.5
U = 2.0**-24


def score_of(logit):
    log1p = F32(np.log1p(np.float64(exp(-abs(logit)))))
    return np.sqrt(max(logit, F32(0)) + log1p)


def straight_line(x, w, gate_w, bias, table_row):
    """Section 3.3 for one active token in NumPy FP32 scalars; table_row is None in a score layer."""
    inv = F32(1) / np.sqrt(exact_sum([v * v for v in x]) * F32(1 / len(x)) + F32(RMS_EPS))
    norm = bf16([(v * inv) * g for v, g in zip(x, w, strict=True)])
    codes, scale = q8(norm)
    score = [score_of(exact_dot(norm, row)) for row in gate_w]
    biased = [s + b for s, b in zip(score, bias, strict=True)]
    best = sorted(range(len(biased)), key=lambda e: (-biased[e], e))[:K]
    ids = best if table_row is None else list(table_row)
    total = F32(0)
    for e in ids:
        total = total + score[e]
    return norm, codes, scale, ids, [(score[e] / total) * F32(SCALING) for e in ids]


@pytest.mark.parametrize("layer_id", [0, 10])
@pytest.mark.parametrize("seed", range(3))
def test_equals_straight_line_code(seed, layer_id):
    inputs = gate_inputs(seed, layer_id=layer_id)
    found = run("gate", inputs)
    tensors = inputs[0]
    w, gate_w, bias = (tensors[n].float().numpy() for n in ("norm_w", "gate_w", "gate_bias"))
    for t, x in enumerate(tensors["x_mixed"].float().numpy()):
        row = tensors["tid2eid"][tensors["input_ids"][t]].tolist() if layer_id == 0 else None
        norm, codes, scale, ids, weights = straight_line(x, w, gate_w, bias, row)
        assert_same_bits(found["x_norm"][t].float(), torch.from_numpy(norm))
        assert found["x_norm_i8"][t].tolist() == codes
        assert found["x_norm_scale"][t].item() == scale
        assert found["indices"][t].tolist() == ids
        assert found["weights"][t].tolist() == weights


def test_error_against_fp64():
    """x_norm is off by 2^-8 (BF16) and 7 u, relative, as in rms_norm; a logit by that of sum|n w|, plus u of
    itself. A score's relative error is at most 0.75 of its logit's (absolute) error, since the derivative of
    log sqrt softplus is at most 0.73, plus 4 u. A weight is off by twice the worst score, plus K + 1 u. Ids
    agree where FP64's gap at the cut is beyond both score errors.
    """
    inputs = gate_inputs(1, t=64)
    taps = {}
    found = run("gate", inputs, taps=taps)
    tensors = inputs[0]
    x, w, gate_w, bias = (tensors[n].double() for n in ("x_mixed", "norm_w", "gate_w", "gate_bias"))
    norm = x / (x.square().mean(1, keepdim=True) + RMS_EPS).sqrt() * w
    relative = 2.0**-8 + 7 * U
    assert ((found["x_norm"].double() - norm).abs() <= relative * norm.abs()).all()
    logits = norm @ gate_w.T
    delta = relative * (norm.abs() @ gate_w.abs().T) + U * logits.abs()
    assert ((taps["logits"].double() - logits).abs() <= delta).all()
    score = torch.nn.functional.softplus(logits, threshold=1e9).sqrt()
    ids = found["indices"].long()
    off = 0.75 * delta + 4 * U
    chosen = score.gather(1, ids)
    weights = chosen / chosen.sum(1, keepdim=True) * SCALING
    worst = off.gather(1, ids).amax(1, keepdim=True)
    assert ((found["weights"].double() - weights).abs() <= weights * (2.1 * worst + (K + 1) * U)).all()
    reach = (score * off).amax(1, keepdim=True) + U * (score + bias.abs()).amax(1, keepdim=True)
    cut = (score + bias).gather(1, ids).amin(1, keepdim=True)
    others = (score + bias).scatter(1, ids, -torch.inf)
    assert (others <= cut + 2 * reach).all()


def constant_rows(logits, t=1):
    """Inputs whose logits are exactly those given: x_norm is 1 everywhere, one column of gate_w carries
    them.
    """
    n = len(logits)
    tensors, parameters = gate_inputs(0, t=t, n=n)
    tensors |= {"x_mixed": torch.ones(t, D, dtype=torch.bfloat16), "norm_w": torch.ones(D, dtype=torch.bfloat16)}
    tensors |= {"gate_w": torch.zeros(n, D), "gate_bias": torch.zeros(n)}
    tensors["gate_w"][:, 0] = torch.tensor(logits)
    return tensors, parameters


@pytest.mark.parametrize("center", [30.0, 5.0, 0.0, -7.5, -12.0, -15.99, -16.3, -16.6, -18.0, -60.0, -85.0])
def test_score_is_accurate_for_every_logit(center):
    """The softplus tail: log(1 + e^l) is up to 41 % off at -16.6, and 0 below."""
    logits = [center + 0.05 * e for e in range(8)]
    taps = {}
    found = run("gate", constant_rows(logits), taps=taps)
    exact = np.array(logits, dtype=F32).astype(np.float64)
    assert taps["logits"][0].tolist() == exact.tolist()
    wanted = np.sqrt(np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact))))
    assert np.abs(taps["score"][0].numpy() / wanted - 1).max() < 4 * U
    shares = np.sort(wanted)[::-1][:K]
    assert np.abs(found["weights"][0].numpy() / (shares / shares.sum() * SCALING) - 1).max() < 12 * U


def test_logits_beyond_fp32_give_nan_weights_not_wrong_ones():
    """Below -104 every score underflows to 0 and 0 / 0 is NaN: reported, not hidden."""
    found = run("gate", constant_rows([-110.0] * 8))
    assert found["weights"].isnan().all()


@pytest.mark.parametrize("n", [8, 256, 384])
def test_ties_go_to_the_lower_id(n):
    logits = [0.0] * n
    logits[5] = 1.0
    assert run("gate", constant_rows(logits))["indices"][0].tolist() == [5, 0, 1, 2, 3, 4]


def test_bias_selects_and_never_weighs():
    inputs = gate_inputs(2, t=16)
    plain = run("gate", inputs)
    shifted = run("gate", inputs, gate_bias=inputs[0]["gate_bias"] + 4.0)
    assert torch.equal(shifted["indices"], plain["indices"])
    assert torch.equal(shifted["weights"], plain["weights"])
    bias = torch.zeros(N)
    bias[[3, 8, 9, 20, 21, 30]] = 100 + 2.0 ** torch.arange(6)
    forced = run("gate", inputs, gate_bias=bias)
    assert (forced["indices"] == torch.tensor([30, 21, 20, 9, 8, 3])).all()
    stronger = run("gate", inputs, gate_bias=bias * 8)
    assert torch.equal(stronger["weights"], forced["weights"])
    assert (forced["weights"].diff(dim=1) > 0).any()  # ordered by biased score, so weights need not descend


def test_minus_infinite_bias_excludes():
    inputs = gate_inputs(2, t=16)
    bias = torch.zeros(N)
    bias[K + 2 :] = -torch.inf
    assert (run("gate", inputs, gate_bias=bias)["indices"] < K + 2).all()


@pytest.mark.parametrize("seed", range(3))
def test_selection_is_the_best_in_order(seed):
    taps = {}
    found = run("gate", gate_inputs(seed, t=64), taps=taps)
    ids = found["indices"].long()
    assert all(len(set(row)) == K for row in ids.tolist())
    picked = taps["biased"].gather(1, ids)
    assert (picked.diff(dim=1) <= 0).all()
    assert (taps["biased"].scatter(1, ids, -torch.inf).amax(1) <= picked[:, -1]).all()
    assert (found["weights"] > 0).all()
    assert ((found["weights"].double().sum(1) - SCALING).abs() <= 5e-7 * SCALING).all()


def test_expert_permutation():
    inputs = gate_inputs(3, t=32)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    plain = run("gate", inputs)
    moved = {name: inputs[0][name][order] for name in ("gate_w", "gate_bias")}
    found = run("gate", inputs, **moved)
    assert torch.equal(order[found["indices"].long()], plain["indices"].long())
    assert_same_bits(found["weights"], plain["weights"])


@pytest.mark.parametrize(("layer_id", "hashed"), [(-1, True), (0, True), (2, True), (3, False), (42, False)])
def test_layers_below_the_number_of_hash_layers_look_up(layer_id, hashed):
    inputs = gate_inputs(4, t=16, layer_id=layer_id)
    tensors = inputs[0]
    looked_up = tensors["tid2eid"][tensors["input_ids"]]
    assert torch.equal(run("gate", inputs)["indices"], looked_up) == hashed


def test_hash_ids_ignore_everything_but_the_table():
    inputs = gate_inputs(5, t=16, layer_id=1)
    plain = run("gate", inputs)
    other = gate_inputs(6, t=16)[0]
    changed = run("gate", inputs, **{n: other[n] for n in ("x_mixed", "gate_w", "gate_bias", "norm_w")})
    assert torch.equal(changed["indices"], plain["indices"])
    assert not torch.equal(changed["weights"], plain["weights"])
    assert ((changed["weights"].double().sum(1) - SCALING).abs() <= 5e-7 * SCALING).all()


T = 24


@pytest.mark.parametrize("layer_id", [0, 10])
@pytest.mark.parametrize("num_tokens", [-3, 0, 1, 7, 8, 15, 16, 17, T, T + 5])
def test_inactive_tokens(num_tokens, layer_id):
    """Zeros where the contract says zero or undefined, the same bits as with all tokens active elsewhere."""
    active = min(max(num_tokens, 0), T)
    normed = min(T, (active + 15) // 16 * 16)
    inputs = gate_inputs(7, t=T, layer_id=layer_id, num_tokens=num_tokens)
    found, whole = run("gate", inputs), run("gate", inputs, num_tokens=T)
    for name, rows in (("x_norm", normed), ("x_norm_i8", normed)):
        assert_same_bits(found[name][:rows], whole[name][:rows])
        assert (found[name][rows:] == 0).all()
    for name in ("x_norm_scale", "indices", "weights"):
        assert_same_bits(found[name][:active], whole[name][:active])
        assert (found[name][active:] == 0).all()


def test_nan_in_inactive_rows_stays_where_the_device_norms():
    inputs = gate_inputs(8, t=T, num_tokens=3)
    x = inputs[0]["x_mixed"].clone()
    x[3:] = torch.nan
    taps, clean = {}, run("gate", inputs)
    found = run("gate", inputs, x_mixed=x, taps=taps)
    assert_same_bits(found["x_norm"][:3], clean["x_norm"][:3])
    assert found["x_norm"][3:16].isnan().all()
    assert (found["x_norm"][16:] == 0).all()
    for name in ("x_norm_scale", "indices", "weights"):
        assert_same_bits(found[name], clean[name])
    assert all(stage[16:].isfinite().all() for stage in taps.values())


def test_norm_weight_signs_and_powers_of_two():
    inputs = gate_inputs(9, t=16)
    plain = run("gate", inputs)
    turned = run("gate", inputs, norm_w=-inputs[0]["norm_w"])
    assert_same_bits(turned["x_norm"], -plain["x_norm"])
    assert torch.equal(turned["x_norm_i8"], -plain["x_norm_i8"])
    scaled = run("gate", inputs, norm_w=inputs[0]["norm_w"] * 16)
    assert_same_bits(scaled["x_norm"], plain["x_norm"] * 16)
    assert_same_bits(scaled["x_norm_scale"], plain["x_norm_scale"] * 16)
    assert torch.equal(scaled["x_norm_i8"], plain["x_norm_i8"])


def test_codes_reconstruct_the_norm():
    """Half a code, and the roundings of v * q, q and the scale: u each on up to 127 codes, with u = 2^-24."""
    found = run("gate", gate_inputs(10, t=64))
    scale = found["x_norm_scale"].double()
    error = (found["x_norm"].double() - found["x_norm_i8"].double() * scale).abs()
    assert (error <= scale * (0.5 + 3 * 127 * U)).all()
    assert (found["x_norm_i8"].short().abs().amax(1) == 127).all()


@pytest.mark.parametrize("num_tokens", [5, 1])
@pytest.mark.parametrize("token_id", [-1, VOCAB])
def test_rejects_token_id_outside_the_table_even_inactive(token_id, num_tokens):
    inputs = gate_inputs(layer_id=0, num_tokens=num_tokens)
    ids = inputs[0]["input_ids"].clone()
    ids[3] = token_id
    wanted = rf"^gate: input_ids\[3\] is {token_id}, expected 0\.\.{VOCAB - 1}$"
    with pytest.raises(GoldenInputError, match=wanted):
        run("gate", inputs, input_ids=ids)
    run("gate", inputs, input_ids=ids, layer_id=10)  # a score layer reads neither


@pytest.mark.parametrize("expert", [-1, N])
def test_rejects_expert_id_outside_in_a_row_in_use(expert):
    inputs = gate_inputs(layer_id=0)
    row = int(inputs[0]["input_ids"][2])
    table = inputs[0]["tid2eid"].clone()
    table[row, 4] = expert
    wanted = rf"^gate: tid2eid\[{row}, 4\] is {expert}, expected 0\.\.{N - 1}$"
    with pytest.raises(GoldenInputError, match=wanted):
        run("gate", inputs, tid2eid=table)
    run("gate", inputs, tid2eid=table, layer_id=10)


def test_rejects_an_expert_named_twice_by_an_active_token():
    inputs = gate_inputs(layer_id=0)
    ids = torch.tensor([0, 1, 2, 3, 4])
    table = inputs[0]["tid2eid"].clone()
    table[3, 5] = table[3, 0]
    twice = int(table[3, 0])
    wanted = rf"^gate: tid2eid\[3\] names expert {twice} twice \(active token 3\), expected distinct ids$"
    with pytest.raises(GoldenInputError, match=wanted):
        run("gate", inputs, tid2eid=table, input_ids=ids)


def test_accepts_an_expert_named_twice_where_nothing_uses_it():
    inputs = gate_inputs(layer_id=0)
    ids = torch.tensor([0, 1, 2, 3, 4])
    table = inputs[0]["tid2eid"].clone()
    table[3, 5] = table[3, 0]
    run("gate", inputs, tid2eid=table, input_ids=ids, num_tokens=3)  # an inactive token
    run("gate", inputs, tid2eid=table, input_ids=ids, layer_id=10)
    table[VOCAB - 1] = -7  # a row that no token names
    run("gate", inputs, tid2eid=table, input_ids=ids, num_tokens=3)


def test_rejects_more_ids_than_experts_and_scalars_that_are_none():
    inputs = gate_inputs()
    with pytest.raises(GoldenInputError, match="tid2eid has 6 ids per row, expected at most the 5 experts"):
        run("gate", inputs, gate_w=inputs[0]["gate_w"][:5], gate_bias=inputs[0]["gate_bias"][:5])
    with pytest.raises(GoldenInputError, match=r"gate: layer_id is 1\.5, expected an int"):
        run("gate", gate_inputs(), layer_id=1.5)
    with pytest.raises(GoldenInputError, match="gate: num_tokens is None, expected an int"):
        run("gate", gate_inputs(), num_tokens=None)


def test_goes_on_from_the_norm_of_a_device():
    """Codes, scores and weights follow the given rows; the norm itself is returned as given."""
    tensors, parameters = gate_inputs(0, layer_id=10)
    plain = run("gate", (tensors, parameters))
    shifted = plain["x_norm"].clone()
    shifted[0, :8] *= 2
    found = gate.gate(**tensors, **parameters, given={"x_norm": shifted})
    assert_same_bits(found["x_norm"], shifted)
    assert not torch.equal(found["weights"][0], plain["weights"][0])
    assert_same_bits(found["weights"][1:], plain["weights"][1:])


def test_goes_on_from_the_ids_of_a_device():
    tensors, parameters = gate_inputs(0, layer_id=10)
    plain = run("gate", (tensors, parameters))
    turned = plain["indices"].flip(1)
    found = gate.gate(**tensors, **parameters, given={"indices": turned})
    assert torch.equal(found["indices"], turned)
    assert torch.allclose(found["weights"], plain["weights"].flip(1), rtol=1e-6, atol=0)


def test_rejects_a_given_stage_of_another_dtype():
    tensors, parameters = gate_inputs(0)
    with pytest.raises(GoldenInputError, match="given x_norm has dtype float32"):
        gate.gate(**tensors, **parameters, given={"x_norm": tensors["x_mixed"].float()})
