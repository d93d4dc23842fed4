"""Attention with online softmax over blocks of keys; the last block is partial. BF16 in and out, FP32 between."""

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

HEADS = 4
Q_LEN = 64
KV_LEN = 200
HEAD_DIM = 64
Q_TILE = 32
KV_TILE = 64
Q_BLOCKS = Q_LEN // Q_TILE
KV_BLOCKS = (KV_LEN + KV_TILE - 1) // KV_TILE
SCALE = HEAD_DIM**-0.5


@pl.jit
def flash_attention(
    q: pl.Tensor[[HEADS * Q_LEN, HEAD_DIM], pl.BF16],
    k: pl.Tensor[[HEADS * KV_LEN, HEAD_DIM], pl.BF16],
    v: pl.Tensor[[HEADS * KV_LEN, HEAD_DIM], pl.BF16],
    out: pl.Out[pl.Tensor[[HEADS * Q_LEN, HEAD_DIM], pl.BF16]],
):
    for blk in pl.spmd(HEADS * Q_BLOCKS, name_hint="flash"):
        head = blk // Q_BLOCKS
        q0 = blk * Q_TILE
        kv_base = head * KV_LEN
        q_tile = q[q0 : q0 + Q_TILE, 0:HEAD_DIM]

        m_init = pl.full([Q_TILE, 1], dtype=pl.FP32, value=-1.0e30)
        l_init = pl.full([Q_TILE, 1], dtype=pl.FP32, value=0.0)
        acc_init = pl.full([Q_TILE, HEAD_DIM], dtype=pl.FP32, value=0.0)
        for kb, (m, l_sum, acc) in pl.pipeline(KV_BLOCKS, stage=2, init_values=(m_init, l_init, acc_init)):
            k0 = kb * KV_TILE
            keys = pl.min(KV_TILE, KV_LEN - k0)
            k_tile = pl.slice(k, [KV_TILE, HEAD_DIM], [kv_base + k0, 0], valid_shape=[keys, HEAD_DIM])
            v_part = pl.slice(v, [KV_TILE, HEAD_DIM], [kv_base + k0, 0], valid_shape=[keys, HEAD_DIM])
            v_tile = pl.fillpad(v_part, pad_value=pl.PadValue.zero)

            s_raw = pl.matmul(q_tile, k_tile, b_trans=True, out_dtype=pl.FP32)
            s = pl.mul(s_raw, SCALE)
            m_new = pl.maximum(m, pl.row_max(s))
            alpha = pl.exp(pl.sub(m, m_new))
            p = pl.exp(pl.row_expand_sub(s, m_new))
            l_new = pl.add(pl.mul(l_sum, alpha), pl.row_sum(p))
            p_full = pl.fillpad(pl.cast(p, target_type=pl.BF16, mode="rint"), pad_value=pl.PadValue.zero)
            pv = pl.matmul(p_full, v_tile, out_dtype=pl.FP32)
            acc_new = pl.add(pl.row_expand_mul(acc, alpha), pv)
            _m_out, l_out, acc_out = pl.yield_(m_new, l_new, acc_new)

        o = pl.row_expand_div(acc_out, l_out)
        out[q0 : q0 + Q_TILE, 0:HEAD_DIM] = pl.cast(o, target_type=pl.BF16, mode="rint")
    return out


def golden_fn(tensors):
    q = tensors["q"].float().view(HEADS, Q_LEN, HEAD_DIM)
    k = tensors["k"].float().view(HEADS, KV_LEN, HEAD_DIM)
    v = tensors["v"].float().view(HEADS, KV_LEN, HEAD_DIM)
    p = torch.softmax(q @ k.transpose(1, 2) * SCALE, dim=-1)
    tensors["out"][:] = (p @ v).reshape(HEADS * Q_LEN, HEAD_DIM).to(torch.bfloat16)


def build_tensor_specs():
    return [
        TensorSpec("q", [HEADS * Q_LEN, HEAD_DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("k", [HEADS * KV_LEN, HEAD_DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("v", [HEADS * KV_LEN, HEAD_DIM], torch.bfloat16, init_value=torch.randn),
        TensorSpec("out", [HEADS * Q_LEN, HEAD_DIM], torch.bfloat16, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=flash_attention,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-2,
        atol=1e-2,
        compare_fn={"out": ratio_allclose(atol=2e-3, rtol=1.0 / 64)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
