"""Seed #638, one token per request: its claims about QKV and attention, one test per row (moe_and_layers.md 15.3)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goldens.decode_sparse_attn_swa import decode_sparse_attn_swa
from goldens.errors import GoldenInputError
from harness.devices import get_device
from specs.registry import Op, load_op

SWA, QKV = "decode_sparse_attn_swa", "qkv_proj_rope"


def on_device(op: Op, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    device = get_device("emulator")
    return device.run(device.load(op.kernel, op.name, op.sizes, None), op, dict(inputs), 0).outputs


def same_bits(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))


def test_638_1_what_comes_before_attention_knows_no_requests() -> None:
    """qkv_proj_rope works on T tokens: (8, 1) and (4, 2) are the same op on the same inputs."""
    one, two = load_op(QKV, deployment="decode"), load_op(QKV, deployment="decode_mtp")
    inputs = one.inputs("attention_base")
    first, second = on_device(one, inputs), on_device(two, inputs)
    assert all(same_bits(first[name], second[name]) for name in first)
    wanted, also = one.golden(inputs), two.golden(inputs)
    assert all(same_bits(wanted[name], also[name]) for name in wanted)


def test_638_2_padding_rows_never_influence_real_rows() -> None:
    """Eight tokens are padded to a box of 16 rows. The same eight with eight rows of NaN behind them give the same."""
    narrow, wide = load_op(QKV), load_op(QKV, tokens=16)
    inputs = narrow.inputs("attention_base")
    poisoned = wide.inputs("attention_base") | {name: v for name, v in inputs.items() if v.shape[0] != 8}
    for name, value in inputs.items():
        if value.shape[0] == 8:
            poisoned[name] = torch.cat([value, torch.full_like(value, torch.nan)])
    found, wanted = on_device(wide, poisoned), on_device(narrow, inputs)
    for name in ("q", "kv", "qr", "qr_scale"):
        assert same_bits(found[name][:8], wanted[name])
    assert bool(found["kv"][8:].isnan().all())


def widened(inputs: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """The inputs of T single-token requests with more requests behind them, whose rows are large."""
    more = tokens - len(inputs["q"])
    out = dict(inputs)
    for name in ("q", "mtp_kv_overlay", "cmp_sparse_indices", "win_bias", "freqs_cos", "freqs_sin"):
        extra = inputs[name][:1].expand(more, *inputs[name].shape[1:])
        out[name] = torch.cat([inputs[name], extra * 100 if name == "mtp_kv_overlay" else extra]).contiguous()
    own = out["win_bias"][len(inputs["q"]) :]
    own[:, 128:] = -1e20
    token = torch.arange(min(more, 128 - len(inputs["q"])))
    own[token, 128 + len(inputs["q"]) + token] = 0.0
    first = inputs["ori_block_table"][:1].expand(more, -1)
    out["ori_block_table"] = torch.cat([inputs["ori_block_table"], first]).contiguous()
    stale = inputs["cmp_block_table"][:1].expand(more, -1)
    out["cmp_block_table"] = torch.cat([inputs["cmp_block_table"], stale]).contiguous()
    return out


@pytest.mark.parametrize("tokens", [16, 64, 127, 128])
def test_638_3_padded_columns_have_no_weight_for_any_t(tokens: int) -> None:
    """The overlay of T rows is zero-padded to 128; with T = 128 nothing is padded. The first tokens do not notice."""
    op = load_op(SWA)
    inputs = op.inputs("window_wrap")
    wanted = op.golden(inputs)["attn_out"]
    found = decode_sparse_attn_swa(**widened(inputs, tokens), **op.parameters)["attn_out"]
    assert len(found) == tokens
    assert same_bits(found[:8], wanted)


def test_638_3_more_tokens_than_the_tile_are_refused() -> None:
    op = load_op(SWA)
    with pytest.raises(GoldenInputError, match="q has 129 tokens, expected at most 128"):
        decode_sparse_attn_swa(**widened(op.inputs(), 129), **op.parameters)


def test_638_3_the_kernel_at_8_and_16_tokens() -> None:
    """112 padded rows instead of 120, and eight more rows of others: the first eight tokens keep their bits."""
    narrow, wide = load_op(SWA), load_op(SWA, tokens=16)
    inputs = narrow.inputs("window_wrap")
    more = widened(inputs, 16)
    for name in ("ori_kv", "cmp_kv"):
        more[name] = torch.cat([inputs[name], inputs[name]])
    found, wanted = on_device(wide, more)["attn_out"], on_device(narrow, inputs)["attn_out"]
    assert same_bits(found[:8], wanted)
