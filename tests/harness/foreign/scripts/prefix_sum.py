"""Inclusive prefix sums of rows: each chunk times a triangle of ones on the cube, plus what the row has so far."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, run_jit

ROWS = 32
COLS = 256
TILE = 16
CHUNK = 64


@pl.jit
def prefix_sum(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    triangle: pl.Tensor[[CHUNK, CHUNK], pl.FP32],
    y: pl.Out[pl.Tensor[[ROWS, COLS], pl.FP32]],
):
    for block in pl.spmd(ROWS // TILE):
        row = block * TILE
        before = pl.full([TILE, 1], dtype=pl.FP32, value=0.0)
        for c in pl.range(COLS // CHUNK):
            col = c * CHUNK
            inside = pl.matmul(
                x[row : row + TILE, col : col + CHUNK], triangle[0:CHUNK, 0:CHUNK], out_dtype=pl.FP32
            )
            y[row : row + TILE, col : col + CHUNK] = pl.row_expand_add(inside, before)
            before = pl.add(before, pl.row_sum(x[row : row + TILE, col : col + CHUNK]))
    return y


def golden_prefix_sum(tensors):
    tensors["y"][:] = tensors["x"].cumsum(dim=1)


def specs():
    """Small integers, so that every order of summation gives the same bits."""
    return [
        TensorSpec("x", [ROWS, COLS], torch.float32, init_value=lambda: torch.randint(-9, 10, (ROWS, COLS))),
        TensorSpec(
            "triangle", [CHUNK, CHUNK], torch.float32, init_value=lambda: torch.ones(CHUNK, CHUNK).triu()
        ),
        TensorSpec("y", [ROWS, COLS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        prefix_sum,
        specs(),
        golden_fn=golden_prefix_sum,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=0,
        atol=0,
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
