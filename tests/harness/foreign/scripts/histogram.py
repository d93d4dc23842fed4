"""Counts per bin: every block counts its rows and adds to the shared counters, which an earlier task has cleared."""

import argparse

import pypto.language as pl
import torch
from golden import TensorSpec, run_jit

ROWS = 64
COLS = 128
TILE = 8
BINS = 16


@pl.jit
def histogram(x: pl.Tensor[[ROWS, COLS], pl.FP32], counts: pl.Out[pl.Tensor[[1, BINS], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="clear"):
        counts[0:1, 0:BINS] = pl.full([1, BINS], dtype=pl.FP32, value=0.0)
    for block in pl.spmd(ROWS // TILE):
        row = block * TILE
        tile = x[row : row + TILE, 0:COLS]
        mine = pl.full([1, BINS], dtype=pl.FP32, value=0.0)
        for label in pl.range(BINS):
            hits = pl.cmp(tile, pl.cast(label, pl.FP32), cmp_type=0)
            column = pl.reshape(pl.row_sum(hits), [1, TILE])
            number = pl.row_sum(column)
            pl.write(mine, [0, label], pl.read(number, [0, 0]))
        counts = pl.assemble(counts, mine, [0, 0], atomic=pl.AtomicType.Add)
    return counts


def golden_histogram(tensors):
    tensors["counts"][0] = torch.bincount(tensors["x"].flatten().long(), minlength=BINS).float()


def specs():
    return [
        TensorSpec("x", [ROWS, COLS], torch.float32, init_value=lambda: torch.randint(0, BINS, (ROWS, COLS))),
        TensorSpec("counts", [1, BINS], torch.float32, is_output=True),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", "--platform", default="a2a3")
    parser.add_argument("-d", "--device", type=int, default=0)
    args = parser.parse_args()
    result = run_jit(
        histogram,
        specs(),
        golden_fn=golden_histogram,
        runtime_cfg={"platform": args.platform, "device_id": args.device},
        rtol=0,
        atol=0,
        save_data=False,
    )
    if not result.passed:
        print(result.error)
        raise SystemExit(1)
