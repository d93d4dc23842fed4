"""Softmax over the rows of a matrix that fits no tile: online maximum and sum, then a second pass that scales."""

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

ROWS = 250
COLS = 1000
ROW_TILE = 16
COL_TILE = 512
ROW_BLOCKS = (ROWS + ROW_TILE - 1) // ROW_TILE
COL_BLOCKS = (COLS + COL_TILE - 1) // COL_TILE
NEG_LARGE = -3.0e38


@pl.jit
def softmax_rows(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
):
    for block in pl.spmd(ROW_BLOCKS, name_hint="softmax"):
        r0 = block * ROW_TILE
        rows = pl.min(ROW_TILE, ROWS - r0)

        m_init = pl.full([ROW_TILE, 1], dtype=pl.FP32, value=NEG_LARGE)
        l_init = pl.full([ROW_TILE, 1], dtype=pl.FP32, value=0.0)
        m = pl.set_validshape(m_init, rows, 1)
        l_sum = pl.set_validshape(l_init, rows, 1)
        for cb in pl.pipeline(COL_BLOCKS, stage=2):
            c0 = cb * COL_TILE
            cols = pl.min(COL_TILE, COLS - c0)
            part = pl.slice(x, [ROW_TILE, COL_TILE], [r0, c0], valid_shape=[rows, cols])
            m_new = pl.maximum(m, pl.row_max(part))
            scale = pl.exp(pl.sub(m, m_new))
            e = pl.exp(pl.row_expand_sub(part, m_new))
            l_sum = pl.add(pl.mul(l_sum, scale), pl.row_sum(e))
            m = m_new

        inv = pl.recip(l_sum)
        for cb in pl.pipeline(COL_BLOCKS, stage=2):
            c0 = cb * COL_TILE
            cols = pl.min(COL_TILE, COLS - c0)
            part = pl.slice(x, [ROW_TILE, COL_TILE], [r0, c0], valid_shape=[rows, cols])
            p = pl.row_expand_mul(pl.row_expand_expdif(part, m), inv)
            y = pl.assemble(y, p, [r0, c0])
    return y


def golden_fn(tensors):
    tensors["y"][:] = torch.softmax(tensors["x"], dim=-1)


def build_tensor_specs():
    return [
        TensorSpec("x", [ROWS, COLS], torch.float32, init_value=lambda: torch.randn(ROWS, COLS) * 4.0),
        TensorSpec("y", [ROWS, COLS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=softmax_rows,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=1e-5,
        atol=1e-5,
        compare_fn={"y": ratio_allclose(atol=1e-6, rtol=1e-4, max_error_ratio=0.0)},
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
