"""Inclusive prefix sum of a long vector: rows by a product with a triangular matrix, then a carry from row to row."""

import pypto.language as pl
import torch
from golden import TensorSpec, run_jit

N = 16384
LANE = 64
ROWS = N // LANE
ROW_TILE = 32
BLOCKS = ROWS // ROW_TILE


@pl.jit
def prefix_scan(
    x: pl.Tensor[[N], pl.FP32],
    tri: pl.Tensor[[LANE, LANE], pl.FP32],
    y: pl.Out[pl.Tensor[[N], pl.FP32]],
):
    x_rows = pl.reshape(x, [ROWS, LANE])
    y_rows = pl.reshape(y, [ROWS, LANE])
    local = pl.create_tensor([ROWS, LANE], dtype=pl.FP32)
    totals = pl.create_tensor([ROWS, 1], dtype=pl.FP32)
    carry = pl.create_tensor([ROWS, 1], dtype=pl.FP32)

    for blk in pl.spmd(BLOCKS, name_hint="scan_rows"):
        r0 = blk * ROW_TILE
        part = x_rows[r0 : r0 + ROW_TILE, 0:LANE]
        local_tile = pl.matmul(part, tri[0:LANE, 0:LANE], out_dtype=pl.FP32)
        local = pl.assemble(local, local_tile, [r0, 0])
        totals = pl.assemble(totals, pl.row_sum(x_rows[r0 : r0 + ROW_TILE, 0:LANE]), [r0, 0])

    with pl.at(level=pl.Level.CORE_GROUP, name_hint="scan_totals"):
        running = 0.0
        for r in pl.range(ROWS):
            pl.write(carry, [r, 0], running)
            running = running + pl.read(totals, [r, 0])

    for blk in pl.spmd(BLOCKS, name_hint="add_carry"):
        r0 = blk * ROW_TILE
        local_tile = local[r0 : r0 + ROW_TILE, 0:LANE]
        carry_tile = carry[r0 : r0 + ROW_TILE, 0:1]
        y_rows[r0 : r0 + ROW_TILE, 0:LANE] = pl.row_expand_add(local_tile, carry_tile)
    return y


def golden_fn(tensors):
    tensors["y"][:] = torch.cumsum(tensors["x"].double(), dim=0).float()


def build_tensor_specs():
    return [
        TensorSpec("x", [N], torch.float32, init_value=lambda: torch.randint(-8, 9, (N,)).float()),
        TensorSpec("tri", [LANE, LANE], torch.float32, init_value=lambda: torch.triu(torch.ones(LANE, LANE))),
        TensorSpec("y", [N], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3sim", choices=["a2a3", "a2a3sim", "a5", "a5sim"])
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()

    result = run_jit(
        fn=prefix_scan,
        specs=build_tensor_specs(),
        golden_fn=golden_fn,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=0.0,
        atol=0.0,
    )
    if not result.passed:
        if result.error:
            print(result.error)
        raise SystemExit(1)
