"""The K largest of every row with their columns: sort blocks of 32, merge the runs, split the pairs."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, ratio_allclose, run_jit, topk_pair_compare

ROWS = 4
COLS = 512
K = 16
PAIRS = 2 * COLS


@pl.jit
def topk_rows(
    x: pl.Tensor[[ROWS, COLS], pl.FP32],
    values: pl.Out[pl.Tensor[[ROWS, K], pl.FP32]],
    columns: pl.Out[pl.Tensor[[ROWS, K], pl.INT32]],
):
    for row in pl.spmd(ROWS):
        label = pl.arange(0, [1, COLS], dtype=pl.UINT32)
        runs = pl.sort32(x[row : row + 1, 0:COLS], label)
        fours = pl.mrgsort(runs, block_len=64)
        quarters = pl.mrgsort(fours, block_len=256)
        merged = pl.mrgsort(quarters[0:1, 0:COLS], quarters[0:1, COLS:PAIRS])
        best = merged[0:1, 0 : 2 * K]
        values[row : row + 1, 0:K] = pl.gather(best, mask_pattern=pl.tile.MaskPattern.P0101)
        columns[row : row + 1, 0:K] = pl.gather(
            best, mask_pattern=pl.tile.MaskPattern.P1010, output_dtype=pl.INT32
        )
    return values, columns


def golden_topk_rows(tensors):
    values, columns = torch.sort(tensors["x"], dim=1, descending=True, stable=True)
    tensors["values"][:] = values[:, :K]
    tensors["columns"][:] = columns[:, :K].int()


def specs():
    return [
        TensorSpec("x", [ROWS, COLS], torch.float32, init_value=torch.randn),
        TensorSpec("values", [ROWS, K], torch.float32, is_output=True),
        TensorSpec("columns", [ROWS, K], torch.int32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        topk_rows,
        specs(),
        golden_fn=golden_topk_rows,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        compare_fn={
            "values": ratio_allclose(atol=0, rtol=0, max_error_ratio=0.0),
            "columns": topk_pair_compare("values"),
        },
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
