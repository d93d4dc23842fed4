"""Transpose of an INT32 matrix whose number of rows is known at run time only; tail rows go by their valid region."""

import argparse

import pypto.language as pl
import torch
from golden import ScalarSpec, TensorSpec, run_jit

COLS = 64
TILE = 16
M = pl.dynamic("M")


@pl.jit
def transpose(
    x: pl.Tensor[[M, COLS], pl.INT32], limit: pl.Scalar[pl.INT32], y: pl.Out[pl.Tensor[[COLS, M], pl.INT32]]
):
    rows = pl.tensor.dim(x, 0)
    for block in pl.spmd((rows + TILE - 1) // TILE):
        row = block * TILE
        here = pl.min(rows - row, TILE)
        tile = pl.slice(x, [TILE, COLS], [row, 0], valid_shape=[here, COLS])
        capped = pl.minimum(tile, limit)
        turned = pl.transpose(capped, 0, 1)
        y = pl.assemble(y, turned, [0, row])
    return y


def golden_transpose(tensors):
    tensors["y"][:] = tensors["x"].clamp(max=tensors["limit"]).T


def specs(rows, limit):
    return [
        TensorSpec("x", [rows, COLS], torch.int32, init_value=lambda: torch.randint(-99, 99, (rows, COLS))),
        ScalarSpec("limit", torch.int32, limit),
        TensorSpec("y", [COLS, rows], torch.int32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()
    result = run_jit(
        transpose,
        specs(args.rows, args.limit),
        golden_fn=golden_transpose,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=0,
        atol=0,
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
