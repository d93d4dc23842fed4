"""Softmax of every row of a matrix, eight rows a block."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit

ROWS = 64
COLS = 128
TILE = 8


@pl.jit
def softmax_rows(x: pl.Tensor[[ROWS, COLS], pl.FP32], y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]]):
    for block in pl.spmd(ROWS // TILE):
        row = block * TILE
        tile = x[row : row + TILE, 0:COLS]
        shifted = pl.row_expand_sub(tile, pl.row_max(tile))
        weight = pl.exp(shifted)
        y[row : row + TILE, 0:COLS] = pl.row_expand_div(weight, pl.row_sum(weight))
    return y


def golden_softmax_rows(tensors):
    tensors["y"][:] = torch.softmax(tensors["x"].double(), dim=1).float()


def specs():
    return [
        TensorSpec("x", [ROWS, COLS], torch.float32, init_value=torch.randn),
        TensorSpec("y", [ROWS, COLS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        softmax_rows,
        specs(),
        golden_fn=golden_softmax_rows,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        compare_fn={"y": ratio_allclose(atol=1e-6, rtol=1e-5, max_error_ratio=0.0)},
        save_data=False,
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
